"""Which part of an answer each token belongs to, as `processor.reply.ReplyParser` reads it.

Legend of array names: N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dg_mlx.processor.reply import ControlTokens

Part = Literal["thought", "control"]
"""What is not visible text: a thought, or what only structures the answer."""
Run = tuple[int, int, Part]
"""From, to, part."""


class Place:
    """Where in an answer its next token stands."""

    def __init__(self, control: ControlTokens, breaks: Callable[[int], bool]) -> None:
        """`breaks`: whether a token's text has a line break, which ends a header."""
        self._control, self._breaks = control, breaks
        self._part = "text"
        self._closer: int | None = None
        ids = {*control.special, *control.opens, *control.closes.values(), *control.ends}
        # Ids beyond the table are clipped to its last entry, which is False.
        self._structural = np.zeros(max(ids, default=0) + 2, np.bool_)
        self._structural[list(ids)] = True

    def runs(self, ids_N: NDArray[np.int32]) -> list[Run]:
        """Runs of tokens that are not visible text, where these come next. The place stays."""
        part, closer = self._part, self._closer
        runs = self.take(ids_N)
        self._part, self._closer = part, closer
        return runs

    def take(self, ids_N: NDArray[np.int32]) -> list[Run]:
        """The same; the place is behind them from now on."""
        runs: list[Run] = []
        start = 0
        for at in np.flatnonzero(self._structural.take(ids_N, mode="clip")).tolist():
            self._pass(ids_N, start, at, runs)
            self._turn(int(ids_N[at]))
            add(runs, at, at + 1, "control")
            start = at + 1
        self._pass(ids_N, start, len(ids_N), runs)
        return runs

    def _turn(self, token: int) -> None:
        """A token that structures the answer."""
        control = self._control
        if token in control.opens:
            self._part, self._closer = control.opens[token], control.closes.get(token)
        elif token == self._closer or token in control.ends:
            self._part, self._closer = "text", None

    def _pass(self, ids_N: NDArray[np.int32], start: int, stop: int, runs: list[Run]) -> None:
        """Tokens that do not structure it."""
        if self._part == "header":
            breaks = (at for at in range(start, stop) if self._breaks(int(ids_N[at])))
            end = next(breaks, None)
            if end is not None:
                self._part = "text"
            add(runs, start, stop if end is None else end + 1, "control")
        elif self._part != "text":
            add(runs, start, stop, "thought" if self._part == "thought" else "control")


def of_part(runs: list[Run], part: Part, count: int) -> int:
    """How many of the first `count` tokens are of a part."""
    return sum(max(min(stop, count) - start, 0) for start, stop, its in runs if its == part)


def add(runs: list[Run], start: int, stop: int, part: Part) -> None:
    """Append a run, joined with the one before it where that is of the same part."""
    if runs and runs[-1][1:] == (start, part):
        runs[-1] = (runs[-1][0], stop, part)
    elif start < stop:
        runs.append((start, stop, part))
