"""A terminal in memory: what is written to it, and what a person would then see."""

from __future__ import annotations

import re
from typing import Any

import pyte

from dg_mlx.cli.canvas.tty import Terminal

# pyte drops what follows characters of no width that are not marks.
_UNKNOWN = re.compile("[\u200b\u200d\ufe0f]")


class Emulator(Terminal):
    """Stands for stdout, stderr and the terminal below them."""

    encoding = "utf-8"

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.Stream(self.screen)
        self.frames: list[str] = []
        """What was sent past Python's buffers."""

    def size(self) -> tuple[int, int]:
        return self.screen.columns, self.screen.lines

    def send(self, text: str) -> None:
        self.frames.append(text)
        self._stream.feed(_UNKNOWN.sub("", text))

    def write(self, text: str) -> int:
        self._stream.feed(_UNKNOWN.sub("", text.replace("\n", "\r\n")))
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    @property
    def visible(self) -> list[str]:
        """The screen's rows."""
        return [row.rstrip() for row in self.screen.display]

    @property
    def everything(self) -> list[str]:
        """With what has scrolled away, without the blank rows at the end."""
        rows = [_text(row, self.screen.columns) for row in self.screen.history.top]
        return "\n".join(rows + self.visible).rstrip("\n").split("\n")

    @property
    def restored(self) -> bool:
        """Whether the cursor shows, lines wrap and nothing is coloured."""
        cursor = self.screen.cursor
        plain = cursor.attrs == pyte.screens.Char(" ")
        return not cursor.hidden and pyte.modes.DECAWM in self.screen.mode and plain


def _text(row: Any, columns: int) -> str:
    return "".join(row[column].data for column in range(columns)).rstrip()


def printed(text: str, columns: int = 80, lines: int = 24) -> list[str]:
    """What a terminal holds after just this text."""
    emulator = Emulator(columns, lines)
    emulator.write(text)
    return emulator.everything
