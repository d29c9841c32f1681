"""dg-mlx: DiffusionGemma on your own machine.

Names are loaded on first use, so that `import dg_mlx` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import blas as _blas  # noqa: F401 - before anything imports MLX

if TYPE_CHECKING:
    from .canvas.constraint import Constraint
    from .canvas.pins import Pins
    from .config import ModelConfig
    from .conversation import Conversation
    from .engine import Engine, load
    from .errors import DGError
    from .events import Committed, Done, Draft, Event, Prefilled, Reply, Stats, Trust
    from .sampling import Noise, SeededNoise
    from .settings import GenerationSettings

__version__ = "0.1.0"

_WHERE = {
    "load": "engine",
    "Engine": "engine",
    "GenerationSettings": "settings",
    "ModelConfig": "config",
    "Noise": "sampling",
    "SeededNoise": "sampling",
    "Constraint": "canvas.constraint",
    "Pins": "canvas.pins",
    "Conversation": "conversation",
    **dict.fromkeys(
        ("Prefilled", "Draft", "Committed", "Done", "Stats", "Trust", "Reply", "Event"), "events"
    ),
    **dict.fromkeys(
        (
            "DGError",
            "CheckpointError",
            "HubError",
            "SettingsError",
            "PromptError",
            "MediaError",
            "BackendError",
            "MemoryLimitError",
            "MissingPackageError",
            "ConstraintError",
            "PinError",
            "EditError",
            "ConversationError",
            "StoreError",
            "BusyError",
            "StoppedError",
        ),
        "errors",
    ),
}

__all__ = [  # noqa: RUF022 - grouped by what they are
    "load",
    "Engine",
    "GenerationSettings",
    "ModelConfig",
    "Noise",
    "SeededNoise",
    "Constraint",
    "Pins",
    "Conversation",
    "Prefilled",
    "Draft",
    "Committed",
    "Done",
    "Event",
    "Stats",
    "Trust",
    "Reply",
    "DGError",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'dg_mlx' has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
