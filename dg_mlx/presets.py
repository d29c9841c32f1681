"""Settings under a name. docs/presets.md says what each costs and gains on nano."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import SettingsError
from .settings import GenerationSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What differs from the checkpoint's own settings."""

    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, own: GenerationSettings) -> GenerationSettings:
        """The checkpoint's settings under this preset."""
        return own.replace(**self.changes)


DEFAULT = "faithful"

PRESETS: Mapping[str, Preset] = {
    DEFAULT: Preset(about="the checkpoint's own settings"),
    "balanced": Preset(
        about="accepts more tokens a step",
        changes={"entropy_bound": 0.5, "confidence_threshold": 0.01},
    ),
    "fast": Preset(
        about="accepts many tokens a step and takes a third of the steps at most",
        changes={
            "entropy_bound": 2.0,
            "confidence_threshold": 0.02,
            "max_denoising_steps": 16,
        },
    ),
}


def preset(name: str) -> Preset:
    """By name. Raises `SettingsError`."""
    if name not in PRESETS:
        raise SettingsError(f"there is no preset {name!r}; choose from {', '.join(PRESETS)}.")
    return PRESETS[name]
