"""Cells wrapped into rows of a given width, as a terminal wraps text.

A terminal and we may count a character's width differently. Where that is likely, a span says that
it is not sure, and whoever draws it puts the cursor where the next span begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from wcwidth import iter_graphemes, wcswidth

from .ink import Ink

Cell = tuple[str, Ink]
"""A harmless text, and how it is drawn."""

TAB = 8
_SIGNS = str.maketrans({"\n": "↵", "\t": "→"})


class Span(NamedTuple):
    """A part of a row."""

    text: str
    ink: Ink
    width: int
    sure: bool = True
    """The terminal takes just `width` columns for it."""


@dataclass(slots=True)
class Row:
    """One row of the screen."""

    spans: list[Span] = field(default_factory=list)
    width: int = 0

    def add(self, span: Span) -> None:
        """Put a span behind the others."""
        self.spans.append(span)
        self.width += span.width

    @property
    def text(self) -> str:
        """Without inks."""
        return "".join(span.text for span in self.spans)


def wrap(cells: Iterable[Cell], width: int, begun: Row | None = None) -> list[Row]:
    """Rows of at most `width` (2 or more) columns, from a copy of the one that is `begun` on."""
    rows = [Row(list(begun.spans), begun.width) if begun else Row()]
    for text, ink in _whole(cells):
        if _plain(text):
            while text:
                row = rows[-1]
                if row.width >= width:
                    rows.append(row := Row())
                part, text = text[: width - row.width], text[width - row.width :]
                row.add(Span(part, ink, len(part)))
            continue
        for span in _spans(text, ink):
            _put(span, rows, width)
    return rows


def grid(cells: Sequence[Cell], width: int, columns: int = 16) -> list[Row]:
    """Each cell in a field of its own, cut to fit; fewer columns where the terminal is narrow."""
    columns = min(columns, width)
    each = width // columns
    room = max(each - 1, 1)
    rows: list[Row] = []
    for at, (text, ink) in enumerate(cells):
        if at % columns == 0:
            rows.append(Row())
        row, used = rows[-1], 0
        for span in _spans(_in_field(text), ink):
            if used + span.width > room:
                break
            row.add(span)
            used += span.width
        if used < each:
            row.add(Span(" " * (each - used), Ink.SETTLED, each - used))
    return rows


def unbroken(text: str) -> str:
    """Line breaks and tabs as signs, so that they move nothing."""
    return text.translate(_SIGNS)


def clip(text: str, ink: Ink, width: int) -> Row:
    """The beginning of a text, in one row."""
    return wrap([(unbroken(text), ink)], width)[0]


def _put(span: Span, rows: list[Row], width: int) -> None:
    """A cluster where the text so far ends."""
    if span.text == "\n":
        rows.append(Row())
        return
    if span.text == "\t":
        # It never goes on to the next row, nor is it left out at the end of one.
        blank = min(TAB - rows[-1].width % TAB, max(width - rows[-1].width, 1))
        span = Span(" " * blank, span.ink, blank)
    if rows[-1].width + span.width > width:
        rows.append(Row())
    rows[-1].add(span)


def _whole(cells: Iterable[Cell]) -> list[Cell]:
    """The cells, each cluster of code points within one: what joins goes to the cell before."""
    whole: list[Cell] = []
    for text, ink in cells:
        if whole and text and _may_join(text[0]):
            before, its = whole[-1]
            last = list(iter_graphemes(before))[-1]
            joined = len(next(iter_graphemes(last + text))) - len(last)
            whole[-1], text = (before + text[:joined], its), text[joined:]
        if text:
            whole.append((text, ink))
    return whole


def _may_join(char: str) -> bool:
    """Marks, joiners, emoji and Hangul's vowels and final consonants may; few others do."""
    if char < "\u0300":
        return False
    return not char.isalnum() or "\u1100" <= char <= "\u11ff" or "\ud7b0" <= char <= "\ud7ff"


@lru_cache(maxsize=1 << 14)
def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


@lru_cache(maxsize=1 << 14)
def _spans(text: str, ink: Ink) -> tuple[Span, ...]:
    """One for each cluster."""
    spans: list[Span] = []
    for cluster in iter_graphemes(text):
        width = max(wcswidth(cluster), 0)
        # No row could hold one of more than two columns.
        for part in cluster if width > 2 else (cluster,):
            sure = len(part) == 1 and width > 0 and _agreed(part)
            spans.append(Span(part, ink, max(wcswidth(part), 0), sure))
    return tuple(spans)


def _agreed(char: str) -> bool:
    """Letters, and the ideographs and syllables of East Asia; not emoji and other symbols."""
    return char < "\u1100" or "\u2e80" <= char <= "\ud7a3" or "\uff00" <= char <= "\uffef"


@lru_cache(maxsize=1 << 14)
def _in_field(text: str) -> str:
    """A token without the space that leads it."""
    return unbroken(text.strip(" ") or "␣")
