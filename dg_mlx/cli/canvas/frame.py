"""The drafts of one answer as cells, the way the answer will read: text up to its end.

Legend of array names: L canvas length, N positions that count.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from dg_mlx.events import Committed, Draft
from dg_mlx.processor.reply import ControlTokens
from dg_mlx.signs import harmless

from .ink import Ink
from .layout import Cell, unbroken
from .states import States

View = Literal["guess", "raw", "grid"]
"""The best guess; the canvas with its noise; the best guess in fields."""
VIEWS: tuple[View, ...] = get_args(View)


class Processor(Protocol):
    """As much of a checkpoint's as drawing needs."""

    @property
    def control(self) -> ControlTokens:
        """Its control tokens."""

    def piece(self, token_id: int, /) -> str:
        """Text of one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an answer is."""

    block: int
    """Counts from 0, as `step` counts from 1."""
    step: int
    max_steps: int
    settled: int
    """Of `positions`, which end with the first end token of the guess."""
    positions: int
    entropy: float
    """Mean over them, in nats."""
    tokens: int
    """Committed, and settled in this block."""
    steps: int
    """In all blocks together."""


class Frames:
    """Follows one answer. Every draft must be noted, drawn or not."""

    def __init__(self, processor: Processor, *, ends: Sequence[int], most: int) -> None:
        """`ends`: tokens that end an answer; `most`: its longest, in tokens."""
        self._processor, self._control = processor, processor.control
        self._ends, self._left = np.array(ends), most
        self._pieces: dict[int, str] = {}
        self._place = _Place(self._control)
        self._states = States()
        self._draft: Draft | None = None
        self._tokens = self._thought = self._steps = 0

    def note(self, draft: Draft) -> None:
        """Look at a step."""
        self._states.note(draft)
        self._draft = draft
        self._steps += 1

    def commit(self, event: Committed) -> None:
        """A block is over, and its cells with it."""
        self._thought += [self._part(self._place, i) for i in event.ids].count("thought")
        self._tokens += len(event.ids)
        self._left -= len(event.ids)
        self._states, self._draft = States(), None

    def progress(self) -> Progress | None:
        """None before the first step of a block."""
        draft = self._draft
        if draft is None:
            return None
        count = self._count(draft)
        state_N = self._states.now[:count]
        settled = int(((state_N == Ink.SETTLED) | (state_N == Ink.FROZEN)).sum())
        return Progress(
            block=draft.block,
            step=draft.step,
            max_steps=draft.max_steps,
            settled=settled,
            positions=count,
            entropy=float(draft.entropy[:count].mean()) if count else 0.0,
            tokens=self._tokens + settled,
            steps=self._steps,
        )

    def cells(self, view: View) -> list[Cell]:
        """What is to be drawn; what has settled since the last call is fresh."""
        draft = self._draft
        if draft is None:
            return []
        count = self._count(draft)
        ended = count > 0 and bool(np.isin(draft.guess[count - 1], self._ends))
        shown = count - 1 if ended else count
        ink_L = self._states.show()
        if view == "raw":
            return self._raw(draft, ink_L, shown)
        texts = self._texts(draft.guess[:shown])
        inks = [Ink(ink) for ink in ink_L[:shown].tolist()]
        if view == "grid":
            rest = len(ink_L) - shown
            return [*zip(texts, inks, strict=True), *[("·", Ink.QUIET)] * rest]
        return self._read(draft.guess[:shown].tolist(), texts, inks)

    def _count(self, draft: Draft) -> int:
        """Positions that would be part of the answer: to the first end token, or the limit."""
        ends = np.flatnonzero(np.isin(draft.guess, self._ends))
        count = int(ends[0]) + 1 if len(ends) else len(draft.guess)
        return min(count, self._left)

    def _raw(self, draft: Draft, ink_L: NDArray[np.int8], shown: int) -> list[Cell]:
        """The canvas. Line breaks of noise are signs: else all that follows would jump."""
        noise_L = ~(draft.accepted | draft.frozen)
        ink_L = np.where(noise_L & (ink_L == Ink.CANDIDATE), np.int8(Ink.NOISE), ink_L)
        texts = self._texts(draft.canvas[:shown])
        cells = zip(texts, ink_L[:shown].tolist(), noise_L[:shown].tolist(), strict=True)
        return [(unbroken(text) if noise else text, Ink(ink)) for text, ink, noise in cells]

    def _read(self, ids: list[int], texts: list[str], inks: list[Ink]) -> list[Cell]:
        """Visible text as it is, a thought as a remark, and nothing of the rest."""
        place, thought, at = self._place.copy(), self._thought, None
        cells: list[Cell] = []
        for token, text, ink in zip(ids, texts, inks, strict=True):
            part = self._part(place, token)
            if part == "text":
                cells.append((text, ink))
            elif part == "thought":
                thought += 1
                if at is None:
                    at = len(cells)
        if at is not None:
            count = f"{thought} token" + ("" if thought == 1 else "s")
            cells.insert(at, (f"(thought: {count})\n", Ink.QUIET))
        return cells

    def _part(self, place: _Place, token: int) -> str | None:
        return place.part(token, "\n" in self._piece(token))

    def _texts(self, ids_N: NDArray[np.int32]) -> list[str]:
        """Harmless text of each token; a character of several tokens is the last one's."""
        ids: list[int] = ids_N.tolist()
        texts = [self._piece(token) for token in ids]
        bytes_ = self._control.bytes
        if bytes_.keys().isdisjoint(ids):
            return texts
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for at, token in enumerate(ids):
            if token in bytes_:
                over = at + 1 == len(ids) or ids[at + 1] not in bytes_
                texts[at] = harmless(decoder.decode(bytes([bytes_[token]]), over))
                if over:
                    decoder.reset()
        return texts

    def _piece(self, token: int) -> str:
        text = self._pieces.get(token)
        if text is None:
            text = self._pieces[token] = harmless(self._processor.piece(token))
        return text


class _Place:
    """Which part of an answer comes next, as `ReplyParser` reads it."""

    def __init__(self, control: ControlTokens) -> None:
        self._control = control
        self._part, self._closer = "text", None

    _closer: int | None

    def copy(self) -> _Place:
        other = _Place(self._control)
        other._part, other._closer = self._part, self._closer
        return other

    def part(self, token: int, breaks: bool) -> str | None:
        """The part that the next token belongs to; None: it only separates parts."""
        control = self._control
        if token in control.opens:
            self._part, self._closer = control.opens[token], control.closes.get(token)
        elif token == self._closer or token in control.ends:
            self._part, self._closer = "text", None
        elif token not in control.special:
            part = self._part
            if part == "header" and breaks:
                self._part = "text"
            return part
        return None
