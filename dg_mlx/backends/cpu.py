"""The CPU.

MLX's CPU build computes elementwise functions one at a time without SIMD (a tanh takes it 16 ns a
number, numpy 0.4: bench/step_cpu.py), and its grouped, batched and packed products are slow. So
those, and with them all products, run in numpy over MLX's own memory, in fp32.

Numpy needs finished arrays, so each of these operations evaluates its inputs. Work is divided among
the cores here, with BLAS on one thread each: BLAS's own threads wait for each other by spinning,
which costs up to ten times the product when another program has a core.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from dg_mlx import blas
from dg_mlx.plan import FP32

from .base import NEVER, Backend, Device, Mask, Packed, Vocabulary
from .classes import Classes

Array = NDArray[np.float32]
T = TypeVar("T")

SCORES = 1 << 24
"""Most attention scores that one core holds at a time."""
COLUMNS = 512
"""Ids summed together before the search for a sample."""
WORTHWHILE = 1 << 23
"""Numbers times operations below which work stays on one core."""


class Cores:
    """The cores that this process may use, among which work on numpy's arrays is divided."""

    def __init__(self) -> None:
        affinity = getattr(os, "sched_getaffinity", None)
        self.count = len(affinity(0)) if affinity else os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self.count)

    def runs(self, rows: int, most: int | None = None) -> list[slice]:
        """Cut rows into one run per core, or into runs of at most `most`."""
        size = most or max(1, -(-rows // self.count))
        return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]

    def spread(self, work: Callable[[T], None], parts: Sequence[T], cost: int) -> None:
        """Do every part, on all cores when it is worth while."""
        done: Iterable[None] = map(work, parts)
        if cost >= WORTHWHILE and self.count > 1 and len(parts) > 1:
            done = self._pool.map(work, parts)
        for _ in done:
            pass


class Cpu(Backend):
    """MLX on the CPU, with numpy for what MLX is slow at."""

    name = "cpu"

    def __init__(self) -> None:
        self._cores = Cores()

    def describe(self) -> Device:
        """Processor, all of the machine's memory, MLX version."""
        return Device(
            name=self.name,
            chip=_processor(),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            mlx_version=version("mlx"),
            itemsize=FP32,
            unpacks=True,
            notes=(blas.NOTE,) if blas.NOTE else (),
        )

    def activate(self) -> None:
        """Make the CPU the default device."""
        mx.set_default_device(mx.Device(mx.DeviceType.cpu))

    def prepare(self) -> None:
        """Use the CPU, and let numpy's BLAS use the calling thread only."""
        super().prepare()
        single_thread()

    def dtype(self, stored: mx.Dtype) -> mx.Dtype:
        """Always fp32: there is no fast bf16 product here."""
        del stored
        return mx.float32

    def matmul(self, x: mx.array, packed: Packed, *, transpose: bool = True) -> mx.array:
        """BLAS products of runs of rows, with the unpacked weight where it is quantised."""
        if x.dtype != mx.float32:
            return super().matmul(x, packed, transpose=transpose)
        plain = packed.plain(mx.float32)
        mx.eval(x, plain)
        rows = view(x).reshape(-1, x.shape[-1])
        weight = view(plain).T if transpose else view(plain)
        y = np.empty((rows.shape[0], weight.shape[1]), np.float32)

        def part(run: slice) -> None:
            np.matmul(rows[run], weight, out=y[run])

        self._cores.spread(part, self._cores.runs(rows.shape[0]), rows.size * weight.shape[1])
        return mx.array(y.reshape(*x.shape[:-1], -1))

    def experts(
        self,
        x_TH: mx.array,
        expert_TA: mx.array,
        weight_TA: mx.array,
        gate_up: Packed,
        down: Packed,
    ) -> mx.array:
        """Tokens grouped by expert, two BLAS products per expert that was chosen."""
        if x_TH.dtype != mx.float32:
            return super().experts(x_TH, expert_TA, weight_TA, gate_up, down)
        x, expert, weight = view(x_TH), view(expert_TA), view(weight_TA).reshape(-1)
        order = np.argsort(expert, axis=None, kind="stable")
        chosen, starts = np.unique(expert.reshape(-1)[order], return_index=True)
        slots = np.split(order, starts[1:])
        weights = [(_expert(gate_up, int(e)), _expert(down, int(e))) for e in chosen]
        parts: list[Array] = [np.empty(0, np.float32)] * len(chosen)

        def part(index: int) -> None:
            first, second = weights[index]
            gate, up = np.split(x[slots[index] // expert.shape[1]] @ first.T, 2, axis=-1)
            hidden = _gelu(gate)
            hidden *= up
            parts[index] = hidden @ second.T
            parts[index] *= weight[slots[index], None]

        self._cores.spread(part, range(len(chosen)), expert.size * weights[0][0].size)
        y = np.zeros_like(x)
        for slot, out in zip(slots, parts, strict=True):
            y[slot // expert.shape[1]] += out  # a token has an expert once: no repeated rows
        return mx.array(y)

    def gated(self, gate: mx.array, up: mx.array) -> mx.array:
        """`gelu(gate) * up` in numpy."""
        if gate.dtype != mx.float32:
            return super().gated(gate, up)
        mx.eval(gate, up)
        y = _gelu(view(gate))
        y *= view(up)
        return mx.array(y)

    def attention(
        self, q_BNLD: mx.array, k_BKSD: mx.array, v_BKSD: mx.array, mask: Mask
    ) -> mx.array:
        """Per key/value head and block of queries, two BLAS products around a numpy softmax."""
        if q_BNLD.dtype != mx.float32:
            return super().attention(q_BNLD, k_BKSD, v_BKSD, mask)
        mx.eval(q_BNLD, k_BKSD, v_BKSD, *([mask] if isinstance(mask, mx.array) else []))
        q, k, v = view(q_BNLD), view(k_BKSD), view(v_BKSD)
        batch, heads, queries, size = q.shape
        keys, group = k.shape[2], heads // k.shape[1]
        y = np.empty((batch, heads, queries, v.shape[-1]), np.float32)
        block = max(1, SCORES // (group * keys))

        def part(where: tuple[int, int, int]) -> None:
            b, n, start = where
            mine = slice(n * group, (n + 1) * group)
            rows = slice(start, min(start + block, queries))
            part = np.ascontiguousarray(q[b, mine, rows]).reshape(-1, size)
            scores = (part @ k[b, n].T).reshape(group, -1, keys)
            _softmax(scores, _visible(mask, b, mine, rows, queries, keys))
            out = scores.reshape(-1, keys) @ v[b, n]
            y[b, mine, rows] = out.reshape(group, -1, v.shape[-1])

        places = [
            (b, n, start)
            for b in range(batch)
            for n in range(k.shape[1])
            for start in range(0, queries, block)
        ]
        self._cores.spread(part, places, q.size * keys * 2)
        return mx.array(y)

    def soft_cap(self, logits: mx.array, cap: float) -> mx.array:
        """`cap * tanh(logits / cap)` in numpy."""
        mx.eval(logits)
        y = view(logits.astype(mx.float32)) * np.float32(1 / cap)
        rows = y.reshape(-1, y.shape[-1])

        def part(run: slice) -> None:
            np.tanh(rows[run], out=rows[run])
            rows[run] *= np.float32(cap)

        self._cores.spread(part, self._cores.runs(rows.shape[0], most=16), y.size * 4)
        return mx.array(y)

    def probabilities(self, scaled_BLV: mx.array) -> mx.array:
        """Softmax over the vocabulary in numpy."""
        mx.eval(scaled_BLV)
        y = view(scaled_BLV.astype(mx.float32)).copy()
        rows = y.reshape(-1, y.shape[-1])
        runs = self._cores.runs(rows.shape[0], most=16)
        self._cores.spread(lambda run: _softmax(rows[run], None), runs, y.size * 4)
        return mx.array(y)

    def vocabulary(self, logits_BLV: mx.array, temperature: float) -> Vocabulary:
        """Temperature, best guess, entropy and sum, in runs of rows that stay in the cache."""
        mx.eval(logits_BLV)
        scaled = view(logits_BLV) / np.float32(temperature)
        rows = scaled.reshape(-1, scaled.shape[-1])
        guess = np.empty(rows.shape[0], np.int32)
        entropy, log_total = (np.empty(rows.shape[0], np.float32) for _ in range(2))

        def part(run: slice) -> None:
            z = rows[run]
            guess[run] = z.argmax(axis=-1)
            most = z.max(axis=-1, keepdims=True)
            shifted = z - most
            p = np.exp(shifted)
            total = p.sum(axis=-1)
            p *= shifted
            entropy[run] = np.log(total) - p.sum(axis=-1) / total
            log_total[run] = np.log(total) + most[:, 0]

        self._cores.spread(part, self._cores.runs(rows.shape[0], most=16), rows.size * 8)
        shape = scaled.shape[:-1]
        found = (mx.array(figure.reshape(shape)) for figure in (guess, entropy, log_total))
        return Vocabulary(mx.array(scaled), *found)

    def sample(self, scaled_BLV: mx.array, uniform_BL: mx.array) -> mx.array:
        """Inverse-CDF draw: first the run of ids, then the id within it."""
        mx.eval(scaled_BLV, uniform_BL)
        uniform = view(uniform_BL).reshape(-1)
        rows = view(scaled_BLV).reshape(uniform.size, -1)
        ids = np.empty(uniform.size, np.int32)

        def part(run: slice) -> None:
            for i in range(run.start, run.stop):
                ids[i] = _draw(np.exp(rows[i] - rows[i].max()), float(uniform[i]))

        self._cores.spread(part, self._cores.runs(rows.shape[0]), rows.size * 8)
        return mx.array(ids.reshape(uniform_BL.shape))

    def class_scores(self, scaled_BLV: mx.array, classes: Classes) -> tuple[mx.array, mx.array]:
        """Tokens side by side by class, then numpy's sums over runs."""
        mx.eval(scaled_BLV)
        rows = view(scaled_BLV).reshape(-1, scaled_BLV.shape[-1])
        most, total = (np.empty((len(rows), classes.count), np.float32) for _ in range(2))
        sizes = np.diff(classes.starts, append=len(classes.order))

        def part(run: slice) -> None:
            for i in range(run.start, run.stop):
                scores = rows[i][classes.order]
                most[i] = np.maximum.reduceat(scores, classes.starts)
                scores -= np.repeat(most[i], sizes)
                np.exp(scores, out=scores)
                total[i] = np.add.reduceat(scores, classes.starts)

        self._cores.spread(part, self._cores.runs(len(rows)), rows.size * 8)
        total = np.log(total) + most
        shape = (*scaled_BLV.shape[:-1], classes.count)
        return mx.array(most.reshape(shape)), mx.array(total.reshape(shape))

    def add_classes(self, scaled_BLV: mx.array, weight_BLC: mx.array, classes: Classes) -> mx.array:
        """Row by row in numpy."""
        mx.eval(scaled_BLV, weight_BLC)
        rows = view(scaled_BLV).reshape(-1, scaled_BLV.shape[-1])
        weight, class_V = view(weight_BLC).reshape(len(rows), -1), view(classes.class_V)
        y = np.empty_like(rows)

        def part(run: slice) -> None:
            for i in range(run.start, run.stop):
                np.take(weight[i], class_V, out=y[i], mode="clip")
                y[i] += rows[i]

        self._cores.spread(part, self._cores.runs(len(rows)), rows.size * 4)
        return mx.array(y.reshape(scaled_BLV.shape))

    def within(self, scaled_BLV: mx.array, class_BL: mx.array, classes: Classes) -> mx.array:
        """Only the tokens of the class are touched."""
        mx.eval(scaled_BLV, class_BL)
        rows = view(scaled_BLV).reshape(-1, scaled_BLV.shape[-1])
        y = np.full(rows.shape, NEVER, np.float32)
        for i, number in enumerate(view(class_BL).reshape(-1)):
            members = classes.members(int(number))
            y[i, members] = rows[i, members]
        return mx.array(y.reshape(scaled_BLV.shape))


def single_thread() -> None:
    """Let numpy's BLAS use the calling thread only."""
    for library in ThreadpoolController().lib_controllers:
        if "numpy" in library.filepath:
            library.set_num_threads(1)


def view(array: mx.array) -> Any:
    """MLX's memory as a numpy array, without a copy."""
    return np.array(array, copy=False)


def _expert(packed: Packed, expert: int) -> Array:
    """One expert's matrix, unpacked."""
    if packed.spec is None:
        plain: Array = view(packed.weight)[expert]
        return plain
    unpacked: Array = view(packed.at(expert).plain(mx.float32))
    return unpacked


def _gelu(x: Array) -> Array:
    """The tanh form of GELU. Returns a new array."""
    y = x * x
    y *= np.float32(0.044715)
    y += np.float32(1)
    y *= x
    y *= np.float32(math.sqrt(2 / math.pi))
    np.tanh(y, out=y)
    y += np.float32(1)
    y *= x
    y *= np.float32(0.5)
    return y


def _softmax(scores: Array, visible: NDArray[np.bool_] | None) -> None:
    """Softmax over the last axis, in place."""
    if visible is not None:
        np.copyto(scores, -np.inf, where=~visible)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)


def _visible(
    mask: Mask, batch: int, heads: slice, rows: slice, queries: int, keys: int
) -> NDArray[np.bool_] | None:
    """The part of a mask that a block of one batch row's queries needs, for (heads, rows, keys)."""
    if mask is None:
        return None
    if isinstance(mask, str):
        last = np.arange(rows.start, rows.stop) + keys - queries
        seen: NDArray[np.bool_] = np.arange(keys) <= last[:, None]
        return seen
    whole = view(mask)
    part: NDArray[np.bool_] = whole[batch if whole.shape[0] > 1 else 0]
    part = part[heads] if part.shape[0] > 1 else part
    return part[:, rows] if part.shape[1] > 1 else part


def _draw(p: Array, uniform: float) -> int:
    """The first index whose cumulative weight exceeds `uniform` of the total."""
    whole = len(p) // COLUMNS * COLUMNS
    runs = p[:whole].reshape(-1, COLUMNS).sum(axis=1, dtype=np.float64)
    ends = np.cumsum(np.append(runs, p[whole:].sum(dtype=np.float64)))
    level = uniform * ends[-1]
    # Rounding can carry a level past the end: stay at the last run, and id, with any weight.
    last = int(np.flatnonzero(np.diff(ends, prepend=0.0))[-1])
    run = min(int(np.searchsorted(ends, level, side="right")), last)
    inside = p[run * COLUMNS : run * COLUMNS + COLUMNS]
    left = level - (ends[run - 1] if run else 0.0)
    index = int(np.searchsorted(np.cumsum(inside, dtype=np.float64), left, side="right"))
    return run * COLUMNS + min(index, int(np.flatnonzero(inside)[-1]))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
