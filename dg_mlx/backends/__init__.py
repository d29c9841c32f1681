"""One file per device behind one protocol (`base.Backend`)."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from dg_mlx.errors import BackendError

from .base import (
    NEVER,
    Adapted,
    Backend,
    Device,
    Frozen,
    LowRank,
    Packed,
    Vocabulary,
    checked,
)
from .classes import Classes

__all__ = [
    "NAMES",
    "NEVER",
    "Adapted",
    "Backend",
    "Classes",
    "Device",
    "Frozen",
    "LowRank",
    "Packed",
    "Vocabulary",
    "choose",
]

NAMES = ("auto", "metal", "cuda", "cpu")

_FIX = {
    "metal": "it needs a Mac with Apple silicon. Use --backend cpu.",
    "cuda": 'it needs an NVIDIA GPU and `pip install "dg-mlx[cuda13]"`. Use --backend cpu.',
}


def choose(name: str = "auto") -> Backend:
    """The backend of this name, prepared and checked; "auto" takes the best there is.

    Raises `BackendError` for an unknown name or a device that is not here.
    """
    if name not in NAMES:
        raise BackendError(f"there is no backend {name!r}; choose from {', '.join(NAMES)}.")
    here = {"metal": _available(mx.metal), "cuda": _available(mx.cuda), "cpu": True}
    if name == "auto":
        name = next(n for n, available in here.items() if available)
    if not here[name]:
        raise BackendError(f"backend {name} cannot run here: {_FIX[name]}")
    backend = _make(name)
    backend.prepare()
    return checked(backend)


def _available(part: Any) -> bool:
    return bool(part.is_available())


def _make(name: str) -> Backend:
    if name == "metal":
        from .metal import Metal

        return Metal()
    if name == "cuda":
        from .cuda import Cuda

        return Cuda()
    from .cpu import Cpu

    return Cpu()
