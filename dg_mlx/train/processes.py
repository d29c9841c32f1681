"""Several processes, on one machine or many, that train one model together.

Each computes some of a step's batches, and the sum of their gradients makes every process's same
step. `local` starts them on one machine, `mlx.launch` on several.
https://ml-explore.github.io/mlx/build/html/usage/distributed.html
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import mlx.core as mx
import numpy as np

T = TypeVar("T")

_RANK, _HOSTS = "MLX_RANK", "MLX_HOSTFILE"
"""Where MLX reads who it is, and where the others are."""


class Processes:
    """This process among those that were started together, or alone."""

    def __init__(self) -> None:
        self._group = mx.distributed.init()
        self.rank, self.count = self._group.rank(), self._group.size()

    @property
    def first(self) -> bool:
        """Whether this process is the one that evaluates, writes and reports."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Those that this process is to compute."""
        return items[self.rank :: self.count]

    def any(self, flag: bool) -> bool:
        """Whether any process says so. All of them must ask."""
        return flag if self.count == 1 else bool(self._sum(mx.array(float(flag))).item())

    def total(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The sum of what all processes have under these names, in fp32. All of them must ask."""
        if self.count == 1 or not arrays:
            return dict(arrays)
        flat = mx.concatenate([array.reshape(-1).astype(mx.float32) for array in arrays.values()])
        ends = list(accumulate(array.size for array in arrays.values()))
        parts = mx.split(self._sum(flat), ends[:-1])
        pairs = zip(arrays.items(), parts, strict=True)
        return {name: part.reshape(array.shape) for (name, array), part in pairs}

    def from_first(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """What the first process has under these names. All of them must ask."""
        mine = {name: a if self.first else mx.zeros_like(a) for name, a in arrays.items()}
        found = self.total(mine)
        return {name: array.astype(arrays[name].dtype) for name, array in found.items()}

    def number(self, mine: int) -> int:
        """The first process's number. All of them must ask."""
        return int(np.array(self.from_first({"number": mx.array([float(mine)])})["number"])[0])

    def _sum(self, array: mx.array) -> mx.array:
        found = mx.distributed.all_sum(array, group=self._group)
        mx.eval(found)
        return found


@contextmanager
def local(count: int) -> Iterator[None]:
    """Run this command in so many processes: this one is the first, the others are started.

    Each gets its own cores where the system allows it. When one of the others fails, so does this
    one; when this one ends, they end. Nothing happens in a process that was started so.
    """
    if count == 1 or _RANK in os.environ:
        yield
        return
    with TemporaryDirectory() as folder, ExitStack() as stack:
        hosts = Path(folder) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(count)]))
        os.environ |= {_HOSTS: str(hosts), _RANK: "0"}
        stack.callback(lambda: [os.environ.pop(name) for name in (_HOSTS, _RANK)])
        ending = threading.Event()
        cores = _cores()
        apart = len(cores) >= count
        for rank in range(1, count):
            # A session of its own: an interrupt is for the first process, which tells the others.
            process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env=os.environ | {_RANK: str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            if apart:
                _pin([process.pid], cores[rank::count])
            threading.Thread(target=_watch, args=(process, ending), daemon=True).start()
        if apart:
            threads = [int(name) for name in os.listdir("/proc/self/task")]
            _pin(threads, cores[::count])
            stack.callback(_pin, threads, cores)
        stack.callback(ending.set)
        yield


def _cores() -> list[int]:
    """Those that this process may use; none where a system does not say, or does not pin."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def _pin(threads: Sequence[int], cores: Sequence[int]) -> None:
    for thread in threads:
        with suppress(ProcessLookupError):  # it has ended
            if sys.platform == "linux":
                os.sched_setaffinity(thread, cores)


def _watch(process: subprocess.Popen[bytes], ending: threading.Event) -> None:
    """End this process, which would wait for the other's gradients for ever."""
    if process.wait() and not ending.is_set():
        sys.stderr.write(
            "dg-mlx: another process of this run failed; run the same command again to go on.\n"
        )
        os._exit(1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
