"""What a generation reports, step by step. Producers yield these; front ends draw them.

Legend of array names: L canvas length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
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
class Trust:
    """How far the guess at each position can be trusted. Arrays are numpy, one entry per token."""

    probability: NDArray[np.float32]
    """Of the guess, in the temperature-scaled distribution."""
    entropy: NDArray[np.float32]
    """Of that distribution, in nats."""
    settled: NDArray[np.int32]
    """How many passes before this one had the same guess, without a break."""
    changes: NDArray[np.int32]
    """How often the guess changed."""

    def first(self, count: int) -> Trust:
        """That of the first tokens."""
        return Trust(**{f.name: getattr(self, f.name)[:count] for f in fields(self)})

    @staticmethod
    def joined(parts: Sequence[Trust]) -> Trust:
        """That of one run of tokens after another."""
        none = np.empty(0, np.float32)
        empty = Trust(
            probability=none,
            entropy=none,
            settled=none.astype(np.int32),
            changes=none.astype(np.int32),
        )
        names = [f.name for f in fields(Trust)]
        return Trust(**{n: np.concatenate([getattr(p, n) for p in (empty, *parts)]) for n in names})


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
    """Of the temperature-scaled distribution, in nats; 0 where frozen."""
    trust: Trust


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Committed:
    """A block is final. `ids` end with the end token, if there is one."""

    block: int
    ids: list[int]
    text: str
    """What this block adds to the visible answer."""
    thought: str = ""
    """What this block adds to the thought."""
    trust: Trust
    """One entry per id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a generation cost. Tokens count up to and including the end token only."""

    prompt_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt that were known already."""
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reply:
    """A whole answer."""

    text: str
    """The visible answer; empty when the model wrote none."""
    ids: list[int]
    """All ids, with the end token if there is one."""
    reason: Reason
    stats: Stats
    trust: Trust
    """One entry per id."""
    thought: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


def collect(events: Iterable[Event]) -> Reply:
    """The whole answer that events report in parts."""
    text = thought = ""
    ids: list[int] = []
    trust: list[Trust] = []
    for event in events:
        match event:
            case Committed():
                ids += event.ids
                trust.append(event.trust)
                text, thought = text + event.text, thought + event.thought
            case Done():
                return Reply(
                    text=text,
                    ids=ids,
                    reason=event.reason,
                    stats=event.stats,
                    trust=Trust.joined(trust),
                    thought=thought,
                    tool_calls=event.tool_calls,
                )
    raise ValueError("the events do not end with Done")
