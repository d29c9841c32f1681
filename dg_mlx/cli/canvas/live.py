"""The canvas of one answer, drawn beside its generation.

Events are only noted where they are consumed; a thread draws the latest state, at most `FPS` times
a second. A fault in drawing ends the drawing, never the answer: the rest of it is only written.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import perf_counter
from typing import Any

from dg_mlx.cli.terminal import note, write
from dg_mlx.cli.written import Lines, Written
from dg_mlx.events import Committed, Done, Draft, Event, Prefilled
from dg_mlx.signs import harmless

from .frame import Drawing, View
from .ink import Ink
from .layout import Row, grid, wrap
from .painter import Painter
from .status import counts, status
from .tty import Terminal

FPS = 15
SPARED = 3
"""Rows of the terminal that the canvas leaves alone."""


class Live:
    """Draws what its events say and writes the text they commit, within a `with`.

    Only whole lines are written while it lasts: the begun one belongs to the canvas, so the area
    always starts at the left edge, wherever the terminal wraps lines.
    """

    def __init__(
        self,
        frames: Drawing,
        view: View,
        palette: Mapping[Ink, str],
        terminal: Terminal | None = None,
        text: Written | None = None,
        *,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """`text`: how what is committed is written; None: in whole lines, as it is. `clock`: the
        seconds that rates are told by."""
        self.failed = False
        """Drawing went wrong."""
        self._frames, self._view, self._palette = frames, view, palette
        self._terminal = terminal or Terminal()
        self._painter = Painter(self._terminal.send, palette)
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dg-mlx canvas", daemon=True)
        self._text, self._thought = text or Lines(), ""
        self._clock = clock
        self._begun = self._read_at = clock()
        self._parts: list[str] = []
        self._height = self._noted = 0
        self._drawn: Any = None
        self._size = (0, 0)
        self._suspending = False

    def __enter__(self) -> Live:
        self._suspend_before: Any = None
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGTSTP)
            if before is signal.SIG_DFL:
                self._suspend_before = signal.signal(signal.SIGTSTP, self._on_suspend)
        self._guarded(self._terminal.take)
        self._guarded(self._thread.start)
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self._stop.set()
            if self._thread.is_alive():
                self._thread.join()
        finally:
            with self._lock:
                self._guarded(self._painter.erase)
                with suppress(OSError):
                    self._terminal.give_back()
                if self._suspend_before is not None:
                    signal.signal(signal.SIGTSTP, self._suspend_before)
                self._release()

    def show(self, event: Event) -> None:
        """Note an event; write the text that it commits."""
        with self._lock:
            self._guarded(lambda: self._note(event))
            if isinstance(event, Committed):
                self._write(event)
                self._guarded(self._paint)

    def draw(self) -> None:
        """Draw the latest state, if it is not drawn yet."""
        with self._lock:
            self._guarded(self._draw)

    def _run(self) -> None:
        while not self._stop.wait(1 / FPS):
            self.draw()

    def _guarded(self, do: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            do()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failed = True
        for restore in (self._painter.erase, self._terminal.give_back):
            with suppress(Exception):
                restore()
        what = " ".join(f"{type(error).__name__}: {error}".split())
        note(f"the canvas cannot be drawn ({what}); from here on answers are plain text.")

    def _note(self, event: Event) -> None:
        self._noted += 1
        match event:
            case Prefilled():
                self._read_at = self._clock()
                self._parts = [f"prompt of {event.tokens} tokens read"]
            case Draft():
                self._frames.note(event)
                progress = self._frames.progress()
                if progress is not None:
                    self._parts = counts(progress, self._clock() - self._read_at)
            case Committed():
                self._frames.commit(event)
                self._parts = self._parts[:1]
                self._painter.erase()
            case Done():
                self._stop.set()
                self._painter.erase()

    def _draw(self) -> None:
        if self._suspending:
            self._suspend()
        now = (self._noted, self._terminal.size(), self._said())
        if now != self._drawn:
            self._drawn = now
            self._paint()

    def _paint(self) -> None:
        columns, lines = size = self._terminal.size()
        columns = max(columns, 2)
        room = max(lines - SPARED, min(lines, 2)) - 1
        rows = self._rows(columns)
        above = max(len(rows) - room, 0)
        rows = rows[above:]
        self._height = min(max(self._height, len(rows)), room)
        rows += [Row()] * (self._height - len(rows))
        rows.append(status(self._said(), above, columns))
        anew, self._size = size != self._size, size
        self._painter.paint(rows, columns, anew=anew)

    def _said(self) -> list[str]:
        """The status, in parts."""
        if self._parts:
            return self._parts
        waited = int(self._clock() - self._begun)
        return ["reading the prompt", *([f"{waited} s"] if waited else [])]

    def _rows(self, columns: int) -> list[Row]:
        """The line that is committed but not complete, and the canvas behind it."""
        cells = self._frames.cells(self._view)
        rest = self._text.rest
        if not cells and not rest:
            return []
        begun = wrap([(harmless(rest), Ink.SETTLED)], columns)
        if self._view == "grid":
            return (begun if rest else []) + grid(cells, columns)
        return begun[:-1] + wrap(cells, columns, begun[-1])

    def _write(self, event: Committed) -> None:
        """What is complete of the answer; a thought is a remark of one line."""
        if not sys.stderr.isatty():
            write(event.thought, sys.stderr)
        else:
            self._thought += event.thought
            if event.text:
                self._release_thought()
        self._text.feed(event.text)

    def _release(self) -> None:
        """Write what is left."""
        self._release_thought()
        self._text.finish()

    def _release_thought(self) -> None:
        thought, self._thought = self._thought.strip(), ""
        if thought:
            remark = f"(thought: {len(thought.split())} words)"
            sys.stderr.write(f"\x1b[{self._palette[Ink.QUIET]}m{remark}\x1b[0m\n")
            sys.stderr.flush()

    def _on_suspend(self, signum: int, frame: object) -> None:
        self._suspending = True

    def _suspend(self) -> None:
        """Ctrl-Z: stop with the terminal as it was; go on with an area of its own."""
        self._suspending = False
        self._painter.erase()
        self._terminal.give_back()
        # To this thread: so it does not go on before the process stops.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        self._terminal.take()
        self._drawn = None
