"""The engine on a tiny random checkpoint: events, stops, cancel, seeds, threads, errors."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tiny

import dg_mlx
from dg_mlx import Committed, Done, Draft, Prefilled, SeededNoise
from dg_mlx.errors import BackendError, CheckpointError, PromptError, SettingsError
from dg_mlx.events import Trust
from dg_mlx.model import DiffusionGemma

PROMPT = [2, 30, 31, 32, 33]
NEVER = ()
"""No token ends the answer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_tokenizer(tiny.write(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def engine(folder):
    return dg_mlx.load(str(folder), backend="cpu")


@pytest.fixture(scope="module")
def endless(engine):
    return engine.settings.replace(eos_token_id=NEVER)


def plain(event: Any) -> Any:
    """Everything in an event but times and memory, comparable."""
    match event:
        case Draft():
            names = [n for n in Draft.__dataclass_fields__ if n != "trust"]
            values = [getattr(event, n) for n in names]
            values += [getattr(event.trust, n) for n in Trust.__dataclass_fields__]
            return "draft", [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
        case Committed():
            return "committed", event.block, event.ids, event.text, event.thought
        case Done():
            stats = event.stats
            return "done", event.reason, stats.tokens, stats.steps_per_block
        case Prefilled():
            return "prefilled", event.tokens, event.cached


def run(engine, prompt=PROMPT, **options) -> list[Any]:
    return [plain(event) for event in engine.stream(prompt, **options)]


def written(engine, **options) -> list[int]:
    events = engine.stream(PROMPT, **options)
    return [i for e in events if isinstance(e, Committed) for i in e.ids]


class Scripted:
    """Noise for tests that need no randomness."""

    def initial(self, block):
        return mx.zeros((1, tiny.CANVAS), mx.int32)

    def sample(self, block, step, scaled_logits_BLV):
        return mx.argmax(scaled_logits_BLV, axis=-1).astype(mx.int32)

    def renoise(self, block, step):
        return mx.full((1, tiny.CANVAS), 7, mx.int32)


# Events ------------------------------------------------------------------------------------------


def test_order_of_events(engine, endless):
    events = list(engine.stream(PROMPT, settings=endless))
    assert isinstance(events[0], Prefilled) and isinstance(events[-1], Done)
    assert events[0].tokens == len(PROMPT) and events[0].cached == 0 and events[0].seconds > 0
    middle = [(e.block, getattr(e, "step", 99)) for e in events[1:-1]]
    assert middle == sorted(middle) and len(set(middle)) == len(middle)
    for block in range(3):
        drafts = [e for e in events if isinstance(e, Draft) and e.block == block]
        assert [d.step for d in drafts] == list(range(1, len(drafts) + 1))
        assert sum(isinstance(e, Committed) and e.block == block for e in events) == 1
    assert not any(isinstance(e, (Prefilled, Done)) for e in events[1:-1])


def test_draft_fields(engine, endless):
    class Recorder(Scripted):
        samples: dict = {}  # noqa: RUF012

        def sample(self, block, step, scaled_logits_BLV):
            ids = super().sample(block, step, scaled_logits_BLV)
            self.samples[block, step] = np.array(ids)[0]
            return ids

    noise = Recorder()
    settings = endless.replace(entropy_bound=2.0)
    events = list(engine.stream(PROMPT, settings=settings, noise=noise))
    drafts = [e for e in events if isinstance(e, Draft)]
    accepted = 0
    for draft in drafts:
        for name, kind in (
            ("canvas", np.int32),
            ("guess", np.int32),
            ("accepted", np.bool_),
            ("frozen", np.bool_),
            ("entropy", np.float32),
        ):
            array = getattr(draft, name)
            assert type(array) is np.ndarray
            assert array.shape == (tiny.CANVAS,) and array.dtype == kind, name
        sampled = noise.samples[draft.block, draft.step]
        np.testing.assert_array_equal(draft.canvas, np.where(draft.accepted, sampled, 7))
        assert draft.max_steps == settings.max_denoising_steps
        assert draft.accepted.any() and not draft.frozen.any()
        assert (draft.entropy >= 0).all() and (draft.entropy <= np.log(tiny.VOCAB) + 1e-4).all()
        assert ((draft.guess >= 0) & (draft.guess < tiny.VOCAB)).all()
        accepted += draft.accepted.sum()
    assert accepted > len(drafts), "more than one position at once, now and then"


def test_the_block_is_the_last_guess(engine, endless):
    last = None
    for event in engine.stream(PROMPT, settings=endless):
        match event:
            case Draft():
                last = event
            case Committed():
                assert event.block == last.block
                assert event.ids == last.guess.tolist()[: len(event.ids)]


def test_committed_text_adds_up(engine, endless):
    events = list(engine.stream(PROMPT, settings=endless, seed=2))
    texts = [e.text for e in events if isinstance(e, Committed)]
    reply = engine.generate(PROMPT, settings=endless, seed=2)
    assert "".join(texts) == reply.text
    assert reply.ids == [i for e in events if isinstance(e, Committed) for i in e.ids]


# Stops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 7, 8, 9, 16, 20])
def test_max_new_tokens_cuts(engine, endless, most):
    events = list(engine.stream(PROMPT, settings=endless.replace(max_new_tokens=most)))
    blocks = [e.ids for e in events if isinstance(e, Committed)]
    assert sum(map(len, blocks)) == most and all(blocks)
    assert len(blocks) == -(-most // tiny.CANVAS)
    done = events[-1]
    assert done.reason == "length" and done.stats.tokens == most
    assert len(done.stats.steps_per_block) == len(blocks)


def test_a_shorter_answer_is_a_prefix(engine, endless):
    whole = written(engine, settings=endless)
    assert written(engine, settings=endless.replace(max_new_tokens=11)) == whole[:11]


@pytest.mark.parametrize("position", [0, 3, 7, 8, 13])
def test_end_token_cuts_and_is_the_last_id(engine, endless, position):
    for seed in range(50):
        whole = written(engine, settings=endless, seed=seed)
        if whole[position] not in whole[:position]:
            break
    settings = endless.replace(eos_token_id=(whole[position],))
    events = list(engine.stream(PROMPT, settings=settings, seed=seed))
    ids = [i for e in events if isinstance(e, Committed) for i in e.ids]
    assert ids == whole[: position + 1]
    done = events[-1]
    assert done.reason == "end" and done.stats.tokens == position + 1
    assert len(done.stats.steps_per_block) == position // tiny.CANVAS + 1


def test_an_end_token_behind_the_limit_does_not_count(engine, endless):
    whole = written(engine, settings=endless)
    position = next(i for i in range(2, 8) if whole[i] not in whole[:i])
    settings = endless.replace(eos_token_id=(whole[position],), max_new_tokens=position)
    events = list(engine.stream(PROMPT, settings=settings))
    assert events[-1].reason == "length" and events[-1].stats.tokens == position


def test_empty_answer(engine, endless):
    """The end token at once: no text, and it is reported as such."""
    first = written(engine, settings=endless)[0]
    settings = endless.replace(eos_token_id=(first,))
    reply = engine.generate(PROMPT, settings=settings)
    assert reply.ids == [first] and reply.reason == "end"
    assert reply.stats.tokens == 1 and len(reply.stats.steps_per_block) == 1


def test_empty_text_of_special_tokens(engine, endless):
    """A model that writes only special tokens has written nothing to read."""

    class Fixed(Scripted):
        pass

    settings = endless.replace(eos_token_id=tuple(range(tiny.VOCAB)))
    reply = engine.generate(PROMPT, settings=settings, noise=Fixed())
    assert len(reply.ids) == 1 and reply.reason == "end"
    special = reply.ids[0] in (0, 1, 2, 3, tiny.VOCAB - 4, tiny.VOCAB - 3, tiny.VOCAB - 2)
    assert (reply.text == "") == special


# Statistics --------------------------------------------------------------------------------------


def test_stats(engine, endless):
    start = time.perf_counter()
    events = list(engine.stream(PROMPT, settings=endless.replace(max_new_tokens=20)))
    wall = time.perf_counter() - start
    stats = events[-1].stats
    drafts = [e for e in events if isinstance(e, Draft)]
    per_block = [max(d.step for d in drafts if d.block == b) for b in range(3)]
    assert stats.steps_per_block == tuple(per_block) and stats.steps == len(drafts)
    assert stats.prompt_tokens == len(PROMPT) and stats.tokens == 20
    assert stats.tokens_per_step == pytest.approx(20 / len(drafts))
    assert stats.tokens_per_second == pytest.approx(20 / (stats.denoise_s + stats.commit_s))
    assert stats.prefill_s > 0 and stats.denoise_s > 0 and stats.commit_s > 0
    assert stats.prefill_s + stats.denoise_s + stats.commit_s <= wall
    assert stats.prefill_s == events[0].seconds
    assert 0 < stats.peak_gb < 1


def test_one_block_commits_nothing(engine, endless):
    events = list(engine.stream(PROMPT, settings=endless.replace(max_new_tokens=8)))
    assert events[-1].stats.commit_s == 0


def test_reading_slowly_is_not_counted(engine, endless):
    settings = endless.replace(max_new_tokens=8, max_denoising_steps=2)
    for event in engine.stream(PROMPT, settings=settings):
        time.sleep(0.3)
        if isinstance(event, Done):
            assert event.stats.denoise_s < 0.5


def test_no_division_by_zero():
    nothing = dg_mlx.Stats(
        prompt_tokens=1, tokens=0, steps_per_block=(), prefill_s=0.0, denoise_s=0.0,
        commit_s=0.0, peak_gb=0.0,
    )  # fmt: skip
    assert nothing.tokens_per_step == nothing.tokens_per_second == nothing.steps == 0


# Seeds -------------------------------------------------------------------------------------------


def test_a_seed_repeats_a_run(engine, endless):
    assert run(engine, settings=endless, seed=3) == run(engine, settings=endless, seed=3)
    assert run(engine, settings=endless, seed=3) != run(engine, settings=endless, seed=4)
    noise = SeededNoise(3, vocab=tiny.VOCAB, canvas=tiny.CANVAS, backend=engine.backend)
    assert run(engine, settings=endless, noise=noise) == run(engine, settings=endless, seed=3)


def test_reading_slowly_changes_nothing(engine, endless):
    slow = []
    for event in engine.stream(PROMPT, settings=endless, seed=5):
        time.sleep(0.01)
        slow.append(plain(event))
    assert slow == run(engine, settings=endless, seed=5)


def test_generate_equals_stream(engine, endless):
    reply = engine.generate(PROMPT, settings=endless, seed=6)
    assert reply.ids == written(engine, settings=endless, seed=6)


def test_text_prompt_and_ids_agree(engine, endless):
    text = "abc"
    ids = engine.processor.encode(text).ids
    assert run(engine, text, settings=endless) == run(engine, ids, settings=endless)


# Settings ----------------------------------------------------------------------------------------


def test_settings_are_per_request(engine, endless):
    before = engine.settings
    short = endless.replace(max_denoising_steps=1, max_new_tokens=8)
    assert engine.generate(PROMPT, settings=short).stats.steps_per_block == (1,)
    assert engine.settings == before
    assert max(engine.generate(PROMPT, settings=endless).stats.steps_per_block) > 1


def test_stop_rule(engine, endless):
    sure = endless.replace(confidence_threshold=100.0, max_new_tokens=8, max_denoising_steps=48)
    at_once = engine.generate(PROMPT, settings=sure.replace(stability_threshold=0))
    assert at_once.stats.steps_per_block == (1,)
    for threshold in (1, 3):
        settings = sure.replace(stability_threshold=threshold)
        guesses = [
            e.guess.tolist()
            for e in engine.stream(PROMPT, settings=settings)
            if hasattr(e, "guess")
        ]
        runs = [a == b for a, b in pairwise(guesses)]
        assert len(guesses) > threshold
        if len(guesses) < 48:
            assert all(runs[-threshold:])
        streak = 0
        for same in runs[:-1]:
            streak = streak + 1 if same else 0
            assert streak < threshold


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be a whole number of 1 or more"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_denoising_steps": -1}, "max_denoising_steps is -1"),
        ({"entropy_bound": 0}, "entropy_bound is 0; it must be a number above 0"),
        ({"entropy_bound": float("nan")}, "entropy_bound is nan"),
        ({"confidence_threshold": -1.0}, "confidence_threshold is -1.0"),
        ({"stability_threshold": -1}, "stability_threshold is -1"),
        ({"t_max": 0.1}, "t_max is 0.1; it must be at least t_min"),
        ({"temperature": 0.1}, "there is no setting 'temperature'; choose from max_new_tokens"),
    ],
)
def test_bad_settings(engine, change, text):
    with pytest.raises(SettingsError) as error:
        engine.settings.replace(**change)
    assert text in str(error.value)


def test_end_token_outside_the_vocabulary(engine):
    settings = engine.settings.replace(eos_token_id=(tiny.VOCAB,))
    with pytest.raises(SettingsError, match=f"{tiny.VOCAB}.* vocabulary"):
        engine.stream(PROMPT, settings=settings)


def test_prompt_longer_than_the_context(engine):
    with pytest.raises(PromptError, match=r"600.*512"):
        engine.stream([5] * 600)
    with pytest.raises(PromptError, match="context"):
        engine.stream([5] * 490)  # 490 + 24 > 512
    assert engine.generate([5] * 488).stats.prompt_tokens == 488


@pytest.mark.parametrize("ids", [[tiny.VOCAB], [-1], [2.5], ["a"]])
def test_ids_outside_the_vocabulary(engine, ids):
    with pytest.raises(PromptError):
        engine.stream([3, *ids])


@pytest.mark.parametrize("prompt", [[], ""])
def test_no_prompt(engine, prompt):
    with pytest.raises(PromptError):
        engine.stream(prompt)


@pytest.mark.parametrize("length", [0, -8])
def test_bad_canvas_length(tmp_path, length):
    folder = tiny.write_tokenizer(tiny.write(tmp_path, tiny.config() | {"canvas_length": length}))
    with pytest.raises(CheckpointError, match="canvas_length"):
        dg_mlx.load(str(folder), backend="cpu")


def test_unknown_backend_and_dtype(folder):
    with pytest.raises(BackendError, match=r"'tpu'.*auto, metal, cuda, cpu"):
        dg_mlx.load(str(folder), backend="tpu")
    with pytest.raises(BackendError, match=r"'int3'.*float32"):
        dg_mlx.load(str(folder), backend="cpu", dtype="int3")


def test_broken_generation_config(folder, tmp_path):
    tiny.write_tokenizer(tiny.write(tmp_path))
    settings = {k: v for k, v in tiny.SETTINGS.items() if k != "t_max"}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="'t_max'"):
        dg_mlx.load(str(tmp_path), backend="cpu")


# Cancel, close, threads, errors ------------------------------------------------------------------


def slow_model(monkeypatch, seconds=0.03):
    """Make a step long enough to be caught in the middle of a run."""
    denoise = DiffusionGemma.denoise

    def slow(self, *args, **kwargs):
        time.sleep(seconds)
        return denoise(self, *args, **kwargs)

    monkeypatch.setattr(DiffusionGemma, "denoise", slow)


def test_cancel_between_steps(engine, endless, monkeypatch):
    slow_model(monkeypatch)
    cancel, events = threading.Event(), []
    settings = endless.replace(max_denoising_steps=48)
    start = time.perf_counter()
    for event in engine.stream(PROMPT, settings=settings, cancel=cancel):
        events.append(event)
        if isinstance(event, Draft) and event.step == 2:
            cancel.set()
            start = time.perf_counter()
    assert time.perf_counter() - start < 1.0
    done = events[-1]
    assert isinstance(done, Done) and done.reason == "cancelled"
    assert done.stats.tokens == 0 and 2 <= done.stats.steps < 48
    assert done.stats.steps == sum(isinstance(e, Draft) for e in events)
    assert not any(isinstance(e, Committed) for e in events)


def test_cancelled_tokens_count_what_was_committed(engine, endless, monkeypatch):
    slow_model(monkeypatch, 0.01)
    cancel, events = threading.Event(), []
    for event in engine.stream(PROMPT, settings=endless, cancel=cancel):
        events.append(event)
        if isinstance(event, Committed):
            cancel.set()
    ids = [i for e in events if isinstance(e, Committed) for i in e.ids]
    assert events[-1].reason == "cancelled"
    assert events[-1].stats.tokens == len(ids) == tiny.CANVAS


def test_cancelled_before_it_starts(engine, endless):
    cancel = threading.Event()
    cancel.set()
    events = list(engine.stream(PROMPT, settings=endless, cancel=cancel))
    assert [type(e) for e in events] == [Done] and events[0].reason == "cancelled"
    assert engine.generate(PROMPT, settings=endless).reason == "length"


def test_closing_early_frees_the_worker(engine, endless, monkeypatch):
    slow_model(monkeypatch)
    steps = []
    settings = endless.replace(max_denoising_steps=500, max_new_tokens=400)
    stream = engine.stream(PROMPT, settings=settings)
    for event in stream:
        steps.append(event)
        if len(steps) == 3:
            break
    start = time.perf_counter()
    stream.close()
    reply = engine.generate(PROMPT, settings=endless.replace(max_new_tokens=8))
    assert time.perf_counter() - start < 5.0
    assert reply.stats.tokens == 8


def test_a_stream_that_is_never_read_blocks_nobody(engine, endless):
    settings = endless.replace(max_denoising_steps=500, max_new_tokens=400)
    stream = engine.stream(PROMPT, settings=settings)
    del stream
    assert engine.generate(PROMPT, settings=endless).reason == "length"


def test_callers_on_several_threads_queue(engine, endless):
    wanted = {seed: run(engine, settings=endless, seed=seed) for seed in range(6)}
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda s: run(engine, settings=endless, seed=s), range(6)))
    assert found == [wanted[seed] for seed in range(6)]


def test_two_streams_read_in_turns(engine, endless):
    """Both are finished jobs or waiting ones; neither disturbs the other."""
    one = engine.stream(PROMPT, settings=endless, seed=1)
    two = engine.stream(PROMPT, settings=endless, seed=2)
    found: tuple[list, list] = ([], [])
    streams = [one, two]
    while streams:
        for number, stream in ((0, one), (1, two)):
            if stream in streams:
                event = next(stream, None)
                if event is None:
                    streams.remove(stream)
                else:
                    found[number].append(plain(event))
    assert found[0] == run(engine, settings=endless, seed=1)
    assert found[1] == run(engine, settings=endless, seed=2)


def test_the_model_can_be_used_from_this_thread(engine):
    cache = engine.model.new_cache()
    engine.model.prefill(mx.array([PROMPT]), cache)
    logits = engine.model.denoise(mx.zeros((1, tiny.CANVAS), mx.int32), cache)
    assert logits.shape == (1, tiny.CANVAS, tiny.VOCAB) and logits.dtype == mx.float32


def test_errors_in_the_worker_reach_the_caller(engine, endless):
    class Broken(Scripted):
        def sample(self, block, step, scaled_logits_BLV):
            if step == 3:
                raise ZeroDivisionError("broken noise")
            return super().sample(block, step, scaled_logits_BLV)

    seen = []
    with pytest.raises(ZeroDivisionError, match="broken noise"):  # noqa: PT012
        for event in engine.stream(PROMPT, settings=endless, noise=Broken()):
            seen.append(event)
    assert [type(e) for e in seen] == [Prefilled, Draft, Draft]
    assert engine.generate(PROMPT, settings=endless).reason == "length"


def test_two_engines_share_the_worker(engine, endless, folder):
    other = dg_mlx.load(str(folder), backend="cpu")
    assert run(other, settings=endless, seed=9) == run(engine, settings=endless, seed=9)


def test_memory_does_not_grow_with_runs(engine, endless):
    settings = endless.replace(max_new_tokens=8, max_denoising_steps=2)

    def active() -> int:
        engine.generate(PROMPT, settings=settings)
        return mx.get_active_memory()

    first = [active() for _ in range(3)][-1]
    assert [active() for _ in range(10)][-1] <= first
