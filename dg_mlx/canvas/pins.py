"""Tokens of an answer that are held fixed, or that its canvases start from.

Positions count from 0 at the answer's first token and run on through all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dg_mlx.errors import PinError

Pin = int | str | Sequence[int]
"""A token id, ids, or a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """What is known of an answer beforehand."""

    fixed: Mapping[int, int] = field(default_factory=dict)
    """Position → id that may not change."""
    soft: Mapping[int, int] = field(default_factory=dict)
    """Position → id that stands there at first, in place of noise."""
    barred: tuple[int, ...] = ()
    """Ids that may not stand before the last fixed position, unless they are fixed themselves."""

    def __post_init__(self) -> None:
        for position in self.fixed.keys() & self.soft.keys():
            if self.fixed[position] != self.soft[position]:
                raise PinError(
                    f"position {position} is pinned to {self.fixed[position]} and starts as "
                    f"{self.soft[position]}; give one of the two."
                )

    @staticmethod
    def of(pins: Mapping[int, Pin], encode: Callable[[str], list[int]]) -> Pins:
        """Fixed pins from ids and texts; `encode` tokenises. Raises `PinError` where they clash."""
        fixed: dict[int, int] = {}
        for position, pin in pins.items():
            for at, token in enumerate(_ids(pin, encode), position):
                if fixed.setdefault(at, token) != token:
                    raise PinError(
                        f"position {at} is pinned to {fixed[at]} and to {token}; give one of them."
                    )
        return Pins(fixed=fixed)

    def check(self, *, tokens: int, vocab: int, ends: Sequence[int]) -> None:
        """Raise `PinError` for what cannot be held in an answer of at most `tokens`."""
        for position, token in {**self.soft, **self.fixed}.items():
            if not 0 <= position < tokens:
                raise PinError(
                    f"position {position} is pinned, and the answer has 0..{tokens - 1}; raise "
                    "max_new_tokens (--max-tokens) or move the pin."
                )
            if not 0 <= token < vocab:
                raise PinError(
                    f"position {position} is pinned to {token}; this checkpoint knows "
                    f"0..{vocab - 1}."
                )
        end, last = self.end(ends), max(self.fixed, default=-1)
        if end is not None and end < last:
            raise PinError(
                f"position {end} is pinned to an end token, and position {last} behind it is "
                "pinned too; remove one of them."
            )

    def end(self, ends: Sequence[int]) -> int | None:
        """The position of the pinned end token, if there is one."""
        return min((p for p, token in self.fixed.items() if token in ends), default=None)


def _ids(pin: Pin, encode: Callable[[str], list[int]]) -> list[int]:
    if isinstance(pin, str):
        return encode(pin)
    return [int(pin)] if isinstance(pin, int | np.integer) else [int(token) for token in pin]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockPins:
    """The pins of L positions."""

    fixed: NDArray[np.int32]
    """(L,): ids, -1 where nothing is fixed. Behind a pinned end all is, to the same token."""
    soft: NDArray[np.int32]
    """(L,): ids to start from, -1 for noise."""
    unending: NDArray[np.bool_]
    """(L,): where the answer may not end, because something is fixed behind it."""

    @staticmethod
    def of(pins: Pins, start: int, length: int, ends: Sequence[int]) -> BlockPins:
        """Those of the positions from `start`."""
        fixed, soft = (np.full(length, -1, np.int32) for _ in range(2))
        for ids, known in ((fixed, pins.fixed), (soft, pins.soft)):
            for position, token in known.items():
                if start <= position < start + length:
                    ids[position - start] = token
        end = pins.end(ends)
        if end is not None:
            fixed[max(0, end - start) :] = pins.fixed[end]
        last = max(pins.fixed, default=-1)
        return BlockPins(fixed=fixed, soft=soft, unending=np.arange(start, start + length) < last)
