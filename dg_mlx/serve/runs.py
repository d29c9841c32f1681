"""Runs in the making: all frames are kept, any number of watchers follow, none is waited for."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Any

from dg_mlx.canvas.control import Control, Touch
from dg_mlx.conversation import LeftOut, Notice, Unsaved
from dg_mlx.edit import Edited
from dg_mlx.errors import DGError, StoppedError
from dg_mlx.events import Committed, Event
from dg_mlx.replay import Recorder

KEPT = 32
"""Runs that are over and can still be followed."""
BATCH = 64
"""Most frames that a watcher is sent at once."""

CLOSING_S = 10.0
"""Longest wait for a run that was told to stop."""

Item = Event | Notice | Edited
Source = Callable[["Run"], Iterator[Item]]
"""Called on the run's thread: calls `Run.begin`, then yields what is to be recorded."""
Encode = Callable[[str], Sequence[int]]
"""A text's token ids."""
Keep = Callable[["Run"], None]
"""Called with a run that is over, before anybody else knows."""

_LOG = logging.getLogger(__name__)


class Run:
    """One answer, or one edit, from its start to its last frame."""

    def __init__(self, id: str, source: Source, keep: Keep) -> None:
        """`start` calls `source`, and `keep` at the end, on a thread of the run's own."""
        self.id = id
        self.control = Control(self._touched)
        self.lines: list[str] = []
        """Frames as JSON, in order."""
        self.over = threading.Event()
        """Set with the last frame."""
        self.text = self.thought = ""
        """What is final of the answer."""
        self.kept: dict[str, str | None] = {"conversation": None, "message": None}
        """What the answer was kept as: the source says."""
        self._source, self._keep = source, keep
        self._begun = perf_counter()
        self._recorder: Recorder | None = None
        self._early: list[tuple[str, dict[str, Any]]] = []
        """What was told before it began: `begin` is the first frame."""
        self._ended = False
        self._encode: Encode = lambda text: ()
        self._lock = threading.Lock()
        self._watchers: set[Callable[[], None]] = set()

    def start(self) -> None:
        """Begin; returns at once."""
        threading.Thread(target=self._run, name=f"dg-mlx run {self.id}", daemon=True).start()

    def frames(self) -> list[dict[str, Any]]:
        """All so far."""
        return [json.loads(line) for line in list(self.lines)]

    def begin(self, recorder: Recorder, encode: Encode) -> None:
        """What is asked of it is known: `recorder` has begun, and `encode` turns texts to pins."""
        with self._lock:
            self._recorder, self._encode = recorder, encode
            self._lines(*recorder.frames)
            self._lines(*(recorder.tell(kind, **what) for kind, what in self._early))
        self._wake()

    # From outside, on any thread.

    def pause(self) -> None:
        """Hold it after the step that is being made."""
        if not self.control.paused:
            self.control.pause()
            self._tell("pause")

    def resume(self) -> None:
        """Let it go on."""
        if self.control.paused:
            self._tell("resume")
            self.control.resume()

    def step(self) -> None:
        """Make one step, and hold it."""
        self.pause()
        self.control.step()

    def stop(self) -> None:
        """End it after the step that is being made; what there is of the answer is kept."""
        self.control.stop()

    def touch(self, touch: Touch, text: str | None = None) -> None:
        """Change the canvas before its next step. `text`: to pin, from the first position on."""
        if text is not None:
            ids = tuple(self._encode(text))
            positions = tuple(range(touch.positions[0], touch.positions[0] + len(ids)))
            touch = replace(touch, positions=positions, ids=ids)
        self.control.touch(touch)

    def note(self, text: str) -> None:
        """Tell whoever watches something, in one line."""
        self._tell("note", text=text)

    async def follow(self, first: int = 0) -> AsyncIterator[Sequence[str]]:
        """Frames from a number on, in batches, as they come, to the last."""
        loop, more = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the watcher's loop is closed
                loop.call_soon_threadsafe(more.set)

        with self._lock:
            self._watchers.add(wake)
        try:
            while True:
                more.clear()
                over = self.over.is_set()
                ready = self._ready()
                while first < ready:
                    batch = self.lines[first : min(first + BATCH, ready)]
                    yield batch
                    first += len(batch)
                if over:
                    return
                await more.wait()
        finally:
            with self._lock:
                self._watchers.discard(wake)

    # On the run's own thread.

    def _run(self) -> None:
        try:
            for item in self._source(self):
                self._take(item)
        except StoppedError as error:
            self._tell("note", text=str(error))
        except DGError as error:
            self._tell("error", text=" ".join(str(error).split()))
        except Exception as error:
            _LOG.exception("run %s failed", self.id)
            what = " ".join(f"{type(error).__name__}: {error}".split())
            self._tell("error", text=f"this run failed ({what}); try again.")
        finally:
            self._end()

    def _take(self, item: Any) -> None:
        match item:
            case LeftOut() | Unsaved():
                self._tell("note", text=item.line)
            case Edited(text=text, spans=spans, fills=fills):
                self._tell("edited", text=text, spans=spans, fills=fills)
            case _:
                if isinstance(item, Committed):
                    self.text, self.thought = self.text + item.text, self.thought + item.thought
                assert self._recorder is not None, "a source begins first"
                with self._lock:
                    self._lines(self._recorder.take(item))
                self._wake()

    def _end(self) -> None:
        with self._lock:
            recorder, self._recorder = self._recorder, None  # the lines have it all
            self._ended = True
            if recorder is not None:
                self._lines(recorder.tell("end", **self.kept))
            else:
                at = round(perf_counter() - self._begun, 3)
                told = [*self._early, ("end", self.kept)]
                self._lines(*({"at": at, "kind": kind, **what} for kind, what in told))
        try:
            self._keep(self)
        except Exception:
            _LOG.exception("run %s cannot be kept", self.id)
        self.over.set()
        self._wake()

    def _ready(self) -> int:
        """How many frames watchers may have: the last one only when the run is over."""
        with self._lock:
            return len(self.lines) - (self._ended and not self.over.is_set())

    def _touched(self, touch: Touch, problem: str) -> None:
        if problem:
            self._tell("note", text=problem)
            return
        ids = {"ids": touch.ids} if touch.what == "pin" else {}
        self._tell("touch", block=touch.block, what=touch.what, positions=touch.positions, **ids)

    def _tell(self, kind: str, **what: Any) -> None:
        """Add a frame: once the run has begun, and not behind its last."""
        with self._lock:
            if self._recorder is not None:
                self._lines(self._recorder.tell(kind, **what))
            elif not self._ended:
                self._early.append((kind, what))
        self._wake()

    def _lines(self, *frames: dict[str, Any]) -> None:
        for frame in frames:
            numbered = {"n": len(self.lines)} | {k: v for k, v in frame.items() if k != "n"}
            self.lines.append(json.dumps(numbered, ensure_ascii=False, separators=(",", ":")))

    def _wake(self) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for wake in watchers:
            wake()


class Runs:
    """All runs of a server; of those that are over, the last ones."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, source: Source, keep: Keep = lambda run: None) -> Run:
        """Begin one. `source` and `keep` as in `Run`."""
        run = Run(secrets.token_urlsafe(12), source, keep)
        with self._lock:
            self._runs[run.id] = run
            over = [run.id for run in self._runs.values() if run.over.is_set()]
            for old in over[:-KEPT]:
                del self._runs[old]
        run.start()
        return run

    def get(self, id: str) -> Run | None:
        """By id; None: there is none, or it is long over."""
        return self._runs.get(id)

    def close(self) -> None:
        """Stop all, and wait until what there is of their answers is kept."""
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.stop()
        for run in runs:
            run.over.wait(CLOSING_S)
