"""Keys and values of everything that is final: the prompt and the committed blocks.

A denoising step reads the cache and its own canvas side by side. To spare a copy of the context per
step, each buffer keeps room behind the final entries, and the canvas is written there, over the
last step's.

Legend: B batch, K key/value heads, S entries, D entry size.
"""

from __future__ import annotations

import mlx.core as mx

from dg_mlx.config import TextConfig

STEP = 256
"""Entries by which a buffer that must grow is rounded up."""


class Buffer:
    """Entries of one layer along axis 2 of a (B, K, S, D) array, with room to spare."""

    def __init__(self) -> None:
        self.array: mx.array | None = None
        self.length = 0

    def peek(self, new: mx.array, reserve: int = 0) -> mx.array:
        """The final entries with `new` behind them, which are not kept. A view.

        `reserve` entries are allocated at least, when the buffer must grow.
        """
        end = self.length + new.shape[2]
        if self.array is None or self.array.shape[2] < end:
            self._grow(new, max(end, reserve))
        assert self.array is not None
        self.array[:, :, self.length : end] = new
        return self.array[:, :, :end]

    def append(self, new: mx.array, reserve: int = 0) -> mx.array:
        """As `peek`, but the new entries stay."""
        seen = self.peek(new, reserve)
        self.length = seen.shape[2]
        return seen

    def keep_last(self, seen: mx.array, most: int) -> None:
        """Hold only the last `most` entries of `seen`, and room for as many as were allocated."""
        assert self.array is not None
        self.length = min(most, seen.shape[2])
        room = mx.zeros((*seen.shape[:2], STEP, seen.shape[3]), seen.dtype)
        self.array = mx.concatenate([seen[:, :, seen.shape[2] - self.length :], room], axis=2)

    def repeated(self, count: int) -> Buffer:
        """The final entries, for `count` rows."""
        copy = Buffer()
        copy.length = self.length
        if self.array is not None:
            copy.array = mx.repeat(self.array[:, :, : self.length], count, axis=0)
        return copy

    def _grow(self, like: mx.array, entries: int) -> None:
        batch, heads, _, size = like.shape
        total = -(-entries // STEP) * STEP
        room = mx.zeros((batch, heads, total - self.length, size), like.dtype)
        kept = [] if self.array is None else [self.array[:, :, : self.length]]
        self.array = mx.concatenate([*kept, room], axis=2)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return 0 if self.array is None else self.array.nbytes


class SlidingLayer:
    """Keys and values of the last `window` - 1 tokens."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.keys, self.values = Buffer(), Buffer()

    def append(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Keep the new entries. Returns what they may look at: the window before them, and them."""
        seen = self.keys.append(k), self.values.append(v)
        for buffer, entries in zip((self.keys, self.values), seen, strict=True):
            if buffer.length >= self.window:
                buffer.keep_last(entries, self.window - 1)
        return seen

    def peek(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Window and canvas, without keeping the canvas."""
        return self.keys.peek(k), self.values.peek(v)

    def repeated(self, count: int) -> SlidingLayer:
        """A copy for `count` rows."""
        copy = SlidingLayer(self.window)
        copy.keys, copy.values = self.keys.repeated(count), self.values.repeated(count)
        return copy

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """What holds memory."""
        return self.keys, self.values


class FullLayer:
    """All tokens, keys and values in one entry (see `attention.FullAttention`)."""

    def __init__(self, reserve: int) -> None:
        self.reserve = reserve
        self.entries = Buffer()

    def append(self, entry: mx.array) -> mx.array:
        """Keep the new entries. Returns all."""
        return self.entries.append(entry, self.reserve)

    def peek(self, entry: mx.array) -> mx.array:
        """Context and canvas, without keeping the canvas."""
        return self.entries.peek(entry, self.reserve)

    def repeated(self, count: int) -> FullLayer:
        """A copy for `count` rows."""
        copy = FullLayer(self.reserve)
        copy.entries = self.entries.repeated(count)
        return copy

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """What holds memory."""
        return (self.entries,)


class Cache:
    """What the model remembers of prompt and committed blocks."""

    def __init__(self, config: TextConfig, reserve: int = 0) -> None:
        """`reserve`: tokens that are certain to come, allocated at once."""
        self.tokens = 0
        self.real_BS: mx.array | None = None
        """Real tokens of left-padded prompts; None when nothing is padding."""
        self.layers: list[SlidingLayer | FullLayer] = [
            FullLayer(reserve) if kind == "full_attention" else SlidingLayer(config.sliding_window)
            for kind in config.layer_types
        ]

    def extend(self, count: int, mask_BS: mx.array | None, batch: int) -> None:
        """Note that `count` tokens follow, and which of them are real."""
        if mask_BS is not None or self.real_BS is not None:
            known, new = self.real_BS, mask_BS
            if known is None:
                known = mx.ones((batch, self.tokens), mx.bool_)
            if new is None:
                new = mx.ones((batch, count), mx.bool_)
            self.real_BS = mx.concatenate([known, new.astype(mx.bool_)], axis=1)
        self.tokens += count

    def repeated(self, count: int) -> Cache:
        """A copy of a cache of one row, for `count` rows that go on from it."""
        copy = object.__new__(Cache)
        copy.tokens = self.tokens
        copy.real_BS = None if self.real_BS is None else mx.repeat(self.real_BS, count, axis=0)
        copy.layers = [layer.repeated(count) for layer in self.layers]
        return copy

    @property
    def arrays(self) -> list[mx.array]:
        """Everything that must be computed before the cache is complete."""
        return [b.array for layer in self.layers for b in layer.buffers if b.array is not None]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.nbytes for layer in self.layers for buffer in layer.buffers)
