"""What a device does its own way, and the plain MLX form of each such operation.

`Backend` is both the protocol and the reference: a device's class overrides what has a better form
there, and `checked` compares every override with the form below on this machine before it is used.

Legend: B batch, L queries, S keys, N query heads, K key/value heads, D head size, T tokens,
H hidden, I expert width or inputs, O outputs, E experts, A experts per token, r rank,
V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import numpy as np

from dg_mlx.config import Quantization
from dg_mlx.plan import BF16, SCORES_BYTES

from .classes import Classes

NEVER = -1e4
"""The score of a token that may not be: probability 0 in every type, without infinities."""
CLASS_ROWS = 32
"""Positions whose vocabulary is gathered at a time."""

Mask = mx.array | Literal["causal"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a backend runs on."""

    name: str
    chip: str
    memory_bytes: int
    """What a model may use in all."""
    mlx_version: str
    itemsize: int = BF16
    """Bytes of a number in what is computed from the published checkpoints."""
    unpacks: bool = False
    """A packed matrix is unpacked for its product."""
    notes: tuple[str, ...] = ()
    """What keeps this machine from its best, one sentence each."""


class Packed(NamedTuple):
    """A weight as stored: plain (`scales` None) or quantised by MLX."""

    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    spec: Quantization | None = None

    def at(self, index: int | mx.array) -> Packed:
        """The part at an index (or indices) of the first axis, still packed."""
        scales = None if self.scales is None else self.scales[index]
        biases = None if self.biases is None else self.biases[index]
        return Packed(self.weight[index], scales, biases, self.spec)

    def plain(self, dtype: mx.Dtype) -> mx.array:
        """Unpacked, in `dtype`."""
        if self.spec is None:
            return self.weight.astype(dtype)
        assert self.scales is not None
        plain = mx.dequantize(self.weight, self.scales, self.biases, **_spec(self.spec))
        return plain.astype(dtype)


class Frozen(Packed):
    """A weight that no gradient is needed of."""


class LowRank(NamedTuple):
    """What an adapter adds to a weight: scale * b @ a, per expert where there are several."""

    a: mx.array
    """(r, I) or (E, r, I)."""
    b: mx.array
    """(O, r) or (E, O, r)."""
    scale: float

    def at(self, index: int | mx.array) -> LowRank:
        """The part at an index (or indices) of the weight's first axis."""
        return LowRank(self.a if self.a.ndim == 2 else self.a[index], self.b[index], self.scale)


class Adapted(Packed):
    """A weight as stored, with an adapter beside it; `Backend.experts` and `plain` count both."""

    low_rank: LowRank

    @staticmethod
    def of(packed: Packed, low_rank: LowRank) -> Adapted:
        """Both together."""
        adapted = Adapted(*packed)
        adapted.low_rank = low_rank
        return adapted

    def at(self, index: int | mx.array) -> Packed:
        """The part at an index (or indices) of the first axis, still apart."""
        return Adapted.of(super().at(index), self.low_rank.at(index))

    def plain(self, dtype: mx.Dtype) -> mx.array:
        """Unpacked and added up, in `dtype`."""
        a, b, scale = self.low_rank
        return super().plain(dtype) + (scale * (b @ a)).astype(dtype)


class Vocabulary(NamedTuple):
    """One step's view of the vocabulary."""

    scaled_BLV: mx.array
    guess_BL: mx.array
    entropy_BL: mx.array
    total_BL: mx.array
    """Log of the sum over the vocabulary: a token's log probability is its score less this."""


class Backend:
    """The operations whose best form differs by device, in plain MLX."""

    name = "reference"

    def describe(self) -> Device:
        """Chip, memory and MLX version."""
        raise NotImplementedError

    def activate(self) -> None:
        """Make this the device of the operations that follow, in the whole process."""

    def prepare(self) -> None:
        """Set the process up, before a model is loaded."""
        self.activate()

    def dtype(self, stored: mx.Dtype) -> mx.Dtype:
        """The type to compute in, for weights stored as `stored`."""
        return stored

    # Weights -----------------------------------------------------------------------------------

    def matmul(self, x: mx.array, packed: Packed, *, transpose: bool = True) -> mx.array:
        """`x @ W.T` (or `x @ W`) for a plain or quantised W of shape (out, in)."""
        if packed.spec is None:
            return x @ (packed.weight.T if transpose else packed.weight)
        assert packed.scales is not None
        return mx.quantized_matmul(
            x, packed.weight, packed.scales, packed.biases, transpose=transpose,
            **_spec(packed.spec),
        )  # fmt: skip

    def experts(
        self,
        x_TH: mx.array,
        expert_TA: mx.array,
        weight_TA: mx.array,
        gate_up: Packed,
        down: Packed,
    ) -> mx.array:
        """Weighted sum of A gated feed-forwards per token.

        `gate_up` is (E, 2I, H), `down` is (E, H, I). Returns (T, H) in x's type.
        """
        tokens, chosen = expert_TA.shape
        order = mx.argsort(expert_TA.reshape(-1))
        expert = expert_TA.reshape(-1)[order]
        x = x_TH[order // chosen][:, None, :]
        gate, up = mx.split(self._gather(x, gate_up, expert), 2, axis=-1)
        y = self._gather(self.gated(gate, up), down, expert)[:, 0, :]
        y_TAH = y[mx.argsort(order)].reshape(tokens, chosen, -1)
        return (y_TAH * weight_TA[..., None].astype(y.dtype)).sum(axis=1)

    def _gather(self, x: mx.array, packed: Packed, expert: mx.array) -> mx.array:
        if isinstance(packed, Adapted):
            y = self._gather(x, Packed(*packed), expert)
            for part in packed.low_rank[:2]:
                x = self._gather(x, Packed(part.astype(x.dtype)), expert)
            return y + packed.low_rank.scale * x
        if packed.spec is None:
            weight = packed.weight.swapaxes(-1, -2)
            return mx.gather_mm(x, weight, rhs_indices=expert, sorted_indices=True)
        assert packed.scales is not None
        return mx.gather_qmm(
            x, packed.weight, packed.scales, packed.biases, rhs_indices=expert, transpose=True,
            sorted_indices=True, **_spec(packed.spec),
        )  # fmt: skip

    # Layers ------------------------------------------------------------------------------------

    def gated(self, gate: mx.array, up: mx.array) -> mx.array:
        """`gelu(gate) * up`, with the tanh form of GELU."""
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        return 0.5 * gate * (1 + mx.tanh(inner)) * up

    def attention(
        self, q_BNLD: mx.array, k_BKSD: mx.array, v_BKSD: mx.array, mask: Mask
    ) -> mx.array:
        """Softmax attention with scale 1, in blocks of queries so that the scores stay bounded.

        `mask` is None, "causal" (the last query sees the last key), or booleans broadcastable to
        (B, N, L, S) of which every row has one True.
        """
        batch, heads, queries, _ = q_BNLD.shape
        keys = k_BKSD.shape[2]
        block = max(1, SCORES_BYTES // (batch * heads * keys * q_BNLD.dtype.size))
        if block >= queries:
            return self._attention(q_BNLD, k_BKSD, v_BKSD, mask)
        parts = []
        for start in range(0, queries, block):
            end = min(start + block, queries)
            seen = keys - queries + end if isinstance(mask, str) else keys
            own = mask
            if isinstance(mask, mx.array) and mask.shape[2] > 1:
                own = mask[:, :, start:end]
            q = q_BNLD[:, :, start:end]
            parts.append(self._attention(q, k_BKSD[:, :, :seen], v_BKSD[:, :, :seen], own))
        return mx.concatenate(parts, axis=2)

    def _attention(self, q: mx.array, k: mx.array, v: mx.array, mask: Mask) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask)

    # Vocabulary --------------------------------------------------------------------------------

    def soft_cap(self, logits: mx.array, cap: float) -> mx.array:
        """`cap * tanh(logits / cap)`, in fp32."""
        return mx.tanh(logits.astype(mx.float32) / cap) * cap

    def probabilities(self, scaled_BLV: mx.array) -> mx.array:
        """Softmax over the vocabulary, in fp32."""
        return mx.softmax(scaled_BLV.astype(mx.float32), axis=-1, precise=True)

    def vocabulary(self, logits_BLV: mx.array, temperature: float) -> Vocabulary:
        """Temperature, best guess, entropy (nats) and log-sum-exp of one step's logits."""
        scaled = logits_BLV / temperature
        guess = mx.argmax(scaled, axis=-1).astype(mx.int32)
        total = mx.logsumexp(scaled, axis=-1)
        log_p = scaled - total[..., None]
        return Vocabulary(scaled, guess, -(mx.exp(log_p) * log_p).sum(axis=-1), total)

    def sample(self, scaled_BLV: mx.array, uniform_BL: mx.array) -> mx.array:
        """Inverse-CDF draw: the first id whose cumulative probability exceeds `uniform` (0..1).

        Never an id of probability zero. Returns int32.
        """
        cdf = mx.cumsum(self.probabilities(scaled_BLV), axis=-1)
        level = uniform_BL[..., None] * cdf[..., -1:]
        # Rounding can lift the level to the total: stay below it.
        level = mx.minimum(level, cdf[..., -1:] * (1 - 2.0**-23))
        return (cdf <= level).sum(axis=-1).astype(mx.int32)

    # Classes of tokens -------------------------------------------------------------------------

    def class_scores(self, scaled_BLV: mx.array, classes: Classes) -> tuple[mx.array, mx.array]:
        """The largest score of each class, and the log of the sum of exponentials. (B, L, C)."""
        parts = []
        for start in range(0, scaled_BLV.shape[1], CLASS_ROWS):
            most = total = scaled_BLV[:, start : start + CLASS_ROWS]
            for index, real in classes.levels:
                shape = (*most.shape[:-1], *index.shape)
                most, total = (
                    mx.where(real, mx.take(x, index.reshape(-1), axis=-1).reshape(shape), -mx.inf)
                    for x in (most, total)
                )
                most, total = most.max(axis=-1), mx.logsumexp(total, axis=-1)
            parts.append((most, total))
        most, total = (mx.concatenate(list(part), axis=1) for part in zip(*parts, strict=True))
        return most, total

    def add_classes(self, scaled_BLV: mx.array, weight_BLC: mx.array, classes: Classes) -> mx.array:
        """Scores with the weight of each token's class added. (B, L, V)."""
        return scaled_BLV + mx.take(weight_BLC, classes.class_V, axis=-1)

    def within(self, scaled_BLV: mx.array, class_BL: mx.array, classes: Classes) -> mx.array:
        """Scores of one class of tokens per position, `NEVER` for all others. (B, L, V)."""
        return mx.where(classes.class_V == class_BL[..., None], scaled_BLV, NEVER)


def _spec(spec: Quantization) -> dict[str, Any]:
    return {"group_size": spec.group_size, "bits": spec.bits, "mode": spec.mode}


# The check at load -----------------------------------------------------------------------------


def _cases() -> dict[str, Callable[[Backend], list[mx.array]]]:
    """Small inputs for every operation that a device may override."""
    key = mx.random.key(7)

    def normal(*shape: int) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.normal(shape, key=now)

    x, gate_up, down = normal(24, 64), normal(5, 64, 64) * 0.2, normal(5, 64, 32) * 0.2
    expert = mx.argsort(normal(24, 5), axis=-1)[:, :2].astype(mx.uint32)
    share = mx.softmax(normal(24, 2), axis=-1)
    q, k, v = normal(2, 4, 6, 32) * 0.3, normal(2, 2, 40, 32), normal(2, 2, 40, 32)
    mask = (normal(2, 1, 6, 40) > 0) | (mx.arange(40) == 3)
    logits, uniform = normal(1, 6, 300) * 3, mx.linspace(0.05, 0.95, 6)[None]
    classes = Classes((np.arange(300) ** 2 % 7).astype(np.int32) // 2)
    weight, chosen = normal(1, 6, classes.count), mx.array([[0, 1, 2, 2, 1, 0]])
    spec = Quantization(group_size=32, bits=8, mode="affine")
    packed = [Packed(*mx.quantize(w, **_spec(spec)), spec) for w in (down[0], gate_up, down)]
    return {
        "matmul": lambda b: [
            b.matmul(normal_x, p, transpose=t)
            for normal_x, p, t in (
                (x[:, :32], Packed(down[0]), True), (x, Packed(down[0]), False),
                (x[:, :32], packed[0], True), (x, packed[0], False),
            )
        ],
        "experts": lambda b: [
            b.experts(x, expert, share, Packed(gate_up), Packed(down)),
            b.experts(x, expert, share, packed[1], packed[2]),
        ],
        "gated": lambda b: [b.gated(x, -x)],
        "attention": lambda b: [
            b.attention(q, k, v, m) for m in (None, "causal", mask, mask[:, :, :1])
        ],
        "soft_cap": lambda b: [b.soft_cap(logits * 20, 30.0)],
        "probabilities": lambda b: [b.probabilities(logits)],
        "vocabulary": lambda b: list(b.vocabulary(logits, 0.7)),
        "sample": lambda b: [b.sample(logits, uniform)],
        "class_scores": lambda b: list(b.class_scores(logits, classes)),
        "add_classes": lambda b: [b.add_classes(logits, weight, classes)],
        "within": lambda b: [b.within(logits, chosen, classes)],
    }  # fmt: skip


def checked(backend: Backend, tolerance: float = 5e-3) -> Backend:
    """Compare each overridden operation with the plain form; warn and fall back where they differ.

    `tolerance` is the largest difference relative to the largest value; devices may compute fp32
    products in TF32.
    """
    reference = Backend()
    for name, run in _cases().items():
        if getattr(type(backend), name) is getattr(Backend, name):
            continue
        try:
            pairs = list(zip(run(backend), run(reference), strict=True))
            worst = max(_difference(a, b) for a, b in pairs)
            problem = None if worst <= tolerance else f"differs by {worst:.1e}"
        except (RuntimeError, ValueError, TypeError) as error:
            problem = f"failed ({error})"
        if problem:
            warnings.warn(
                f"{backend.name}: the fast form of {name} {problem} here; using the plain one",
                stacklevel=2,
            )
            setattr(backend, name, getattr(reference, name))
    return backend


def _difference(a: mx.array, b: mx.array) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    scale = mx.maximum(mx.abs(b).max(), 1e-6)
    return float(np.array(mx.abs(a - b).max() / scale))
