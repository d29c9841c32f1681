"""Build nano's tokenizer: the real special tokens, 256 bytes, one token per ASCII character.

What every declaration of a tool repeats is a token each, as it would be in a large vocabulary: a
prompt with three tools takes 130 tokens instead of 400.
"""

import argparse
import json
from pathlib import Path

SPECIALS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
    "<|image>",
    "<|image|>",
    "<image|>",
    "<|video|>",
    "<|audio>",
    "<|audio|>",
    "<audio|>",
)
_CHARACTERS_END = 384
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_CHARACTERS = ("\n", *map(chr, range(32, 127)))
_UNUSED = tuple(f"<unused{i}>" for i in range(_CHARACTERS_END - len(SPECIALS) - 256 - 96))
PHRASES = (
    "declaration:",
    "{description:",
    ",parameters:{properties:{",
    ":{type:",
    "}},type:",
    "STRING",
    "INTEGER",
    "OBJECT",
    "call:",
    "response:",
    "{value:",
    "Weather of a city",
    "a times b",
    "Set a timer",
)
TOKENS = (*SPECIALS, *_BYTES, *_CHARACTERS, *_UNUSED)
IDS = {token: index for index, token in enumerate((*TOKENS, *PHRASES))}
VOCAB_SIZE = len(IDS)


ROLES = {
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "boi_token": "<|image>",
    "eoa_token": "<audio|>",
    "eoc_token": "<channel|>",
    "eoi_token": "<image|>",
    "eot_token": "<turn|>",
    "escape_token": '<|"|>',
    "etc_token": "<tool_call|>",
    "etd_token": "<tool|>",
    "etr_token": "<tool_response|>",
    "image_token": "<|image|>",
    "soc_token": "<|channel>",
    "sot_token": "<|turn>",
    "stc_token": "<|tool_call>",
    "std_token": "<|tool>",
    "str_token": "<|tool_response>",
    "think_token": "<|think|>",
}  # the real tokenizer's names for its control tokens


def tokenizer_json() -> dict:
    """The contents of tokenizer.json: BPE without merges, bytes for what is not ASCII."""
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": IDS[token], "content": token, **added, "special": token in SPECIALS}
            for token in (*SPECIALS, *PHRASES)
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: IDS[token] for token in TOKENS},
            "merges": [],
        },
    }


def tokenizer_config() -> dict:
    """The contents of tokenizer_config.json, with the real checkpoint's field names."""
    return {
        "backend": "tokenizers",
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "extra_special_tokens": ["<|video|>"],
        "mask_token": "<mask>",
        "model_max_length": 131072,
        "model_specific_special_tokens": ROLES,
        "pad_token": "<pad>",
        "padding_side": "left",
        "tokenizer_class": "TokenizersBackend",
        "unk_token": "<unk>",
        **ROLES,
    }


def write(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    for name, value in (
        ("tokenizer.json", tokenizer_json()),
        ("tokenizer_config.json", dict(sorted(tokenizer_config().items()))),
    ):
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Parse the command line and write the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
