"""What fits into this machine's memory."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import hub
from .config import ModelConfig
from .plan import (
    BF16,
    DIFFUSION_GEMMA_26B,
    FP32,
    RECIPES,
    Recipe,
    largest_context,
    weight_bytes,
)
from .units import size

REPOS: dict[Recipe, str] = {
    "bf16": "google/diffusiongemma-26B-A4B-it",
    "8bit": "mlx-community/diffusiongemma-26B-A4B-it-8bit",
    "4bit": "mlx-community/diffusiongemma-26B-A4B-it-4bit",
}
"""Where the hub has the 26B checkpoint, by its form."""
LARGE = REPOS["4bit"]
"""The one that a machine with enough memory is offered."""
RESERVED_SHARE = 0.1
"""Share of the memory left to the system and to what a plan does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a model would run."""

    backend: str
    chip: str
    memory_bytes: int
    mlx_version: str | None
    """None: MLX is not installed."""
    itemsize: int
    """Bytes of a computed number."""
    unpacks: bool
    """A packed matrix is unpacked for its product."""
    notes: tuple[str, ...]

    @property
    def usable_bytes(self) -> int:
        """What a plan may take."""
        return int(self.memory_bytes * (1 - RESERVED_SHARE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A checkpoint that could be run, here or not."""

    name: str
    config: ModelConfig
    stored_bytes: int
    packed: bool


def machine(backend: str = "auto") -> Machine:
    """This machine through a backend, or without MLX what the system says."""
    try:
        from .backends import choose
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "mlx":
            raise
        return Machine(
            backend="cpu",
            chip=platform.processor() or platform.machine(),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            mlx_version=None,
            itemsize=FP32,
            unpacks=True,
            notes=(
                'MLX is not installed; run `pip install "dg-mlx[cuda13]"` with an NVIDIA GPU, else '
                '`pip install "dg-mlx[cpu]"`',
            ),
        )
    device = choose(backend).describe()
    return Machine(
        backend=device.name,
        chip=device.chip,
        memory_bytes=device.memory_bytes,
        mlx_version=device.mlx_version,
        itemsize=device.itemsize,
        unpacks=device.unpacks,
        notes=device.notes,
    )


def candidates() -> list[Candidate]:
    """nano, and the 26B checkpoint in its published forms."""
    return [candidate("nano", hub.bundled_folder("nano")), *map(published, RECIPES)]


def published(recipe: Recipe) -> Candidate:
    """The 26B checkpoint in one of its forms."""
    return Candidate(
        name=f"26B-A4B {recipe}",
        config=DIFFUSION_GEMMA_26B,
        stored_bytes=weight_bytes(DIFFUSION_GEMMA_26B, recipe),
        packed=recipe != "bf16",
    )


def candidate(name: str, path: Path) -> Candidate:
    """A folder, or its config.json alone: the weights' size then follows from the shape."""
    folder = path.parent if path.is_file() else path
    config = ModelConfig.load(folder)
    stored = 0 if path.is_file() else hub.weight_bytes(folder)
    bits = config.quantization.bits if config.quantization else None
    recipe: Recipe = "bf16" if bits is None else "4bit" if bits <= 4 else "8bit"
    return Candidate(
        name=name,
        config=config,
        stored_bytes=stored or weight_bytes(config, recipe),
        packed=config.quantization is not None,
    )


def loaded_bytes(found: Candidate, itemsize: int) -> int:
    """Weights in memory: plain ones take the computed type, packed ones stay as stored."""
    return found.stored_bytes if found.packed else found.stored_bytes * itemsize // BF16


def context_limit(found: Candidate, here: Machine, *, beside: int = 0) -> int:
    """Most tokens of context that fit; 0 when the checkpoint does not.

    `beside`: bytes of weights that are in memory already.
    """
    return largest_context(
        found.config,
        here.usable_bytes - beside,
        weights_bytes=loaded_bytes(found, here.itemsize),
        itemsize=here.itemsize,
        unpacks=found.packed and here.unpacks,
    )


def fit(largest: int) -> str:
    """Whether a checkpoint of this `context_limit` fits, in words."""
    return f"fits, up to {largest:,} tokens of context" if largest else "does not fit"


def verdict(found: Candidate, here: Machine) -> str:
    """Whether a checkpoint fits, in words."""
    weights = size(loaded_bytes(found, here.itemsize))
    room = f"({weights} of weights, {size(here.usable_bytes)} for a model)"
    return f"{fit(context_limit(found, here))} {room}"


def package_version(name: str) -> str | None:
    """The installed version of a package; None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
