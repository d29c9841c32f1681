"""Pictures and video frames, with both rules of who sees whom inside a picture."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import DynamicCache
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
    get_block_sequence_ids_for_mask,
)
from transformers.models.gemma4.modeling_gemma4 import create_masks_for_vision_model

from dg_mlx.model import Media
from dg_mlx.reference import vision_masks
from parity.checkpoints import SHAPES
from parity.prompts import prompt

pytestmark = pytest.mark.parity

PROMPTS = {
    "square": [4, (6, 6), 7],
    "wide": [2, (3, 12), 5],
    "tall": [9, (9, 3), 1],
    "longer than the window": [3, (9, 12), 6],
    "picture first": [(6, 9), 12],
    "two pictures": [5, (6, 6), 3, (3, 9), 8],
    "adjacent pictures": [2, (6, 3), (3, 6), 4],
    "three video frames": [4, 2, (3, 6), 2, (3, 6), 2, (3, 6), 6],
}
ATTENTION = ["sliding", "all"]
NAMES = list(SHAPES)


def first_steps(name, given, ours, theirs, attention, **options):
    """Logits of two steps, the second self-conditioned, of ours and theirs."""
    engine, reference = ours(name, attention=attention), theirs(name, attention)
    shape, ids = SHAPES[name], np.array([given.ids])
    cache, cache_ref = engine.model.new_cache(), reference.new_cache()
    engine.model.prefill(mx.array(ids), cache, media=given.media, **options)
    reference.prefill(ids, cache_ref, images=given.media.images)
    ids_BL = np.random.default_rng(7).integers(0, shape.vocab, (1, shape.canvas))
    first = engine.model.denoise(mx.array(ids_BL), cache)
    first_ref = reference.denoise(ids_BL, cache_ref)
    yield first, first_ref
    yield (
        engine.model.denoise(mx.array(ids_BL), cache, self_conditioning_BLV=first / 0.6),
        reference.denoise(ids_BL, cache_ref, self_conditioning_BLV=first_ref / 0.6),
    )


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("case", list(PROMPTS))
@pytest.mark.parametrize("name", NAMES)
def test_logits(name, case, attention, ours, theirs, same):
    given = prompt(SHAPES[name], PROMPTS[case])
    for logits, logits_ref in first_steps(name, given, ours, theirs, attention):
        same(f"{case}, {attention}", logits, logits_ref)


@pytest.mark.parametrize("name", NAMES)
def test_vision_features(name, ours, theirs, same):
    given = prompt(SHAPES[name], [1, (6, 6), 1, (3, 15), 1, (12, 3), 1], seed=2)
    images = given.media.images
    features = [np.array(ours(name).model.image_features([image])) for image in images]
    together = theirs(name).vision(images)
    alone = [theirs(name).vision([image]) for image in images]
    same("vision features", np.concatenate(features), together)
    same("vision features, unpadded", np.concatenate(features), np.concatenate(alone))


def test_the_masks_for_sliding_are_those_of_gemma_4(theirs):
    """Pictures within the window: transformers' own Gemma 4 builds the masks we build by hand."""
    shape = SHAPES["window-shorter"]
    given = prompt(shape, [5, (6, 6), 3, (3, 9), 8])
    image_BS = np.array([given.ids]) == shape.image_token
    text = theirs("window-shorter").model.config.text_config
    types = torch.tensor(image_BS).long()
    built = create_masks_for_vision_model(
        config=text,
        inputs_embeds=torch.zeros(1, len(given.ids), 1),
        attention_mask=torch.ones(1, len(given.ids), dtype=torch.bool),
        past_key_values=DynamicCache(config=text),
        position_ids=torch.arange(len(given.ids))[None],
        block_sequence_ids=get_block_sequence_ids_for_mask(types, torch.device("cpu")),
    )
    for kind, mine_BSS in vision_masks(image_BS, shape.window).items():
        np.testing.assert_array_equal(mine_BSS, (built[kind][:, 0] == 0).numpy())


@pytest.mark.parametrize("chunk", [1, 4, 9])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("case", ["two pictures", "longer than the window", "picture first"])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_never_cut_a_picture(name, case, attention, chunk, ours, theirs, same):
    given = prompt(SHAPES[name], PROMPTS[case], seed=5)
    for logits, logits_ref in first_steps(name, given, ours, theirs, attention, chunk=chunk):
        same(f"pictures in chunks, {attention}", logits, logits_ref)


def test_the_two_rules_differ(ours):
    """Otherwise the tests above would prove nothing."""
    given = prompt(SHAPES["window-shorter"], PROMPTS["longer than the window"])
    logits = []
    for attention in ATTENTION:
        model = ours("window-shorter", attention=attention).model
        cache = model.new_cache()
        model.prefill(mx.array([given.ids]), cache, media=given.media)
        logits.append(np.array(model.denoise(mx.zeros((1, 8), mx.int32), cache)))
    assert np.abs(logits[0] - logits[1]).max() > 0.1


def test_image_token_without_a_picture_is_an_ordinary_token(ours, theirs, same):
    shape = SHAPES["window-shorter"]
    ids = np.array([[3, shape.image_token, shape.image_token, 9, 4]])
    engine, reference = ours("window-shorter", attention="sliding"), theirs("window-shorter")
    cache, cache_ref = engine.model.new_cache(), reference.new_cache()
    engine.model.prefill(mx.array(ids), cache)
    reference.prefill(ids, cache_ref)
    ids_BL = np.arange(shape.canvas)[None]
    same(
        "image token as text",
        engine.model.denoise(mx.array(ids_BL), cache),
        reference.denoise(ids_BL, cache_ref),
    )


@pytest.mark.parametrize("chunk", [3, 2048])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", NAMES)
def test_left_padded_batch_with_pictures(name, attention, chunk, ours, theirs, same):
    engine, reference = ours(name, attention=attention), theirs(name, attention)
    shape = SHAPES[name]
    parts = ([4, (6, 6), 3, (3, 6), 5], [2, (3, 12), 4], [6])
    rows = [prompt(shape, p, seed=i) for i, p in enumerate(parts)]
    length = max(len(row.ids) for row in rows)
    pads = [length - len(row.ids) for row in rows]
    ids = np.array([[0] * pad + row.ids for pad, row in zip(pads, rows, strict=True)])
    mask = np.arange(length)[None] >= np.array(pads)[:, None]
    images = tuple(
        dataclasses.replace(image, row=i, start=image.start + pads[i])
        for i, row in enumerate(rows)
        if row.media is not None
        for image in row.media.images
    )
    cache, cache_ref = engine.model.new_cache(), reference.new_cache()
    engine.model.prefill(
        mx.array(ids), cache, media=Media(images=images), mask_BS=mx.array(mask), chunk=chunk
    )
    reference.prefill(ids, cache_ref, images=images, mask_BS=mask)
    ids_BL = np.random.default_rng(7).integers(0, shape.vocab, (3, shape.canvas))
    logits = engine.model.denoise(mx.array(ids_BL), cache, mask_BS=mx.array(mask))
    logits_ref = reference.denoise(ids_BL, cache_ref, mask_BS=mask)
    same(f"left-padded batch with pictures, {attention}", logits, logits_ref)
