"""Random checkpoints, written by transformers itself or re-saved as the hub stores them.

Random, but sane: a chaotic model multiplies rounding errors at every step and proves nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import (
    DiffusionGemmaTextConfig,
)
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

torch.set_num_threads(1)

S, F = "sliding_attention", "full_attention"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes that vary between the test checkpoints."""

    hidden: int = 32
    dense: int = 24
    layers: tuple[str, ...] = (S, S, F)
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    global_kv_heads: int = 1
    global_head_dim: int = 16
    window: int = 8
    experts: int = 5
    top_k: int = 2
    expert_width: int = 12
    vocab: int = 101
    canvas: int = 8
    partial_rotary: float = 0.25
    vision_layers: int = 2
    vision_hidden: int = 24
    vision_heads: int = 3
    patch: int = 4
    table: int = 80
    self_conditioning: float = 0.3
    """Gain of the feedback; at 1 and above a random model is chaotic."""
    seed: int = 0

    @property
    def image_token(self) -> int:
        return self.vocab - 4

    @property
    def begin_image(self) -> int:
        return self.vocab - 3

    @property
    def end_image(self) -> int:
        return self.vocab - 2


SHAPES = {
    "window-shorter": Shape(),
    "window-longer": Shape(
        layers=(S, F), window=96, experts=3, top_k=1, canvas=12, partial_rotary=0.5, seed=1
    ),
    "seven-experts": Shape(
        hidden=48, heads=6, kv_heads=3, global_kv_heads=2, layers=(F, S, S, F), window=5,
        experts=7, top_k=3, expert_width=20, head_dim=12, global_head_dim=8, patch=8,
        self_conditioning=0.2, seed=2,
    ),
    "five-to-one": Shape(
        layers=(S, S, S, S, S, F), window=16, experts=4, top_k=4, head_dim=16,
        global_head_dim=32, global_kv_heads=2, canvas=16, partial_rotary=1.0,
        self_conditioning=0.03, seed=3,
    ),
}  # fmt: skip


def config(shape: Shape) -> DiffusionGemmaConfig:
    """The transformers config of a shape."""
    text = DiffusionGemmaTextConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.dense,
        num_hidden_layers=len(shape.layers),
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        num_global_key_value_heads=shape.global_kv_heads,
        head_dim=shape.head_dim,
        global_head_dim=shape.global_head_dim,
        max_position_embeddings=4096,
        sliding_window=shape.window,
        layer_types=list(shape.layers),
        num_experts=shape.experts,
        top_k_experts=shape.top_k,
        moe_intermediate_size=shape.expert_width,
        use_bidirectional_attention="vision",
        rope_parameters={
            S: {"rope_type": "default", "rope_theta": 10_000.0},
            F: {
                "rope_type": "proportional",
                "partial_rotary_factor": shape.partial_rotary,
                "rope_theta": 1_000_000.0,
            },
        },
    )
    vision = Gemma4VisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=shape.vision_hidden * 2,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        num_key_value_heads=shape.vision_heads,
        head_dim=shape.vision_hidden // shape.vision_heads,
        patch_size=shape.patch,
        position_embedding_size=shape.table,
        standardize=True,
    )
    return DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=shape.canvas,
        image_token_id=shape.image_token,
        boi_token_id=shape.begin_image,
        eoi_token_id=shape.end_image,
    )


def _uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(like.shape)


def _value(name: str, old: torch.Tensor, shape: Shape) -> torch.Tensor:
    """A sane random value for one tensor."""
    if name.endswith("layer_scalar"):
        return _uniform(old, 0.6, 1.1)
    if name.endswith("per_expert_scale"):
        return _uniform(old, 0.5, 1.5)
    if name.endswith("router.scale"):
        return _uniform(old, 0.5, 2.0)
    if name.endswith("std_bias"):
        return torch.randn(old.shape)
    if name.endswith("std_scale"):
        return _uniform(old, 0.1, 0.5)
    if "norm" in name:
        # The scale of attention is 1, so small queries: hard attention is chaotic too.
        queries = "q_norm" in name
        return _uniform(old, 0.7, 1.3) * (1.5 / math.sqrt(old.shape[0]) if queries else 1.0)
    if name.endswith("embed_tokens.weight"):
        return torch.randn(old.shape) * 2.5 / math.sqrt(shape.hidden)
    if name.endswith("position_embedding_table"):
        return torch.randn(old.shape) * 0.5
    feedback = name.endswith("self_conditioning.down_proj.weight")
    scale = shape.self_conditioning if feedback else 1.0
    if name.endswith("router.proj.weight"):
        scale = math.sqrt(shape.hidden)
    return torch.randn(old.shape) * scale / math.sqrt(old.shape[-1])


def _persistent(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Everything a checkpoint stores, tied tensors once (under the decoder's name)."""
    stored = {}
    for name, tensor in model.state_dict().items():
        tied = name == "lm_head.weight" or (
            name.startswith("model.encoder.language_model.") and not name.endswith("layer_scalar")
        )
        if not tied:
            stored[name] = tensor
    return stored


def build(shape: Shape) -> DiffusionGemmaForBlockDiffusion:
    """A random model of this shape, in fp32, with transformers' default settings."""
    torch.manual_seed(shape.seed)
    model = DiffusionGemmaForBlockDiffusion(config(shape)).float().eval()
    with torch.no_grad():
        for name, tensor in _persistent(model).items():
            tensor.copy_(_value(name, tensor, shape))
    model.tie_weights()
    model.generation_config = DiffusionGemmaGenerationConfig(
        max_new_tokens=3 * shape.canvas,
        max_denoising_steps=48,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.1),
        t_min=0.4,
        t_max=0.8,
        stability_threshold=1,
        confidence_threshold=0.005,
        pad_token_id=0,
        eos_token_id=[1, 6],
    )
    return model


def save_transformers(model: DiffusionGemmaForBlockDiffusion, folder: Path) -> Path:
    """As `save_pretrained` writes it (`per_layer_config`)."""
    model.save_pretrained(folder)
    return folder


def hub_config(shape: Shape) -> dict[str, Any]:
    """`config.json` in the hub's spelling: `global_head_dim`, vision rope called "default"."""
    saved = config(shape).to_dict()
    text, vision = saved["text_config"], saved["vision_config"]
    text.pop("per_layer_config", None)
    text.update(
        global_head_dim=shape.global_head_dim,
        num_global_key_value_heads=shape.global_kv_heads,
        final_logit_softcapping=30.0,
    )
    vision.pop("per_layer_config", None)
    vision.update(
        global_head_dim=vision["head_dim"],
        rope_parameters={"rope_theta": 100.0, "rope_type": "default"},
    )
    return saved | {"dtype": "float32"}


def save_hub(
    model: DiffusionGemmaForBlockDiffusion,
    shape: Shape,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
) -> Path:
    """As the hub stores it: one copy of every tied tensor, `global_head_dim`, shards."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.detach().to(dtype).contiguous() for n, t in _persistent(model).items()}
    names = sorted(tensors)
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    if shards == 1:
        files = ["model.safetensors"]
    where = {name: files[i * shards // len(names)] for i, name in enumerate(names)}
    for file in files:
        part = {n: tensors[n] for n in names if where[n] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
    if shards > 1:
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    saved = hub_config(shape) | {"dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(saved, indent=1))
    model.generation_config.save_pretrained(folder)
    return folder


def resized(shape: Shape, **changes: Any) -> Shape:
    """A copy of a shape with other sizes."""
    return dataclasses.replace(shape, **changes)
