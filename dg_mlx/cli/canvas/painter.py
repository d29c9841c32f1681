"""Rows to bytes: an area of the screen that is drawn over and over, then taken away.

Between frames the cursor stands, hidden, at the area's first column and row. So a terminal that
changes its size keeps the cursor with that row, whether it wraps rows anew or cuts them, and all
that has to go is below the cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .ink import Ink
from .layout import Row

# Synchronised output, no wrapping at the right edge, no cursor.
_BEGIN = "\x1b[?2026h\x1b[?7l\x1b[?25l"
_END = "\x1b[?7h\x1b[?2026l"
_JOINER = "\u200d"
# The first row by itself: tmux takes erasing from the top of the screen for `clear`, and keeps what
# was there in its history.
_ERASE = "\r\x1b[K\x1b7\x1b[B\x1b[J\x1b8"


class Painter:
    """Draws rows. `send` takes each frame as one text."""

    def __init__(self, send: Callable[[str], None], palette: Mapping[Ink, str]) -> None:
        self._send, self._palette = send, palette
        self._shown: list[str] = []

    def paint(self, rows: Sequence[Row], columns: int, *, anew: bool = False) -> None:
        """Draw what differs from the frame before. The area grows, never shrinks.

        `anew`: the terminal's size is another one, so all of it is drawn again.
        """
        drawn = [self._drawn(row, columns) for row in rows]
        out: list[str] = []
        if anew or not self._shown:
            out, self._shown = [_ERASE], []
        if len(drawn) > len(self._shown):
            out.append(_grown(len(self._shown), len(drawn)))
            self._shown += [""] * (len(drawn) - len(self._shown))
        drawn += [""] * (len(self._shown) - len(drawn))
        changed = self._changed(drawn)
        self._shown = drawn
        if out or changed:
            self._send("".join((_BEGIN, *out, *changed, _END)))

    def erase(self) -> None:
        """Take the area away; what is written next takes its place."""
        if self._shown:
            self._shown = []
            self._send(_ERASE)

    def _changed(self, drawn: list[str]) -> list[str]:
        """The rows that differ. The cursor returns by its saved place, since a terminal that is
        being resized may not have all rows any more."""
        out, at = [], 0
        for number, (new, old) in enumerate(zip(drawn, self._shown, strict=True)):
            if new != old:
                out.append(f"\x1b[{number - at}B\r" if number > at else "\r")
                out.append(new or "\x1b[K")
                at = number
        return ["\x1b7", *out, "\x1b8"] if out else []

    def _drawn(self, row: Row, columns: int) -> str:
        out: list[str] = []
        now, column, sure = "", 0, True
        for span in row.spans:
            if not sure:
                out.append(f"\x1b[{column + 1}G")
            code = self._palette[span.ink]
            if code != now:
                out.append(f"\x1b[0;{code}m" if code else "\x1b[0m")
                now = code
            # Some terminals join whatever comes next to a joiner, and move it there.
            out.append(span.text if span.sure else span.text.strip(_JOINER))
            column += span.width
            sure = span.sure
        if now:
            out.append("\x1b[0m")
        if column < columns:
            # Behind the last column there is nothing, and the cursor would still stand on it.
            out.append("\x1b[K" if sure else f"\x1b[{column + 1}G\x1b[K")
        return "".join(out)


def _grown(before: int, after: int) -> str:
    """Rows below the area, by scrolling where the screen ends; the cursor stays with the first."""
    down = f"\x1b[{before - 1}B" if before > 1 else ""
    up = f"\x1b[{after - 1}A" if after > 1 else ""
    new = "\r\n" * (after - max(before, 1))
    return f"{down}{new}{up}\r"
