"""All that a training run is told: one frozen record, which is also a TOML file.

Nothing heavy is imported here: the command line reads its defaults from this record.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from dg_mlx.errors import SettingsError

if TYPE_CHECKING:
    from dg_mlx.model.lora import LoraSettings

    from .data import DataSettings
    from .loss import Objective

OPTIMIZERS = ("adamw", "muon")
DECAYS = ("cosine", "linear")

FREE = frozenset({"save_every", "keep", "eval_every", "eval_loss", "eval_answers", "log_every"})
"""Settings without an effect on the weights: a run may go on with others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What is trained, on what, and how."""

    model: str
    """Bundled name, folder or hub repo id."""
    data: tuple[str, ...] = ()
    """JSONL files of chats."""
    held_out: str | None = None
    """A JSONL file that is evaluated on; None: `held_out_share` of the data."""
    held_out_share: float = 0.0
    """The share of the data that is kept out of training."""
    max_prompt: int | None = None
    """Most tokens of a prompt."""
    max_canvases: int | None = None
    """Most canvases of an answer."""
    fill: str | None = None
    """The token behind an answer's end; None: the tokenizer's end-of-sequence token."""

    vision: bool = False
    """Train the vision tower too."""
    rank: int | None = None
    """Of a LoRA adapter; None: all weights of the text model are trained."""
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    """Patterns of the modules that get an adapter."""

    steps: int = 1000
    batch: int = 8
    """Examples that are computed together."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    optimizer: str = "adamw"
    """"muon": Muon for the matrices of the layers, AdamW for the rest."""
    learning_rate: float = 1e-4
    """The highest, of AdamW."""
    muon_learning_rate: float | None = None
    """The highest, of Muon; None: ten times `learning_rate`."""
    warmup_share: float = 0.05
    """Of the steps: the rate rises in a line."""
    decay: str = "cosine"
    decay_share: float = 0.95
    """Of the steps, the last ones: the rate falls."""
    final_share: float = 0.1
    """Of the highest rate: what it falls to."""
    weight_decay: float = 0.01
    """Of matrices; scales and norms have none."""
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float = 1.0
    """Largest norm of the whole gradient; 0: as it is."""
    average: float = 0.0
    """Share of the running mean of the weights that stays at a step; the mean is what is evaluated
    and what comes out. 0: no mean, the last weights."""
    encoder_weight: float | None = None
    """Of the encoder's next-token loss; None: the published objective's."""
    self_conditioning: float | None = None
    """Share of examples with a first pass; None: the published objective's."""
    noise_power: float | None = None
    """Of a uniform number: the share of tokens that is replaced. None: 1, as published."""
    noise_from_answer: float | None = None
    """Share of the noise that is copied from the answer. None: 0, as published."""

    recompute: bool = False
    """Keep only what enters each layer, and compute the rest again for the gradient."""
    dtype: str | None = None
    """What is computed in: "float32" or "bfloat16"; None: the backend's choice."""
    backend: str = "auto"
    revision: str | None = None
    seed: int = 0

    eval_every: int = 100
    """Steps between evaluations; 0: none."""
    eval_loss: int = 32
    """Held-out examples for the loss."""
    eval_answers: int = 8
    """Held-out examples that are answered and compared."""
    save_every: int = 100
    keep: int = 2
    """Checkpoints that stay."""
    log_every: int = 10

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("steps", "batch", "accumulate", "save_every", "keep", "log_every"):
            self._check(name, lambda v: v >= 1, "a whole number of 1 or more")
        for name in ("rank", "max_prompt", "max_canvases"):
            self._check(name, lambda v: v >= 1, "a whole number of 1 or more")
        for name in ("seed", "eval_every", "eval_loss", "eval_answers"):
            self._check(name, lambda v: v >= 0, "a whole number of 0 or more")
        for name in ("learning_rate", "muon_learning_rate", "alpha", "noise_power"):
            self._check(name, lambda v: v > 0, "a number above 0")
        for name in ("weight_decay", "clip", "encoder_weight"):
            self._check(name, lambda v: v >= 0, "a number of 0 or more")
        for name in ("warmup_share", "decay_share", "final_share", "self_conditioning",
                     "noise_from_answer"):  # fmt: skip
            self._check(name, lambda v: 0 <= v <= 1, "a share: 0 to 1")
        for name in ("held_out_share", "beta1", "beta2", "average"):
            self._check(name, lambda v: 0 <= v < 1, "0 or more, and below 1")
        self._check_choice("optimizer", OPTIMIZERS)
        self._check_choice("decay", DECAYS)
        self._check_choice("dtype", ("float32", "bfloat16", None))
        self._check_together()

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        from .loss import Objective

        names = ("encoder_weight", "self_conditioning", "noise_power", "noise_from_answer")
        return Objective(**self._given(*names))

    @property
    def examples(self) -> DataSettings:
        """What an example may be."""
        from .data import DataSettings

        return DataSettings(**self._given("max_prompt", "max_canvases", "fill"))

    @property
    def lora(self) -> LoraSettings | None:
        """The adapter; None: all weights are trained."""
        if self.rank is None:
            return None
        from dg_mlx.model.lora import LoraSettings

        return LoraSettings(**self._given("rank", "alpha", "targets"))

    def _given(self, *names: str) -> dict[str, Any]:
        """Those that are not left to another record's default."""
        return {n: value for n in names if (value := getattr(self, n)) is not None}

    def as_dict(self) -> dict[str, Any]:
        """What is not None, as plain values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        return {name: value for name, value in plain.items() if value is not None}

    def as_toml(self) -> str:
        """The file that `load` reads."""
        lines = [f"{name} = {_toml(value)}" for name, value in self.as_dict().items()]
        return "\n".join(lines) + "\n"

    @staticmethod
    def load(path: Path | None, **changes: Any) -> TrainSettings:
        """Settings of a TOML file, with changes. Raises `SettingsError` naming the key."""
        values = _read(path) | changes if path is not None else changes
        names = [f.name for f in dataclasses.fields(TrainSettings)]
        for name in values:
            if name not in names:
                raise SettingsError(
                    f"{path} has {name!r}, which is no setting; choose from {', '.join(names)}."
                )
        if "model" not in values:
            raise SettingsError("there is no model; give --model, or name it in --config.")
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return TrainSettings(**plain)

    def _check_types(self) -> None:
        for name, hint in get_type_hints(TrainSettings).items():
            value = getattr(self, name)
            kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            if not any(_fits(value, kind) for kind in kinds):
                wanted = " or ".join(_WORDS[kind] for kind in kinds if kind is not type(None))
                raise SettingsError(f"{name} is {value!r}; it must be {wanted}.")

    def _check(self, name: str, test: Callable[[Any], bool], wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not (math.isfinite(value) and test(value)):
            raise SettingsError(f"{name} is {value!r}; it must be {wanted}.")

    def _check_choice(self, name: str, choices: tuple[str | None, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            known = ", ".join(str(choice) for choice in choices if choice is not None)
            raise SettingsError(f"{name} is {value!r}; choose from {known}.")

    def _check_together(self) -> None:
        """Settings that cannot take effect, or not both."""
        for name in ("alpha", "targets"):
            if getattr(self, name) is not None and self.rank is None:
                raise SettingsError(f"{name} is for a LoRA adapter; give --rank too, or drop it.")
        if self.vision and self.rank is not None:
            raise SettingsError("an adapter leaves the vision tower as it is; drop --vision.")
        if self.muon_learning_rate is not None and self.optimizer != "muon":
            raise SettingsError("muon_learning_rate is for --optimizer muon; drop one of them.")
        if self.optimizer == "muon" and self.rank is not None:
            raise SettingsError("muon is for whole matrices; drop --rank or --optimizer muon.")
        if self.held_out is not None and self.held_out_share:
            raise SettingsError("held_out and held_out_share exclude each other; drop one.")
        if self.warmup_share + self.decay_share > 1 + 1e-9:
            raise SettingsError(
                f"warmup_share {self.warmup_share} and decay_share {self.decay_share} are more "
                "than the whole run; lower one."
            )


_WORDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false",
    tuple[str, ...]: "a list of texts",
}  # fmt: skip


def _fits(value: Any, kind: Any) -> bool:
    if kind == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); check the path.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} is no TOML ({error}); correct it.") from None


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
