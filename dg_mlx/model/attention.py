"""Attention of the text layers: grouped queries, normed queries, keys and values, scale 1.

Legend: B batch, L new tokens, S entries seen, N query heads, K key/value heads, D head size,
R rotated dimensions, H hidden.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from dg_mlx.backends import Backend
from dg_mlx.backends.base import Mask
from dg_mlx.config import TextConfig

from .cache import FullLayer, SlidingLayer
from .linear import Linear


class SlidingAttention(nn.Module):
    """Sees the last `window` tokens; separate values; all of the head turns with the position."""

    def __init__(self, config: TextConfig, backend: Backend) -> None:
        super().__init__()
        heads, size = config.num_key_value_heads, config.head_dim
        hidden = config.hidden_size
        self.q_proj = Linear(backend, config.num_attention_heads * size, hidden)
        self.k_proj = Linear(backend, heads * size, hidden)
        self.v_proj = Linear(backend, heads * size, hidden)
        self.o_proj = Linear(backend, hidden, config.num_attention_heads * size)
        self.q_norm = nn.RMSNorm(size, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(size, config.rms_norm_eps)
        self._backend, self._size, self._eps = backend, size, config.rms_norm_eps
        self._rotated = int(config.rope_sliding.partial_rotary_factor * size)
        self._theta = config.rope_sliding.theta

    def write(self, x_BLH: mx.array, cache: SlidingLayer, offset: int) -> None:
        """Keep the keys and values of new tokens, without attending."""
        cache.append(*self._keys_values(x_BLH, offset))

    def __call__(
        self, x_BLH: mx.array, cache: SlidingLayer, mask: Mask, offset: int, keep: bool
    ) -> mx.array:
        """Attend to the cache and the new tokens, whose entries stay when `keep` is set."""
        q = self._rope(self.q_norm(_split(self.q_proj(x_BLH), self._size)), offset)
        new = self._keys_values(x_BLH, offset)
        k, v = cache.append(*new) if keep else cache.peek(*new)
        return self.o_proj(_merge(self._backend.attention(q, k, v, mask)))

    def _keys_values(self, x_BLH: mx.array, offset: int) -> tuple[mx.array, mx.array]:
        k = self._rope(self.k_norm(_split(self.k_proj(x_BLH), self._size)), offset)
        v = mx.fast.rms_norm(_split(self.v_proj(x_BLH), self._size), None, self._eps)
        return k, v

    def _rope(self, x: mx.array, offset: int) -> mx.array:
        return mx.fast.rope(
            x, self._rotated, traditional=False, base=self._theta, scale=1.0, offset=offset
        )


class FullAttention(nn.Module):
    """Sees the whole context; values reuse the key projection, and share its memory.

    With p the normed projection: V = p and K = rope(p * w). Only R of the D dimensions turn, so on
    the others q . K = (q * w) . V. An entry is [V turned dims | V other dims | K turned dims]:
    D + R numbers instead of 2 D. Its first D are the values, its last D the keys (with w moved into
    the query), both as views. Exact up to rounding.
    """

    def __init__(self, config: TextConfig, backend: Backend) -> None:
        super().__init__()
        heads, size = config.num_global_key_value_heads, config.global_head_dim
        hidden = config.hidden_size
        self.q_proj = Linear(backend, config.num_attention_heads * size, hidden)
        self.k_proj = Linear(backend, heads * size, hidden)
        self.o_proj = Linear(backend, hidden, config.num_attention_heads * size)
        self.q_norm = nn.RMSNorm(size, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(size, config.rms_norm_eps)
        self._backend, self._size, self._eps = backend, size, config.rms_norm_eps
        self._rotated = config.rotated_dims
        # "proportional" rope: the frequencies of a full-size head, of which the first few are used.
        # Made by numpy: a lazy array would stay bound to the thread that loads the model.
        exponents = np.arange(0, self._rotated, 2) / size
        self._periods = mx.array((config.rope_full.theta**exponents).astype(np.float32))
        mx.eval(self._periods)  # an array not yet computed belongs to the thread that made it

    def write(self, x_BLH: mx.array, cache: FullLayer, offset: int) -> None:
        """Keep the entries of new tokens, without attending."""
        cache.append(self._entry(x_BLH, offset))

    def __call__(
        self, x_BLH: mx.array, cache: FullLayer, mask: Mask, offset: int, keep: bool
    ) -> mx.array:
        """Attend to the cache and the new tokens, whose entries stay when `keep` is set."""
        turned, still = self._parts(self.q_norm(_split(self.q_proj(x_BLH), self._size)))
        _, scale = self._parts(self.k_norm.weight)
        q = mx.concatenate([still * scale, self._rope(turned, offset)], axis=-1)
        new = self._entry(x_BLH, offset)
        seen = cache.append(new) if keep else cache.peek(new)
        k, v = seen[..., self._rotated :], seen[..., : self._size]
        return self.o_proj(_merge(self._restore(self._backend.attention(q, k, v, mask))))

    def _entry(self, x_BLH: mx.array, offset: int) -> mx.array:
        p = mx.fast.rms_norm(_split(self.k_proj(x_BLH), self._size), None, self._eps)
        turned, still = self._parts(p)
        scale, _ = self._parts(self.k_norm.weight)
        return mx.concatenate([turned, still, self._rope(turned * scale, offset)], axis=-1)

    def _parts(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(turned, other) dimensions. Rope pairs i with i + D/2: the turned ones are two runs."""
        run, half = self._rotated // 2, self._size // 2
        a, b, c, d = mx.split(x, [run, half, half + run], axis=-1)
        return mx.concatenate([a, c], axis=-1), mx.concatenate([b, d], axis=-1)

    def _restore(self, x: mx.array) -> mx.array:
        """The original order of dimensions, from (turned, other)."""
        run, half = self._rotated // 2, self._size // 2
        a, c, b, d = mx.split(x, [run, 2 * run, run + half], axis=-1)
        return mx.concatenate([a, b, c, d], axis=-1)

    def _rope(self, x: mx.array, offset: int) -> mx.array:
        return mx.fast.rope(
            x, self._rotated, traditional=False, base=None, scale=1.0, offset=offset,
            freqs=self._periods,
        )  # fmt: skip


def _split(x_BLC: mx.array, size: int) -> mx.array:
    """(B, heads, L, size)."""
    batch, length, _ = x_BLC.shape
    return x_BLC.reshape(batch, length, -1, size).swapaxes(1, 2)


def _merge(x_BNLD: mx.array) -> mx.array:
    """(B, L, N * D)."""
    batch, _, length, _ = x_BNLD.shape
    return x_BNLD.swapaxes(1, 2).reshape(batch, length, -1)
