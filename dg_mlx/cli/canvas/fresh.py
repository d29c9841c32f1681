"""What has settled since it was drawn last.

Legend of array names: L canvas length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .ink import Ink


class Fresh:
    """Follows what is drawn of one block."""

    def __init__(self) -> None:
        self._drawn: NDArray[np.int8] | None = None

    def inks(self, state_L: NDArray[np.int8]) -> NDArray[np.int8]:
        """The `Ink` of each position, where what settled since the last call is fresh."""
        drawn_L, self._drawn = self._drawn, state_L
        new_L = state_L == Ink.SETTLED
        if drawn_L is not None:
            new_L = new_L & (drawn_L != Ink.SETTLED)
        return np.where(new_L, np.int8(Ink.FRESH), state_L)
