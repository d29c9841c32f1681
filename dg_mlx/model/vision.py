"""The vision tower: patches of pictures to soft tokens for the text layers.

Only pictures of one grid run together, without padding patches, so that no mask is needed.

Legend: N pictures, P patches of each, C = 3 * patch_size**2 values of a patch, H hidden, S soft
tokens, D head size.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from dg_mlx.backends import Backend
from dg_mlx.config import VisionConfig

from .experts import GatedMLP
from .linear import Linear


class ClippableLinear(nn.Module):
    """The tower's linear layer, named for a clipping that the released towers do not do."""

    def __init__(self, backend: Backend, outputs: int, inputs: int) -> None:
        super().__init__()
        self.linear = Linear(backend, outputs, inputs)

    def __call__(self, x: mx.array) -> mx.array:
        """`x @ W.T`."""
        return self.linear(x)


class VisionAttention(nn.Module):
    """All patches see each other; the head turns half with the column, half with the row."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.head_dim
        self.q_proj = ClippableLinear(backend, config.num_attention_heads * size, hidden)
        self.k_proj = ClippableLinear(backend, config.num_key_value_heads * size, hidden)
        self.v_proj = ClippableLinear(backend, config.num_key_value_heads * size, hidden)
        self.o_proj = ClippableLinear(backend, hidden, config.num_attention_heads * size)
        self.q_norm = nn.RMSNorm(size, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(size, config.rms_norm_eps)
        self._backend, self._size, self._eps = backend, size, config.rms_norm_eps

    def __call__(self, x_NPH: mx.array, turn: tuple[mx.array, mx.array]) -> mx.array:
        """`turn` is the cosine and sine of each patch's angles, (P, 1, 2, D/4)."""
        pictures, patches, _ = x_NPH.shape

        def heads(x: mx.array) -> mx.array:
            return x.reshape(pictures, patches, -1, self._size)

        q = _rotate(self.q_norm(heads(self.q_proj(x_NPH))), turn)
        k = _rotate(self.k_norm(heads(self.k_proj(x_NPH))), turn)
        v = mx.fast.rms_norm(heads(self.v_proj(x_NPH)), None, self._eps)
        q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
        y = self._backend.attention(q, k, v, None)
        return self.o_proj(y.swapaxes(1, 2).reshape(pictures, patches, -1))


class VisionLayer(nn.Module):
    """Attention and MLP, each normed before and after."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()

        def norm() -> nn.RMSNorm:
            return nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

        self.self_attn = VisionAttention(config, backend)
        hidden, width = config.hidden_size, config.intermediate_size
        self.mlp = GatedMLP(backend, hidden, width, linear=ClippableLinear)
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()

    def __call__(self, x_NPH: mx.array, turn: tuple[mx.array, mx.array]) -> mx.array:
        """Same shape out as in; `turn` as in `VisionAttention`."""
        y = self.self_attn(self.input_layernorm(x_NPH), turn)
        x_NPH = x_NPH + self.post_attention_layernorm(y)
        y = self.mlp(self.pre_feedforward_layernorm(x_NPH))
        return x_NPH + self.post_feedforward_layernorm(y)


class PatchEmbedder(nn.Module):
    """Linear projection of the pixels plus one learned vector per column and per row."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.input_proj = Linear(backend, config.hidden_size, 3 * config.patch_size**2)
        self.position_embedding_table = mx.zeros(
            (2, config.position_embedding_size, config.hidden_size)
        )

    def __call__(self, pixels_NPC: mx.array, column_P: mx.array, row_P: mx.array) -> mx.array:
        """(N, P, H) from pixels in 0..1 and each patch's place in the grid."""
        columns, rows = self.position_embedding_table
        x = self.input_proj((2 * (pixels_NPC - 0.5)).astype(columns.dtype))
        return x + columns[column_P] + rows[row_P]


class VisionEncoder(nn.Module):
    """The stack, under the checkpoint's name for it."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.layers = [VisionLayer(config, backend) for _ in range(config.num_hidden_layers)]


class VisionTower(nn.Module):
    """Patches to pooled soft tokens."""

    def __init__(self, config: VisionConfig, backend: Backend) -> None:
        super().__init__()
        self.patch_embedder = PatchEmbedder(config, backend)
        self.encoder = VisionEncoder(config, backend)
        if config.standardize:
            self.std_bias = mx.zeros(config.hidden_size)
            self.std_scale = mx.ones(config.hidden_size)
        self._config = config

    def __call__(self, pixels_NPC: mx.array, grid: tuple[int, int]) -> mx.array:
        """(N, S, H) from patches in row-major order; `grid` is (rows, columns)."""
        rows, columns = grid
        column_P = mx.tile(mx.arange(columns), rows)
        row_P = mx.repeat(mx.arange(rows), columns)
        x = self.patch_embedder(pixels_NPC, column_P, row_P)
        turn = self._angles(column_P, row_P)
        for layer in self.encoder.layers:
            x = layer(x, turn)
        return self._pool(x, grid).astype(x.dtype)

    def _angles(self, column_P: mx.array, row_P: mx.array) -> tuple[mx.array, mx.array]:
        half = self._config.head_dim // 2
        frequency = self._config.rope_theta ** -(mx.arange(0, half, 2, dtype=mx.float32) / half)
        position = mx.stack([column_P, row_P], axis=-1).astype(mx.float32)
        angle = position[:, None, :, None] * frequency
        return mx.cos(angle), mx.sin(angle)

    def _pool(self, x_NPH: mx.array, grid: tuple[int, int]) -> mx.array:
        """Mean over squares of patches, scaled and standardised in fp32."""
        pictures, side = x_NPH.shape[0], self._config.pooling_kernel_size
        rows, columns = grid[0] // side, grid[1] // side
        x = x_NPH.astype(mx.float32).reshape(pictures, rows, side, columns, side, -1)
        x = x.mean(axis=(2, 4)).reshape(pictures, rows * columns, -1)
        x = x * self._config.hidden_size**0.5
        if self._config.standardize:
            bias, scale = self.std_bias.astype(mx.float32), self.std_scale.astype(mx.float32)
            x = (x - bias) * scale
        return x


class VisionEmbedder(nn.Module):
    """Soft tokens into the text layers' space."""

    def __init__(self, vision: VisionConfig, hidden: int, backend: Backend) -> None:
        super().__init__()
        self.embedding_projection = Linear(backend, hidden, vision.hidden_size)
        self._eps = vision.rms_norm_eps

    def __call__(self, x_NSH: mx.array) -> mx.array:
        """(N, S, hidden size of the text layers)."""
        return self.embedding_projection(mx.fast.rms_norm(x_NSH, None, self._eps))


def _rotate(x: mx.array, turn: tuple[mx.array, mx.array]) -> mx.array:
    """Rope in two dimensions, of (N, P, heads, D): each half of a head has its own position."""
    cos, sin = (t.astype(x.dtype) for t in turn)
    pairs = x.reshape(*x.shape[:3], 2, 2, -1)  # (axis, side of the pair, frequency)
    a, b = pairs[..., 0, :], pairs[..., 1, :]
    turned = mx.stack([a * cos - b * sin, b * cos + a * sin], axis=-2)
    return turned.reshape(x.shape)
