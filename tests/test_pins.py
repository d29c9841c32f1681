"""Pinned tokens: held to the byte, seen from the first step, and counted nowhere."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import dg_mlx
from dg_mlx import Committed, Draft, Noise
from dg_mlx.canvas.passage import Hole, Passage
from dg_mlx.canvas.pins import Pins
from dg_mlx.errors import PinError, PromptError
from dg_mlx.model import DiffusionGemma

PROMPT = [2, 30, 31, 32, 33]
L, END = tiny.CANVAS, tiny.END
TOKENS = 3 * L


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tiny.write_tokenizer(tiny.write(tmp_path_factory.mktemp("pins")))
    return dg_mlx.load(str(folder), backend="cpu")


@pytest.fixture(scope="module")
def long(engine):
    return engine.settings.replace(max_new_tokens=TOKENS, max_denoising_steps=4)


def test_pins_hold_in_every_step_of_every_block(engine, long):
    @given(
        st.dictionaries(st.integers(0, TOKENS - 1), st.integers(4, 99), max_size=TOKENS),
        st.integers(0, 99),
    )
    @settings(deadline=None, max_examples=40)
    def check(pins, seed):
        ids, last = [], max(pins, default=-1)
        for event in engine.stream(PROMPT, settings=long, seed=seed, pins=pins):
            match event:
                case Draft():
                    first = event.block * L
                    frozen = {at - first for at in pins if first <= at < first + L}
                    assert set(np.flatnonzero(event.frozen)) == frozen
                    for at in frozen:
                        token = pins[first + at]
                        assert event.canvas[at] == token == event.guess[at]
                        assert event.entropy[at] == 0
                        assert event.trust.probability[at] == 1
                    assert not (event.accepted & event.frozen).any()
                    assert event.accepted.any() or event.frozen.all()
                case Committed():
                    ids += event.ids
        assert {at: ids[at] for at in pins} == pins
        assert END not in ids[:last]

    check()


def test_a_block_that_is_pinned_as_a_whole_takes_no_step(engine, long):
    text = "a whole canvas and more"[: 2 * L]
    reply = engine.generate(PROMPT, settings=long, pins={0: text})
    assert reply.text.startswith(text)
    assert reply.stats.steps_per_block[:2] == (0, 0)
    assert (reply.trust.probability[: 2 * L] == 1).all()


def test_a_pinned_end_ends_the_answer(engine, long):
    reply = engine.generate(PROMPT, settings=long, pins={0: "abc", 12: END})
    assert reply.reason == "end"
    assert len(reply.ids) == 13
    assert reply.text[:3] == "abc"


def test_the_model_sees_pins_and_soft_pins_from_the_first_step(engine, long, monkeypatch):
    seen = []
    denoise = DiffusionGemma.denoise

    def spy(self, canvas, *rest):
        seen.append(np.array(canvas[0]))
        return denoise(self, canvas, *rest)

    monkeypatch.setattr(DiffusionGemma, "denoise", spy)
    pins = Pins(fixed={1: 40, 3: 41}, soft={0: 50, 5: 51})
    engine.generate(PROMPT, settings=long, pins=pins)
    assert [seen[0][at] for at in (0, 1, 3, 5)] == [50, 40, 41, 51]
    assert all(canvas[1] == 40 and canvas[3] == 41 for canvas in seen[:4])


def test_soft_pins_may_change(engine, long):
    one = engine.generate(PROMPT, settings=long)
    soft = Pins(soft=dict(enumerate([50] * L)))
    other = engine.generate(PROMPT, settings=long, pins=soft)
    assert other.ids[:L] != [50] * L
    assert len(one.ids) > 0


def test_only_free_positions_count_for_stopping(engine, long):
    pins = dict.fromkeys(range(L - 1), 40)

    def steps(threshold):
        alone = long.replace(
            max_new_tokens=L, confidence_threshold=threshold, stability_threshold=0
        )
        events = list(engine.stream(PROMPT, settings=alone, pins=pins))
        return next(e.entropy[-1] for e in events if isinstance(e, Draft)), events[-1].stats.steps

    free, _ = steps(1.0)
    # The mean over all positions is an eighth of this one's entropy.
    assert steps(float(free) / 2)[1] > 1
    assert steps(float(free) * 1.01)[1] == 1


def test_without_pins_nothing_changes(engine, long):
    assert engine.generate(PROMPT, settings=long).ids == (
        engine.generate(PROMPT, settings=long, pins={}).ids
    )


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        ({TOKENS: 40}, f"the answer has 0..{TOKENS - 1}"),
        ({-1: 40}, "position -1 is pinned"),
        ({0: 128}, "knows 0..127"),
        ({0: "abc", 2: "x"}, "position 2 is pinned to"),
        ({3: END, 9: 40}, "pinned to an end token"),
    ],
)
def test_what_cannot_be_pinned_is_one_sentence(engine, long, pins, words):
    with pytest.raises(PinError, match=words):
        engine.stream(PROMPT, settings=long, pins=pins)


def test_a_text_that_the_tokens_cannot_spell_is_refused(engine, long):
    with pytest.raises(PromptError, match="cannot spell"):
        engine.stream(PROMPT, settings=long, pins={0: "日本"})


def test_a_fixed_and_a_soft_pin_may_not_differ():
    with pytest.raises(PinError, match="position 3"):
        Pins(fixed={3: 4}, soft={3: 5})


PARTS = st.lists(
    st.one_of(
        st.lists(st.integers(4, 99), max_size=6).map(tuple),
        st.lists(st.integers(4, 99), min_size=1, max_size=5).map(lambda i: Hole(present=tuple(i))),
    ),
    max_size=6,
)


@given(PARTS, st.integers(0, 9), st.floats(0.05, 1))
@settings(max_examples=150)
def test_a_passage_fixes_all_but_its_holes(parts, seed, strength):
    passage = Passage(parts=tuple(parts), end=END, barred=(0, 1))
    lengths = [len(hole.present) for hole in passage.holes]
    pins = passage.pins(lengths, strength=strength, seed=seed)
    places = passage.places(lengths)
    free = {at for place in places for at in range(place.start, place.stop)}
    assert pins.fixed.keys() | free == set(range(passage.size(lengths)))
    assert not pins.fixed.keys() & free
    assert pins.soft.keys() <= free
    flat = [t for part in parts for t in (part.present if isinstance(part, Hole) else part)]
    assert all([*flat, END][at] == token for at, token in {**pins.fixed, **pins.soft}.items())
    assert strength < 1 or not pins.soft


def test_a_strength_keeps_the_length():
    passage = Passage(parts=(Hole(present=(5, 6)),), end=END, barred=())
    with pytest.raises(PinError, match="keeps the length of 2"):
        passage.pins([3], strength=0.5)
    with pytest.raises(PinError, match="strength is 0"):
        passage.pins([2], strength=0)


def test_no_control_token_comes_into_a_hole(engine, long):
    passage = Passage(parts=((40, 41), Hole(length=9), (42,)), end=END, barred=tuple(range(60)))
    pins = passage.pins([9])
    size = long.replace(max_new_tokens=passage.size([9]))
    for seed in range(5):
        ids = engine.generate(PROMPT, settings=size, pins=pins, seed=seed).ids
        assert ids[:2] == [40, 41]
        assert ids[11:] == [42, END]
        assert all(token >= 60 for token in ids[2:11])


def test_noise_of_ones_own_goes_with_pins(engine, long):
    class Fixed:
        def initial(self, block):
            return mx.full((1, L), 7, mx.int32)

        def sample(self, block, step, scaled):
            return mx.argmax(scaled, axis=-1).astype(mx.int32)

        def renoise(self, block, step):
            return mx.full((1, L), 9, mx.int32)

        def uniform(self, block, step):
            return np.zeros(L + 1)

    noise: Noise = Fixed()
    assert engine.generate(PROMPT, settings=long, noise=noise, pins={0: 40}).ids[0] == 40
