"""Whole generations, token for token: transformers' own `generate` and our engine, one noise."""

from __future__ import annotations

import numpy as np
import pytest

import dg_mlx
from dg_mlx.shared_noise import SharedNoise
from parity.checkpoints import SHAPES
from parity.prompts import prompt, text

pytestmark = pytest.mark.parity

NEVER = ()
"""No token ends the answer."""
SETTINGS = {
    "defaults, no end": {"eos_token_id": NEVER},
    "with an end token": {},
    "generous bound": {"entropy_bound": 5.0, "eos_token_id": NEVER},
    "stops early": {
        "confidence_threshold": 3.0,
        "stability_threshold": 2,
        "entropy_bound": 8.0,
        "eos_token_id": NEVER,
    },
    "stops without stability": {
        "confidence_threshold": 1.2,
        "stability_threshold": 0,
        "eos_token_id": NEVER,
    },
    "cut inside a block": {"max_new_tokens": 13, "eos_token_id": NEVER, "max_denoising_steps": 9},
}


def compare(engine, reference, given, settings, seed):
    """Every step's best guess, every block's steps, and the final ids are equal."""
    length, vocab = engine.config.canvas_length, engine.config.text.vocab_size
    images = given.media.images if given.media else ()
    noise = SharedNoise(seed, length=length, vocab=vocab)
    wanted = reference.generate(given.ids, settings=settings, noise=noise, images=images)
    guesses, ids, done = [], [], None
    for event in engine.stream(given, settings=settings, noise=noise):
        match event:
            case dg_mlx.Draft(guess=guess):
                guesses.append(guess)
            case dg_mlx.Committed(ids=block):
                ids += block
            case dg_mlx.Done():
                done = event
    np.testing.assert_array_equal(np.stack(guesses), np.stack(wanted.guesses))
    assert ids == wanted.ids
    assert list(done.stats.steps_per_block) == wanted.steps_per_block
    assert done.stats.tokens == len(ids)
    ended = bool(ids) and ids[-1] in settings.eos_token_id
    assert done.reason == ("end" if ended else "length")
    return wanted


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", list(SETTINGS))
@pytest.mark.parametrize("name", list(SHAPES))
def test_text(name, case, seed, ours, theirs):
    engine = ours(name)
    settings = engine.settings.replace(**SETTINGS[case])
    given = prompt(SHAPES[name], [11 + seed], seed=seed)
    compare(engine, theirs(name), given, settings, seed)


def test_the_settings_do_what_their_names_say(ours, theirs):
    """Otherwise the cases above might all be the same run."""
    engine, reference = ours("window-shorter"), theirs("window-shorter")
    shape = SHAPES["window-shorter"]
    runs = {}
    for case, changes in SETTINGS.items():
        noise = SharedNoise(0, length=shape.canvas, vocab=shape.vocab)
        settings = engine.settings.replace(**changes)
        runs[case] = reference.generate(text(shape, 11), settings=settings, noise=noise)
    assert sum(runs["defaults, no end"].steps_per_block) > 3 * 40
    assert sum(runs["stops early"].steps_per_block) < 3 * 48
    assert max(runs["stops without stability"].steps_per_block) < 40
    assert len(runs["cut inside a block"].ids) == 13


@pytest.mark.parametrize("attention", ["sliding", "all"])
@pytest.mark.parametrize("parts", [[3, (6, 9), 5], [2, (3, 3), 4, (6, 6), 9]])
@pytest.mark.parametrize("name", ["window-shorter", "seven-experts"])
def test_pictures(name, parts, attention, ours, theirs):
    engine = ours(name, attention=attention)
    settings = engine.settings.replace(eos_token_id=NEVER)
    given = prompt(SHAPES[name], parts, seed=4)
    compare(engine, theirs(name, attention), given, settings, seed=8)


@pytest.mark.parametrize("name", list(SHAPES))
def test_plain_ids(name, ours, theirs):
    """A list of token ids, as the contract has it."""
    engine, shape = ours(name), SHAPES[name]
    ids = text(shape, 9)
    settings = engine.settings.replace(eos_token_id=NEVER, max_denoising_steps=5)
    noise = SharedNoise(3, length=shape.canvas, vocab=shape.vocab)
    written = [
        token
        for event in engine.stream(ids, settings=settings, noise=noise)
        if isinstance(event, dg_mlx.Committed)
        for token in event.ids
    ]
    wanted = theirs(name).generate(ids, settings=settings, noise=noise)
    assert written == wanted.ids
