"""The CPU's forms of the operations that gradients go through.

MLX calls the Python function of a `mx.custom_function`, and that of its gradient, at once and with
arrays that can be evaluated, also while it traces. So both may be numpy over MLX's memory, in fp32,
divided among the cores as in `dg_mlx.backends.cpu`. What a gradient needs beside its inputs is
computed again, or kept where that is a product.

Legend: B batch, L queries, S keys, N query heads, K key/value heads, G query heads per key/value
head, D head size, T tokens, H hidden, I width, E experts, A experts per token, P positions,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from dg_mlx.backends import Adapted, Backend, Frozen, Packed
from dg_mlx.backends.base import Mask
from dg_mlx.backends.cpu import Array, Cores, single_thread, view

ROWS = 1 << 15
"""Numbers of one run of an elementwise operation, whose few arrays stay in the cache."""
SCORES = 1 << 18
"""Most attention scores that one core holds at a time."""
QUERIES = 256
"""Queries at a time: what none of them sees (later tokens, those before a window) is left out."""
SLOPE, CUBE = math.sqrt(2 / math.pi), 0.044715
"""Of the tanh form of GELU: x / 2 * (1 + tanh(SLOPE * (x + CUBE * x ** 3)))."""

Gradients = Sequence[Array | mx.array]


class CpuTraining(Backend):
    """Numpy forms with their gradients for fp32 arrays; the plain ones for others."""

    name = "training-cpu"

    def __init__(self) -> None:
        self._cores = Cores()

    def activate(self) -> None:
        """Make the CPU the default device."""
        mx.set_default_device(mx.Device(mx.DeviceType.cpu))

    def prepare(self) -> None:
        """Use the CPU, and let numpy's BLAS use the calling thread only."""
        super().prepare()
        single_thread()

    def matmul(self, x: mx.array, packed: Packed, *, transpose: bool = True) -> mx.array:
        """BLAS products of runs of rows."""
        if x.dtype != mx.float32:
            return super().matmul(x, packed, transpose=transpose)
        frozen = packed.spec is not None or isinstance(packed, Frozen)
        return self._product(x, packed.plain(mx.float32), transpose=transpose, frozen=frozen)

    def _product(
        self, x: mx.array, weight: mx.array, *, transpose: bool = True, frozen: bool = False
    ) -> mx.array:
        """`x @ weight.T` (or `x @ weight`). The gradient of a frozen weight is left to MLX."""

        def value(x: Array, weight: Array) -> Array:
            rows = x.reshape(-1, x.shape[-1])
            return self._rows(rows, weight.T if transpose else weight).reshape(*x.shape[:-1], -1)

        def gradient(dy: Array, _: Array, x: Array, other: Array) -> Gradients:
            rows, dy_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
            dx = self._rows(dy_rows, other if transpose else other.T).reshape(x.shape)
            left, right = (dy_rows, rows) if transpose else (rows, dy_rows)
            if frozen:  # not computed unless somebody asks for it
                return dx, mx.array(left).T @ mx.array(right)
            return dx, self._rows(left.T, right)

        return differentiable(value, gradient)(x, weight)

    def _rows(self, left: Array, right: Array) -> Array:
        """`left @ right`, by runs of rows of the left."""
        y = np.empty((left.shape[0], right.shape[1]), np.float32)

        def part(run: slice) -> None:
            np.matmul(left[run], right, out=y[run])

        self._cores.spread(part, self._cores.runs(left.shape[0]), left.size * right.shape[1])
        return y

    def gated(self, gate: mx.array, up: mx.array) -> mx.array:
        """`gelu(gate) * up` in numpy."""
        if gate.dtype != mx.float32 or up.dtype != mx.float32:
            return super().gated(gate, up)

        def value(gate: Array, up: Array) -> Array:
            y = np.empty(gate.size, np.float32)
            gate, up = gate.reshape(-1), up.reshape(-1)

            def part(run: slice) -> None:
                np.multiply(_gelu(gate[run]), up[run], out=y[run])

            self._cores.spread(part, self._cores.runs(y.size, ROWS), y.size * 16)
            return y

        def gradient(dy: Array, _: Array, gate: Array, up: Array) -> Gradients:
            d_gate, d_up = np.empty((2, gate.size), np.float32)
            flat = [array.reshape(-1) for array in (dy, gate, up)]

            def part(run: slice) -> None:
                d_gate[run], d_up[run] = _gated_gradient(*[array[run] for array in flat])

            self._cores.spread(part, self._cores.runs(gate.size, ROWS), gate.size * 32)
            return d_gate.reshape(gate.shape), d_up.reshape(gate.shape)

        shape = gate.shape
        return differentiable(value, gradient)(gate, up).reshape(shape)

    def experts(
        self,
        x_TH: mx.array,
        expert_TA: mx.array,
        weight_TA: mx.array,
        gate_up: Packed,
        down: Packed,
    ) -> mx.array:
        """Tokens grouped by expert, BLAS products per expert that was chosen."""
        usual = all(p.spec is None and not isinstance(p, Adapted) for p in (gate_up, down))
        arrays = (x_TH, weight_TA, gate_up.weight, down.weight)
        if not usual or any(array.dtype != mx.float32 for array in arrays):
            return super().experts(x_TH, expert_TA, weight_TA, gate_up, down)
        mixture = _Mixture.of(self._cores, view(mx.stop_gradient(expert_TA)))
        return differentiable(mixture.value, mixture.gradient)(*arrays)

    def attention(
        self, q_BNLD: mx.array, k_BKSD: mx.array, v_BKSD: mx.array, mask: Mask
    ) -> mx.array:
        """Per key/value head and block of queries, BLAS products around a numpy softmax."""
        arrays = (q_BNLD, k_BKSD, v_BKSD)
        if any(array.dtype != mx.float32 for array in arrays):
            return super().attention(*arrays, mask)
        bias = _bias(mask, q_BNLD.shape[2], k_BKSD.shape[2])
        attention = _Attention(self._cores, bias)
        y_BLND = differentiable(attention.value, attention.gradient)(*arrays)
        return y_BLND.swapaxes(1, 2)

    def soft_cap(self, logits: mx.array, cap: float) -> mx.array:
        """`cap * tanh(logits / cap)` in numpy."""
        if logits.dtype != mx.float32:
            return super().soft_cap(logits, cap)

        def value(x: Array) -> Array:
            y = np.empty(x.size, np.float32)
            flat = x.reshape(-1)

            def part(run: slice) -> None:
                np.multiply(flat[run], np.float32(1 / cap), out=y[run])
                np.tanh(y[run], out=y[run])
                y[run] *= np.float32(cap)

            self._cores.spread(part, self._cores.runs(y.size, ROWS), y.size * 8)
            return y.reshape(x.shape)

        def gradient(dy: Array, y: Array, _: Array) -> Gradients:
            dx = np.empty(dy.size, np.float32)
            dy_flat, y_flat = dy.reshape(-1), y.reshape(-1)

            def part(run: slice) -> None:
                ratio = y_flat[run] * np.float32(1 / cap)
                ratio *= ratio
                np.subtract(np.float32(1), ratio, out=ratio)
                np.multiply(dy_flat[run], ratio, out=dx[run])

            self._cores.spread(part, self._cores.runs(dx.size, ROWS), dx.size * 4)
            return [dx.reshape(dy.shape)]

        return differentiable(value, gradient)(logits)

    def probabilities(self, scaled_BLV: mx.array) -> mx.array:
        """Softmax over the vocabulary in numpy."""
        if scaled_BLV.dtype != mx.float32:
            return super().probabilities(scaled_BLV)

        def value(x: Array) -> Array:
            p_PV = x.reshape(-1, x.shape[-1]).copy()

            def part(run: slice) -> None:
                p_PV[run] -= p_PV[run].max(axis=-1, keepdims=True)
                np.exp(p_PV[run], out=p_PV[run])
                p_PV[run] /= p_PV[run].sum(axis=-1, keepdims=True)

            most = max(1, ROWS // x.shape[-1])
            self._cores.spread(part, self._cores.runs(len(p_PV), most), x.size * 8)
            return p_PV.reshape(x.shape)

        def gradient(dy: Array, p: Array, _: Array) -> Gradients:
            dx = dy * p
            dx -= p * dx.sum(axis=-1, keepdims=True)
            return [dx]

        return differentiable(value, gradient)(scaled_BLV)


def differentiable(
    value: Callable[..., Array], gradient: Callable[..., Gradients]
) -> Callable[..., mx.array]:
    """An operation whose value and gradient are numpy.

    `value` is given the inputs; `gradient` the gradient of the result, the result and the inputs,
    and it returns one array per input.
    """

    def forward(*inputs: mx.array) -> mx.array:
        mx.eval(*inputs)
        return mx.array(value(*map(view, inputs)))

    operation = mx.custom_function(forward)

    @operation.vjp
    def backward(inputs: Any, dy: mx.array, y: mx.array) -> Any:
        alone = isinstance(inputs, mx.array)
        inputs = [inputs] if alone else list(inputs)
        mx.eval(dy, y, *inputs)
        found = [
            array if isinstance(array, mx.array) else mx.array(array)
            for array in gradient(view(dy), view(y), *map(view, inputs))
        ]
        return found[0] if alone else found

    run: Any = operation
    return run  # type: ignore[no-any-return]


# Experts ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mixture:
    """One call of the experts: who chose whom, and what the gradient needs."""

    cores: Cores
    tokens: int
    chosen: int
    slots: tuple[tuple[int, NDArray[np.int64]], ...]
    """Per expert: itself, and its places in the flat (T, A)."""
    kept: dict[int, Array]
    """Per expert: gate and up, before their product."""

    @staticmethod
    def of(cores: Cores, expert_TA: NDArray[Any]) -> _Mixture:
        flat = expert_TA.reshape(-1)
        order = np.argsort(flat, kind="stable")
        experts, starts = np.unique(flat[order], return_index=True)
        slots = zip(experts.tolist(), np.split(order, starts[1:]), strict=True)
        tokens, chosen = expert_TA.shape
        return _Mixture(cores, tokens, chosen, tuple(slots), {})

    def value(self, x_TH: Array, weight_TA: Array, gate_up: Array, down: Array) -> Array:
        """The weighted sum of the chosen experts' outputs."""
        y = np.empty((self.tokens * self.chosen, x_TH.shape[1]), np.float32)
        weight = weight_TA.reshape(-1)

        def part(own: tuple[int, NDArray[np.int64]]) -> None:
            expert, slots = own
            both = x_TH[slots // self.chosen] @ gate_up[expert].T
            self.kept[expert] = both
            gate, up = np.split(both, 2, axis=-1)
            hidden = _gelu(gate)
            hidden *= up
            hidden *= weight[slots, None]
            y[slots] = hidden @ down[expert].T

        self._spread(part, gate_up)
        return self._total(y)

    def gradient(
        self, dy_TH: Array, _: Array, x_TH: Array, weight_TA: Array, gate_up: Array, down: Array
    ) -> Gradients:
        """Of x, the shares and both matrices."""
        dx = np.empty((self.tokens * self.chosen, x_TH.shape[1]), np.float32)
        weight, d_weight = weight_TA.reshape(-1), np.empty(weight_TA.size, np.float32)
        d_gate_up, d_down = np.zeros_like(gate_up), np.zeros_like(down)

        def part(own: tuple[int, NDArray[np.int64]]) -> None:
            expert, slots = own
            tokens, both = slots // self.chosen, self.kept[expert]
            dy, share = dy_TH[tokens], weight[slots, None]
            gate, up = np.split(both, 2, axis=-1)
            d_hidden = dy @ down[expert]
            d_both = np.empty_like(both)
            size = gate.shape[1]
            hidden = _gelu(gate)
            hidden *= up
            d_weight[slots] = np.einsum("ti,ti->t", d_hidden, hidden)
            hidden *= share
            np.matmul(dy.T, hidden, out=d_down[expert])
            d_hidden *= share
            d_both[:, :size], d_both[:, size:] = _gated_gradient(d_hidden, gate, up)
            np.matmul(d_both.T, x_TH[tokens], out=d_gate_up[expert])
            dx[slots] = d_both @ gate_up[expert]

        self._spread(part, gate_up)
        return self._total(dx), d_weight.reshape(weight_TA.shape), d_gate_up, d_down

    def _spread(self, part: Callable[[Any], None], gate_up: Array) -> None:
        cost = self.tokens * self.chosen * gate_up[0].size
        self.cores.spread(part, self.slots, cost)

    def _total(self, y: Array) -> Array:
        """The sum over a token's experts."""
        parts = y.reshape(self.tokens, self.chosen, -1)
        total = parts[:, 0].copy()
        for index in range(1, self.chosen):
            total += parts[:, index]
        return total


# Attention -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Attention:
    """One call of attention: its mask, and the scores' logarithmic sums for the gradient."""

    cores: Cores
    bias: Array | None
    """What is added to the scores, broadcastable to (B, N, L, S)."""
    lse_BNL: Array | None = None

    def value(self, q_BNLD: Array, k_BKSD: Array, v_BKSD: Array) -> Array:
        """Softmax attention with scale 1, (B, L, N, D): the layout in which heads are merged."""
        batch, heads, queries, _ = q_BNLD.shape
        y_BLND = np.empty((batch, queries, heads, v_BKSD.shape[-1]), np.float32)
        y, lse = y_BLND.swapaxes(1, 2), np.empty(q_BNLD.shape[:3], np.float32)
        runs = self._runs(q_BNLD, k_BKSD)

        def part(where: tuple[int, int]) -> None:
            b, n = where
            own = _group(q_BNLD, k_BKSD, n)
            for run, seen in runs:
                q_GLD, v = q_BNLD[b, own, run], v_BKSD[b, n, seen]
                scores = self._scores(q_GLD, k_BKSD[b, n, seen], (b, own, run, seen))
                top = scores.max(axis=-1, keepdims=True)
                scores -= top
                np.exp(scores, out=scores)
                total = scores.sum(axis=-1, keepdims=True)
                out = (scores.reshape(-1, len(v)) @ v).reshape(*q_GLD.shape[:2], -1)
                np.divide(out, total, out=y[b, own, run])
                lse[b, own, run] = (top + np.log(total))[..., 0]

        self.cores.spread(
            part, list(np.ndindex(k_BKSD.shape[:2])), q_BNLD.size * k_BKSD.shape[2] * 2
        )
        self.lse_BNL = lse
        return y_BLND

    def gradient(
        self, dy_BLND: Array, y_BLND: Array, q_BNLD: Array, k_BKSD: Array, v_BKSD: Array
    ) -> Gradients:
        """Of queries, keys and values, from chances that are computed again."""
        assert self.lse_BNL is not None
        lse_BNL, dy_BNLD, y_BNLD = self.lse_BNL, dy_BLND.swapaxes(1, 2), y_BLND.swapaxes(1, 2)
        dq, dk, dv = (np.zeros(a.shape, np.float32) for a in (q_BNLD, k_BKSD, v_BKSD))
        size, runs = k_BKSD.shape[-1], self._runs(q_BNLD, k_BKSD)

        def part(where: tuple[int, int]) -> None:
            b, n = where
            own = _group(q_BNLD, k_BKSD, n)
            for run, seen in runs:
                q_GLD, k, v = q_BNLD[b, own, run], k_BKSD[b, n, seen], v_BKSD[b, n, seen]
                p = self._scores(q_GLD, k, (b, own, run, seen))
                p -= lse_BNL[b, own, run, None]
                np.exp(p, out=p)
                dy_GLD = np.ascontiguousarray(dy_BNLD[b, own, run])
                dy = dy_GLD.reshape(-1, dy_GLD.shape[-1])
                dv[b, n, seen] += p.reshape(-1, len(k)).T @ dy
                ds = dy @ v.T
                ds -= (dy_GLD * y_BNLD[b, own, run]).sum(axis=-1).reshape(-1, 1)
                ds *= p.reshape(-1, len(k))
                dq[b, own, run] = (ds @ k).reshape(q_GLD.shape)
                dk[b, n, seen] += ds.T @ q_GLD.reshape(-1, size)

        self.cores.spread(
            part, list(np.ndindex(k_BKSD.shape[:2])), q_BNLD.size * k_BKSD.shape[2] * 5
        )
        return dq, dk, dv

    def _scores(self, q_GLD: Array, k_SD: Array, where: tuple[int, slice, slice, slice]) -> Array:
        row, heads, run, seen = where
        scores: Array = q_GLD.reshape(-1, q_GLD.shape[-1]) @ k_SD.T
        scores = scores.reshape(*q_GLD.shape[:2], -1)
        if self.bias is not None:
            own = self.bias[row if len(self.bias) > 1 else 0]
            own = own[heads] if len(own) > 1 else own
            scores += (own[:, run] if own.shape[1] > 1 else own)[..., seen]
        return scores

    def _runs(self, q_BNLD: Array, k_BKSD: Array) -> list[tuple[slice, slice]]:
        """Runs of queries, each with the keys from the first to the last that one of them sees."""
        queries, keys = q_BNLD.shape[2], k_BKSD.shape[2]
        size = max(1, min(QUERIES, SCORES // (q_BNLD.shape[1] // k_BKSD.shape[1] * keys)))
        found = []
        for start in range(0, queries, size):
            run, seen = slice(start, min(start + size, queries)), slice(0, keys)
            if self.bias is not None and self.bias.shape[2] > 1:
                (places,) = np.nonzero((self.bias[:, :, run] == 0).any(axis=(0, 1, 2)))
                seen = slice(int(places[0]), int(places[-1]) + 1)
            found.append((run, seen))
        return found


def _group(q_BNLD: Array, k_BKSD: Array, head: int) -> slice:
    """The query heads that read a key/value head."""
    group = q_BNLD.shape[1] // k_BKSD.shape[1]
    return slice(head * group, (head + 1) * group)


def _bias(mask: Mask, queries: int, keys: int) -> Array | None:
    """0 where a key is seen, -inf where not."""
    if mask is None:
        return None
    if isinstance(mask, str):
        seen = np.tri(queries, keys, keys - queries, np.bool_)[None, None]
    else:
        mx.eval(mask)
        seen = view(mask)
    return np.where(seen, np.float32(0), np.float32(-np.inf))


# Elementwise -----------------------------------------------------------------------------------


def _tanh(x: Array) -> Array:
    """The tanh of GELU."""
    t = x * x
    t *= np.float32(SLOPE * CUBE)
    t += np.float32(SLOPE)
    t *= x
    np.tanh(t, out=t)
    return t


def _gelu(x: Array) -> Array:
    """The tanh form of GELU. Returns a new array."""
    y = _tanh(x)
    y += np.float32(1)
    y *= x
    y *= np.float32(0.5)
    return y


def _gated_gradient(dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """Of `gelu(gate) * up`, for gate and up."""
    t = _tanh(gate)
    slope = gate * gate
    slope *= np.float32(3 * SLOPE * CUBE)
    slope += np.float32(SLOPE)
    slope *= gate
    square = t * t
    np.subtract(np.float32(1), square, out=square)
    slope *= square
    t += np.float32(1)
    slope += t
    slope *= up
    slope *= dy
    slope *= np.float32(0.5)
    t *= gate
    t *= dy
    t *= np.float32(0.5)
    return slope, t
