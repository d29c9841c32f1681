"""A text with holes, as pins: what stands between the holes is held fixed.

Legend: T tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dg_mlx.errors import PinError

from .pins import Pins

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """A place to fill."""

    present: tuple[int, ...] = ()
    """Tokens that stand there now."""
    length: int | None = None
    """Tokens to fill it with; None: to be found out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Texts and holes, one after another, and the end token behind them."""

    parts: tuple[tuple[int, ...] | Hole, ...]
    """Tokens of a text, or a hole."""
    end: int
    barred: tuple[int, ...]
    """Tokens that may not stand in a hole: those that are no text."""

    @property
    def holes(self) -> list[Hole]:
        """The holes, in order."""
        return [part for part in self.parts if isinstance(part, Hole)]

    def size(self, lengths: Sequence[int]) -> int:
        """Tokens in all, with the end token, when the holes have these lengths."""
        return len(self.row(lengths))

    def row(self, lengths: Sequence[int]) -> list[int | None]:
        """T tokens; None in the holes."""
        left, found = list(lengths), list[int | None]()
        for part in self.parts:
            found += [None] * left.pop(0) if isinstance(part, Hole) else part
        return [*found, self.end]

    def places(self, lengths: Sequence[int]) -> list[slice]:
        """Where the holes lie among the tokens."""
        left, at, found = list(lengths), 0, list[slice]()
        for part in self.parts:
            size = left.pop(0) if isinstance(part, Hole) else len(part)
            if isinstance(part, Hole):
                found.append(slice(at, at + size))
            at += size
        return found

    def pins(self, lengths: Sequence[int], *, strength: float = 1.0, seed: int = 0) -> Pins:
        """Everything but the holes held fixed.

        With a strength below 1 a hole starts from its present tokens, of which that share is
        replaced by noise; it must be as long as they are. Raises `PinError`.
        """
        if not 0 < strength <= 1:
            raise PinError(f"strength is {strength}; it must be above 0 and at most 1.")
        row, soft = self.row(lengths), dict[int, int]()
        if strength < 1:
            rng = np.random.default_rng(seed)
            for hole, place in zip(self.holes, self.places(lengths), strict=True):
                if place.stop - place.start != len(hole.present):
                    raise PinError(
                        f"a strength below 1 keeps the length of {len(hole.present)} tokens; leave "
                        "out the length."
                    )
                kept = rng.random(len(hole.present)) >= strength
                soft |= {
                    place.start + at: token for at, token in enumerate(hole.present) if kept[at]
                }
        fixed = {at: token for at, token in enumerate(row) if token is not None}
        return Pins(fixed=fixed, soft=soft, barred=self.barred)
