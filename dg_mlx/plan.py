"""How many bytes a model, a context and a step take: arithmetic on a `ModelConfig`, nothing else.

Bytes of weights and cache are exact; those of a step, a prompt chunk and the vision tower are the
arrays that are alive together, which an allocator may exceed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from .config import ModelConfig, RopeConfig, TextConfig, VisionConfig

Recipe = Literal["bf16", "8bit", "4bit"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
"""bf16 as on the hub; 8bit: MLX's affine packing; 4bit: the experts at 4 bits, the rest at 8."""

GROUP_SIZE = 64
"""Weights that share one scale and one bias in the packed recipes."""

CHUNK = 2048
"""Prompt tokens that are prefilled together."""

SCORES_BYTES = 1 << 29
"""Most memory that one block of attention scores takes; the backends hold to it."""

LARGEST_PICTURE = 1120
"""Soft tokens of the largest size a picture may have."""

FP32 = 4
BF16 = 2

_Kind = Literal["experts", "layers", "edges", "plain"]

# Bits of each kind of matrix, as in MLX's conversions of the checkpoint; "plain" is not packed.
_BITS: dict[Recipe, dict[_Kind, int]] = {
    "bf16": {},
    "8bit": {"experts": 8, "layers": 8, "edges": 8},
    "4bit": {"experts": 4, "layers": 8, "edges": 4},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes of everything that is in memory while one answer is made."""

    weights: int
    cache: int
    """Keys and values of the context and of one canvas."""
    step: int
    """One denoising step besides those."""
    prefill: int
    """One chunk of the prompt, at the end of the context."""
    vision: int
    """The vision tower on one picture of the largest size; 0 without a tower."""

    @property
    def total(self) -> int:
        """The peak: steps, chunks and pictures do not overlap."""
        return self.weights + self.cache + max(self.step, self.prefill, self.vision)


def parameters(config: ModelConfig) -> int:
    """How many numbers the checkpoint holds."""
    return sum(count for count, _, _ in _tensors(config))


def weight_bytes(config: ModelConfig, recipe: Recipe) -> int:
    """Size of the checkpoint in one of the published recipes."""
    bits = _BITS[recipe]
    total = 0
    for count, inputs, kind in _tensors(config):
        if kind in bits and inputs % GROUP_SIZE == 0:
            total += count * bits[kind] // 8 + count // GROUP_SIZE * 2 * BF16
        else:
            total += count * BF16
    return total


def cache_bytes(config: ModelConfig, context: int, itemsize: int) -> int:
    """Keys and values after `context` tokens, with one canvas behind them.

    Sliding layers hold what their window reaches. Full-attention layers hold K and V in one entry.
    """
    text, canvas = config.text, config.canvas_length
    total = 0
    for layer in range(text.num_hidden_layers):
        heads, size = text.heads(layer)
        if text.is_full(layer):
            total += (context + canvas) * heads * (size + text.rotated_dims)
        else:
            total += (min(context, text.sliding_window - 1) + canvas) * heads * size * 2
    return total * itemsize


def step_bytes(config: ModelConfig, context: int, itemsize: int) -> int:
    """One denoising step: the vocabulary three times in fp32, and the widest layer."""
    logits = config.canvas_length * config.text.vocab_size
    # fp32 logits, scaled logits and one more pass over them, plus the self-conditioning kept.
    return logits * (3 * FP32 + itemsize) + _layer_bytes(
        config.text, config.canvas_length, context + config.canvas_length, itemsize
    )


def prefill_bytes(config: ModelConfig, context: int, itemsize: int, chunk: int = CHUNK) -> int:
    """One chunk at the end of the context: the widest layer, and a mask per type of layer."""
    tokens = min(chunk, context)
    window = min(context, config.text.sliding_window - 1 + tokens)
    return _layer_bytes(config.text, tokens, context, itemsize) + tokens * (context + window)


def vision_bytes(config: ModelConfig, soft_tokens: int, itemsize: int) -> int:
    """The vision tower on one picture of so many soft tokens."""
    vision = config.vision
    if vision is None:
        return 0
    patches = soft_tokens * vision.pooling_kernel_size**2
    width = (
        4 * vision.hidden_size
        + 4 * vision.num_attention_heads * vision.head_dim
        + 2 * vision.intermediate_size
    )
    scores = vision.num_attention_heads * patches * patches * itemsize
    return patches * width * itemsize + min(scores, SCORES_BYTES)


def plan(
    config: ModelConfig,
    *,
    context: int,
    weights_bytes: int,
    itemsize: int,
    unpacks: bool = False,
) -> MemoryPlan:
    """Bytes at `context` tokens of prompt and answer; `itemsize` is that of what is computed.

    `unpacks`: the backend unpacks a packed matrix for its product; the largest is the embedding.
    """
    unpacked = config.text.vocab_size * config.text.hidden_size * itemsize if unpacks else 0
    return MemoryPlan(
        weights=weights_bytes,
        cache=cache_bytes(config, context, itemsize),
        step=step_bytes(config, context, itemsize) + unpacked,
        prefill=prefill_bytes(config, context, itemsize),
        vision=vision_bytes(config, LARGEST_PICTURE, itemsize),
    )


def largest_context(
    config: ModelConfig,
    memory_bytes: int,
    *,
    weights_bytes: int,
    itemsize: int,
    unpacks: bool = False,
) -> int:
    """Most tokens of context whose plan fits, up to the checkpoint's own limit; 0 when none do."""
    low, high = 0, config.text.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        needed = plan(
            config,
            context=middle,
            weights_bytes=weights_bytes,
            itemsize=itemsize,
            unpacks=unpacks,
        )
        if needed.total <= memory_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _layer_bytes(text: TextConfig, tokens: int, seen: int, itemsize: int) -> int:
    """The widest layer on `tokens` new tokens, of which each sees `seen` entries."""
    heads = max(
        text.num_attention_heads * text.head_dim, text.num_attention_heads * text.global_head_dim
    )
    attention = min(text.num_attention_heads * tokens * seen * itemsize, SCORES_BYTES)
    attention += tokens * 3 * heads * itemsize
    experts = text.top_k_experts * (text.hidden_size * 2 + text.moe_intermediate_size * 3)
    feed_forward = tokens * (experts + 3 * text.intermediate_size) * itemsize
    return tokens * 4 * text.hidden_size * itemsize + max(attention, feed_forward)


def _tensors(config: ModelConfig) -> Iterator[tuple[int, int, _Kind]]:
    """(numbers, inputs, kind) of groups of tensors that are packed alike."""
    text = config.text
    hidden, dense, expert = text.hidden_size, text.intermediate_size, text.moe_intermediate_size
    yield text.vocab_size * hidden, hidden, "layers"
    for layer in range(text.num_hidden_layers):
        heads, size = text.heads(layer)
        queries = text.num_attention_heads * size
        projections = 1 if text.is_full(layer) else 2  # full attention has no v_proj
        yield (queries + projections * heads * size) * hidden, hidden, "layers"
        yield hidden * queries, queries, "layers"
        yield 2 * dense * hidden, hidden, "layers"
        yield hidden * dense, dense, "layers"
        yield text.num_experts * hidden, hidden, "layers"
        yield text.num_experts * 2 * expert * hidden, hidden, "experts"
        yield text.num_experts * hidden * expert, expert, "experts"
        # Two head norms, the router's scales, seven norms, a scalar for encoder and decoder each.
        yield 2 * size + hidden + text.num_experts + 7 * hidden + 2, 1, "plain"
    yield 2 * dense * hidden, hidden, "edges"  # self-conditioning
    yield hidden * dense, dense, "edges"
    yield 2 * hidden, 1, "plain"  # its norm, and the last one
    if config.vision is not None:
        yield from _vision_tensors(config.vision, hidden)


def _vision_tensors(vision: VisionConfig, hidden: int) -> Iterator[tuple[int, int, _Kind]]:
    width = vision.hidden_size
    queries = vision.num_attention_heads * vision.head_dim
    keys = vision.num_key_value_heads * vision.head_dim
    layer = 2 * width * (queries + keys) + 2 * vision.head_dim
    layer += 3 * width * vision.intermediate_size + 4 * width
    edges = 2 * vision.position_embedding_size * width + 3 * vision.patch_size**2 * width
    edges += 2 * width if vision.standardize else 0
    yield vision.num_hidden_layers * layer + edges, 1, "plain"
    yield hidden * width, width, "edges"  # into the text model


DIFFUSION_GEMMA_26B = ModelConfig(
    text=TextConfig(
        vocab_size=262144,
        hidden_size=2816,
        intermediate_size=2112,
        num_hidden_layers=30,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        num_global_key_value_heads=2,
        global_head_dim=512,
        layer_types=(*(("sliding_attention",) * 5), "full_attention") * 5,
        sliding_window=1024,
        rope_sliding=RopeConfig(theta=1e4, partial_rotary_factor=1.0),
        rope_full=RopeConfig(theta=1e6, partial_rotary_factor=0.25),
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
        final_logit_softcapping=30.0,
        rms_norm_eps=1e-6,
        max_position_embeddings=262144,
        vision_bidirectional=True,
    ),
    vision=VisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=72,
        patch_size=16,
        pooling_kernel_size=3,
        position_embedding_size=10240,
        rope_theta=100.0,
        rms_norm_eps=1e-6,
        standardize=True,
    ),
    canvas_length=256,
    image_token_id=258880,
    boi_token_id=255999,
    eoi_token_id=258882,
    quantization=None,
    module_quantization={},
    dtype="bfloat16",
)
"""The shape of google/diffusiongemma-26B-A4B-it, so that its memory is known without its files."""
