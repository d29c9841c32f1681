"""A hand on an answer while it settles: hold it, go step by step, and change its canvas."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dg_mlx.worker import Gate

What = Literal["pin", "release", "noise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Touch:
    """One change of a block's canvas."""

    what: What
    """Hold positions fixed, let them go, or throw them back to noise."""
    block: int
    """Counts from 0."""
    positions: tuple[int, ...]
    """In the block, from 0."""
    ids: tuple[int, ...] = ()
    """What they are pinned to, one each; "pin" only."""


Report = Callable[[Touch, str], None]
"""Called with a change and why it was refused, in one line; empty: it was made."""


class Control:
    """Given to one `Engine.stream`. Its methods may be called from any thread."""

    def __init__(self, report: Report = lambda touch, problem: None) -> None:
        """`report` is called on the thread that owns MLX."""
        self.gate = Gate()
        self.stopped = threading.Event()
        self.report = report
        self._lock = threading.Lock()
        self._touches: list[Touch] = []

    @property
    def paused(self) -> bool:
        """Whether it is held, or will be after its next step."""
        return self.gate.shut

    def pause(self) -> None:
        """Hold the answer after the step that is being made."""
        self.gate.shut_after(0)

    def step(self) -> None:
        """Make one more step, and hold the answer again."""
        self.gate.shut_after(1)

    def resume(self) -> None:
        """Let it go on."""
        self.gate.open()

    def stop(self) -> None:
        """End the answer, held or not."""
        self.stopped.set()
        self.gate.open()

    def touch(self, touch: Touch) -> None:
        """Change the canvas before its next step."""
        with self._lock:
            self._touches.append(touch)

    def take(self) -> list[Touch]:
        """The changes since the last call."""
        with self._lock:
            touches, self._touches = self._touches, []
        return touches
