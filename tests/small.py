"""What processor tests share: a small checkpoint without weights, messages, a picture, a video."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dg_mlx.config import ModelConfig

SPECIAL = """
    <pad> <eos> <bos> <unk> <mask> <|turn> <turn|> <|channel> <channel|> <|think|> <|tool> <tool|>
    <|tool_call> <tool_call|> <|tool_response> <tool_response|>
    <|image> <|image|> <image|> <|video|>
""".split()  # noqa: SIM905 - easier to read
QUOTE = '<|"|>'

TEMPLATE = """{{ bos_token }}{% if enable_thinking %}<|think|>{% endif %}
{%- for tool in tools or [] %}<|tool>{{ tool.function.name }}<tool|>{% endfor %}
{%- for message in messages %}<|turn>{{ message.role }}
{% if message.content is string %}{{ message.content | trim }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'text' %}{{ part.text | trim }}{% elif part.type == 'image' %}<|image|>
{%- endif %}{% endfor %}{% endif %}
{%- for call in message.tool_calls or [] %}[{{ call.function.arguments.items() | list }}]
{%- endfor %}<turn|>
{% endfor %}<|turn>model
"""


def tokenizer() -> PreTrainedTokenizerFast:
    """ASCII characters, "th", "▁th", and bytes for the rest: the layout of Gemma's tokenizer."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["\n", "▁", *letters, "th", "▁th"]
    texts = [*SPECIAL, QUOTE, *words, *(f"<0x{value:02X}>" for value in range(256))]
    model = models.BPE(
        {text: i for i, text in enumerate(texts)},
        [("t", "h"), ("▁", "th")],
        byte_fallback=True,
        fuse_unk=True,
        unk_token="<unk>",
    )
    raw = Tokenizer(model)
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_previous")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    raw.add_special_tokens([*SPECIAL, QUOTE])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )


def config(tok: Any, *, vision: bool = True) -> ModelConfig:
    """A config that fits the tokenizer; patches of 16 pixels, pooled 3 x 3."""
    rope = {"rope_type": "default", "rope_theta": 100.0}
    tower = {
        "model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
        "patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 32,
        "rope_parameters": rope, "rms_norm_eps": 1e-6, "standardize": True,
    }  # fmt: skip
    text = {
        "model_type": "diffusion_gemma_text", "vocab_size": len(tok), "hidden_size": 8,
        "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 8,
        "num_global_key_value_heads": 1, "layer_types": ["full_attention"], "sliding_window": 8,
        "rope_parameters": {
            "full_attention": {**rope, "rope_type": "proportional", "partial_rotary_factor": 0.25},
            "sliding_attention": rope,
        },
        "num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 8, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "use_bidirectional_attention": "vision",
    }  # fmt: skip
    return ModelConfig.from_dict(
        {
            "model_type": "diffusion_gemma",
            "text_config": text,
            "vision_config": tower if vision else None,
            "canvas_length": 8,
            "image_token_id": tok.convert_tokens_to_ids("<|image|>"),
            "boi_token_id": tok.convert_tokens_to_ids("<|image>"),
            "eoi_token_id": tok.convert_tokens_to_ids("<image|>"),
        }
    )


def save(folder: Path, **image_settings: Any) -> Path:
    """Write the tokenizer, and a processor_config.json when it has something to say."""
    tokenizer().save_pretrained(folder)
    if image_settings:
        settings = {"image_processor": image_settings}
        (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def user(*content: Any) -> list[dict[str, Any]]:
    plain = len(content) == 1 and not isinstance(content[0], dict)
    return [{"role": "user", "content": content[0] if plain else list(content)}]


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function",
            "function": {"name": "weather", "arguments": arguments}}  # fmt: skip


PICTURE = Image.fromarray(np.arange(48 * 96 * 3, dtype=np.uint8).reshape(48, 96, 3))
PART = {"type": "image", "image": PICTURE}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where"}},
                "required": ["city"],
            },
        },
    }
]
CALLS = {"role": "assistant", "tool_calls": [call({})]}


def video(path: Path) -> Path:
    """70 frames, one a second, without a stated frame count."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        for i in range(70):
            pixels = np.full((48, 96, 3), i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def check_media(processor: Any, prompt: Any) -> None:
    """Every picture has its soft tokens where it says, between the two brackets."""
    config, end = processor._config, 0
    for image in prompt.media.images:
        soft = prompt.ids[image.start : image.start + image.tokens]
        assert soft == [config.image_token_id] * image.tokens and image.start > end
        end = image.start + image.tokens
        assert (prompt.ids[image.start - 1], prompt.ids[end]) == (
            config.boi_token_id,
            config.eoi_token_id,
        )
