"""The drafts of one answer as cells, the way the answer will read: text up to its end.

Legend of array names: L canvas length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from dg_mlx.events import Committed, Draft
from dg_mlx.replay import Look, Processor, Progress, Reader, Reading

from .fresh import Fresh
from .ink import Ink
from .layout import Cell, unbroken

View = Literal["guess", "raw", "grid"]
"""The best guess; the canvas with its noise; the best guess in fields."""
VIEWS: tuple[View, ...] = get_args(View)


class Drawing:
    """Cells of an answer. Every draft must be noted, drawn or not."""

    def __init__(self, reader: Reader) -> None:
        """`reader`: follows the answer."""
        self._reader, self._texts = reader, reader.texts
        self._look: Look | None = None
        self._fresh = Fresh()

    def note(self, draft: Draft) -> None:
        """Look at a step."""
        self._look = self._reader.note(draft)

    def commit(self, event: Committed) -> None:
        """A block is over, and its cells with it."""
        self._reader.commit(event)
        self._look, self._fresh = None, Fresh()

    def progress(self) -> Progress | None:
        """None before the first step of a block."""
        return None if self._look is None else self._look.progress

    def cells(self, view: View) -> list[Cell]:
        """What is to be drawn; what has settled since the last call is fresh."""
        look = self._look
        if look is None:
            return []
        inks = [Ink(ink) for ink in self._fresh.inks(look.state_L).tolist()]
        if view == "raw":
            return self._raw(look, inks)
        texts = self._texts.line(look.draft.guess[: look.shown])
        if view == "grid":
            rest = len(inks) - look.shown
            return [*zip(texts, inks, strict=False), *[("·", Ink.QUIET)] * rest]
        return _read(look, texts, inks)

    def _raw(self, look: Look, inks: list[Ink]) -> list[Cell]:
        """The canvas. Line breaks of noise are signs: else all that follows would jump."""
        draft = look.draft
        texts = self._texts.line(draft.canvas[: look.shown])
        noise = np.logical_not(draft.accepted | draft.frozen).tolist()
        return [
            (unbroken(text), Ink.NOISE if ink == Ink.CANDIDATE else ink) if drawn else (text, ink)
            for text, ink, drawn in zip(texts, inks, noise, strict=False)
        ]


class Frames(Drawing):
    """The same of an answer that is being made."""

    def __init__(self, processor: Processor, *, ends: Sequence[int], most: int) -> None:
        """`ends`: tokens that end an answer; `most`: its longest, in tokens."""
        super().__init__(Reading(processor, ends=ends, most=most))


def _read(look: Look, texts: list[str], inks: list[Ink]) -> list[Cell]:
    """Visible text as it is, a thought as a remark, and nothing of the rest."""
    cells: list[Cell] = []
    begin, thought, place = 0, look.thought, None
    for start, stop, part in [*look.runs, (look.shown, look.shown, "control")]:
        cells += zip(texts[begin:start], inks[begin:start], strict=False)
        if part == "thought":
            thought += stop - start
            place = len(cells) if place is None else place
        begin = stop
    if place is not None:
        count = f"{thought} token" + ("" if thought == 1 else "s")
        cells.insert(place, (f"(thought: {count})\n", Ink.QUIET))
    return cells
