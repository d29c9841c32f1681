"""Our model against numbers that transformers computed (`tests/golden/make.py`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import dg_mlx
from dg_mlx.model import ImagePatches, Media
from dg_mlx.processor import Prompt
from dg_mlx.shared_noise import SharedNoise

HERE = Path(__file__).parent / "golden"
NAMES = ["window-shorter", "window-longer", "seven-experts"]
PICTURES = ["square", "wide", "tall", "long", "two", "frames"]
CHUNKS = [2048, 5, 1]
GENERATIONS = {
    "plain": {},
    "end": {},
    "early": {
        "confidence_threshold": 3.0,
        "stability_threshold": 2,
        "entropy_bound": 8.0,
    },
    "cut": {"max_new_tokens": 13, "max_denoising_steps": 9},
}
TEMPERATURE = 0.6
TOLERANCE = 1e-3


@cache
def engine(name: str, attention: str = "all") -> dg_mlx.Engine:
    return dg_mlx.load(str(HERE / name), backend="cpu", dtype="float32", vision_attention=attention)


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / name / "cases.npz") as file:
        return dict(file)


def agree(model, cache, canvases, wanted, mask=None) -> mx.array:
    """Consecutive steps, each conditioned on the one before. Returns the last logits."""
    scaled, logits = None, None
    for canvas, logits_ref in zip(canvases, wanted, strict=True):
        logits = model.denoise(mx.array(canvas), cache, self_conditioning_BLV=scaled, mask_BS=mask)
        assert logits.dtype == mx.float32
        assert np.abs(np.array(logits) - logits_ref).max() < TOLERANCE
        scaled = logits / TEMPERATURE
    return logits


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", NAMES)
def test_three_blocks(name, chunk):
    model, case = engine(name).model, golden(name)
    cache = model.new_cache()
    model.prefill(mx.array(case["blocks.ids"]), cache, chunk=chunk)
    for canvases, wanted in zip(case["blocks.canvas"], case["blocks.logits"], strict=True):
        agree(model, cache, canvases, wanted)
        model.prefill(mx.array(wanted[-1].argmax(-1)), cache, chunk=chunk)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", NAMES)
def test_left_padded_batch(name, chunk):
    model, case = engine(name).model, golden(name)
    cache, mask = model.new_cache(), mx.array(case["batch.mask"])
    model.prefill(mx.array(case["batch.ids"]), cache, mask_BS=mask, chunk=chunk)
    agree(model, cache, case["batch.canvas"], case["batch.logits"], mask)


def media(name: str, case: dict[str, np.ndarray], picture: str) -> Media:
    key, images, at = f"picture.{picture}", [], 0
    pool = engine(name).config.vision.pooling_kernel_size
    for grid, start in zip(case[f"{key}.grids"], case[f"{key}.starts"], strict=True):
        count = int(grid.prod())
        images.append(
            ImagePatches(
                pixels_PC=case[f"{key}.pixels"][at : at + count],
                grid=tuple(grid.tolist()),
                start=int(start),
                tokens=count // pool**2,
                key=f"{picture}-{at}",
            )
        )
        at += count
    return Media(images=tuple(images))


@pytest.mark.parametrize("chunk", [2048, 4])
@pytest.mark.parametrize("attention", ["sliding", "all"])
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", NAMES)
def test_pictures(name, picture, attention, chunk):
    model, case = engine(name, attention).model, golden(name)
    cache = model.new_cache()
    ids = mx.array(case[f"picture.{picture}.ids"][None])
    model.prefill(ids, cache, media=media(name, case, picture), chunk=chunk)
    agree(model, cache, case["pictures.canvas"], case[f"picture.{picture}.{attention}"])


@pytest.mark.parametrize("generation", list(GENERATIONS))
@pytest.mark.parametrize("name", NAMES)
def test_whole_generation(name, generation):
    here, case = engine(name), golden(name)
    key = f"generation.{generation}"
    noise = SharedNoise(
        int(case[f"{key}.seed"]),
        length=here.config.canvas_length,
        vocab=here.config.text.vocab_size,
    )
    ends = tuple(case[f"{key}.end"].tolist())
    settings = here.settings.replace(eos_token_id=ends, **GENERATIONS[generation])
    prompt = Prompt(ids=case["generation.ids"].tolist(), media=None)
    events = list(here.stream(prompt, settings=settings, noise=noise))
    guesses = np.stack([e.guess for e in events if isinstance(e, dg_mlx.Draft)])
    np.testing.assert_array_equal(guesses, case[f"{key}.guesses"])
    written = [i for e in events if isinstance(e, dg_mlx.Committed) for i in e.ids]
    assert written == case[f"{key}.written"].tolist()
    assert events[-1].reason == ("end" if generation == "end" else "length")
    assert events[-1].stats.steps_per_block == tuple(case[f"{key}.steps"].tolist())
