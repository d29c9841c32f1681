"""Decisions: probabilities that are those of the spelled answers, over draws of noise; and of many
prompts together, the same as of each alone."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
import tiny
from PIL import Image

import dg_mlx
from dg_mlx import decide
from dg_mlx.ballot import Ballot
from dg_mlx.decide import Voting, prepare, runs
from dg_mlx.errors import ConstraintError, MediaError, PromptError, SettingsError
from dg_mlx.plan import CHUNK
from dg_mlx.processor import Prompt
from dg_mlx.processor.padded import Padded
from dg_mlx.worker import WORKER

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


# Many prompts ------------------------------------------------------------------------------------

WINDOW = tiny.config()["text_config"]["sliding_window"]
CHOICES = ["yes", "no", "maybe"]


def prompts(*lengths):
    """Random ids, none of them a control token."""
    rng = np.random.default_rng(3)
    return [[2, *rng.integers(10, 100, length - 1).tolist()] for length in lengths]


def numbers(decision):
    """All that is decided, in one array."""
    return np.array(
        [
            [*field.probabilities.values(), *field.errors.values(), field.entropy]
            for field in decision.fields.values()
        ]
    )


def same_as_alone(engine, asked, **how):
    together = list(engine.decide_all(asked, **how))
    assert len(together) == len(asked)
    for prompt, found in zip(asked, together, strict=True):
        alone = engine.decide(prompt, **how)
        assert found.fields.keys() == alone.fields.keys()
        np.testing.assert_allclose(numbers(found), numbers(alone), rtol=1e-4, atol=1e-7)
    different = {numbers(found).tobytes() for found in together}
    assert len(different) == len(asked)


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize(
    "lengths", [(5, 5), (1, 4, 2), (WINDOW - 1, WINDOW, WINDOW + 1), (3, 5 * WINDOW, WINDOW, 70)]
)
def test_together_and_alone_are_the_same(engine, lengths, passes):
    same_as_alone(engine, prompts(*lengths), choices=CHOICES, draws=3, passes=passes, seed=2)


@pytest.mark.parametrize("limit", [1, 60_000, 200_000])
def test_little_memory_changes_nothing(engine, limit, monkeypatch):
    """Prompts in several runs, and the draws of one prompt in several batches."""
    asked = prompts(30, 9, 4, 17, 5, 6, 40)
    wanted = list(engine.decide_all(asked, choices=CHOICES, draws=3))
    batches = []
    look = Voting._look

    def noted(voting, cache, rows, draws):
        batches.append((rows, len(draws)))
        return look(voting, cache, rows, draws)

    monkeypatch.setattr(Voting, "_look", noted)
    monkeypatch.setattr(decide, "RUN_BYTES", limit)
    for found, before in zip(
        engine.decide_all(asked, choices=CHOICES, draws=3), wanted, strict=True
    ):
        np.testing.assert_allclose(numbers(found), numbers(before), rtol=1e-4, atol=1e-7)
    assert sum(rows * draws for rows, draws in batches) == len(asked) * 3
    assert len(batches) > 1
    if limit == 1:
        assert batches == [(1, 1)] * len(asked) * 3


@pytest.mark.parametrize("attention", ["sliding", "all"])
def test_pictures_of_several_prompts(tmp_path, attention):
    data = tiny.config(max_position_embeddings=2048)
    data["vision_config"]["position_embedding_size"] = 128  # as many as a side has patches
    folder = tiny.write_tokenizer(tiny.write(tmp_path, data, tiny.tensors(data)))
    engine = dg_mlx.load(str(folder), backend="cpu", vision_attention=attention)
    rng = np.random.default_rng(5)

    def picture(*size):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        return {"type": "image", "image": Image.fromarray(pixels)}

    one, wide = picture(48, 48), picture(24, 120)
    asked = [
        [{"role": "user", "content": [one, {"type": "text", "text": "what is it"}]}],
        "no picture",
        [{"role": "user", "content": [wide, {"type": "text", "text": "and"}, one]}],
        [{"role": "user", "content": [{"type": "text", "text": "a b c d e"}, wide]}],
    ]
    same_as_alone(engine, asked, choices=["ab", "cd"], draws=2)


def test_nano():
    nano = dg_mlx.load("nano")
    boards = ["A 1.3.\nB .41.\nC ....\nD ..21", "A 1.", "sort: " + "4 2 7 " * 60, "x"]
    schema = {"properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", 1]}}}
    same_as_alone(nano, boards, choices=["1234", "1432", "2143"], seed=3)
    same_as_alone(nano, boards, schema=schema, draws=2, passes=2)


def test_a_thousand_prompts(engine):
    found = list(engine.decide_all(prompts(*[5, 9] * 500), choices=["a", "b"], draws=1))
    assert len(found) == 1000
    assert all(decision.seconds > 0 for decision in found)


def test_runs_are_neighbours_and_bounded():
    asked = [Prompt(ids=ids, media=None) for ids in prompts(700, 700, 700, 5, 5, 3 * CHUNK, 1, 1)]

    def sizes(draws, fit):
        found = list(runs(asked, draws, fit))
        assert [prompt for run in found for prompt in run] == asked
        return [len(run) for run in found]

    assert sizes(4, lambda context: 1000) == [2, 2, 1, 1, 2]
    assert sizes(4, lambda context: 4) == [1] * 8
    assert sizes(4, lambda context: 1) == [1] * 8
    assert sizes(1, lambda context: 2 if context > 5 else 3) == [2, 2, 1, 1, 2]
    assert list(runs([], 4, lambda context: 1)) == []


def test_padding_is_on_the_left():
    first, second = (Prompt(ids=ids, media=None) for ids in ([4, 5, 6], [7]))
    batch = Padded.of([first, second])
    assert batch.ids_BS.tolist() == [[4, 5, 6], [0, 0, 7]]
    assert batch.real_BS.tolist() == [[True] * 3, [False, False, True]]
    assert Padded.of([first, first]).real_BS is None


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ([[2, 30], [], [2]], PromptError, r"^prompt 2 of 3: there are no messages"),
        (["a", "b", ""], PromptError, r"^prompt 3 of 3: message 0 \(user\) is empty"),
        (["a", [2] * 600], PromptError, r"^prompt 2 of 2: the prompt has 600 tokens"),
        ([{"role": "user", "content": "a"}] * 2, PromptError, r"^prompt 1 of 2: messages are a"),
        ([2, 30], PromptError, r"^prompt 1 of 2: messages are a int"),
        ([[]], PromptError, r"^there are no messages"),
        ("a question", PromptError, r"^prompts are one text; give a list of them, or call decide"),
        (
            ["a", [{"role": "user", "content": [{"type": "image", "image": "no.png"}]}]],
            MediaError,
            r"^prompt 2 of 2: no.png is not a file",
        ),
    ],
)
def test_one_bad_prompt_is_named_before_anything_runs(engine, asked, error, words):
    with pytest.raises(error, match=words):
        engine.decide_all(asked, choices=["a", "b"])  # without a step of the iterator


def test_a_ballot_is_made_once(engine):
    ballot = Ballot.of(["a", "b"], None)
    found = engine.decide(PROMPT, ballot=ballot)
    assert found.fields == engine.decide(PROMPT, choices=["a", "b"]).fields
    with pytest.raises(ConstraintError, match="a ballot has its choices or schema already"):
        engine.decide(PROMPT, ballot=ballot, choices=["a", "b"])


def test_no_prompts_are_no_decisions(engine):
    assert list(engine.decide_all([], choices=["a", "b"])) == []


def test_it_can_be_stopped_between_batches(engine, monkeypatch):
    monkeypatch.setattr(decide, "RUN_BYTES", 1)
    how = {"draws": 2, "passes": 1, "seed": 0}
    guides = engine._guides(engine.settings.eos_token_id)
    ballot = Ballot.of(["a", "b"], None)
    voting = Voting(
        engine.model,
        engine.backend,
        prepare(ballot, engine.processor.exact, guides, engine.settings, **how),
    )
    asked = [Prompt(ids=PROMPT, media=None)] * 4
    for batches, decided in ((0, 0), (1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (99, 4)):
        left = iter([False] * batches + [True] * 99)
        found = WORKER.call(lambda left=left: list(voting.decisions(asked, lambda: next(left))))
        assert len(found) == decided
