"""What the cache holds, and that a step leaves it as it was."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dg_mlx.model.cache import STEP, FullLayer, SlidingLayer

ROOM = STEP


def entries(start, count):
    """(1, 1, count, 2): entry i holds i."""
    return mx.broadcast_to(
        mx.arange(start, start + count, dtype=mx.float32)[:, None], (1, 1, count, 2)
    )


def numbers(array):
    return np.array(array)[0, 0, :, 0].astype(int).tolist()


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=5), st.integers(2, 300), st.integers(1, 300)
)
@settings(deadline=None, max_examples=60)
def test_layers_show_the_context_and_the_canvas(chunks, window, canvas):
    sliding, full, at = SlidingLayer(window), FullLayer(reserve=0), 0
    for count in chunks:
        new = entries(at, count)
        k, v = sliding.append(new, new)
        assert numbers(k) == numbers(v) == list(range(max(0, at - window + 1), at + count))
        assert numbers(full.append(new)) == list(range(at + count))
        at += count
        for _ in range(2):  # the second canvas replaces the first
            noise = entries(at + 1000, canvas)
            k, _ = sliding.peek(noise, noise)
            behind = list(range(at + 1000, at + 1000 + canvas))
            assert numbers(k) == [*range(max(0, at - window + 1), at), *behind]
            assert numbers(full.peek(noise)) == [*range(at), *behind]


def test_sliding_layers_hold_no_more_than_the_window():
    layer = SlidingLayer(64)
    for start in range(0, 4000, 500):
        layer.append(entries(start, 500), entries(start, 500))
        layer.peek(entries(0, 32), entries(0, 32))
    assert layer.keys.length == 63
    assert layer.keys.array.shape[2] <= 63 + ROOM


def test_a_step_allocates_nothing_once_the_canvas_has_room():
    layer = FullLayer(reserve=1000)
    layer.append(entries(0, 600))
    layer.peek(entries(0, 64))
    size = layer.entries.nbytes
    for _ in range(20):
        layer.peek(entries(0, 64))
        mx.eval(layer.entries.array)
        assert layer.entries.nbytes == size


def test_full_layers_are_reserved_at_once():
    layer = FullLayer(reserve=5000)
    layer.append(entries(0, 10))
    size = layer.entries.nbytes
    assert layer.entries.array.shape[2] >= 5000
    layer.append(entries(10, 4000))
    assert layer.entries.nbytes == size


@pytest.mark.parametrize("count", [1, 63, 64, 65])
def test_the_window_is_cut_exactly(count):
    layer = SlidingLayer(64)
    layer.append(entries(0, count), entries(0, count))
    k, _ = layer.peek(entries(900, 1), entries(900, 1))
    assert numbers(k) == [*range(max(0, count - 63), count), 900]
