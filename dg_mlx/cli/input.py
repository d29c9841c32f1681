"""What is piped in: a prompt, or one turn after another."""

from __future__ import annotations

import sys
from typing import TextIO

from dg_mlx.errors import PromptError


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


def prompt_text(given: str | None, *, verb: str, optional: bool = False) -> str:
    """The prompt argument, what is piped in, or both. Raises `PromptError` without either.

    `optional`: there are pictures, so that text need not be.
    """
    stdin = sys.stdin
    piped = "" if stdin is None or stdin.isatty() else _read(stdin)
    parts = [part for part in (given or "", piped.rstrip("\n")) if part.strip()]
    if not parts and not optional:
        raise PromptError(f'there is no prompt; write one: dg-mlx {verb} "…", or pipe it in.')
    return "\n\n".join(parts)


def _read(stream: TextIO) -> str:
    try:
        return stream.read()
    except UnicodeDecodeError:
        raise PromptError("stdin is not UTF-8 text; pass pictures with --image.") from None
    except OSError:
        return ""  # closed
