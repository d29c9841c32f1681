"""One step: gradients, and how they change weights.

That is the rate's course, clipping, and which weight gets which optimiser.

Weights are fp32 here whatever the model computes in: in bf16 most small changes would round to
nothing, and so would the average of squares that AdamW keeps.

Legend: E experts, O outputs, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.optimizers import AdamW, Muon, clip_grad_norm
from mlx.utils import tree_flatten, tree_unflatten

from dg_mlx.errors import CheckpointError, SettingsError
from dg_mlx.model import DiffusionGemma
from dg_mlx.model.lora import adapt

from . import loss
from .batch import Draw, Example, collate
from .metrics import Stepped
from .processes import Processes
from .settings import TrainSettings

Weights = dict[str, mx.array]
"""Arrays by their name in the model."""

MUON_FACTOR = 10
"""Muon's default rate over AdamW's."""

_FIGURES = "figures"
"""Beside the gradients: no weight's name."""
_MEAN = "mean/"
"""Before the names of means: no part of an optimiser's name, which begins with a number."""
_NOISE = 1
"""Beside the seed: no number that the order of the data is drawn with."""


def rate(settings: TrainSettings, step: int) -> float:
    """The share of the highest learning rate at a step, which counts from 1.

    Rises in a line to 1, stays, and falls to `final_share` at the last step.
    """
    warmup = round(settings.warmup_share * settings.steps)
    if step <= warmup:
        return step / warmup
    falling = round(settings.decay_share * settings.steps)
    done = (step - (settings.steps - falling)) / max(1, falling)
    if done <= 0:
        return 1.0
    left = 1 - done if settings.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.final_share + (1 - settings.final_share) * left


def clip(gradients: Weights, largest: float) -> tuple[Weights, mx.array]:
    """Gradients scaled so that their common norm is `largest` at most (0: as they are).

    Returns them and the norm before.
    """
    clipped, norm = clip_grad_norm(gradients, largest or math.inf)  # type: ignore[no-untyped-call]
    return clipped if largest else gradients, norm


class Matrices(Muon):
    """Muon for matrices and for stacks of them: each expert's matrix is made orthogonal by itself.

    MLX's own would join all experts to one matrix. Decay is apart from the gradient, as in AdamW.
    Source: https://kellerjordan.github.io/posts/muon/.
    """

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]
    ) -> mx.array:
        """One weight's next value."""
        momentum: mx.array = self.momentum * state["v"] + (1 - self.momentum) * gradient
        state["v"] = momentum
        update = orthogonal((1 - self.momentum) * gradient + self.momentum * momentum)
        outputs, inputs = parameter.shape[-2:]
        scale = self.learning_rate * max(1, outputs / inputs) ** 0.5
        changed: mx.array = parameter * (1 - self.learning_rate * self.weight_decay)
        changed -= scale * update
        return changed


def orthogonal(x_EOI: mx.array, steps: int = 5) -> mx.array:
    """The nearest matrices whose singular values are about 1, by Newton and Schulz's iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x_EOI.shape[-2] > x_EOI.shape[-1]
    x = x_EOI.swapaxes(-1, -2) if tall else x_EOI
    x = x / (mx.sqrt(mx.square(x).sum(axis=(-2, -1), keepdims=True)) + 1e-7)
    for _ in range(steps):
        square = x @ x.swapaxes(-1, -2)
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.swapaxes(-1, -2) if tall else x


class Optimizer:
    """Several of MLX's optimisers, each with its weights.

    Not MLX's `MultiOptimizer`: that one cuts names at dots into trees, in which lists have holes.
    """

    def __init__(self, settings: TrainSettings, weights: Mapping[str, mx.array]) -> None:
        groups: dict[str, Weights] = {"muon": {}, "matrices": {}, "rest": {}}
        for name, array in sorted(weights.items()):
            groups[_group(name, array, settings.optimizer)][name] = array
        self._parts: list[tuple[Any, float, Weights]] = []
        for kind, group in groups.items():
            if not group:
                continue
            part, highest = _make(kind, settings)
            part.init(group)
            self._parts.append((part, highest, group))

    def update(self, weights: Weights, gradients: Weights, share: float) -> Weights:
        """The weights after one step, at this share of the highest rates; not computed yet."""
        changed: Weights = {}
        for part, highest, group in self._parts:
            part.learning_rate = highest * share
            changed |= part.apply_gradients(
                {name: gradients[name] for name in group}, {name: weights[name] for name in group}
            )
        return {name: changed[name] for name in weights}  # the order in which norms are summed

    @property
    def state(self) -> Weights:
        """All that the next step depends on, besides weights and gradients."""
        flat: Iterable[tuple[str, mx.array]] = (
            (f"{index}/{path}", array)
            for index, (part, _, _) in enumerate(self._parts)
            for path, array in _leaves(part.state)
        )
        return dict(flat)

    @state.setter
    def state(self, saved: Weights) -> None:
        if {n: a.shape for n, a in saved.items()} != {n: a.shape for n, a in self.state.items()}:
            raise CheckpointError(
                "the optimiser's state is of another model or version; start over with --force."
            )
        for index, (part, _, _) in enumerate(self._parts):
            for path in [path for path, _ in _leaves(part.state)]:
                *names, leaf = path.split("/")
                here = part.state
                for name in names:
                    here = here[name]
                here[leaf] = saved[f"{index}/{path}"]


def state_bytes(weights: Mapping[str, tuple[int, ...]], settings: TrainSettings) -> int:
    """What is kept for the next step beside weights of these shapes."""
    total = 0
    for name, shape in weights.items():
        kept = 1 if _kind(name, len(shape), settings.optimizer) == "muon" else 2
        total += 4 * (kept + bool(settings.average)) * math.prod(shape)
    return total


def unflattened(weights: Weights) -> Any:
    """The tree that a module's `update` takes."""
    return tree_unflatten(list(weights.items()))


def flattened(tree: Any) -> Weights:
    """A module's tree by names."""
    return dict(tree_flatten(tree))


class Trainer:
    """A model and its optimiser: one step after another."""

    def __init__(
        self, model: DiffusionGemma, settings: TrainSettings, processes: Processes | None = None
    ) -> None:
        """Take a model whose parameters are those of the base; freezes what is not trained."""
        self.model, self.settings, self.objective = model, settings, settings.objective
        self._processes = processes or Processes()
        freeze(model, settings)
        self._dtypes = {n: a.dtype for n, a in flattened(model.trainable_parameters()).items()}
        self.weights: Weights = {
            name: array.astype(mx.float32)
            for name, array in flattened(model.trainable_parameters()).items()
        }
        self.optimizer = Optimizer(settings, self.weights)
        self._mean: Weights = dict(self.weights) if settings.average else {}
        self._finish()

    def step(self, batches: Sequence[Sequence[Example]], number: int) -> Stepped:
        """Learn from batches whose gradients count together, as from one batch of them all.

        Raises `SettingsError` when the loss or the gradient is not finite.
        """
        start = perf_counter()
        gradients, losses, tokens = self._gradients(batches, number)
        gradients, norm = clip(gradients, self.settings.clip)
        found = Stepped(
            step=number,
            loss=losses[0],
            diffusion=losses[1],
            encoder=losses[2],
            lr=self.settings.learning_rate * rate(self.settings, number),
            grad_norm=float(norm),
            tokens=tokens,
            seconds=0.0,
            peak_gb=0.0,
        )
        _require_finite(found)
        self.weights = self.optimizer.update(self.weights, gradients, rate(self.settings, number))
        del gradients
        kept = min(self.settings.average, number / (number + 9))  # at first the mean of all steps
        self._mean = {n: kept * m + (1 - kept) * self.weights[n] for n, m in self._mean.items()}
        self._finish()
        return replace(found, seconds=perf_counter() - start, peak_gb=mx.get_peak_memory() / 1e9)

    @property
    def state(self) -> Weights:
        """What the next step depends on, besides the weights."""
        return self.optimizer.state | {f"{_MEAN}{name}": m for name, m in self._mean.items()}

    def restore(self, weights: Weights, state: Weights) -> None:
        """Be as when these were saved."""
        means = {n.removeprefix(_MEAN): m for n, m in state.items() if n.startswith(_MEAN)}
        self.optimizer.state = {n: a for n, a in state.items() if not n.startswith(_MEAN)}
        self._mean = {name: means[name] for name in self._mean}
        self.weights = {name: weights[name] for name in self.weights}
        self._finish()

    def agree(self) -> None:
        """Be as in the first process."""
        self.restore(
            self._processes.from_first(self.weights), self._processes.from_first(self.state)
        )

    def parameters(self) -> Weights:
        """All of the result's, the trained ones as exact as they are kept."""
        return flattened(self.model.parameters()) | (self._mean or self.weights)

    @contextmanager
    def result(self) -> Iterator[DiffusionGemma]:
        """The model with the weights that would come out now."""
        self._show(self._mean or self.weights)
        try:
            yield self.model
        finally:
            self._show(self.weights)

    def _draw(self, examples: Sequence[Example], number: int) -> Draw:
        """The step's randomness, for the longest canvas."""
        return loss.draw(
            np.random.default_rng([self.settings.seed, _NOISE, number]),
            np.array([e.canvases for e in examples]),
            canvas=max(e.canvas for e in examples),
            vocab=self.model.config.text.vocab_size,
            objective=self.objective,
        )

    def _gradients(
        self, batches: Sequence[Sequence[Example]], number: int
    ) -> tuple[Weights, tuple[float, float, float], int]:
        """Means over all examples, computed a batch at a time and summed over processes."""
        examples = [example for batch in batches for example in batch]
        drawn, done = self._draw(examples, number), 0
        draws = []
        for own in batches:
            draws.append(_part(drawn, slice(done, done + len(own)), own[0].canvas))
            done += len(own)
        total = {name: mx.zeros(array.shape) for name, array in self.weights.items()}
        figures = np.zeros(4)
        for own, its in self._processes.own(list(zip(batches, draws, strict=True))):
            batch, share = collate(own, its), len(own) / len(examples)
            value, gradient = loss.gradients(
                self.model, batch, self.objective, checkpoint=self.settings.recompute
            )
            found = flattened(gradient)
            total = {n: part + found[n].astype(mx.float32) * share for n, part in total.items()}
            del gradient, found
            mx.eval(total, *value)  # a batch's activations are freed here
            figures[:3] += share * np.array([float(v) for v in value])
            figures[3] += batch.real.sum()
        total = self._processes.total({**total, _FIGURES: mx.array(figures, mx.float32)})
        summed = np.array(total.pop(_FIGURES))
        return total, (float(summed[0]), float(summed[1]), float(summed[2])), int(summed[3])

    def _finish(self) -> None:
        """Give the model the weights, in its own types, and compute everything."""
        self._show(self.weights)
        mx.eval(self.weights, self._mean, self.optimizer.state, self.model.parameters())

    def _show(self, weights: Weights) -> None:
        cast = {name: array.astype(self._dtypes[name]) for name, array in weights.items()}
        self.model.update(unflattened(cast))


def freeze(model: DiffusionGemma, settings: TrainSettings) -> None:
    """Leave trainable what is trained: adapters; or the text model, with vision if asked for."""
    lora = settings.lora
    if lora is not None:
        adapt(model, lora, settings.seed)
        return
    model.freeze()
    model.model.decoder.unfreeze()
    model.model.encoder.language_model.unfreeze()
    if settings.vision:
        if model.config.vision is None:
            raise SettingsError("this checkpoint reads text only; drop --vision.")
        model.model.encoder.unfreeze()


def _part(drawn: Draw, rows: slice, canvas: int) -> Draw:
    """Of some examples, whose canvas may be shorter than others'."""
    copied_BL = drawn.copied_BL
    if copied_BL is not None:
        copied_BL = copied_BL[rows, :canvas]
        copied_BL = np.where(copied_BL < 0, copied_BL, copied_BL % canvas)
    return Draw(
        block_B=drawn.block_B[rows],
        replaced_BL=drawn.replaced_BL[rows, :canvas],
        noise_BL=drawn.noise_BL[rows, :canvas],
        copied_BL=copied_BL,
        conditioned_B=drawn.conditioned_B[rows],
    )


def _require_finite(found: Stepped) -> None:
    for name, value in (("loss", found.loss), ("gradient", found.grad_norm)):
        if not math.isfinite(value):
            raise SettingsError(
                f"the {name} is {value} at step {found.step}; start over with a lower "
                "--learning-rate, or a lower --clip."
            )


def _leaves(state: Mapping[str, Any]) -> list[tuple[str, mx.array]]:
    """As `tree_flatten`, but names have dots themselves."""
    found: list[tuple[str, mx.array]] = []
    for name, value in state.items():
        if isinstance(value, Mapping):
            found += [(f"{name}/{path}", array) for path, array in _leaves(value)]
        else:
            found.append((name, value))
    return found


def _make(kind: str, settings: TrainSettings) -> tuple[Any, float]:
    highest, decay = settings.learning_rate, settings.weight_decay
    if kind == "muon":
        highest = settings.muon_learning_rate or MUON_FACTOR * highest
        return Matrices(highest, weight_decay=decay), highest
    betas = [settings.beta1, settings.beta2]
    decay = decay if kind == "matrices" else 0.0
    return AdamW(highest, betas=betas, weight_decay=decay, bias_correction=True), highest


def _group(name: str, array: mx.array, optimizer: str) -> str:
    return _kind(name, array.ndim, optimizer)


def _kind(name: str, axes: int, optimizer: str) -> str:
    """ "rest": vectors. Embeddings are tables of vectors, which Muon is not for."""
    if axes < 2:
        return "rest"
    table = "embed_tokens" in name or "position_embedding_table" in name
    return "muon" if optimizer == "muon" and not table else "matrices"
