"""What state each position of a block is in, over its denoising steps.

Legend of array names: L canvas length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dg_mlx.events import Draft

from .ink import Ink

LIKELY = 0.5
"""From this probability on, a guess that is not accepted is a candidate and no noise."""


class States:
    """Follows one block. Every draft must be noted, drawn or not."""

    def __init__(self) -> None:
        self._before: NDArray[np.bool_] | bool = False
        self._accepted: NDArray[np.bool_] | bool = False
        self._shown: NDArray[np.int8] | None = None
        self._now: NDArray[np.int8] = np.zeros(0, np.int8)

    def note(self, draft: Draft) -> None:
        """Look at a step."""
        self._before = self._before | self._accepted
        self._accepted = draft.accepted
        state_L = np.full(len(draft.guess), Ink.NOISE, np.int8)
        state_L[(draft.trust.probability >= LIKELY) | draft.accepted] = Ink.CANDIDATE
        state_L[draft.accepted & (draft.trust.settled > 0)] = Ink.SETTLED
        state_L[self._before & ~draft.accepted] = Ink.RENOISED
        state_L[draft.frozen] = Ink.FROZEN
        self._now = state_L

    @property
    def now(self) -> NDArray[np.int8]:
        """(L,): the `Ink` of each position."""
        return self._now

    def show(self) -> NDArray[np.int8]:
        """The same, where what settled since the last call is fresh."""
        shown_L, self._shown = self._shown, self._now
        new_L = self._now == Ink.SETTLED
        if shown_L is not None:
            new_L = new_L & (shown_L != Ink.SETTLED)
        return np.where(new_L, np.int8(Ink.FRESH), self._now)
