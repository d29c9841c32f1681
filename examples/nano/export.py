"""Turn training files into a checkpoint folder and check it against the reference class.

Run `python export.py RUN/weights-*.pt FOLDER`: several files, such as the last four, are averaged.
"""

import argparse
import json
import os
from pathlib import Path

import chats
import model
import sudoku
import tokenizer
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizer import IDS
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

TINY_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
TINY_VISION |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}


def config() -> dict:
    """The contents of config.json, keys spelled as in the published checkpoint."""
    kinds = [
        "full_attention" if i in model.FULL else "sliding_attention" for i in range(model.LAYERS)
    ]
    full = {"partial_rotary_factor": model.PARTIAL, "rope_theta": model.THETA[True]}
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": IDS["<bos>"],
        "dtype": "bfloat16",
        "eos_token_id": IDS["<eos>"],
        "final_logit_softcapping": model.SOFT_CAP,
        "global_head_dim": model.HEAD_DIM[True],
        "head_dim": model.HEAD_DIM[False],
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": model.HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": model.DENSE,
        "layer_types": kinds,
        "max_position_embeddings": 131072,
        "model_type": "diffusion_gemma_text",
        "moe_intermediate_size": model.EXPERT,
        "num_attention_heads": model.HEADS,
        "num_experts": model.EXPERTS,
        "num_global_key_value_heads": model.KV_HEADS[True],
        "num_hidden_layers": model.LAYERS,
        "num_key_value_heads": model.KV_HEADS[False],
        "pad_token_id": IDS["<pad>"],
        "rms_norm_eps": model.EPS,
        "rope_parameters": {
            "full_attention": full | {"rope_type": "proportional"},
            "sliding_attention": {"rope_theta": model.THETA[False], "rope_type": "default"},
        },
        "sliding_window": model.WINDOW,
        "tie_word_embeddings": True,
        "top_k_experts": model.TOP_K,
        "use_bidirectional_attention": "vision",
        "vocab_size": model.VOCAB,
    }
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "boi_token_id": IDS["<|image>"],
        "canvas_length": model.CANVAS,
        "dtype": "bfloat16",
        "eoi_token_id": IDS["<image|>"],
        "eos_token_id": [IDS["<eos>"], IDS["<turn|>"]],
        "image_token_id": IDS["<|image|>"],
        "initializer_range": 0.02,
        "model_type": "diffusion_gemma",
        "text_config": text,
        "tie_word_embeddings": True,
        "transformers_version": transformers.__version__,
        "vision_config": None,
    }


def generation_config() -> dict:
    """The contents of generation_config.json: the published sampler, nano's lengths and ids."""
    return {
        "confidence_threshold": 0.005,
        "eos_token_id": [IDS["<eos>"], IDS["<turn|>"], IDS["<|tool_response>"]],
        "max_denoising_steps": 48,
        "max_new_tokens": model.CANVAS,
        "pad_token_id": IDS["<pad>"],
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
        "stability_threshold": 1,
        "t_max": 0.8,
        "t_min": 0.4,
        "transformers_version": transformers.__version__,
    }


def reference(weights: model.Weights, dtype: torch.dtype) -> DiffusionGemmaForBlockDiffusion:
    """The reference class with `weights` and an unused minimal vision tower."""
    values = config() | {"vision_config": TINY_VISION}
    loaded = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**values)).to(dtype).eval()
    state = loaded.state_dict()
    missing = {name for name in state if "vision" not in name} - set(weights)
    shared = ("lm_head.weight", "model.encoder.language_model.")
    assert all(name.startswith(shared) for name in missing), sorted(missing)
    _, unexpected = loaded.load_state_dict(dict(weights), strict=False)
    assert not unexpected, unexpected
    loaded.tie_weights()
    loaded.generation_config = type(loaded.generation_config)(**generation_config())
    return loaded


def average(files: list[Path]) -> dict[str, Tensor]:
    """The mean of the weights in files of train.py."""
    loaded = [torch.load(path)["weights"] for path in files]
    return {name: sum(w[name] for w in loaded) / len(loaded) for name in loaded[0]}


@torch.no_grad()
def check(weights: model.Weights) -> float:
    """Largest logit difference between our functions and the reference class in fp32."""
    weights = {name: weight.float() for name, weight in weights.items()}
    theirs = reference(weights, torch.float32)
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for text in (chats.prompt(sudoku.make(9, 45, held_out=True)), "<bos>hi", "<bos>" + "ab" * 150):
        ids = torch.tensor([tokenizer.encode(text)])
        canvas = torch.randint(model.VOCAB, (1, model.CANVAS), generator=generator)
        cache, _ = model.encode(weights, ids)
        lengths = torch.tensor([ids.shape[1]])
        signal = torch.zeros(1, model.CANVAS, model.HIDDEN)
        first, _ = model.decode(weights, canvas, signal, lengths, cache)
        signal = model.soft_embedding(weights, first / 0.7)
        second, _ = model.decode(weights, canvas, signal, lengths, cache)
        for own, previous in ((first, None), (second, first / 0.7)):
            out = theirs(input_ids=ids, decoder_input_ids=canvas, self_conditioning_logits=previous)
            worst = max(worst, (out.logits - own).abs().max().item())
    return worst


def export(weights: model.Weights, folder: Path) -> None:
    """Write the checkpoint's files; the weights replace older ones in one step."""
    low: dict[str, Tensor] = {
        name: weights[name].detach().bfloat16().contiguous() for name in sorted(model.shapes())
    }
    folder.mkdir(parents=True, exist_ok=True)
    difference = check(low)
    assert difference < 1e-3, f"logits differ from the reference class by {difference}"
    temporary = folder / "model.safetensors.tmp"
    save_file(low, temporary, metadata={"format": "pt"})
    assert all(torch.equal(low[k], v) for k, v in load_file(temporary).items())
    temporary.chmod(0o644)
    os.replace(temporary, folder / "model.safetensors")
    tokenizer.write(folder)
    for name, value in (("config", config()), ("generation_config", generation_config())):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    print(f"{folder}: {sum(w.numel() for w in low.values())} parameters,", end=" ")
    print(f"logits within {difference:.1e} of the reference class")


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="weights of train.py")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    export(average(options.files), options.folder)


if __name__ == "__main__":
    main()
