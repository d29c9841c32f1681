"""What goes on in a job's own process: a download or a conversion, told to the parent in a pipe."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dg_mlx import hub
from dg_mlx.errors import DGError, SettingsError
from dg_mlx.units import size

from .leftovers import remove_leftovers

INTERVAL_S = 0.1
"""Least time between two reports of one phase."""

Report = Callable[[str, int, int], None]
"""Called with the phase, bytes so far, and bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the work is."""

    phase: str
    """"fetch", "convert" or "verify"."""
    done: int
    """Bytes."""
    total: int
    at_s: float
    """When, by the clock that all processes share: `time.monotonic`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The work is done."""

    text: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """It cannot be done, for a reason in one line."""

    text: str


Work = Callable[[Report], Result]
"""A job's work: a function of a module, or a partial of one, since it goes to another process."""


def run(work: Work, pipe: Connection) -> None:
    """Do a job's work in this process, which ends when its parent does, and not by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result: Result | Failure = work(_Reporter(pipe))
    except DGError as error:
        result = Failure(text=" ".join(str(error).split()))
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        pipe.send(Failure(text=f"it failed ({what:.200}); that is a fault of dg-mlx."))
        raise  # its traceback is for the terminal
    pipe.send(result)


def download(repo: str, report: Report) -> Result:
    """Fetch a repo into the hub's cache. Raises `HubError` and `MemoryLimitError`."""
    remove_leftovers(repo)
    folder = hub.resolve(repo, progress=lambda done, total: report("fetch", done, total))
    return Result(text=f"{repo}: {size(hub.weight_bytes(folder))} of weights", folder=folder)


def convert(source: str, target: Path, options: Mapping[str, Any], report: Report) -> Result:
    """Convert a checkpoint; `options` are those of a conversion by name. Raises `DGError`s."""
    job = import_module("dg_mlx.convert.job")
    names = [field.name for field in fields(job.Options)]
    for name in options:
        if name not in names:
            raise SettingsError(f"there is no option {name!r}; choose from {', '.join(names)}.")
    made = job.convert(source, target, job.Options(**options), report)
    again = ", gone on with" if made.resumed else ""
    text = f"{made.folder}: {size(made.stored_bytes)} from {size(made.source_bytes)}{again}"
    if made.divergence is not None:
        text += f", mean KL {made.divergence.mean_kl:.2e} nats"
    return Result(text=text, folder=made.folder)


class _Reporter:
    """Sends reports, from any thread, and leaves out those that follow too soon."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self._phase, self._sent_s = "", 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        with self._lock:
            now = time.monotonic()
            if phase == self._phase and done < total and now - self._sent_s < INTERVAL_S:
                return
            self._phase, self._sent_s = phase, now
            self._pipe.send(Progress(phase=phase, done=done, total=total, at_s=now))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
