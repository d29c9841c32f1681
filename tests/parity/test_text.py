"""Text: logits of transformers' class and ours, from the same random checkpoints."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from parity.checkpoints import SHAPES
from parity.prompts import text

pytestmark = pytest.mark.parity

SHAPE_NAMES = list(SHAPES)


def canvas(name: str, seed: int, batch: int = 1) -> np.ndarray:
    shape = SHAPES[name]
    return np.random.default_rng(seed).integers(0, shape.vocab, (batch, shape.canvas))


def prefilled(engine, ids, **options):
    cache = engine.model.new_cache()
    engine.model.prefill(mx.array(np.atleast_2d(ids)), cache, **options)
    return cache


@pytest.mark.parametrize("spelling", ["hub", "transformers"])
@pytest.mark.parametrize("length", [1, 4, 37])
@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_first_step(name, length, spelling, ours, theirs, same):
    engine, reference = ours(name, spelling), theirs(name)
    ids, ids_BL = np.array([text(SHAPES[name], length)]), canvas(name, 1)
    cache, cache_ref = prefilled(engine, ids), reference.new_cache()
    reference.prefill(ids, cache_ref)
    same(
        f"text, one step, {name}",
        engine.model.denoise(mx.array(ids_BL), cache),
        reference.denoise(ids_BL, cache_ref),
    )


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_self_conditioning_over_steps_and_blocks(name, ours, theirs, same):
    engine, reference = ours(name), theirs(name)
    model, ids = engine.model, np.array([text(SHAPES[name], 19)])
    cache, cache_ref = prefilled(engine, ids), reference.new_cache()
    reference.prefill(ids, cache_ref)
    for block in range(3):
        scaled, scaled_ref = None, None
        for step in range(6):
            ids_BL = canvas(name, 10 * block + step)
            logits = model.denoise(mx.array(ids_BL), cache, self_conditioning_BLV=scaled)
            logits_ref = reference.denoise(ids_BL, cache_ref, self_conditioning_BLV=scaled_ref)
            same(f"text, 3 blocks of 6 steps, {name}", logits, logits_ref)
            temperature = 0.8 - 0.05 * step
            scaled, scaled_ref = logits / temperature, logits_ref / temperature
        done = np.array(logits_ref.argmax(-1))
        model.prefill(mx.array(done), cache)
        reference.prefill(done, cache_ref)


@pytest.mark.parametrize("chunk", [1, 3, 7, 16, 41, 1000])
@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_chunked_prefill(name, chunk, ours, theirs, same):
    engine, reference = ours(name), theirs(name)
    ids, ids_BL = np.array([text(SHAPES[name], 41, seed=3)]), canvas(name, 2)
    cache_ref = reference.new_cache()
    reference.prefill(ids, cache_ref)
    logits_ref = reference.denoise(ids_BL, cache_ref)
    chunked = engine.model.denoise(mx.array(ids_BL), prefilled(engine, ids, chunk=chunk))
    whole = engine.model.denoise(mx.array(ids_BL), prefilled(engine, ids))
    same("text, chunked prefill", chunked, logits_ref)
    same("chunked against whole prefill (ours)", chunked, whole, tolerance=1e-4)


@pytest.mark.parametrize("chunk", [5, 2048])
@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_left_padded_batch(name, chunk, ours, theirs, same):
    engine, reference = ours(name), theirs(name)
    shape, lengths = SHAPES[name], [21, 9, 2]
    rows = [text(shape, n, seed=n) for n in lengths]
    ids = np.array([[0] * (21 - len(r)) + r for r in rows])
    mask = np.array([[False] * (21 - n) + [True] * n for n in lengths])
    cache, cache_ref = prefilled(engine, ids, mask_BS=mx.array(mask), chunk=chunk), None
    cache_ref = reference.new_cache()
    reference.prefill(ids, cache_ref, mask_BS=mask)
    scaled, scaled_ref = None, None
    for step in range(4):
        ids_BL = canvas(name, 50 + step, batch=3)
        logits = engine.model.denoise(
            mx.array(ids_BL), cache, self_conditioning_BLV=scaled, mask_BS=mx.array(mask)
        )
        logits_ref = reference.denoise(
            ids_BL, cache_ref, self_conditioning_BLV=scaled_ref, mask_BS=mask
        )
        same("left-padded batch of 3, 4 steps", logits, logits_ref)
        scaled, scaled_ref = logits / 0.7, logits_ref / 0.7


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_padded_row_equals_the_row_alone(name, ours, same):
    engine, shape = ours(name), SHAPES[name]
    short, long = text(shape, 5, seed=1), text(shape, 14, seed=2)
    ids, mask = [[0] * 9 + short, long], [[False] * 9 + [True] * 5, [True] * 14]
    mask = mx.array(mask)
    cache = prefilled(engine, ids, mask_BS=mask)
    ids_BL = np.repeat(canvas(name, 4), 2, axis=0)
    logits = engine.model.denoise(mx.array(ids_BL), cache, mask_BS=mask)
    for row, prompt in enumerate((short, long)):
        alone = engine.model.denoise(mx.array(ids_BL[:1]), prefilled(engine, [prompt]))
        same("padded row against the row alone (ours)", logits[row : row + 1], alone)
