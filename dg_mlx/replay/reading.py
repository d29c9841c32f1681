"""What the drafts of an answer say: its states, its parts, and how far it is.

Legend of array names: L canvas length, N positions that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dg_mlx.events import Committed, Draft

from .parts import Place, Run, add, of_part
from .states import State, States
from .texts import Texts

if TYPE_CHECKING:
    from dg_mlx.processor.reply import ControlTokens


class Processor(Protocol):
    """As much of a checkpoint's as reading an answer needs."""

    @property
    def control(self) -> ControlTokens:
        """Its control tokens."""

    def piece(self, token_id: int, /) -> str:
        """Text of one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an answer is."""

    block: int
    """Counts from 0, as `step` counts from 1."""
    step: int
    max_steps: int
    settled: int
    """Of `positions`, which end with the first end token of the guess."""
    positions: int
    entropy: float
    """Mean over them, in nats, to 4 decimals."""
    tokens: int
    """Committed, and settled in this block."""
    steps: int
    """In all blocks together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Look:
    """A draft, and what it says."""

    draft: Draft
    state_L: NDArray[np.int8]
    """`State` of each position."""
    ended: bool
    """The last of the positions that count is an end token."""
    runs: list[Run]
    """Of the best guess, of positions that count, what is not visible text."""
    thought: int
    """Tokens of thought that were committed before."""
    progress: Progress

    @property
    def shown(self) -> int:
        """Positions that count, without the end token."""
        return self.progress.positions - self.ended


class Reader(Protocol):
    """Follows one answer. Every draft must be noted."""

    @property
    def texts(self) -> Texts:
        """Of the tokens of its drafts."""

    def note(self, draft: Draft, /) -> Look:
        """Look at a step."""

    def commit(self, event: Committed, /) -> None:
        """A block is over."""


class Reading:
    """Follows an answer as it is made."""

    def __init__(
        self, processor: Processor, *, ends: Sequence[int], most: int, texts: Texts | None = None
    ) -> None:
        """`ends`: tokens that end an answer; `most`: its longest, in tokens.

        `texts`: those that are known already.
        """
        self.texts = texts or Texts(processor.piece, processor.control.bytes)
        self._ends, self._left = np.array(ends, np.int32), most
        self._place = Place(processor.control, lambda token: "\n" in self.texts.of(token))
        self._states = States()
        self._tokens = self._thought = self._steps = 0

    def note(self, draft: Draft) -> Look:
        """Look at a step."""
        self._steps += 1
        state_L = self._states.note(draft)
        count, ended = self._count(draft)
        runs = self._place.runs(draft.guess[: count - ended])
        if ended:
            add(runs, count - 1, count, "control")
        state_N = state_L[:count]
        settled = int(((state_N == State.SETTLED) | (state_N == State.FROZEN)).sum())
        return Look(
            draft=draft,
            state_L=state_L,
            ended=ended,
            runs=runs,
            thought=self._thought,
            progress=Progress(
                block=draft.block,
                step=draft.step,
                max_steps=draft.max_steps,
                settled=settled,
                positions=count,
                entropy=round(float(draft.entropy[:count].mean()), 4) if count else 0.0,
                tokens=self._tokens + settled,
                steps=self._steps,
            ),
        )

    def commit(self, event: Committed) -> None:
        """A block is over, and its states with it."""
        ids = np.array(event.ids, np.int32)
        # As in a draft, what ends an answer is no part of a thought, whatever is open.
        inside = len(ids) - bool((ids[-1:, None] == self._ends).any())
        self._thought += of_part(self._place.take(ids), "thought", inside)
        self._tokens += len(ids)
        self._left -= len(ids)
        self._states = States()

    def _count(self, draft: Draft) -> tuple[int, bool]:
        """Positions that would be part of the answer: to the first end token, or the limit; and
        whether that token is one of them."""
        found = np.flatnonzero((draft.guess[:, None] == self._ends).any(axis=1))
        end = int(found[0]) + 1 if len(found) else len(draft.guess) + 1
        count = max(min(end, self._left, len(draft.guess)), 0)
        return count, count == end
