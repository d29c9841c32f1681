"""What a generation reports, step by step. Producers yield these; front ends draw them.

Legend of array names: L canvas length.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Reason = Literal["end", "length", "cancelled", "tool_call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """The prompt is in the cache."""

    tokens: int
    """Prompt length, in tokens."""
    cached: int
    """How many of them were already in the cache."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """One denoising step of one block. Arrays are numpy, one entry per canvas position (L)."""

    block: int
    """Counts from 0."""
    step: int
    """Counts from 1."""
    max_steps: int
    canvas: NDArray[np.int32]
    """Ids the next step starts from: accepted tokens, and noise everywhere else."""
    guess: NDArray[np.int32]
    """The model's most likely id at each position."""
    accepted: NDArray[np.bool_]
    """Positions whose sampled token entered `canvas` in this step."""
    frozen: NDArray[np.bool_]
    """Positions that may not change."""
    entropy: NDArray[np.float32]
    """Of the temperature-scaled distribution, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A block is final. `ids` end with the end token, if there is one."""

    block: int
    ids: list[int]
    text: str
    """What this block adds to the visible answer."""
    thought: str = ""
    """What this block adds to the thought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a generation cost. Tokens count up to and including the end token only."""

    prompt_tokens: int
    tokens: int
    steps_per_block: tuple[int, ...]
    prefill_s: float
    denoise_s: float
    commit_s: float
    peak_gb: float
    """Peak memory of the MLX allocator during the generation, in GB (1e9 bytes)."""

    @property
    def steps(self) -> int:
        """Forward passes over a canvas, in all blocks together."""
        return sum(self.steps_per_block)

    @property
    def tokens_per_step(self) -> float:
        """Tokens per denoising step; 0 when nothing ran."""
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens over denoise and commit time; 0 when nothing ran."""
        seconds = self.denoise_s + self.commit_s
        return self.tokens / seconds if seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The generation is over."""

    reason: Reason
    stats: Stats
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """`{"type": "function", "id": …, "function": {"name": …, "arguments": {…}}}`, as in OpenAI's
    API but with arguments as an object."""


Event = Prefilled | Draft | Committed | Done


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer."""

    text: str
    """The visible answer; empty when the model wrote none."""
    ids: list[int]
    """All ids, with the end token if there is one."""
    reason: Reason
    stats: Stats
    thought: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


def collect(events: Iterable[Event]) -> Reply:
    """The whole answer that events report in parts."""
    text = thought = ""
    ids: list[int] = []
    for event in events:
        match event:
            case Committed():
                ids += event.ids
                text, thought = text + event.text, thought + event.thought
            case Done():
                return Reply(
                    text=text,
                    ids=ids,
                    reason=event.reason,
                    stats=event.stats,
                    thought=thought,
                    tool_calls=event.tool_calls,
                )
    raise ValueError("the events do not end with Done")
