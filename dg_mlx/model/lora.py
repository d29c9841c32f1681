"""Low-rank adapters (LoRA) on a model's weights: W + alpha / rank * B @ A, with W frozen.

The weight may be packed. Encoder and decoder share their weights, and so one adapter: what is
trained is what a merge gives. Source: arXiv 2106.09685; the defaults are those of
google-deepmind/gemma, `gemma/diffusion/hackable_diffusion_adapter`, `configs/sft_sudoku.py` and
`hd/lora.py`.

Legend: E experts, O outputs, I inputs, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from dg_mlx.backends import Adapted, Frozen, LowRank, Packed
from dg_mlx.errors import SettingsError

from .linear import Embedding, ExpertLinear, Linear, Weight

LAYERS = "model.decoder.layers.*"
TARGETS = (
    f"{LAYERS}.self_attn.*",
    f"{LAYERS}.mlp.*",
    f"{LAYERS}.router.proj",
    "model.decoder.self_conditioning.*",
)
"""All linear layers of the text model. Google's recipe says so too, and there as here the experts
are not among them: they are stored as bare tensors, and its LoRA wraps layers."""

EXPERTS = f"{LAYERS}.experts.*"
"""The experts' matrices, one adapter per expert: to be named beside `TARGETS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Which weights are adapted, and how."""

    rank: int = 8
    alpha: float = 8.0
    """Over the rank: the scale of what is added."""
    targets: tuple[str, ...] = TARGETS
    """Patterns of module names, as in a shell: "*.q_proj"."""

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise SettingsError(f"rank is {self.rank!r}; it must be a whole number of 1 or more.")
        if not 0 < self.alpha < float("inf"):
            raise SettingsError(f"alpha is {self.alpha!r}; it must be a number above 0.")
        if not self.targets:
            raise SettingsError("there are no targets; name at least one pattern.")

    @property
    def scale(self) -> float:
        """What B @ A is multiplied by."""
        return self.alpha / self.rank


class LoraWeight(Weight):
    """A weight with an adapter, whose two matrices are parameters in fp32 beside it."""

    def __init__(self, weight: Weight, settings: LoraSettings, rng: np.random.Generator) -> None:
        nn.Module.__init__(self)
        self._backend, self._spec = weight._backend, weight._spec
        for key, array in weight.parameters().items():
            self[key] = array
        self._scale = settings.scale
        *experts, outputs, inputs = logical_shape(weight)
        bound = (6 / inputs) ** 0.5
        a = rng.uniform(-bound, bound, (*experts, settings.rank, inputs))
        self.lora_a = mx.array(a.astype(np.float32))
        self.lora_b = mx.zeros((*experts, outputs, settings.rank))

    @property
    def packed(self) -> Packed:
        """The weight and its adapter."""
        return Adapted.of(super().packed, LowRank(self.lora_a, self.lora_b, self._scale))

    def _product(self, x: mx.array, *, transpose: bool = True) -> mx.array:
        """`x @ (W + scale * B @ A).T` (or without .T)."""
        y = self._backend.matmul(x, Frozen(*super().packed), transpose=transpose)
        a, b = (Packed(part.astype(x.dtype)) for part in (self.lora_a, self._scale * self.lora_b))
        for part in (a, b) if transpose else (b, a):
            x = self._backend.matmul(x, part, transpose=transpose)
        return y + x

    def merged(self) -> Weight:
        """The same values without an adapter; the weight must not be packed."""
        assert self._spec is None
        plain = Weight.__new__(_PLAIN[type(self)])
        nn.Module.__init__(plain)
        plain._backend, plain._spec = self._backend, None
        plain.weight = self.packed.plain(mx.float32).astype(self.weight.dtype)
        return plain


class LoraLinear(LoraWeight, Linear):
    """As `Linear`."""

    def __call__(self, x: mx.array) -> mx.array:
        """`x @ (W + scale * B @ A).T`."""
        return self._product(x)


class LoraExpertLinear(LoraWeight, ExpertLinear):
    """As `ExpertLinear`, with an adapter per expert."""


class LoraEmbedding(LoraWeight, Embedding):
    """As `Embedding`; its input, its average and its head change alike."""

    def average(self, weights_BLV: mx.array) -> mx.array:
        """Weighted sum of rows. Returns (B, L, H)."""
        return self._product(weights_BLV, transpose=False)

    def head(self, x_BLH: mx.array) -> mx.array:
        """Scores of every id. Returns (B, L, V)."""
        return self._product(x_BLH)


_KINDS: dict[type[Weight], type[LoraWeight]] = {
    Linear: LoraLinear,
    ExpertLinear: LoraExpertLinear,
    Embedding: LoraEmbedding,
}


_PLAIN = {lora: plain for plain, lora in _KINDS.items()}


def adapt(model: nn.Module, settings: LoraSettings, seed: int = 0) -> list[str]:
    """Freeze a model and put adapters beside its weights, which at first change nothing.

    A starts uniform in ±sqrt(6 / I) and B at 0, as Google's does. Returns the names of the adapted
    modules; raises `SettingsError` for a pattern that fits none.
    """
    modules = dict(weights(model))
    chosen = set()
    for pattern in settings.targets:
        found = {name for name in modules if fnmatchcase(name, pattern)}
        if not found:
            kinds = sorted({name.rpartition(".")[2] for name in modules})
            raise SettingsError(
                f"no weight of this checkpoint fits {pattern!r}; patterns are compared with whole "
                f"names such as {next(iter(modules))}, which end in {', '.join(kinds)}."
            )
        chosen |= found
    if any(isinstance(modules[name], LoraWeight) for name in chosen):
        raise SettingsError("the model has adapters already; load the checkpoint again.")
    model.freeze()
    rng = np.random.default_rng(seed)
    for name in sorted(chosen):
        replacement = _KINDS[type(modules[name])](modules[name], settings, rng)
        replacement.freeze()
        replacement.unfreeze(keys=["lora_a", "lora_b"])
        _replace(model, name, replacement)
    return sorted(chosen)


def merge(model: nn.Module) -> None:
    """Add adapters to the weights that they lie on, where those are not packed."""
    for name, module in list(adapters(model)):
        if module._spec is None:
            _replace(model, name, module.merged())


def weights(model: nn.Module) -> Iterator[tuple[str, Weight]]:
    """Every weight that can be adapted, by its module's name; (O, I) or (E, O, I)."""
    for name, module in sorted(model.named_modules()):
        if isinstance(module, (Linear, ExpertLinear, Embedding)):
            yield name, module


def adapters(model: nn.Module) -> Iterator[tuple[str, LoraWeight]]:
    """The weights that have an adapter, by the module's name."""
    for name, module in weights(model):
        if isinstance(module, LoraWeight):
            yield name, module


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(array.size for _, array in tree_flatten(model.trainable_parameters()))


def logical_shape(weight: Weight) -> tuple[int, ...]:
    """The shape of the values of a weight that may be packed."""
    *rest, inputs = weight.weight.shape
    spec = weight._spec
    return (*rest, inputs if spec is None else inputs * 32 // spec.bits)


def _replace(model: nn.Module, name: str, module: Weight) -> None:
    *parents, leaf = name.split(".")
    here: Any = model
    for part in parents:
        here = here[int(part)] if part.isdigit() else here[part]
    here[leaf] = module
