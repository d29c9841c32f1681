"""A model that loads while its user reads and types."""

from __future__ import annotations

import gc
import threading
import traceback
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import Engine


class Loading:
    """An engine that is, or will be, there."""

    def __init__(self, name: str, load: Callable[[], Engine]) -> None:
        """Begins at once, on a thread of its own."""
        self.name = name
        self._load = load
        self._engine: Engine | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dg-mlx load", daemon=True)
        self._begun = perf_counter()
        self._thread.start()

    @property
    def seconds(self) -> int:
        """Since it began."""
        return int(perf_counter() - self._begun)

    @property
    def done(self) -> bool:
        """It is loaded, or failed to."""
        return not self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """It raised something."""
        return self._error is not None

    def check(self) -> None:
        """Raise what the loading raised."""
        if self._error is not None:
            raise self._error

    def engine(self) -> Engine:
        """Wait for it, and raise what the loading raised. Ctrl-C interrupts the wait."""
        while self._thread.is_alive():
            self._thread.join(0.1)  # without a limit, no signal would be seen
        self.check()
        assert self._engine is not None
        return self._engine

    def drop(self) -> None:
        """Hold the engine no longer, so that its memory can be given back."""
        self._engine = None

    def _run(self) -> None:
        try:
            self._engine = self._load()
        except BaseException as error:  # raised where it is waited for
            _let_go(error)
            self._error = error


def _let_go(error: BaseException) -> None:
    """Forget the values of the frames that raised: they hold what was read of the weights."""
    each: BaseException | None = error
    while each is not None:
        traceback.clear_frames(each.__traceback__)
        each = each.__context__


def give_back_memory() -> None:
    """To the system, once nobody holds a model; MLX would keep it for its next arrays."""
    import mlx.core as mx

    from .worker import WORKER

    gc.collect()
    WORKER.call(mx.clear_cache)
