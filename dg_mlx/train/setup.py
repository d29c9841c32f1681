"""What a run is made of, and the room that it needs, before anything large is loaded.

The estimate of the memory is a sum of what is known from shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from dg_mlx.backends import Backend, choose
from dg_mlx.config import ModelConfig
from dg_mlx.engine import DTYPES
from dg_mlx.errors import BackendError, MemoryLimitError, SettingsError
from dg_mlx.hub import resolve
from dg_mlx.model import DiffusionGemma
from dg_mlx.plan import FP32
from dg_mlx.processor import Processor
from dg_mlx.weights import loaded_bytes, shapes, stored_dtype
from dg_mlx.worker import WORKER

from .loss import LOGITS_BYTES
from .optimizer import flattened, freeze, state_bytes
from .settings import TrainSettings
from .source import Chats, Open, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a run is made of, before anything large is loaded."""

    settings: TrainSettings
    base: Path
    """The folder of the checkpoint that is trained."""
    config: ModelConfig
    processor: Processor
    device: Backend
    dtype: mx.Dtype
    source: Source
    needed_bytes: int


def prepare(settings: TrainSettings, *, open_source: Open = Chats, offline: bool = False) -> Setup:
    """Read and check all that can be known without the weights. Raises `DGError`s."""
    device = WORKER.call(lambda: choose(settings.backend))
    memory = device.describe().memory_bytes
    base = resolve(settings.model, offline=offline, revision=settings.revision, memory_bytes=memory)
    config, stored = ModelConfig.load(base), shapes(base)
    if settings.rank is None and any(name.endswith(".scales") for name in stored):
        raise SettingsError(
            f"{settings.model} is quantised, so its weights cannot be trained; train an adapter "
            "(--rank 8), or the original."
        )
    processor = Processor(base, config)
    source = open_source(settings, base, config, processor)
    dtype = DTYPES[settings.dtype] if settings.dtype else device.dtype(stored_dtype(stored))
    if device.name == "cpu" and dtype != mx.float32:
        raise BackendError("the CPU cannot train in bfloat16; drop --dtype.")
    trained = WORKER.call(lambda: trained_shapes(config, settings))
    needed = loaded_bytes(stored, dtype) + training_bytes(
        config, settings, trained=trained, largest=source.largest, itemsize=dtype.size
    )
    require_room(needed, memory, settings)
    return Setup(
        settings=settings,
        base=base,
        config=config,
        processor=processor,
        device=device,
        dtype=dtype,
        source=source,
        needed_bytes=needed,
    )


def trained_shapes(config: ModelConfig, settings: TrainSettings) -> dict[str, tuple[int, ...]]:
    """The shapes of what training changes, from a model that is never computed."""
    model = DiffusionGemma(config, Backend())
    freeze(model, settings)
    found = flattened(model.trainable_parameters())
    return {name: tuple(array.shape) for name, array in found.items()}


def training_bytes(
    config: ModelConfig,
    settings: TrainSettings,
    *,
    trained: Mapping[str, tuple[int, ...]],
    largest: tuple[int, int],
    itemsize: int,
) -> int:
    """Most bytes beside the model: the state of what is trained, and one batch's activations.

    `largest`: most examples of a batch, and most tokens of one.
    """
    numbers = sum(math.prod(shape) for shape in trained.values())
    # Gradients in fp32 and in the model's type, and the weights themselves where those are not.
    state = numbers * (FP32 + itemsize) + state_bytes(trained, settings)
    state += numbers * FP32 if itemsize != FP32 or settings.lora else 0
    text, canvas = config.text, config.canvas_length
    batch, longest = largest
    tokens = batch * (longest + canvas)
    heads = text.num_attention_heads * max(text.head_dim, text.global_head_dim)
    width = 12 * text.hidden_size + 6 * heads + 8 * text.intermediate_size
    width += text.top_k_experts * (2 * text.hidden_size + 9 * text.moe_intermediate_size)
    scores = 2 * text.num_attention_heads * longest
    layer = tokens * (width + scores) * itemsize
    kept = tokens * text.hidden_size * itemsize
    layers = text.num_hidden_layers
    activations = layers * kept + 2 * layer if settings.recompute else layers * layer
    logits = FP32 * text.vocab_size * batch * longest
    return state + activations + 4 * min(logits, 2 * LOGITS_BYTES)


def require_room(needed: int, memory: int, settings: TrainSettings) -> None:
    """Raise `MemoryLimitError` with what makes a run smaller."""
    if needed <= memory:
        return
    ways = [] if settings.rank is not None else ["train an adapter (--rank 8)"]
    ways += [] if settings.batch == 1 else ["lower --batch and raise --accumulate"]
    ways += [] if settings.recompute else ["pass --recompute"]
    raise MemoryLimitError(
        f"this training needs about {needed / 1e9:.1f} GB; this machine has {memory / 1e9:.1f} GB. "
        f"To make it smaller, {', or '.join([*ways, 'use a more quantised checkpoint'])}."
    )
