"""An answer as plain text, and one line that says how far it is."""

from __future__ import annotations

import os
import sys
from typing import Any

from dg_mlx.events import Committed, Done, Draft, Event, Prefilled
from dg_mlx.signs import harmless

from .terminal import write


class Plain:
    """Writes each block's text when it is committed; the line is for terminals only."""

    def __init__(self) -> None:
        self._on = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = self._begun = False

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: Any) -> None:
        self._clear()

    def show(self, event: Event) -> None:
        """Write what an event brings."""
        match event:
            case Prefilled():
                self._line("prompt read")
            case Draft():
                settled = int(event.accepted.sum())
                self._line(
                    f"block {event.block + 1} · step {event.step}/{event.max_steps} · "
                    f"settled {settled}/{len(event.accepted)}"
                )
            case Committed():
                self._clear()
                if event.thought:
                    write(event.thought, sys.stderr)
                write(event.text)
                if last := event.text or event.thought:
                    self._begun = not last.endswith("\n")
            case Done():
                self._clear()

    def finish(self) -> None:
        """The answer is over: what follows begins on a line of its own."""
        if self._begun:
            write("\n")
            self._begun = False

    def _line(self, line: str) -> None:
        """Replace the line, except where it is the answer's."""
        if self._on and not self._begun:
            sys.stdout.write(f"\r\x1b[2K{harmless(line)}")
            sys.stdout.flush()
            self._shown = True

    def _clear(self) -> None:
        """Take it away."""
        if self._shown:
            sys.stdout.write("\r\x1b[2K")
            sys.stdout.flush()
            self._shown = False
