"""Constraints: what is sampled from is all canvases that fit, and nothing else ever comes out."""

from __future__ import annotations

import itertools
import re

import mlx.core as mx
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import dg_mlx
from dg_mlx.backends import Backend, Classes
from dg_mlx.canvas.automaton import Automata
from dg_mlx.canvas.constraint import Constraint, Guide, Guides, Vocabulary
from dg_mlx.canvas.expression import escaped
from dg_mlx.canvas.hold import Answer, Held
from dg_mlx.errors import ConstraintError
from dg_mlx.settings import GenerationSettings

PROMPT = [2, 30, 31, 32, 33]
L, END = tiny.CANVAS, tiny.END


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tiny.write_tokenizer(tiny.write(tmp_path_factory.mktemp("constraint")))
    return dg_mlx.load(str(folder), backend="cpu")


@pytest.fixture(scope="module")
def long(engine):
    return engine.settings.replace(max_new_tokens=4 * L, max_denoising_steps=3)


REGEXES = st.recursive(
    st.sampled_from(["a", "b", "[a-f]", r"\d", "ε", "ab", "[^x]"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        inner.map(lambda one: f"(?:{one})*"),
        inner.map(lambda one: f"(?:{one}){{1,5}}"),
    ),
    max_leaves=8,
)


def test_an_answer_matches_whatever_is_asked(engine, long):
    @given(REGEXES, st.integers(0, 9), st.integers(2, L), st.integers(1, 30))
    @settings(deadline=None, max_examples=60)
    def check(regex, seed, canvas, tokens):
        own = long.replace(canvas_length=canvas, max_new_tokens=tokens)
        try:
            reply = engine.generate(
                PROMPT, settings=own, seed=seed, constraint=Constraint.regex(regex)
            )
        except ConstraintError as error:
            assert "raise max_new_tokens" in str(error)  # noqa: PT017
            return
        assert re.fullmatch(regex, reply.text)
        assert len(reply.ids) <= tokens

    check()


def test_the_error_names_the_shortest_answer_that_fits(engine, long):
    four = Constraint.regex("abcd|abcde")
    with pytest.raises(ConstraintError, match="has 4 tokens and the limit is 3"):
        engine.stream(PROMPT, settings=long.replace(max_new_tokens=3), constraint=four)
    exact = engine.generate(PROMPT, settings=long.replace(max_new_tokens=4), constraint=four)
    assert exact.text == "abcd"


def test_constraint_and_pins_hold_together(engine, long):
    digits = Constraint.regex(r"\d{4}-\d\d(?:-\d\d)*")
    for seed in range(5):
        reply = engine.generate(
            PROMPT, settings=long, seed=seed, constraint=digits, pins={0: "19", 5: "0", 9: "7"}
        )
        assert re.fullmatch(r"19\d\d-0\d-\d7(?:-\d\d)*", reply.text)


@pytest.mark.parametrize("pins", [{0: "x"}, {4: "1"}, {0: "1", 30: "-"}])
def test_pins_that_no_fitting_answer_has_are_refused(engine, long, pins):
    with pytest.raises(ConstraintError, match="has the pinned tokens"):
        engine.stream(PROMPT, settings=long, constraint=Constraint.regex(r"\d{4}-\d\d"), pins=pins)


def test_choices(engine, long):
    texts = ["yes", "no", "it depends (a|b)*", "ε.+"]
    seen = set()
    for seed in range(12):
        own = long.replace(t_min=30.0, t_max=30.0)
        constraint = Constraint.choices(texts)
        seen.add(engine.generate(PROMPT, settings=own, seed=seed, constraint=constraint).text)
    assert seen <= set(texts)


def test_schema_and_any_json_are_read_back(engine):
    import json

    own = engine.settings.replace(max_new_tokens=60, max_denoising_steps=2)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}}
    for seed in range(3):
        value = json.loads(
            engine.generate(
                PROMPT, settings=own, seed=seed, constraint=Constraint.schema(schema)
            ).text
        )
        assert set(value) <= {"n"} and value.get("n", 0) <= 9
        reply = engine.generate(PROMPT, settings=own, seed=seed, constraint=Constraint.any_json())
        assert isinstance(json.loads(reply.text), dict | list)


@given(st.text(max_size=8))
def test_an_escaped_text_matches_itself_only(text):
    assert re.fullmatch(escaped(text), text) is not None
    assert re.fullmatch(escaped(text), text + "a") is None


@pytest.mark.parametrize("texts", [[], [""], ["a", ""]])
def test_empty_choices_are_refused(texts):
    with pytest.raises(ConstraintError, match="a choice is empty"):
        Constraint.choices(texts)


# The distribution, against listing all canvases ------------------------------------------------

PIECES = (b"a", b"b", b"ab", b"ba", None, None, None, None)
ENDS, OPENS, CLOSES = (4, 5), 6, 7


def guide(regex: str) -> Guide:
    vocabulary = Vocabulary(pieces=PIECES, ends=ENDS, opens=OPENS, closes=CLOSES)
    return Guide(Constraint.regex(regex), vocabulary, Automata.of(regex, vocabulary.packed))


def sampler(tokens: int) -> GenerationSettings:
    return GenerationSettings(
        max_new_tokens=tokens,
        max_denoising_steps=4,
        entropy_bound=0.1,
        t_max=0.8,
        t_min=0.4,
        stability_threshold=1,
        confidence_threshold=0.01,
        eos_token_id=ENDS,
        canvas_length=3,
    )


def fits(regex: str, ids, *, more: int, thinking: bool = False) -> bool:
    """Whether some answer of at most `more` further tokens begins with this canvas."""
    ids = list(ids)
    if thinking and ids and ids[0] == OPENS:
        inside = ids[1:]
        closed = next((i for i, token in enumerate(inside) if token >= 4), None)
        if closed is None:
            return fits(regex, [], more=more - 1)
        if inside[closed] != CLOSES:
            return False
        ids = inside[closed + 1 :]
    end = next((i for i, token in enumerate(ids) if token in ENDS), None)
    body = ids if end is None else ids[:end]
    if any(token >= 4 for token in body):
        return False
    text = b"".join(PIECES[token] for token in body).decode()
    if end is not None:
        return re.fullmatch(regex, text) is not None
    rests = ("".join(r) for n in range(2 * more + 1) for r in itertools.product("ab", repeat=n))
    # A rest of n characters takes at least n / 2 tokens, and here each takes one of "ab", "ba".
    return any(re.fullmatch(regex, text + rest) and _fewest(rest) <= more for rest in rests)


def _fewest(text: str) -> int:
    best = [0] + [99] * len(text)
    for i in range(len(text)):
        for piece in ("a", "b", "ab", "ba"):
            if text.startswith(piece, i):
                best[i + len(piece)] = min(best[i + len(piece)], best[i] + 1)
    return best[-1]


@given(
    st.sampled_from(["(?:ab)*", "a|bb", "a*b", "b(?:a|bb)", "(?:aa|b)*", "abba?"]),
    st.integers(0, 2),
    st.integers(0, 10**6),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_a_step_is_the_distribution_over_all_canvases_that_fit(regex, more, seed, thinking):
    own = guide(regex)
    start = own.start(thinking=thinking, thinking_open=False)
    if own.shortest(start) > 3 + more:
        return
    held = Held(guide=own, start=start)
    block = Answer(held, Backend(), sampler(3 + more), 3).block(0)
    scores = np.random.default_rng(seed).normal(0, 2, (1, 3, len(PIECES)))
    logits = mx.array(scores.astype(np.float32))
    view = block.look(logits, 0.7)
    weights = {
        ids: sum(scores[0, i, token] / 0.7 for i, token in enumerate(ids))
        for ids in itertools.product(range(len(PIECES)), repeat=3)
        if fits(regex, ids, more=more, thinking=thinking)
    }
    assert weights
    total = np.logaddexp.reduce(list(weights.values()))
    marginal = np.zeros((3, len(PIECES)))
    for ids, weight in weights.items():
        marginal[np.arange(3), list(ids)] += np.exp(weight - total)
    ours = np.array(mx.softmax(view.scaled_BLV, axis=-1))[0]
    np.testing.assert_allclose(ours, marginal, atol=1e-4)
    guess = tuple(int(token) for token in np.array(view.guess_BL)[0])
    np.testing.assert_allclose(weights[guess], max(weights.values()), atol=1e-4)

    class Noise:
        def __init__(self, draw):
            self.rng = np.random.default_rng([seed, draw])

        def uniform(self, block, step):
            return self.rng.random(4)

        def sample(self, block, step, scaled):
            return Backend().sample(scaled, mx.array(self.rng.random((1, 3)).astype(np.float32)))

    for draw in range(8):
        drawn = np.array(block.draw(Noise(draw), 0, 1, view.scaled_BLV))[0]
        assert tuple(int(token) for token in drawn) in weights


def test_draws_of_whole_canvases_come_as_often_as_they_weigh():
    own, rng = guide("(?:ab)*|b"), np.random.default_rng(3)
    block = Answer(Held(guide=own), Backend(), sampler(3), 3).block(0)
    scores = rng.normal(0, 1, (1, 3, len(PIECES))).astype(np.float32)
    view = block.look(mx.array(scores), 1.0)
    weights = {
        ids: sum(scores[0, i, token] for i, token in enumerate(ids))
        for ids in itertools.product(range(len(PIECES)), repeat=3)
        if fits("(?:ab)*|b", ids, more=0)
    }
    total, draws = np.logaddexp.reduce(list(weights.values())), 3000
    counts = dict.fromkeys(weights, 0)

    class Noise:
        def uniform(self, block, step):
            return rng.random(4)

        def sample(self, block, step, scaled):
            return Backend().sample(scaled, mx.array(rng.random((1, 3)).astype(np.float32)))

    for _ in range(draws):
        ids = np.array(block.draw(Noise(), 0, 1, view.scaled_BLV))[0]
        counts[tuple(int(token) for token in ids)] += 1
    for ids, weight in weights.items():
        p = np.exp(weight - total)
        assert abs(counts[ids] / draws - p) < 5 * np.sqrt(p * (1 - p) / draws) + 2 / draws


def test_a_thought_is_free_and_the_answer_is_not():
    own = guide("abba")
    ids = [OPENS, 1, 1, 1, CLOSES, 2, 3, 4, 0, 7]
    state = own.after(own.start(thinking=True, thinking_open=False), ids)
    assert own.accepts_Q[state]
    inside = own.after(own.start(thinking=False, thinking_open=True), [0, 0, CLOSES, 2, 3])
    assert own.accepts_Q[inside]
    assert own.shortest(own.start(thinking=False, thinking_open=True)) == 3


@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_scores_of_classes_are_those_of_their_tokens(vocab, count, seed):
    rng = np.random.default_rng(seed)
    count = min(count, vocab)
    class_V = np.concatenate([np.arange(count), rng.integers(0, count, vocab - count)])
    rng.shuffle(class_V)
    classes = Classes(class_V.astype(np.int32))
    scores = rng.normal(0, 20, (1, 2, vocab)).astype(np.float32)
    most, total = Backend().class_scores(mx.array(scores), classes)
    for c in range(count):
        own = scores[:, :, class_V == c]
        assert sorted(classes.members(c)) == list(np.flatnonzero(class_V == c))
        np.testing.assert_allclose(np.array(most)[:, :, c], own.max(-1), rtol=1e-5)
        np.testing.assert_allclose(
            np.array(total)[:, :, c], np.logaddexp.reduce(own, axis=-1), rtol=1e-4, atol=1e-4
        )


def test_a_constraint_is_compiled_once():
    guides = Guides(Vocabulary(pieces=PIECES, ends=ENDS, opens=None, closes=None))
    first = guides.of(Constraint.regex("a+"))
    assert guides.of(Constraint.regex("a+")) is first
    assert guides.of(Constraint.regex("b+")) is not first


def test_pins_behind_an_end_are_not_reached_by_ending_early(engine, long):
    # "a" alone would fit, but something is pinned behind it.
    reply = engine.generate(
        PROMPT, settings=long, constraint=Constraint.regex("a(?:ba)*"), pins={10: "a"}
    )
    assert re.fullmatch("a(?:ba)*", reply.text) and len(reply.text) > 10
