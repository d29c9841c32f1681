"""One text layer, and the stack of them that encoder and decoder share.

Legend: B batch, L tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from dg_mlx.backends import Backend
from dg_mlx.config import TextConfig

from .attention import FullAttention, SlidingAttention
from .cache import Cache, FullLayer, SlidingLayer
from .experts import Experts, GatedMLP, Router
from .linear import Embedding
from .masks import Masks


class TextLayer(nn.Module):
    """Attention, then a dense MLP and experts side by side. `layer_scalar` is the decoder's."""

    def __init__(self, config: TextConfig, index: int, backend: Backend) -> None:
        super().__init__()

        def norm() -> nn.RMSNorm:
            return nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

        self._full = config.is_full(index)
        # The kind of attention and the kind of cache entry go together: both follow layer_types.
        self.self_attn: Any = (FullAttention if self._full else SlidingAttention)(config, backend)
        self.mlp = GatedMLP(backend, config.hidden_size, config.intermediate_size)
        self.router = Router(config, backend)
        self.experts = Experts(config, backend)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.pre_feedforward_layernorm_2 = norm()
        self.post_feedforward_layernorm = norm()
        self.post_feedforward_layernorm_1 = norm()
        self.post_feedforward_layernorm_2 = norm()
        self.layer_scalar = mx.ones(1)

    def __call__(
        self,
        x_BLH: mx.array,
        cache: SlidingLayer | FullLayer,
        masks: Masks,
        offset: int,
        scalar: mx.array | None = None,
    ) -> mx.array:
        """`scalar` is the encoder's layer scalar; with it, new entries stay in the cache."""
        mask = masks.full if self._full else masks.sliding
        keep = scalar is not None
        y = self.self_attn(self.input_layernorm(x_BLH), cache, mask, offset, keep)
        x_BLH = x_BLH + self.post_attention_layernorm(y)
        flat = x_BLH.reshape(-1, x_BLH.shape[-1])
        dense = self.mlp(self.pre_feedforward_layernorm(x_BLH))
        sparse = self.experts(self.pre_feedforward_layernorm_2(flat), *self.router(flat))
        y = self.post_feedforward_layernorm_1(dense)
        y = y + self.post_feedforward_layernorm_2(sparse).reshape(x_BLH.shape)
        y = x_BLH + self.post_feedforward_layernorm(y)
        return y * (self.layer_scalar if scalar is None else scalar)

    def write(self, x_BLH: mx.array, cache: SlidingLayer | FullLayer, offset: int) -> None:
        """Only keep the keys and values of new tokens."""
        self.self_attn.write(self.input_layernorm(x_BLH), cache, offset)


class SelfConditioning(GatedMLP):
    """Adds what the previous step believed, through a gated MLP, to the canvas embedding."""

    def __init__(self, config: TextConfig, backend: Backend) -> None:
        super().__init__(backend, config.hidden_size, config.intermediate_size)
        self.pre_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._eps = config.rms_norm_eps

    def __call__(  # type: ignore[override]
        self, x_BLH: mx.array, signal_BLH: mx.array | None
    ) -> mx.array:
        """`signal` is None at the first step of a block, which means zeros."""
        if signal_BLH is not None:
            x_BLH = x_BLH + super().__call__(self.pre_norm(signal_BLH))
        return mx.fast.rms_norm(x_BLH, None, self._eps)


class Decoder(nn.Module):
    """Everything stored as `model.decoder`: the shared stack and the self-conditioning."""

    def __init__(self, config: TextConfig, backend: Backend) -> None:
        super().__init__()
        self.embed_tokens = Embedding(backend, config.vocab_size, config.hidden_size)
        self.layers = [TextLayer(config, i, backend) for i in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_conditioning = SelfConditioning(config, backend)

    def encode(
        self, x_BLH: mx.array, cache: Cache, masks: Masks, scalars: Sequence[mx.array], offset: int
    ) -> None:
        """Write the keys and values of new tokens, the first of them at position `offset`.

        The last layer's output has no reader, so it is not computed.
        """
        for layer, kept, scalar in zip(self.layers[:-1], cache.layers, scalars, strict=False):
            x_BLH = layer(x_BLH, kept, masks, offset, scalar)
        self.layers[-1].write(x_BLH, cache.layers[-1], offset)

    def decode(self, x_BLH: mx.array, cache: Cache, masks: Masks) -> mx.array:
        """Hidden states of a canvas behind the cache, which stays as it is."""
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            x_BLH = layer(x_BLH, kept, masks, cache.tokens)
        return self.norm(x_BLH)
