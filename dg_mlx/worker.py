"""The one thread that owns MLX. Jobs go in, what they yield comes out.

MLX's streams belong to the thread that made them, so every caller (a terminal, a page, a server)
hands its work to this thread, where jobs queue.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

Cancelled = Callable[[], bool]
"""Asked by a job between steps: should it stop?"""


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


_END = object()


@dataclass(slots=True)
class _Job:
    run: Callable[[Cancelled], Iterator[Any]]
    cancelled: Cancelled
    out: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)

    def execute(self) -> None:
        """Run to the end, passing on every item, and the error if there is one."""
        try:
            for item in self.run(self.cancelled):
                self.out.put(item)
        except BaseException as error:  # it belongs to the caller, whatever it is
            self.out.put(_Failure(error))
        self.out.put(_END)


class Worker:
    """Runs jobs one after another on its own thread, which starts with the first."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def stream(
        self,
        run: Callable[[Cancelled], Iterator[T]],
        cancel: threading.Event | None = None,
    ) -> Iterator[T]:
        """Yield what `run` yields on the worker's thread; its error is raised here.

        The job is told to stop when `cancel` is set or this iterator is closed, which waits for it.
        """
        left = threading.Event()
        job = _Job(run, lambda: left.is_set() or (cancel is not None and cancel.is_set()))
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
            while not ended:
                ended = job.out.get() is _END

    def call(self, run: Callable[[], T]) -> T:
        """Run a function on the worker's thread and return its value."""
        return self.ask(lambda cancelled: run())

    def ask(self, run: Callable[[Cancelled], T]) -> T:
        """As `call`; the function is told when nobody waits for it any more."""
        for value in self.stream(lambda cancelled: iter((run(cancelled),))):
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
            self._jobs.get().execute()


WORKER = Worker()
"""Shared by every engine of the process."""
