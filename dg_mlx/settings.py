"""How an answer is sampled: the checkpoint's `generation_config.json` as a frozen record."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError, SettingsError
from .keys import Keys, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How an answer is sampled: the checkpoint's `generation_config.json`.

    Source of the terms: transformers' DiffusionGemmaGenerationConfig.
    """

    max_new_tokens: int
    """Longest answer, in tokens."""
    max_denoising_steps: int
    """Most passes over one canvas."""
    entropy_bound: float
    """Accept lowest-entropy positions while the sum before each stays within this (nats)."""
    t_max: float
    """Temperature at the first pass."""
    t_min: float
    """Temperature that the schedule falls towards."""
    stability_threshold: int
    """Stop only after this many earlier passes had the same best guess."""
    confidence_threshold: float
    """Stop only when the mean entropy is below this (nats)."""
    eos_token_id: tuple[int, ...]
    """Ids that end an answer."""
    canvas_length: int | None = None
    """Tokens that settle together; None: as many as the checkpoint was trained with."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_denoising_steps"):
            self._check(name, int, lambda v: v >= 1, "a whole number of 1 or more")
        if self.canvas_length is not None:
            self._check("canvas_length", int, lambda v: v >= 1, "a whole number of 1 or more")
        self._check("stability_threshold", int, lambda v: v >= 0, "a whole number of 0 or more")
        for name in ("entropy_bound", "confidence_threshold", "t_min"):
            self._check(name, float, lambda v: v > 0, "a number above 0")
        self._check("t_max", float, lambda v: v >= self.t_min, f"at least t_min ({self.t_min})")

    def _check(self, name: str, kind: type, test: Any, wanted: str) -> None:
        value = getattr(self, name)
        right = isinstance(value, int if kind is int else (int, float))
        if not right or isinstance(value, bool) or not math.isfinite(value) or not test(value):
            raise SettingsError(f"{name} is {value!r}; it must be {wanted}.")

    def replace(self, **changes: Any) -> GenerationSettings:
        """A copy with some settings changed. Raises `SettingsError` for a wrong name or value."""
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise SettingsError(
                    f"there is no setting {name!r}; choose from {', '.join(names)}."
                )
        return dataclasses.replace(self, **changes)

    def temperature(self, step: int) -> float:
        """Temperature of a pass; `step` counts from 1."""
        left = self.max_denoising_steps - step + 1
        return self.t_min + (self.t_max - self.t_min) * left / self.max_denoising_steps

    def canvas(self, longest: int) -> int:
        """Tokens per canvas, where the checkpoint allows `longest`. Raises `SettingsError`."""
        canvas = longest if self.canvas_length is None else self.canvas_length
        if canvas > longest:
            raise SettingsError(
                f"canvas is {canvas}; this checkpoint allows 1..{longest}. Pass --canvas {longest}."
            )
        return canvas

    @staticmethod
    def load(folder: Path) -> GenerationSettings:
        """Read `generation_config.json`, or the copy in `config.json`. Raises `CheckpointError`."""
        path = folder / "generation_config.json"
        if path.exists():
            return GenerationSettings.from_dict(read_json(path))
        data = read_json(folder / "config.json").get("generation_config")
        if not isinstance(data, dict):
            raise CheckpointError(f"{path} is missing; copy it from the original checkpoint.")
        return GenerationSettings.from_dict(data)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> GenerationSettings:
        """Build from the parsed JSON. Raises `CheckpointError` naming the key."""
        keys = Keys(data, "generation_config.json")
        sampler = Keys(keys.take("sampler_config"), "generation_config.json: sampler_config")
        sampler.expect("_cls_name", "EntropyBoundSamplerConfig")
        eos = keys.take("eos_token_id")
        settings = GenerationSettings(
            max_new_tokens=keys.take("max_new_tokens"),
            max_denoising_steps=keys.take("max_denoising_steps"),
            entropy_bound=sampler.take("entropy_bound"),
            t_max=keys.take("t_max"),
            t_min=keys.take("t_min"),
            stability_threshold=keys.take("stability_threshold"),
            confidence_threshold=keys.take("confidence_threshold"),
            eos_token_id=(eos,) if isinstance(eos, int) else tuple(eos),
        )
        sampler.done()
        keys.done(
            ignored={
                "return_dict_in_generate",
                "max_length",
                "disable_compile",
                "cache_implementation",
                "cache_config",
            }
        )
        return settings
