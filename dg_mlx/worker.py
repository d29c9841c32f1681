"""The one thread that owns MLX. Jobs go in, what they yield comes out.

MLX's streams belong to the thread that made them, so every caller (a terminal, a page, a server)
hands its work to this thread. Jobs take turns, an item each, so that several answers go on at once
and one that is held keeps nobody waiting.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

Cancelled = Callable[[], bool]
"""Asked by a job between steps: should it stop?"""


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


_END = object()


class Gate:
    """Holds a job between two of its items while it is shut. Any thread may move it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._through: int | None = None
        self._waiting: Callable[[], None] | None = None

    @property
    def shut(self) -> bool:
        """Whether a job is held, or will be after its next item."""
        return self._through is not None

    def shut_after(self, items: int) -> None:
        """Let so many more items through; 0: hold it after the one that is being made."""
        with self._lock:
            self._through = items
            go_on = self._released() if items else None
        if go_on is not None:
            go_on()

    def open(self) -> None:
        """Let the job go on."""
        with self._lock:
            self._through = None
            go_on = self._released()
        if go_on is not None:
            go_on()

    def count(self) -> None:
        """An item was made; nobody has seen it yet."""
        with self._lock:
            if self._through:
                self._through -= 1

    def hold(self, go_on: Callable[[], None]) -> bool:
        """Asked between items: is the job to wait? Then `go_on` is called when it may go on."""
        with self._lock:
            if self._through != 0:
                return False
            self._waiting = go_on
            return True

    def _released(self) -> Callable[[], None] | None:
        go_on, self._waiting = self._waiting, None
        return go_on


@dataclass(slots=True)
class _Job:
    run: Callable[[Cancelled], Iterator[Any]]
    cancelled: Cancelled
    gate: Gate | None = None
    out: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    items: Iterator[Any] | None = None

    def advance(self) -> bool:
        """Pass on the next item, or the error in its place. False: there are no more."""
        try:
            if self.items is None:
                self.items = self.run(self.cancelled)
            item = next(self.items)
            if self.gate is not None:
                self.gate.count()
            self.out.put(item)
            return True
        except StopIteration:
            pass
        except BaseException as error:  # it belongs to the caller, whatever it is
            self.out.put(_Failure(error))
        self.out.put(_END)
        return False


class Worker:
    """Runs jobs by turns on its own thread, which starts with the first."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def stream(
        self,
        run: Callable[[Cancelled], Iterator[T]],
        cancels: Sequence[threading.Event] = (),
        gate: Gate | None = None,
    ) -> Iterator[T]:
        """Yield what `run` yields on the worker's thread; its error is raised here.

        The job is told to stop when one of `cancels` is set or this iterator is closed, which waits
        for it.
        `gate` may hold it between items.
        """
        left = threading.Event()
        job = _Job(run, lambda: any(event.is_set() for event in (left, *cancels)), gate)
        self._submit(job)
        ended = False
        try:
            while True:
                item = job.out.get()
                if item is _END:
                    ended = True
                    return
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            left.set()
            if gate is not None and not ended:
                gate.open()
            while not ended:
                ended = job.out.get() is _END

    def call(self, run: Callable[[], T]) -> T:
        """Run a function on the worker's thread and return its value."""
        return self.ask(lambda cancelled: run())

    def ask(self, run: Callable[[Cancelled], T], cancels: Sequence[threading.Event] = ()) -> T:
        """As `call`; the function is told to stop as a job is in `stream`."""
        for value in self.stream(lambda cancelled: iter((run(cancelled),)), cancels):
            return value
        raise AssertionError("a call yields one value")

    def _submit(self, job: _Job) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a job cannot wait for another job on the same thread")
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="dg-mlx", daemon=True)
                self._thread.start()
        self._jobs.put(job)

    def _loop(self) -> None:
        while True:
            self._take_turn(self._jobs.get())

    def _take_turn(self, job: _Job) -> None:
        """Some of its items: more than one while nobody else waits."""
        while job.advance():
            if job.gate is not None and job.gate.hold(lambda: self._jobs.put(job)):
                return
            if not self._jobs.empty():
                self._jobs.put(job)
                return


WORKER = Worker()
"""Shared by every engine of the process."""
