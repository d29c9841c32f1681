"""Tiny random checkpoints in the hub's layout, made without torch.

The table of names and shapes is written out here on purpose: it is what the hub stores, and the
package must agree with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

S, F = "sliding_attention", "full_attention"
VOCAB, CANVAS, HIDDEN = 128, 8, 32
END = 1


def config(**text: Any) -> dict[str, Any]:
    """`config.json`; keyword arguments change its text part."""
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "canvas_length": CANVAS,
        "image_token_id": VOCAB - 4,
        "boi_token_id": VOCAB - 3,
        "eoi_token_id": VOCAB - 2,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "text_config": {
            "model_type": "diffusion_gemma_text",
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_global_key_value_heads": 1,
            "head_dim": 8,
            "global_head_dim": 16,
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": [S, S, F],
            "sliding_window": 16,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "final_logit_softcapping": 30.0,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
            "use_bidirectional_attention": "vision",
            "rope_parameters": {
                S: {"rope_type": "default", "rope_theta": 10000.0},
                F: {
                    "rope_type": "proportional",
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1000000.0,
                },
            },
            "tie_word_embeddings": True,
        }
        | text,
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "global_head_dim": 8,
            "hidden_activation": "gelu_pytorch_tanh",
            "patch_size": 4,
            "pooling_kernel_size": 3,
            "position_embedding_size": 32,
            "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
            "rms_norm_eps": 1e-6,
            "standardize": True,
            "use_clipped_linears": False,
        },
    }


SETTINGS = {
    "max_new_tokens": 24,
    "max_denoising_steps": 6,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "t_max": 0.8,
    "t_min": 0.4,
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
    "eos_token_id": [END],
    "pad_token_id": 0,
}


def shapes(data: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint with this `config.json`."""
    text, hidden = data["text_config"], data["text_config"]["hidden_size"]
    found: dict[str, tuple[int, ...]] = {
        "model.decoder.embed_tokens.weight": (text["vocab_size"], hidden),
        "model.decoder.norm.weight": (hidden,),
    }
    found |= _mlp("model.decoder.self_conditioning", hidden, text["intermediate_size"])
    found["model.decoder.self_conditioning.pre_norm.weight"] = (hidden,)
    for i in range(text["num_hidden_layers"]):
        layer = f"model.decoder.layers.{i}"
        found[f"model.encoder.language_model.layers.{i}.layer_scalar"] = (1,)
        found |= {f"{layer}.{name}": shape for name, shape in _layer(text, i).items()}
    if data["vision_config"] is not None:
        found |= _vision(data["vision_config"], hidden)
    return found


def _mlp(path: str, hidden: int, width: int, leaf: str = "weight") -> dict[str, tuple[int, ...]]:
    return {
        f"{path}.gate_proj.{leaf}": (width, hidden),
        f"{path}.up_proj.{leaf}": (width, hidden),
        f"{path}.down_proj.{leaf}": (hidden, width),
    }


def _layer(text: dict[str, Any], index: int) -> dict[str, tuple[int, ...]]:
    full = text["layer_types"][index] == F
    hidden, experts, width = text["hidden_size"], text["num_experts"], text["moe_intermediate_size"]
    size = text["global_head_dim"] if full else text["head_dim"]
    keys = size * (text["num_global_key_value_heads"] if full else text["num_key_value_heads"])
    queries = size * text["num_attention_heads"]
    norms = (
        "input_layernorm post_attention_layernorm pre_feedforward_layernorm "
        "pre_feedforward_layernorm_2 post_feedforward_layernorm post_feedforward_layernorm_1 "
        "post_feedforward_layernorm_2"
    )
    found = {f"{name}.weight": (hidden,) for name in norms.split()}
    found |= _mlp("mlp", hidden, text["intermediate_size"])
    found |= {
        "layer_scalar": (1,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "self_attn.q_norm.weight": (size,),
        "self_attn.k_norm.weight": (size,),
        "router.proj.weight": (experts, hidden),
        "router.scale": (hidden,),
        "router.per_expert_scale": (experts,),
        "experts.gate_up_proj": (experts, 2 * width, hidden),
        "experts.down_proj": (experts, hidden, width),
    }
    return found if full else found | {"self_attn.v_proj.weight": (keys, hidden)}


def _vision(vision: dict[str, Any], text_hidden: int) -> dict[str, tuple[int, ...]]:
    hidden, size = vision["hidden_size"], vision["head_dim"]
    tower = "model.encoder.vision_tower"
    found: dict[str, tuple[int, ...]] = {
        "model.encoder.embed_vision.embedding_projection.weight": (text_hidden, hidden),
        f"{tower}.patch_embedder.input_proj.weight": (hidden, 3 * vision["patch_size"] ** 2),
        f"{tower}.patch_embedder.position_embedding_table": (
            2,
            vision["position_embedding_size"],
            hidden,
        ),
        f"{tower}.std_bias": (hidden,),
        f"{tower}.std_scale": (hidden,),
    }
    for i in range(vision["num_hidden_layers"]):
        layer = f"{tower}.encoder.layers.{i}"
        for name in ("input", "post_attention"):
            found[f"{layer}.{name}_layernorm.weight"] = (hidden,)
        for name in ("pre", "post"):
            found[f"{layer}.{name}_feedforward_layernorm.weight"] = (hidden,)
        found |= _mlp(f"{layer}.mlp", hidden, vision["intermediate_size"], "linear.weight")
        for name in "qk":
            found[f"{layer}.self_attn.{name}_norm.weight"] = (size,)
        for name in "qkvo":
            found[f"{layer}.self_attn.{name}_proj.linear.weight"] = (hidden, hidden)
    return found


def tensors(data: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Sane random values: a peaked but not chaotic model."""
    rng = np.random.default_rng(seed)

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith(("layer_scalar", "scale", "norm.weight", "_1.weight", "_2.weight")):
            return rng.uniform(0.7, 1.2, shape)
        gain = 2.5 if "embed_tokens" in name else 0.2 if "self_conditioning" in name else 1.0
        return rng.standard_normal(shape) * gain / np.sqrt(shape[-1])

    return {n: value(n, s).astype(np.float32) for n, s in sorted(shapes(data).items())}


def write(
    folder: Path,
    data: dict[str, Any] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    *,
    shards: int = 1,
) -> Path:
    """A checkpoint folder, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    data = config() if data is None else data
    arrays = tensors(data) if arrays is None else arrays
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "generation_config.json").write_text(json.dumps(SETTINGS))
    names = sorted(arrays)
    if shards == 1:
        save_file(arrays, folder / "model.safetensors")
        return folder
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    where = {name: files[i * shards // len(names)] for i, name in enumerate(names)}
    for file in files:
        save_file({n: arrays[n] for n in names if where[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_tokenizer(folder: Path, vocab: int = VOCAB) -> Path:
    """One token per character, special tokens first and the picture's ones near the end."""
    images = {"<|image|>": vocab - 4, "<|image>": vocab - 3, "<image|>": vocab - 2}
    special = {"<pad>": 0, "<eos>": END, "<bos>": 2, "<unk>": 3, **images}
    taken = set(special.values())
    characters = [*range(32, 127), *range(0x391, 0x3A2), *range(0x3B1, 0x3CA)]
    free = [i for i in range(vocab) if i not in taken]
    table = special | {chr(c): i for c, i in zip(characters, free, strict=False)}
    table |= {f"<unused{i}>": i for i in free[len(characters) :]}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, index in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "."},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": table, "unk_token": "<unk>"},
    }
    template = (
        "<bos>{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}<|image|>"
        "{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
        "chat_template": template,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
