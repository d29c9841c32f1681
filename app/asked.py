"""What the settings of a page ask for."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dg_mlx.errors import ConstraintError, SettingsError
from dg_mlx.presets import DEFAULT, preset
from dg_mlx.settings import GenerationSettings

if TYPE_CHECKING:
    from dg_mlx.canvas.constraint import Constraint

Kind = Literal["none", "schema", "regex", "choices", "json"]
"""Of a constraint."""

NUMBERS: Mapping[str, tuple[str, float, str]] = {
    "max_new_tokens": ("Longest answer", 1, "tokens"),
    "max_denoising_steps": ("Most steps", 1, "passes over one canvas"),
    "entropy_bound": ("Entropy bound", 0.1, "nats accepted in a step"),
    "t_max": ("First temperature", 0.1, "at the first step"),
    "t_min": ("Last temperature", 0.1, "that it falls towards"),
    "confidence_threshold": ("Stop below", 0.001, "mean entropy, in nats"),
    "stability_threshold": ("Stop after", 1, "steps with the same guess"),
}
"""Setting → label, step of the arrows, and meaning."""
_WHOLE = ("max_new_tokens", "max_denoising_steps", "stability_threshold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How the answers to come are made."""

    preset: str = DEFAULT
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """Settings by name, in the place of the preset's; None: the preset's."""
    seed: int | None = None
    """None: another one each time."""
    thinking: bool = False
    stepwise: bool = False
    """Held before each step, until somebody lets it go on."""
    system: str = ""
    tools: str = ""
    """Declarations as JSON, in OpenAI's form; empty: none."""
    kind: Kind = "none"
    held: str = ""
    """The constraint's own text."""

    def settings(self, own: GenerationSettings) -> GenerationSettings:
        """The checkpoint's own, under the preset, with the numbers. Raises `SettingsError`."""
        changes = {name: value for name, value in self.numbers.items() if value is not None}
        for name in _WHOLE:
            if isinstance(value := changes.get(name), float) and value.is_integer():
                changes[name] = int(value)
        return preset(self.preset).apply(own).replace(**changes)

    def options(self) -> dict[str, Any]:
        """For `Engine.stream`, but for the settings. Raises `SettingsError`, `ConstraintError`."""
        options: dict[str, Any] = {
            "seed": secrets.randbelow(2**31) if self.seed is None else self.seed,
            "thinking": self.thinking,
        }
        if (tools := declared(self.tools)) is not None:
            options["tools"] = tools
        if (held := constraint(self.kind, self.held)) is not None:
            options["constraint"] = held
        return options


def constraint(kind: Kind, text: str) -> Constraint | None:
    """What an answer's text must be; None: anything. Raises `ConstraintError`."""
    from dg_mlx.canvas.constraint import Constraint

    match kind:
        case "none":
            return None
        case "json":
            return Constraint.any_json()
        case "regex":
            return Constraint.regex(text)
        case "choices":
            return Constraint.choices([line for line in text.splitlines() if line.strip()])
        case "schema":
            try:
                return Constraint.schema(json.loads(text))
            except (ValueError, RecursionError) as error:
                raise ConstraintError(f"the schema is no JSON ({error}); correct it.") from None


def declared(text: str) -> list[Any] | None:
    """Tools from their text; None: there are none. Raises `SettingsError`."""
    if not text.strip():
        return None
    try:
        tools = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"the tools are no JSON ({error}); correct them.") from None
    return tools if isinstance(tools, list) else [tools]
