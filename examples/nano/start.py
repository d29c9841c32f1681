"""Write the checkpoint that nano's training starts from: config, tokenizer, template, weights.

    python start.py FOLDER                      # random weights
    python start.py FOLDER --from dg_mlx/nano   # those of another nano, as far as it has them
    python start.py FOLDER --text               # without a vision tower

Weights are random where there are none to take: new tokens, say, or a vision tower.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tokenizer
from numpy.typing import NDArray
from tokenizer import IDS, VOCAB_SIZE

import dg_mlx

PACKAGE = Path(dg_mlx.__file__).parent / "nano"
CANVAS = 112
S, F = "sliding_attention", "full_attention"
PIXELS, POOL, TOKENS = 6, 2, 70
"""A patch's side, patches to a soft token's side, and most soft tokens of a picture."""

Tensors = dict[str, NDArray[np.float32]]


def _text() -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": IDS["<bos>"],
        "dtype": "bfloat16",
        "eos_token_id": IDS["<eos>"],
        "final_logit_softcapping": 30.0,
        "global_head_dim": 64,
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "layer_types": [S, S, F, S, S, F],
        "max_position_embeddings": 131072,
        "model_type": "diffusion_gemma_text",
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "pad_token_id": IDS["<pad>"],
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            F: {"partial_rotary_factor": 0.25, "rope_theta": 1e4, "rope_type": "proportional"},
            S: {"rope_theta": 100.0, "rope_type": "default"},
        },
        "sliding_window": 128,
        "tie_word_embeddings": True,
        "top_k_experts": 2,
        "use_bidirectional_attention": "vision",
        "vocab_size": VOCAB_SIZE,
    }


def _vision() -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "default_output_length": TOKENS,
        "dtype": "bfloat16",
        "global_head_dim": 16,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 160,
        "max_position_embeddings": 131072,
        "model_type": "gemma4_vision",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "patch_size": PIXELS,
        "pooling_kernel_size": POOL,
        "position_embedding_size": 256,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        "standardize": False,
        "use_clipped_linears": False,
    }


def config() -> dict[str, Any]:
    """The contents of config.json, keys spelled as in the published checkpoint."""
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "boi_token_id": IDS["<|image>"],
        "canvas_length": CANVAS,
        "dtype": "bfloat16",
        "eoi_token_id": IDS["<image|>"],
        "eos_token_id": [IDS["<eos>"], IDS["<turn|>"]],
        "image_token_id": IDS["<|image|>"],
        "initializer_range": 0.02,
        "model_type": "diffusion_gemma",
        "text_config": _text(),
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
        "vision_config": _vision(),
        "vision_soft_tokens_per_image": TOKENS,
    }


def generation_config() -> dict[str, Any]:
    """The contents of generation_config.json: the published sampler, nano's lengths and ids."""
    return {
        "confidence_threshold": 0.005,
        "eos_token_id": [IDS["<eos>"], IDS["<turn|>"], IDS["<|tool_response>"]],
        "max_denoising_steps": 48,
        "max_new_tokens": CANVAS,
        "pad_token_id": IDS["<pad>"],
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
        "stability_threshold": 1,
        "t_max": 0.8,
        "t_min": 0.4,
        "transformers_version": "5.23.0",
    }


def processor_config() -> dict[str, Any]:
    """The contents of processor_config.json: pictures and frames of at most 70 soft tokens."""
    image = {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "max_soft_tokens": TOKENS,
        "patch_size": PIXELS,
        "pooling_kernel_size": POOL,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    return {
        "image_processor": {
            "image_processor_type": "Gemma4ImageProcessor",
            "image_seq_length": TOKENS,
            **image,
        },
        "image_seq_length": TOKENS,
        "processor_class": "Gemma4Processor",
        "video_processor": {
            "do_sample_frames": True,
            "num_frames": 32,
            "return_metadata": False,
            "video_processor_type": "Gemma4VideoProcessor",
            **image,
        },
    }


def tensors(shape: dict[str, Any], seed: int, known: Tensors) -> Tensors:
    """Weights by name: the known ones, random where there are none.

    Queries and keys are normed to less than 1, since attention has scale 1.
    """
    # Imported here: MLX is loaded only where weights are made.
    from mlx.utils import tree_flatten

    from dg_mlx import weights
    from dg_mlx.backends import Backend
    from dg_mlx.config import ModelConfig
    from dg_mlx.model import DiffusionGemma

    model = DiffusionGemma(ModelConfig.from_dict(shape), Backend())
    rng, found = np.random.default_rng(seed), {}
    for module_name, array in tree_flatten(model.parameters()):
        value = _random(rng, module_name, tuple(array.shape))
        bare = module_name.removesuffix(".weight")
        name = bare if weights.module_name(bare) == module_name else module_name
        if name in known:
            value[tuple(slice(n) for n in known[name].shape)] = known[name]
        found[name] = value
    return found


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if len(shape) == 1:
        norm = "q_norm" in name or "k_norm" in name
        return np.full(shape, 0.65 if norm else 1.0, np.float32)
    gain = 0.3 if "self_conditioning.down" in name else 2.0 if "embed_tokens" in name else 1.0
    return rng.standard_normal(shape, np.float32) * np.float32(gain / shape[-1] ** 0.5)


def write(folder: Path, seed: int, source: Path | None, *, text: bool) -> None:
    """Write the checkpoint's folder."""
    import mlx.core as mx

    known: Tensors = {}
    if source is not None:
        stored = mx.load(str(source / "model.safetensors"))
        known = {n: np.array(a.astype(mx.float32)) for n, a in stored.items()}
    folder.mkdir(parents=True, exist_ok=True)
    shape = config() | ({"vision_config": None} if text else {})
    arrays = {n: mx.array(a).astype(mx.bfloat16) for n, a in tensors(shape, seed, known).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "pt"})
    tokenizer.write(folder)
    shutil.copyfile(PACKAGE / "chat_template.jinja", folder / "chat_template.jinja")
    files = {"config": shape, "generation_config": generation_config()}
    if not text:
        files["processor_config"] = processor_config()
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--from", dest="source", type=Path, help="a folder with nano's weights")
    parser.add_argument("--text", action="store_true", help="without a vision tower")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.folder, options.seed, options.source, text=options.text)


if __name__ == "__main__":
    main()
