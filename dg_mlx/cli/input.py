"""What the user types, pastes or pipes in, one turn at a time."""

from __future__ import annotations

import select
import sys
from contextlib import suppress
from typing import TextIO

from dg_mlx.errors import PromptError

from .terminal import note

PASTE_S = 0.05
"""Lines that follow within this time were pasted together."""


class LineInput:
    """A terminal: line editing and history where Python has them; a paste is one turn."""

    def __init__(self) -> None:
        with suppress(ImportError):  # not everywhere
            import readline

            readline.set_history_length(1000)

    def read(self) -> str | None:
        """The next turn; None at its end (Ctrl-D)."""
        try:
            lines = [input("> ")]
            while True:
                if lines[-1].endswith("\\"):
                    lines[-1] = lines[-1][:-1]
                    lines.append(input(". "))
                elif _pending():
                    lines.append(input())
                else:
                    return "\n".join(lines).strip("\n")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            note("/exit or Ctrl-D leaves")
            return ""


class PipeInput:
    """Text from a pipe or a file: a blank line ends a turn, a line starting with / is a command."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next: str | None = None

    def read(self) -> str | None:
        """The next turn; None at the end."""
        lines: list[str] = []
        while (line := self._line()) is not None:
            if line.startswith("/"):
                if not lines:
                    return line
                self._next = line
                break
            if line.strip():
                lines.append(line)
            elif lines:
                break
        return "\n".join(lines) if lines else None

    def _line(self) -> str | None:
        if self._next is not None:
            line, self._next = self._next, None
            return line
        try:
            line = self._stream.readline()
        except UnicodeDecodeError:
            raise PromptError("the input is not UTF-8 text; convert it first.") from None
        return line.rstrip("\r\n") if line else None


def _pending() -> bool:
    """Whether more input is there already: a person does not type that fast."""
    with suppress(OSError, ValueError):
        return bool(select.select([sys.stdin], [], [], PASTE_S)[0])
    return False
