"""Decisions with probabilities: one or a few passes over a small canvas, from several noises.

The answer's probability is that of all its spellings under the positions' distributions, against
all answers allowed. It depends on the noise that the canvas starts from, so it is averaged over
draws of it, and the spread says how sure the average is.

Many prompts are decided in runs: a run is one batch of prompts, padded on the left, and then one
batch of canvases, a row for each draw of each prompt.

Legend: P prompts, D draws, B canvases (P x D), L canvas, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .backends import Backend
from .ballot import Ballot
from .canvas.constraint import Guide, Guides
from .canvas.hold import Answer, Block, Held
from .config import ModelConfig
from .errors import SettingsError
from .model import DiffusionGemma
from .model.cache import Cache
from .plan import CHUNK, FP32, cache_bytes
from .processor import Prompt
from .processor.padded import Padded
from .sampling import SeededNoise, accept, next_canvas
from .settings import GenerationSettings
from .worker import Cancelled

RUN_BYTES = 1 << 30
"""Most memory that canvases which run together may take. A denoising step of the published
checkpoint takes as much, so what can answer can also decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One decision."""

    probabilities: Mapping[str, float]
    """By option; they add up to 1."""
    errors: Mapping[str, float]
    """Standard error of each over the draws of noise; NaN for a single draw."""
    entropy: float
    """Of the probabilities, in nats."""

    @property
    def best(self) -> str:
        """The likeliest option."""
        return max(self.probabilities, key=lambda option: self.probabilities[option])


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided, by field. Choices without a schema are the field `ballot.ANSWER`."""

    fields: Mapping[str, Field]
    seconds: float
    """Prefill and passes; a share of those of all prompts that ran together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """How to decide."""

    choices: Mapping[str, Mapping[str, Guide]]
    """By field and option."""
    whole: Guide
    settings: GenerationSettings
    """With the canvas to use."""
    draws: int
    passes: int
    seed: int

    @property
    def tokens(self) -> int:
        """Of the canvas."""
        return self.settings.max_new_tokens


def prepare(
    ballot: Ballot,
    encode: Callable[[str], list[int]],
    guides: Guides,
    settings: GenerationSettings,
    *,
    draws: int,
    passes: int,
    seed: int,
) -> Vote:
    """Compile the options, and choose the canvas. Raises `ConstraintError`, `SettingsError`."""
    for name, value in (("draws", draws), ("passes", passes)):
        if value < 1:
            raise SettingsError(f"{name} is {value}; it must be 1 or more.")
    tokens = len(encode(ballot.longest(encode))) + 1
    return Vote(
        choices={
            choice.name: {option: guides.of(c) for option, c in choice.options.items()}
            for choice in ballot.choices
        },
        whole=guides.of(ballot.whole),
        settings=settings.replace(canvas_length=tokens, max_new_tokens=tokens),
        draws=draws,
        passes=passes,
        seed=seed,
    )


class Voting:
    """Decides for many prompts, a run after the other."""

    def __init__(self, model: DiffusionGemma, backend: Backend, asked: Vote) -> None:
        self._model, self._backend, self._asked = model, backend, asked

    def decisions(self, prompts: Sequence[Prompt], cancelled: Cancelled) -> Iterator[Decision]:
        """Of each prompt, in their order. Runs on the thread that owns MLX; `cancelled` is asked
        before each batch."""
        asked = self._asked
        for run in runs(prompts, asked.draws, self._fit):
            if cancelled():
                return
            started, cache, parts = perf_counter(), self._prefilled(run), []
            together = max(1, self._fit(cache.tokens) // len(run))
            for first in range(0, asked.draws, together):
                if cancelled():
                    return
                draws = range(first, min(first + together, asked.draws))
                parts.append(self._shares(cache, len(run), draws))
            shares = {name: np.concatenate([p[name] for p in parts], axis=2) for name in parts[0]}
            seconds = (perf_counter() - started) / len(run)
            for row in range(len(run)):
                fields = {
                    name: _field(list(guides), shares[name][:, row])
                    for name, guides in asked.choices.items()
                }
                yield Decision(fields=fields, seconds=seconds)

    def _fit(self, context: int) -> int:
        model = self._model
        return canvases(model.config, context, self._asked.tokens, model.dtype.size)

    def _prefilled(self, run: Sequence[Prompt]) -> Cache:
        batch, cache = Padded.of(run), self._model.new_cache()
        real_BS = None if batch.real_BS is None else mx.array(batch.real_BS)
        self._model.prefill(mx.array(batch.ids_BS), cache, media=batch.media, mask_BS=real_BS)
        return cache

    def _shares(self, cache: Cache, prompts: int, draws: range) -> dict[str, NDArray[np.float64]]:
        """Probabilities (options, P, D) of each field."""
        logits_BLV = self._look(cache.repeated(len(draws), self._asked.tokens), prompts, draws)
        found = {}
        for name, guides in self._asked.choices.items():
            totals = np.stack([self._totals(logits_BLV, guide) for guide in guides.values()])
            shares = np.exp(totals - np.logaddexp.reduce(totals, axis=0))
            found[name] = shares.reshape(len(guides), prompts, len(draws))
        return found

    def _look(self, cache: Cache, prompts: int, draws: range) -> mx.array:
        """The last pass's logits (B, L, V), before any temperature."""
        asked, model, settings = self._asked, self._model, self._asked.settings
        noises = prompts * [
            SeededNoise(
                asked.seed + draw,
                vocab=model.config.text.vocab_size,
                canvas=asked.tokens,
                backend=self._backend,
            )
            for draw in draws
        ]
        held = Held(guide=asked.whole)
        answer = Answer(held, self._backend, settings, model.config.canvas_length)
        blocks = [answer.block(0) for _ in noises]
        canvas_BL = mx.concatenate([noise.initial(0) for noise in noises])
        logits_BLV = model.denoise(canvas_BL, cache)
        for step in range(1, asked.passes):
            rows = [
                _step(block, noise, logits_BLV[row : row + 1], step, settings)
                for row, (block, noise) in enumerate(zip(blocks, noises, strict=True))
            ]
            canvas_BL, conditioning_BLV = (
                mx.concatenate(list(part)) for part in zip(*rows, strict=True)
            )
            logits_BLV = model.denoise(canvas_BL, cache, conditioning_BLV.astype(model.dtype))
        mx.eval(logits_BLV)
        return logits_BLV

    def _totals(self, logits_BLV: mx.array, guide: Guide) -> NDArray[np.float64]:
        """(B,): log of the probability of all canvases that a guide accepts, up to a constant."""
        _, scores = self._backend.class_scores(logits_BLV, guide.classes)
        last = guide.last(0)
        return np.array(
            [
                guide.lattice.total(row, 0, last)
                for row in np.array(scores.astype(mx.float32)).astype(np.float64)
            ]
        )


def canvases(config: ModelConfig, context: int, canvas: int, itemsize: int) -> int:
    """How many canvases of `canvas` tokens may run together, each behind `context` tokens.

    Each has a cache of its own, and its logits three times in fp32, as `plan.step_bytes` counts.
    """
    cache = cache_bytes(replace(config, canvas_length=canvas), context, itemsize)
    return max(1, RUN_BYTES // (cache + canvas * config.text.vocab_size * 3 * FP32))


def runs(
    prompts: Sequence[Prompt], draws: int, fit: Callable[[int], int]
) -> Iterator[list[Prompt]]:
    """Neighbours that run together: with their padding no more than one chunk of a long prompt, and
    with all their draws no more canvases than `fit` behind the longest."""
    run: list[Prompt] = []
    longest = 0
    for prompt in prompts:
        count, longest = len(run) + 1, max(longest, len(prompt.ids))
        if run and (count * longest > CHUNK or count * draws > fit(longest)):
            yield run
            run, longest = [], len(prompt.ids)
        run.append(prompt)
    if run:
        yield run


def _step(
    block: Block, noise: SeededNoise, logits_BLV: mx.array, step: int, settings: GenerationSettings
) -> tuple[mx.array, mx.array]:
    """The next canvas of one draw, and what conditions it."""
    view = block.look(logits_BLV, settings.temperature(step))
    accepted = accept(view.entropy_BL, settings.entropy_bound)
    sampled = block.draw(noise, 0, step, view.scaled_BLV)
    return next_canvas(accepted, sampled, noise.renoise(0, step)), view.scaled_BLV


def _field(options: Sequence[str], shares: Any) -> Field:
    """From the shares (options, draws)."""
    mean, draws = shares.mean(axis=1), shares.shape[1]
    error = shares.std(axis=1, ddof=1) / math.sqrt(draws) if draws > 1 else mean * math.nan
    return Field(
        probabilities=dict(zip(options, map(float, mean), strict=True)),
        errors=dict(zip(options, map(float, error), strict=True)),
        entropy=float(-sum(p * math.log(p) for p in mean if p > 0)),
    )
