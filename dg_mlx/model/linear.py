"""Weights that may be plain or quantised, one class per use.

Legend: O outputs, I inputs, E experts, V vocabulary, H hidden.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from dg_mlx.backends import Backend, Packed
from dg_mlx.config import Quantization


class Weight(nn.Module):
    """A weight whose last axis is the input: `weight`, and when packed `scales` and `biases`."""

    def __init__(self, backend: Backend, *shape: int) -> None:
        super().__init__()
        self.weight = mx.zeros(shape)
        self._backend = backend
        self._spec: Quantization | None = None

    def pack(self, spec: Quantization) -> None:
        """Expect packed values: parameters take the shapes that MLX's quantisation gives them."""
        *rest, inputs = self.weight.shape
        groups = inputs // spec.group_size
        self._spec = spec
        self.weight = mx.zeros((*rest, inputs * spec.bits // 32), mx.uint32)
        if spec.mode == "affine":
            self.scales = mx.zeros((*rest, groups))
            self.biases = mx.zeros((*rest, groups))
        else:
            self.scales = mx.zeros((*rest, groups), mx.uint8)

    @property
    def packed(self) -> Packed:
        """The weight in the form that backends take."""
        return Packed(self.weight, self.get("scales"), self.get("biases"), self._spec)


class Linear(Weight):
    """(O, I), no bias."""

    def __call__(self, x: mx.array) -> mx.array:
        """`x @ W.T`."""
        return self._backend.matmul(x, self.packed)


class ExpertLinear(Weight):
    """(E, O, I): one matrix per expert. Used through `Backend.experts`."""


class Embedding(Weight):
    """(V, H), shared by the input, the self-conditioning and the output head."""

    def __call__(self, ids: mx.array, dtype: mx.Dtype) -> mx.array:
        """Rows of the table."""
        return self.packed.at(ids).plain(dtype)

    def average(self, weights_BLV: mx.array) -> mx.array:
        """Weighted sum of rows. Returns (B, L, H)."""
        return self._backend.matmul(weights_BLV, self.packed, transpose=False)

    def head(self, x_BLH: mx.array) -> mx.array:
        """Scores of every id. Returns (B, L, V)."""
        return self._backend.matmul(x_BLH, self.packed)
