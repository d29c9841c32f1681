"""What state each position of a block is in, over its denoising steps.

Legend of array names: L canvas length.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dg_mlx.events import Draft

LIKELY = 0.5
"""From this probability on, a guess that is not accepted is a candidate and no noise."""


class State(IntEnum):
    """Of a position, with its number in docs/recordings.md."""

    NOISE = 0
    CANDIDATE = 1
    """Likely, but not settled."""
    SETTLED = 2
    """Accepted, and the best guess of the step before too."""
    RENOISED = 3
    """Was accepted, and is noise again."""
    FROZEN = 4


class States:
    """Follows one block. Every draft must be noted, drawn or not."""

    def __init__(self) -> None:
        self._before: NDArray[np.bool_] | bool = False
        self._accepted: NDArray[np.bool_] | bool = False

    def note(self, draft: Draft) -> NDArray[np.int8]:
        """Look at a step. Returns (L,): the `State` of each position."""
        self._before = self._before | self._accepted
        self._accepted = draft.accepted
        state_L = np.full(len(draft.guess), State.NOISE, np.int8)
        state_L[(draft.trust.probability >= LIKELY) | draft.accepted] = State.CANDIDATE
        state_L[draft.accepted & (draft.trust.settled > 0)] = State.SETTLED
        state_L[self._before & ~draft.accepted] = State.RENOISED
        state_L[draft.frozen] = State.FROZEN
        return state_L
