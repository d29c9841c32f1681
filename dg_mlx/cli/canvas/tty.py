"""The terminal under the canvas: its size, bytes to it, and what a turn changes about it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any


class Terminal:
    """stdout, and stdin where it is the keyboard."""

    def __init__(self) -> None:
        self._modes: list[Any] | None = None

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        with suppress(OSError, ValueError):
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
            if columns and lines:
                return columns, lines
        return 80, 24

    def send(self, text: str) -> None:
        """Write at once, past Python's buffers."""
        sys.stdout.flush()
        rest = text.encode(sys.stdout.encoding, "replace")
        while rest:
            rest = rest[os.write(sys.stdout.fileno(), rest) :]

    def take(self) -> None:
        """Hide the cursor, and what is typed: it would be written into the canvas."""
        with suppress(Exception):  # no keyboard
            import termios

            keyboard = sys.stdin.fileno()
            modes = termios.tcgetattr(keyboard)
            silent = [*modes[:3], modes[3] & ~termios.ECHO, *modes[4:]]
            termios.tcsetattr(keyboard, termios.TCSADRAIN, silent)
            self._modes = modes
        self.send("\x1b[?25l")

    def give_back(self) -> None:
        """Leave it as it was before `take`; typed text is kept."""
        with suppress(Exception):
            if self._modes is not None:
                import termios

                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._modes)
                self._modes = None
        self.send("\x1b[0m\x1b[?7h\x1b[?25h")
