"""Decisions: probabilities that are those of the spelled answers, over draws of noise."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
import tiny

import dg_mlx
from dg_mlx.errors import ConstraintError, SettingsError

PROMPT = [2, 30, 31, 32, 33]
END = tiny.END


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tiny.write_tokenizer(tiny.write(tmp_path_factory.mktemp("decide")))
    return dg_mlx.load(str(folder), backend="cpu")


def spelled(engine, options, draws, seed):
    """The same by hand: every option has one spelling here, and whatever may follow its end."""
    longest = max(len(option) for option in options) + 1
    cache = engine.model.new_cache()
    engine.model.prefill(mx.array([PROMPT]), cache)
    shares = []
    for draw in range(draws):
        noise = dg_mlx.SeededNoise(
            seed + draw, vocab=tiny.VOCAB, canvas=longest, backend=engine.backend
        )
        logits = np.array(engine.model.denoise(noise.initial(0), cache))[0].astype(np.float64)
        log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        found = []
        for option in options:
            ids = [*engine.processor.tokenise(option), END][:longest]
            found.append(sum(log_p[at, token] for at, token in enumerate(ids)))
        shares.append(np.exp(found - np.logaddexp.reduce(found)))
    return np.array(shares)


@pytest.mark.parametrize("draws", [1, 3])
def test_probabilities_are_those_of_the_spelled_options(engine, draws):
    options = ["yes", "no", "maybe"]
    field = engine.decide(PROMPT, choices=options, draws=draws, seed=5).fields["answer"]
    shares = spelled(engine, options, draws, 5)
    for i, option in enumerate(options):
        np.testing.assert_allclose(field.probabilities[option], shares[:, i].mean(), rtol=1e-3)
        if draws > 1:
            error = shares[:, i].std(ddof=1) / math.sqrt(draws)
            np.testing.assert_allclose(field.errors[option], error, rtol=1e-3)
        else:
            assert math.isnan(field.errors[option])
    mean = shares.mean(axis=0)
    np.testing.assert_allclose(field.entropy, -(mean * np.log(mean)).sum(), rtol=1e-3)
    assert field.best == options[int(mean.argmax())]


def test_fields_of_a_schema_and_more_passes(engine):
    tiny_schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}}
    wide = engine.settings
    with pytest.raises(ConstraintError, match="tokens"):
        engine.decide(PROMPT, schema=tiny_schema, settings=wide)


def test_passes_change_what_is_looked_at(engine):
    one, three = (
        engine.decide(PROMPT, choices=["ab", "ba"], draws=2, passes=passes).fields["answer"]
        for passes in (1, 3)
    )
    assert one.probabilities != three.probabilities
    for field in (one, three):
        np.testing.assert_allclose(sum(field.probabilities.values()), 1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"choices": ["yes"]}, ConstraintError, "two or more"),
        ({"choices": ["yes", "yes"]}, ConstraintError, "two or more"),
        ({}, ConstraintError, "give one of the two"),
        ({"schema": {"type": "object"}}, ConstraintError, "needs properties"),
        (
            {"schema": {"properties": {"a": {"type": "string"}}}},
            ConstraintError,
            "any number of values",
        ),
        ({"choices": ["a", "b"], "draws": 0}, SettingsError, "draws is 0"),
        ({"choices": ["a", "b"], "passes": 0}, SettingsError, "passes is 0"),
    ],
)
def test_what_cannot_be_decided_is_one_sentence(engine, options, error, words):
    with pytest.raises(error, match=words):
        engine.decide(PROMPT, **options)
