"""Choosing a device, and its fast forms against the plain ones."""

from __future__ import annotations

import sys

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dg_mlx.backends import choose
from dg_mlx.backends.base import Backend, Packed, checked
from dg_mlx.backends.cpu import Cpu
from dg_mlx.backends.gpu import Gpu
from dg_mlx.config import Quantization
from dg_mlx.errors import BackendError

CPU, PLAIN = Cpu(), Backend()


def close(ours, theirs, tolerance=2e-5):
    np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=tolerance, atol=tolerance)


def test_an_unknown_backend_is_named_with_the_choices():
    with pytest.raises(BackendError, match="no backend 'tpu'; choose from auto, metal, cuda, cpu"):
        choose("tpu")


@pytest.mark.skipif(sys.platform == "darwin", reason="Metal may be here")
def test_a_device_that_is_not_here_says_what_it_needs():
    with pytest.raises(BackendError, match="metal cannot run here: it needs a Mac"):
        choose("metal")


def test_the_cpu_describes_itself():
    device = choose("cpu").describe()
    assert device.name == "cpu" and device.chip
    assert device.memory_bytes > 1e9


def test_a_form_that_differs_here_is_replaced_with_a_warning():
    class Wrong(Backend):
        name = "wrong"

        def gated(self, gate, up):
            return gate * up

        def soft_cap(self, logits, cap):
            raise RuntimeError("no such kernel")

    with pytest.warns(UserWarning, match="fast form") as warned:
        backend = checked(Wrong())
    text = " ".join(str(w.message) for w in warned)
    assert "fast form of gated differs" in text
    assert "fast form of soft_cap failed (no such kernel)" in text
    x = mx.random.normal((3, 4), key=mx.random.key(0))
    close(backend.gated(x, x), PLAIN.gated(x, x))
    close(backend.soft_cap(x, 2.0), PLAIN.soft_cap(x, 2.0))


def test_the_fused_gate_of_gpus_is_the_plain_one():
    x, y = (mx.random.normal((5, 7), key=mx.random.key(i)) for i in range(2))
    close(Gpu().gated(x, y), PLAIN.gated(x, y))


@given(
    tokens=st.integers(1, 40), count=st.integers(1, 7), chosen=st.integers(1, 7),
    bits=st.sampled_from([None, 4, 8]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_grouped_experts_are_the_plain_ones(tokens, count, chosen, bits, seed):
    chosen = min(chosen, count)
    keys = mx.random.split(mx.random.key(seed), 5)
    x = mx.random.normal((tokens, 64), key=keys[0])
    gate_up = mx.random.normal((count, 64, 64), key=keys[1]) * 0.1
    down = mx.random.normal((count, 64, 32), key=keys[2]) * 0.1
    expert = mx.argsort(mx.random.normal((tokens, count), key=keys[3]), axis=-1)[:, :chosen]
    weight = mx.random.uniform(shape=(tokens, chosen), key=keys[4])
    packed = [Packed(w) for w in (gate_up, down)]
    if bits:
        spec = Quantization(group_size=32, bits=bits, mode="affine")
        packed = [Packed(*mx.quantize(w, group_size=32, bits=bits), spec) for w in (gate_up, down)]
    close(CPU.experts(x, expert, weight, *packed), PLAIN.experts(x, expert, weight, *packed), 1e-4)


@given(
    batch=st.integers(1, 2), heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    queries=st.integers(1, 9), cached=st.integers(0, 20),
    mask=st.sampled_from(["none", "causal", "array", "per key"]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_attention_is_the_plain_one(batch, heads, queries, cached, mask, seed):
    keys = mx.random.split(mx.random.key(seed), 4)
    total = cached + queries
    q = mx.random.normal((batch, heads[0], queries, 16), key=keys[0]) * 0.5
    k, v = (mx.random.normal((batch, heads[1], total, 16), key=key) for key in keys[1:3])
    shape = (batch, 1, 1 if mask == "per key" else queries, total)
    some = (mx.random.uniform(shape=shape, key=keys[3]) > 0.4) | (mx.arange(total) == 0)
    given_mask = {"none": None, "causal": "causal"}.get(mask, some)
    close(CPU.attention(q, k, v, given_mask), PLAIN.attention(q, k, v, given_mask))


@pytest.mark.parametrize("mask", [None, "causal", "array"])
@pytest.mark.parametrize("backend", [Cpu(), Backend()])
def test_blocks_of_queries_change_nothing(monkeypatch, backend, mask):
    keys = mx.random.split(mx.random.key(3), 4)
    q, k, v = (
        mx.random.normal((1, 2, n, 8), key=key) for n, key in zip((12, 30, 30), keys, strict=False)
    )
    if mask == "array":
        mask = (mx.random.uniform(shape=(1, 1, 12, 30), key=keys[3]) > 0.5) | (mx.arange(30) == 1)
    whole = backend.attention(q, k, v, mask)
    monkeypatch.setattr("dg_mlx.backends.base.SCORES_BYTES", 5 * 2 * 30 * 4)
    monkeypatch.setattr("dg_mlx.backends.cpu.SCORES", 5 * 30)
    close(backend.attention(q, k, v, mask), whole)


@pytest.mark.parametrize(("mode", "bits", "group"), [
    ("affine", 4, 64), ("affine", 8, 32), ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16),
])  # fmt: skip
@pytest.mark.parametrize("transpose", [True, False])
def test_packed_products_are_the_plain_ones(mode, bits, group, transpose):
    keys = mx.random.split(mx.random.key(1), 2)
    w = mx.random.normal((96, 128), key=keys[0])
    x = mx.random.normal((5, 128 if transpose else 96), key=keys[1])
    spec = Quantization(group_size=group, bits=bits, mode=mode)
    packed = Packed(*mx.quantize(w, group_size=group, bits=bits, mode=mode), spec=spec)
    ours = CPU.matmul(x, packed, transpose=transpose)
    close(ours, PLAIN.matmul(x, packed, transpose=transpose), 1e-4)


@given(st.integers(1, 12), st.integers(2, 1500), st.integers(0, 99), st.floats(0.2, 3))
@settings(deadline=None, max_examples=40)
def test_the_vocabulary_pass_is_the_plain_one(rows, vocab, seed, temperature):
    keys = mx.random.split(mx.random.key(seed), 2)
    logits = mx.random.normal((1, rows, vocab), key=keys[0]) * 4
    uniform = mx.random.uniform(shape=(1, rows), key=keys[1])
    ours, plain = CPU.vocabulary(logits, temperature), PLAIN.vocabulary(logits, temperature)
    for a, b in zip(ours, plain, strict=True):
        close(a, b, 1e-4)
    close(CPU.soft_cap(logits, 3.0), PLAIN.soft_cap(logits, 3.0))
    close(CPU.probabilities(logits), PLAIN.probabilities(logits))
    drawn = np.array(CPU.sample(plain.scaled_BLV, uniform))[0]
    cdf = np.cumsum(np.array(PLAIN.probabilities(plain.scaled_BLV))[0].astype(np.float64), axis=-1)
    level = np.array(uniform)[0] * cdf[:, -1]
    for row, (token, want) in enumerate(zip(drawn, level, strict=True)):
        below = cdf[row, token - 1] if token else 0.0
        assert below - 1e-4 <= want <= cdf[row, token] + 1e-4


def test_the_cpu_computes_in_fp32():
    assert Cpu().dtype(mx.bfloat16) == mx.float32
    assert Backend().dtype(mx.bfloat16) == mx.bfloat16
