"""What an answer is held to while it settles: its pins, and the constraint on its text.

Legend: B batch (1 here), L canvas, V vocabulary, C classes, Q states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from dg_mlx.backends import NEVER, Backend, Vocabulary
from dg_mlx.errors import ConstraintError, DGError, PinError
from dg_mlx.sampling import Noise
from dg_mlx.settings import GenerationSettings

from .compile import Ints
from .constraint import Guide
from .control import Touch
from .lattice import Floats
from .pins import BlockPins, Pins


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is asked of a whole answer."""

    pins: Pins = field(default_factory=Pins)
    guide: Guide | None = None
    start: int = 0
    """The guide's state before the answer."""


class Answer:
    """Follows an answer from block to block."""

    def __init__(
        self, held: Held, backend: Backend, settings: GenerationSettings, longest: int
    ) -> None:
        """`longest`: the canvas that the checkpoint was trained with. Raises `ConstraintError`
        where no answer is short enough, or none has the pins, and `SettingsError`."""
        self._held, self._backend = held, backend
        self._canvas = settings.canvas(longest)
        self._tokens, self._ends = settings.max_new_tokens, settings.eos_token_id
        self._state = held.start
        self._last: dict[int, Floats] = {}
        if held.guide is not None:
            self._look_ahead(held.guide)

    def block(self, number: int) -> Block:
        """What the block's canvas is held to."""
        first = number * self._canvas
        pins = BlockPins.of(self._held.pins, first, self._canvas, self._ends)
        guide = self._held.guide
        barred = (*self._ends, *self._held.pins.barred)
        if guide is None:
            return Block(self._backend, pins, barred)
        left = min(self._canvas, self._tokens - first)
        last = self._last_of(guide, first + left)
        return ConstrainedBlock(self._backend, pins, barred, Part(guide, self._state, last, left))

    def change(self, touch: Touch, vocab: int) -> None:
        """Pin positions of a block that is settling, or let them go.

        Raises `PinError` and `ConstraintError`, and then nothing has changed.
        """
        first = touch.block * self._canvas
        fixed = dict(self._held.pins.fixed)
        for at, position in enumerate(touch.positions):
            if not 0 <= position < self._canvas:
                raise PinError(f"position {position} is not on the canvas; it has {self._canvas}.")
            if touch.what == "pin":
                fixed[first + position] = touch.ids[at]
            elif touch.what == "release":
                fixed.pop(first + position, None)
            elif first + position in fixed:
                raise PinError(f"position {position} is pinned; release it first.")
        before = self._held, self._last
        self._held = replace(self._held, pins=replace(self._held.pins, fixed=fixed))
        try:
            self._held.pins.check(tokens=self._tokens, vocab=vocab, ends=self._ends)
            if self._held.guide is not None:
                self._last = {}
                self._look_ahead(self._held.guide, first)
        except DGError:
            self._held, self._last = before
            raise

    def commit(self, ids: Sequence[int]) -> None:
        """A block is final."""
        if self._held.guide is not None:
            self._state = self._held.guide.after(self._state, ids)

    def check(self, text: str) -> None:
        """Assert that the whole visible text is what the constraint says."""
        if self._held.guide is not None:
            self._held.guide.check(text)

    def _last_of(self, guide: Guide, position: int) -> Floats:
        """(Q,): 0 where a canvas may end before `position`, else -inf."""
        found = self._last.get(position)
        return guide.last(self._tokens - position) if found is None else found

    def _look_ahead(self, guide: Guide, first: int = 0) -> None:
        """Which states at the start of a block can still take all the pins behind it.

        `first`: the position that comes next.
        """
        shortest = first + guide.shortest(self._state)
        if shortest > self._tokens:
            raise ConstraintError(
                f"the shortest answer that fits the constraint has {shortest} tokens and the limit "
                f"is {self._tokens}; raise max_new_tokens (--max-tokens) to {shortest} or more."
            )
        pins = BlockPins.of(self._held.pins, 0, self._tokens, self._ends)
        position = max(self._held.pins.fixed, default=-1) + 1
        last = guide.last(self._tokens - position)
        while position > first:
            if position % self._canvas == 0:
                self._last[position] = last
            position -= 1
            last = guide.before(last, guide.allowed(pins, position))
        if not np.isfinite(last[self._state]):
            raise ConstraintError(
                "no answer that fits the constraint has the pinned tokens; change one of them."
            )


@dataclass(frozen=True, slots=True)
class Part:
    """Where in a constraint a block stands."""

    guide: Guide
    state: int
    """Before the block."""
    last_Q: Floats
    """0 for states in which it may end, else -inf."""
    length: int
    """Tokens of the canvas that count; the limit may cut the rest."""


class Block:
    """One canvas, of which some tokens may be pinned."""

    def __init__(self, backend: Backend, pins: BlockPins, barred: Sequence[int]) -> None:
        self._backend, self._pins = backend, pins
        self._fixed_BL, self._soft_BL = mx.array(pins.fixed)[None], mx.array(pins.soft)[None]
        shape = (1, len(pins.fixed), len(barred))
        self._barred_BLN = mx.broadcast_to(mx.array(list(barred)), shape)
        self.frozen: NDArray[np.bool_] = pins.fixed >= 0
        """(L,): positions that may not change."""
        self.free_BL = mx.array(~self.frozen)[None] if self.frozen.any() else None
        """The others; None: all."""

    @property
    def settled(self) -> list[int] | None:
        """The block's tokens, where all are pinned."""
        return [int(token) for token in self._pins.fixed] if self.frozen.all() else None

    def start(self, noise_BL: mx.array) -> mx.array:
        """The first canvas."""
        if (self._pins.soft >= 0).any():
            noise_BL = mx.where(self._soft_BL >= 0, self._soft_BL, noise_BL)
        return self.hold(noise_BL)

    def hold(self, ids_BL: mx.array) -> mx.array:
        """Ids with the pinned ones in their places."""
        return ids_BL if self.free_BL is None else mx.where(self.free_BL, ids_BL, self._fixed_BL)

    def look(self, logits_BLV: mx.array, temperature: float) -> Vocabulary:
        """One step's view of the vocabulary. Pinned tokens are certain."""
        if self._pins.unending.any():
            own = mx.take_along_axis(logits_BLV, self._barred_BLN, axis=-1)
            own = mx.where(mx.array(self._pins.unending)[None, :, None], NEVER, own)
            logits_BLV = mx.put_along_axis(logits_BLV, self._barred_BLN, own, axis=-1)
        return self._certain(self._backend.vocabulary(logits_BLV, temperature))

    def draw(self, noise: Noise, block: int, step: int, scaled_BLV: mx.array) -> mx.array:
        """A sample of what `look` found."""
        return noise.sample(block, step, scaled_BLV)

    def _certain(self, view: Vocabulary) -> Vocabulary:
        if self.free_BL is None:
            return view
        free, fixed = self.free_BL, self._fixed_BL
        sure = mx.where(mx.arange(view.scaled_BLV.shape[-1]) == fixed[..., None], 0.0, NEVER)
        return Vocabulary(
            mx.where(free[..., None], view.scaled_BLV, sure),
            self.hold(view.guess_BL),
            mx.where(free, view.entropy_BL, 0.0),
            mx.where(free, view.total_BL, 0.0),
        )


class ConstrainedBlock(Block):
    """One canvas of an answer with a constraint: what is sampled from is all canvases that fit."""

    def __init__(
        self, backend: Backend, pins: BlockPins, barred: Sequence[int], part: Part
    ) -> None:
        super().__init__(backend, pins, barred)
        self._part, self._classes = part, part.guide.classes
        length = part.length
        self._allowed = [part.guide.allowed(pins, at) for at in range(length)]

    def look(self, logits_BLV: mx.array, temperature: float) -> Vocabulary:
        """Marginals of all canvases that fit; the guess is the likeliest of them as a whole."""
        part, lattice = self._part, self._part.guide.lattice
        scaled = logits_BLV / temperature
        most, total = self._backend.class_scores(scaled, self._classes)
        mx.eval(most, total)
        most_LC, self._total_LC = self._held(most), self._held(total)
        self._paths = lattice.paths(self._total_LC, part.state, part.last_Q)
        weight = np.zeros((1, logits_BLV.shape[1], self._classes.count), np.float32)
        weight[0, : part.length] = np.maximum(self._paths.weight_LC - self._paths.total, NEVER)
        scaled = self._backend.add_classes(scaled, mx.array(weight), self._classes)
        view = self._backend.vocabulary(scaled, 1.0)
        best = lattice.likeliest(most_LC, part.state, part.last_Q)
        guess = mx.argmax(self._along(scaled, best), axis=-1).astype(mx.int32)
        return self._certain(view._replace(guess_BL=guess))

    def draw(self, noise: Noise, block: int, step: int, scaled_BLV: mx.array) -> mx.array:
        """A canvas drawn as a whole from those that fit."""
        part = self._part
        drawn = part.guide.lattice.draw(
            self._paths.forward, self._total_LC, part.last_Q, noise.uniform(block, step)
        )
        return noise.sample(block, step, self._along(scaled_BLV, drawn))

    def _held(self, scores_BLC: mx.array) -> Floats:
        """(length, C), fp64: pins have their own class only, and no end comes before the last."""
        scores = np.array(scores_BLC[0, : self._part.length]).astype(np.float64)
        for at, allowed in enumerate(self._allowed):
            if allowed is not None:
                # A pinned token's own score changes nothing, and may be as low as can be.
                scores[at] = np.where(allowed, 0.0 if self.frozen[at] else scores[at], -np.inf)
        return scores

    def _along(self, scaled_BLV: mx.array, class_L: Ints) -> mx.array:
        """Scores of the tokens of one class per position; all tokens behind the limit."""
        length = self._part.length
        inside = self._backend.within(
            scaled_BLV[:, :length], mx.array(class_L)[None], self._classes
        )
        if length == scaled_BLV.shape[1]:
            return inside
        return mx.concatenate([inside, scaled_BLV[:, length:]], axis=1)
