"""Downloads and conversions beside the answers, each in a process of its own.

So a stop is a kill, the memory is given back whatever happens, and MLX's threads stay apart.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from dg_mlx.errors import CheckpointError, DGError, HubError

from . import child
from .leftovers import remove_leftovers

WINDOW_S = 10.0
"""Seconds over which the rate is taken."""

State = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a job is to do."""

    name: str
    """What loads the model that it makes: a repo id, or a folder's path."""
    title: str
    work: child.Work
    kept: str
    """How to go on after a stop."""
    fetched: Sequence[str] = ()
    """Repos that it may fetch."""


class Job:
    """Work in another process. Its values may be read from any thread."""

    def __init__(
        self, id: str, task: Task, *, after: Callable[[Job], None] = lambda job: None
    ) -> None:
        """Begins at once. `after` is called once it is over, on a thread of its own."""
        self.id, self.name, self.title = id, task.name, task.title
        self.phase = ""
        """"fetch", "convert" or "verify"; empty until something is known."""
        self.done = self.total = 0
        """Bytes of the phase."""
        self.state: State = "running"
        self.text = ""
        """Once it is not running: what came of it, in a line."""
        self.folder: Path | None = None
        """What it made, once it is done."""
        self._kept, self._fetched, self._after, self._stopping = (
            task.kept, task.fetched, after, False
        )  # fmt: skip
        self._seen: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()
        context = multiprocessing.get_context("spawn")
        reports, pipe = context.Pipe(duplex=False)
        self._process = context.Process(target=child.run, args=(task.work, pipe), daemon=True)
        self._process.start()
        pipe.close()  # the child's is then the only one, and its end the end of the reports
        self.pid = self._process.pid
        self._thread = threading.Thread(target=self._follow, args=(reports,), daemon=True)
        self._thread.start()

    @property
    def rate(self) -> float | None:
        """Bytes per second of late; None while it is not known."""
        with self._lock:
            if self.state != "running" or len(self._seen) < 2:
                return None
            (start, first), (_, last) = self._seen[0], self._seen[-1]
            return (last - first) / max(time.monotonic() - start, 1e-3)

    @property
    def seconds_left(self) -> float | None:
        """Of the phase, at this rate; None while it is not known."""
        rate = self.rate
        return (self.total - self.done) / rate if rate else None

    def stop(self) -> None:
        """End it now, if it runs, and wait until it has ended."""
        with self._lock:
            if self.state == "running":
                self._stopping = True
                self._process.kill()
        self.wait()

    def wait(self) -> None:
        """Until it does not run any more."""
        self._thread.join()

    def _follow(self, reports: Connection) -> None:
        """Take in what the child says until its process ends, whatever ends it."""
        result: child.Result | child.Failure | None = None
        with reports:
            while True:
                try:
                    said = reports.recv()
                except (EOFError, OSError):  # also in the middle of a report
                    break
                if isinstance(said, child.Progress):
                    self._note(said)
                else:
                    result = said
        while (code := self._process.exitcode) is None:  # another thread may have seen it end first
            self._process.join(0.1)
        if result is None:
            for repo in self._fetched:
                remove_leftovers(repo)
        with self._lock:
            self._end(result, code)
            self._process.close()
        self._after(self)

    def _note(self, said: child.Progress) -> None:
        with self._lock:
            if said.phase != self.phase:
                self._seen.clear()
            self.phase, self.done, self.total = said.phase, said.done, said.total
            self._seen.append((said.at_s, said.done))
            while said.at_s - self._seen[0][0] > WINDOW_S and len(self._seen) > 2:
                self._seen.popleft()

    def _end(self, result: child.Result | child.Failure | None, code: int) -> None:
        match result:
            case child.Result(text=text, folder=folder):
                self.text, self.folder, self.state = text, folder, "done"
            case _ if self._stopping:
                self.text, self.state = f"stopped; {self._kept}", "stopped"
            case child.Failure(text=text):
                self.text, self.state = text, "failed"
            case _:
                self.text, self.state = f"{_cause(code)}; {self._kept}", "failed"


class Jobs:
    """All downloads and conversions; one at a time of the same target."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        """By the name of what they make, in the order in which they began."""
        self._lock = threading.Lock()
        self._count = 0
        self._after: list[Callable[[Job], None]] = []

    def on_end(self, after: Callable[[Job], None]) -> None:
        """Have `after` called with each job that is over, whatever came of it."""
        self._after.append(after)

    def download(self, repo: str) -> Job:
        """Begin to fetch a repo into the hub's cache. Raises `HubError` if that goes on already."""
        task = Task(
            name=repo,
            title=f"download {repo}",
            work=partial(child.download, repo),
            kept="download it again to go on: files that are whole are kept.",
            fetched=[repo],
        )
        busy = HubError(f"{repo} is being downloaded; wait for it, or stop it first.")
        return self._begin(task, busy)

    def convert(self, source: str, target: Path, options: Mapping[str, Any]) -> Job:
        """Begin to convert a checkpoint into a folder; `options` as of `dg_mlx.convert`, by name.

        Raises `CheckpointError` if another job writes that folder. All else is said by the job.
        """
        target = Path(os.path.expanduser(target)).resolve()
        base = options.get("base")
        task = Task(
            name=str(target),
            title=f"convert {source} to {target}",
            work=partial(child.convert, source, target, dict(options)),
            kept="convert it again with the same options to go on: files that are whole are kept.",
            fetched=[source.partition(":")[0], *([] if base is None else [str(base)])],
        )
        busy = CheckpointError(f"{target} is being written; wait for that job, or stop it first.")
        return self._begin(task, busy)

    def list(self) -> Sequence[Job]:
        """Those that run, and of each target the last that ended; the oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def get(self, id: str) -> Job | None:
        """The job of an id."""
        return next((job for job in self.list() if job.id == id), None)

    def close(self) -> None:
        """Stop all that run."""
        for job in self.list():
            job.stop()

    def _begin(self, task: Task, busy: DGError) -> Job:
        with self._lock:
            before = self._jobs.get(task.name)
            if before is not None and before.state == "running":
                raise busy
            self._jobs.pop(task.name, None)
            self._count += 1
            job = self._jobs[task.name] = Job(str(self._count), task, after=self._ended)
            return job

    def _ended(self, job: Job) -> None:
        for after in self._after:
            after(job)


def _cause(code: int) -> str:
    """Why a process ended that said nothing of it."""
    if code == -signal.SIGKILL:
        return "its process was killed, which systems do when memory runs out"
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended early (exit code {code})"
