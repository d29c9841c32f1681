"""How many tokens a hole takes: the length at which a first look is most confident.

Source: arXiv 2602.00476 (first-step confidence near the right length is at a peak), averaged over
draws of noise.

Legend: B rows, L canvas, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .backends import NEVER, Backend
from .canvas.passage import Passage
from .errors import PinError, SettingsError, StoppedError
from .model import DiffusionGemma
from .model.cache import Cache
from .processor import Prompt
from .settings import GenerationSettings
from .worker import Cancelled

ROWS = 8
"""Canvases that are looked at together."""
SWEEPS = 2
"""How often each of several holes is measured, the others as found so far."""
GROWTH = 1.5
"""From one candidate length to the next, before the neighbours of the best are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What to measure."""

    prompt: Prompt
    passage: Passage
    canvas: int
    most: int
    """Tokens that all holes may have together."""
    temperature: float
    draws: int
    seed: int

    @staticmethod
    def of(
        prompt: Prompt,
        passage: Passage,
        settings: GenerationSettings,
        *,
        canvas: int,
        context: int,
        draws: int,
        seed: int,
    ) -> Search:
        """With room for the holes up to the end of the last canvas. Raises `PinError`."""
        if draws < 1:
            raise SettingsError(f"draws is {draws}; it must be 1 or more.")
        given = sum(hole.length or 0 for hole in passage.holes)
        size = passage.size([hole.length or 0 for hole in passage.holes])
        room = min(-size % canvas, context - len(prompt.ids) - size)
        open_ = sum(hole.length is None for hole in passage.holes)
        if room < open_:
            room = min(canvas, context - len(prompt.ids) - size)
        if room < open_:
            raise PinError(
                f"the text takes {size} tokens, which leaves its holes no room; shorten it."
            )
        return Search(
            prompt=prompt,
            passage=passage,
            canvas=canvas,
            most=given + room,
            temperature=settings.temperature(1),
            draws=draws,
            seed=seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What was found."""

    chosen: tuple[int, ...]
    """By hole."""
    confidence: tuple[dict[int, float], ...]
    """By hole and candidate length; empty where the length was given."""


def find(model: DiffusionGemma, backend: Backend, asked: Search, cancelled: Cancelled) -> Lengths:
    """Measure. Runs on the thread that owns MLX; `cancelled` is asked between passes.

    Raises `StoppedError`.
    """
    backend.activate()
    look = _Look(model, backend, asked, cancelled)
    holes = asked.passage.holes
    chosen = [hole.length or max(1, len(hole.present)) for hole in holes]
    confidence: list[dict[int, float]] = [{} for _ in holes]
    open_ = [i for i, hole in enumerate(holes) if hole.length is None]
    for _ in range(SWEEPS if len(open_) > 1 else 1):
        for i in open_:
            room = asked.most - sum(chosen) + chosen[i]
            tried: dict[int, float] = {}
            look.measure(chosen, i, _coarse(room, chosen[i]), tried)
            look.measure(chosen, i, _between(tried), tried)
            chosen[i] = max(tried, key=lambda n: (tried[n], -n))
            confidence[i] = dict(sorted(tried.items()))
    return Lengths(chosen=tuple(chosen), confidence=tuple(confidence))


def _coarse(most: int, present: int) -> list[int]:
    """1, 2, 3, 5, …: each about half as long again, and the present length."""
    found, length = {min(present, most)}, 1.0
    while round(length) <= most:
        found.add(round(length))
        length = max(length * GROWTH, length + 1)
    return sorted(found)


def _between(tried: dict[int, float]) -> list[int]:
    """At most 8 lengths between the neighbours of the best so far."""
    order = sorted(tried)
    at = order.index(max(tried, key=lambda n: tried[n]))
    low, high = order[max(0, at - 1)], order[min(len(order) - 1, at + 1)]
    inside = [n for n in range(low + 1, high) if n not in tried]
    step = -(-len(inside) // 8) if inside else 1
    return inside[::step]


class _Look:
    """First passes over candidate canvases."""

    def __init__(
        self, model: DiffusionGemma, backend: Backend, asked: Search, cancelled: Cancelled
    ) -> None:
        self._model, self._backend, self._asked = model, backend, asked
        self._cancelled = cancelled
        self._caches: dict[tuple[int, ...], Cache] = {}

    def measure(
        self, lengths: Sequence[int], hole: int, candidates: Sequence[int], into: dict[int, float]
    ) -> None:
        """Put the mean confidence of each candidate length of a hole into `into`."""
        asked = self._asked
        for candidate in candidates:
            if self._cancelled():
                raise StoppedError("stopped before the length was found.")
            trial = [*lengths]
            trial[hole] = candidate
            before, row = self._window(trial, hole)
            cache, found = self._cache(before), []
            for first in range(0, asked.draws, ROWS):
                draws = range(first, min(first + ROWS, asked.draws))
                found.append(self._confidence(row, cache.repeated(len(draws), len(row)), draws))
            into[candidate] = float(np.concatenate(found).mean())

    def _window(
        self, lengths: Sequence[int], hole: int
    ) -> tuple[tuple[int, ...], list[int | None]]:
        """Tokens before the canvas, and the canvas around the hole."""
        row, place = self._asked.passage.row(lengths), self._asked.passage.places(lengths)[hole]
        canvas = self._asked.canvas
        spare = max(0, canvas - (place.stop - place.start))
        start = (
            0 if len(row) <= canvas else max(0, min(place.start - spare // 2, len(row) - canvas))
        )
        before = tuple(token for token in row[:start] if token is not None)
        shown = row[start : start + canvas]
        shown += [self._asked.passage.end] * (canvas - len(shown))
        return before, shown

    def _cache(self, before: tuple[int, ...]) -> Cache:
        if before not in self._caches:
            cache, prompt = self._model.new_cache(), self._asked.prompt
            self._model.prefill(mx.array([prompt.ids]), cache, media=prompt.media)
            if before:
                self._model.prefill(mx.array([before]), cache)
            self._caches = {before: cache}
        return self._caches[before]

    def _confidence(
        self, row: Sequence[int | None], cache: Cache, draws: range
    ) -> NDArray[np.float32]:
        """(B,): log probability of the fixed tokens and, in holes, of the best guesses."""
        asked, vocab = self._asked, self._model.config.text.vocab_size
        known = np.array([-1 if token is None else token for token in row])
        canvas = np.stack(
            [
                np.where(
                    known < 0,
                    np.random.default_rng([asked.seed, draw]).integers(vocab, size=len(row)),
                    known,
                )
                for draw in draws
            ]
        )
        logits = self._model.denoise(mx.array(canvas.astype(np.int32)), cache)
        barred = mx.zeros(vocab).at[mx.array(list(asked.passage.barred))].add(1) > 0
        free = mx.array(known < 0)[:, None]
        view = self._backend.vocabulary(mx.where(free & barred, NEVER, logits), asked.temperature)
        token_BL = mx.where(free[:, 0], view.guess_BL, mx.array(canvas.astype(np.int32)))
        score_BL = mx.take_along_axis(view.scaled_BLV, token_BL[..., None], axis=-1)[..., 0]
        sure: NDArray[np.float32] = np.array((score_BL - view.total_BL).sum(axis=1))
        return sure
