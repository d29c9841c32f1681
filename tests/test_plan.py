"""Bytes of weights, cache and steps."""

import csv
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dg_mlx.config import ModelConfig
from dg_mlx.plan import (
    DIFFUSION_GEMMA_26B,
    SCORES_BYTES,
    cache_bytes,
    largest_context,
    parameters,
    plan,
    prefill_bytes,
    step_bytes,
    vision_bytes,
    weight_bytes,
)

BITS = {"BF16": 16, "U32": 32}


def tensor_bytes(path: Path) -> int:
    with path.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    numbers = (math.prod(map(int, row["shape"].strip("[]").split(","))) for row in rows)
    return sum(n * BITS[row["dtype"]] // 8 for n, row in zip(numbers, rows, strict=True))


def test_the_shipped_shape_is_the_checkpoints(reference: Path) -> None:
    assert ModelConfig.load(reference / "hub") == DIFFUSION_GEMMA_26B


def test_bf16_is_the_sum_of_the_checkpoints_tensors(reference: Path) -> None:
    expected = tensor_bytes(reference / "hub" / "tensors.tsv")
    assert weight_bytes(DIFFUSION_GEMMA_26B, "bf16") == expected == 51_647_562_456


def test_4bit_is_the_sum_of_the_converted_tensors(reference: Path) -> None:
    expected = tensor_bytes(reference / "mlx-4bit" / "tensors.tsv")
    assert weight_bytes(DIFFUSION_GEMMA_26B, "4bit") == expected == 16_542_844_632


def test_parameters() -> None:
    assert parameters(DIFFUSION_GEMMA_26B) * 2 == 51_647_562_456


def test_8bit_lies_between() -> None:
    sizes = [weight_bytes(DIFFUSION_GEMMA_26B, recipe) for recipe in ("4bit", "8bit", "bf16")]
    assert sizes == sorted(sizes)
    assert sizes[1] / sizes[2] == pytest.approx(8.5 / 16, rel=0.03)  # 8 bits, 32 per group of 64


def test_cache_at_256k_by_hand() -> None:
    sliding = 25 * (1023 + 256) * 8 * 256 * 2
    full = 5 * (262_144 + 256) * 2 * (512 + 128)
    assert cache_bytes(DIFFUSION_GEMMA_26B, 262_144, 2) == (sliding + full) * 2


def test_short_contexts_do_not_fill_the_window() -> None:
    sliding, full = 25 * (10 + 256) * 8 * 256 * 2, 5 * (10 + 256) * 2 * 640
    assert cache_bytes(DIFFUSION_GEMMA_26B, 10, 2) == (sliding + full) * 2


def test_a_step_holds_the_vocabulary_in_fp32() -> None:
    assert step_bytes(DIFFUSION_GEMMA_26B, 1, 2) > 3 * 256 * 262_144 * 4


def test_scores_are_bounded() -> None:
    far = prefill_bytes(DIFFUSION_GEMMA_26B, 262_144, 2)
    assert far < 2 * SCORES_BYTES + 2048 * 262_144 * 2


def test_the_backends_hold_to_the_bound_on_scores() -> None:
    from dg_mlx.backends import base

    assert base.SCORES_BYTES == SCORES_BYTES


def test_no_tower_takes_nothing() -> None:
    import dataclasses

    text_only = dataclasses.replace(DIFFUSION_GEMMA_26B, vision=None)
    assert vision_bytes(text_only, 280, 2) == 0
    assert vision_bytes(DIFFUSION_GEMMA_26B, 280, 2) > 0


def test_total_counts_one_phase_at_a_time() -> None:
    made = plan(DIFFUSION_GEMMA_26B, context=4096, weights_bytes=7, itemsize=2)
    assert made.total == 7 + made.cache + max(made.step, made.prefill, made.vision)


def test_unpacking_adds_the_embedding() -> None:
    options = {"context": 4096, "weights_bytes": 0, "itemsize": 4}
    plain = plan(DIFFUSION_GEMMA_26B, **options)
    unpacked = plan(DIFFUSION_GEMMA_26B, **options, unpacks=True)
    assert unpacked.step - plain.step == 262_144 * 2816 * 4


@given(st.integers(16_000_000_000, 40_000_000_000))
def test_largest_context_is_the_last_that_fits(memory: int) -> None:
    weights = 16_542_844_632
    found = largest_context(DIFFUSION_GEMMA_26B, memory, weights_bytes=weights, itemsize=2)

    def total(context: int) -> int:
        made = plan(DIFFUSION_GEMMA_26B, context=context, weights_bytes=weights, itemsize=2)
        return made.total

    assert found == 0 or total(found) <= memory
    assert found == 262_144 or total(found + 1) > memory
