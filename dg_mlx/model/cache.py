"""Keys and values of everything that is final: the prompt and the committed blocks.

A denoising step reads the cache and its own canvas side by side. To spare a copy of the context per
step, each buffer keeps room behind the final entries, and the canvas is written there, over the
last step's.

Legend: B batch, K key/value heads, S entries, D entry size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

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

    def repeated(self, count: int, room: int) -> Buffer:
        """The final entries, each row `count` times, and room for just `room` more."""
        copy = Buffer()
        copy.length = self.length
        if self.array is not None:
            if self.array.shape[2] < self.length + room:
                self._grow(self.array, self.length + room)
            copy.array = mx.repeat(self.array[:, :, : self.length + room], count, axis=0)
        return copy

    def copied(self) -> mx.array | None:
        """The final entries, in memory of their own; None where there are none."""
        return None if self.array is None else mx.contiguous(self.array[:, :, : self.length])

    def restore(self, entries: mx.array | None) -> None:
        """Hold just these entries again."""
        self.array, self.length = entries, 0 if entries is None else entries.shape[2]

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

    def repeated(self, count: int, room: int) -> SlidingLayer:
        """A copy with each row `count` times, and room for `room` tokens."""
        copy = SlidingLayer(self.window)
        copy.keys = self.keys.repeated(count, room)
        copy.values = self.values.repeated(count, room)
        return copy

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """What holds memory."""
        return self.keys, self.values


class FullLayer:
    """All tokens, keys and values in one entry (see `attention.FullAttention`)."""

    def __init__(self, reserve: int = 0) -> None:
        self.reserve = reserve
        self.entries = Buffer()

    def append(self, entry: mx.array) -> mx.array:
        """Keep the new entries. Returns all."""
        return self.entries.append(entry, self.reserve)

    def peek(self, entry: mx.array) -> mx.array:
        """Context and canvas, without keeping the canvas."""
        return self.entries.peek(entry, self.reserve)

    def repeated(self, count: int, room: int) -> FullLayer:
        """A copy with each row `count` times, and room for `room` tokens."""
        copy = FullLayer()
        copy.entries = self.entries.repeated(count, room)
        return copy

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """What holds memory."""
        return (self.entries,)


class Mark(NamedTuple):
    """A place to which a cache can go back: what its sliding layers held there.

    Full layers lose nothing as they grow, so going back only shortens them.
    """

    tokens: int
    sliding: tuple[mx.array | None, ...]
    """Keys and values, one after another, of each sliding layer."""

    @property
    def nbytes(self) -> int:
        """Bytes it keeps."""
        return sum(array.nbytes for array in self.sliding if array is not None)


class Cache:
    """What the model remembers of prompt and committed blocks."""

    def __init__(self, config: TextConfig) -> None:
        self.tokens = 0
        self.real_BS: mx.array | None = None
        """Real tokens of left-padded prompts; None when nothing is padding."""
        self.layers: list[SlidingLayer | FullLayer] = [
            FullLayer() if kind == "full_attention" else SlidingLayer(config.sliding_window)
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

    def repeated(self, count: int, room: int) -> Cache:
        """A copy with each row `count` times, for canvases of `room` tokens."""
        copy = object.__new__(Cache)
        copy.tokens = self.tokens
        copy.real_BS = None if self.real_BS is None else mx.repeat(self.real_BS, count, axis=0)
        copy.layers = [layer.repeated(count, room) for layer in self.layers]
        return copy

    def mark(self) -> Mark:
        """The place where the cache is now."""
        found = tuple(buffer.copied() for layer in self._sliding for buffer in layer.buffers)
        mx.eval([array for array in found if array is not None])
        return Mark(self.tokens, found)

    def rewind(self, mark: Mark) -> None:
        """Go back to a place that the cache has come from."""
        assert self.real_BS is None
        assert mark.tokens <= self.tokens
        self.tokens = mark.tokens
        buffers = (buffer for layer in self._sliding for buffer in layer.buffers)
        for buffer, entries in zip(buffers, mark.sliding, strict=True):
            buffer.restore(entries)
        for layer in self.layers:
            if isinstance(layer, FullLayer):
                layer.entries.length = mark.tokens

    def expect(self, tokens: int) -> None:
        """So many tokens are certain to come: when a buffer must grow, it grows to hold them."""
        for layer in self.layers:
            if isinstance(layer, FullLayer):
                layer.reserve = tokens

    def full(self, tokens: int) -> dict[int, mx.array]:
        """The first `tokens` entries of each full layer, by the layer's number."""
        return {
            number: layer.entries.array[:, :, :tokens]
            for number, layer in enumerate(self.layers)
            if isinstance(layer, FullLayer) and layer.entries.array is not None
        }

    def fill(self, full: Mapping[int, mx.array]) -> None:
        """Take the entries of full layers that `full` gave; `rewind` does the sliding ones."""
        for number, array in full.items():
            layer = self.layers[number]
            assert isinstance(layer, FullLayer)
            layer.entries.restore(array)
            self.tokens = array.shape[2]

    @property
    def slots(self) -> int:
        """How many arrays a mark has."""
        return 2 * len(self._sliding)

    @property
    def _sliding(self) -> list[SlidingLayer]:
        return [layer for layer in self.layers if isinstance(layer, SlidingLayer)]

    @property
    def arrays(self) -> list[mx.array]:
        """Everything that must be computed before the cache is complete."""
        return [b.array for layer in self.layers for b in layer.buffers if b.array is not None]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.nbytes for layer in self.layers for buffer in layer.buffers)
