"""How guesses have changed from pass to pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dg_mlx.events import Trust


class Tracker:
    """Follows the guesses of one canvas."""

    def __init__(self) -> None:
        self._guess: NDArray[np.int32] | None = None
        self.now: Trust

    def note(
        self,
        guess: NDArray[np.int32],
        probability: NDArray[np.float32],
        entropy: NDArray[np.float32],
    ) -> None:
        """Take in one pass."""
        settled = changes = np.zeros(len(guess), np.int32)
        if self._guess is not None:
            same = guess == self._guess
            settled = np.where(same, self.now.settled + 1, 0).astype(np.int32)
            changes = self.now.changes + (~same).astype(np.int32)
        self._guess = guess
        self.now = Trust(probability=probability, entropy=entropy, settled=settled, changes=changes)

    def pinned(self, ids: list[int]) -> None:
        """Take in a canvas of which nothing is free."""
        certain = np.ones(len(ids), np.float32)
        self.note(np.array(ids, np.int32), certain, np.zeros(len(ids), np.float32))
