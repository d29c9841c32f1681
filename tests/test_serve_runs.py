"""Runs: what watchers get, however many there are and whenever they come, and how runs end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import END, Words, draft

from dg_mlx.canvas.control import Control, Touch
from dg_mlx.conversation import LeftOut
from dg_mlx.edit import Edited
from dg_mlx.errors import PromptError, StoppedError
from dg_mlx.events import Prefilled
from dg_mlx.replay import Recorder, Recording
from dg_mlx.serve import runs as runs_module
from dg_mlx.serve.runs import BATCH, KEPT, Run, Runs

Frame = dict[str, Any]
WAIT_S = 30


def begin(run: Run, words: Words | None = None) -> None:
    words = words or Words()
    recorder = Recorder(words, ends=[END], most=100)
    recorder.begin(model="m", prompt="hi", settings={}, seed=0, length=4)
    run.begin(recorder, words.ids)


def read(tokens: int = 7) -> Prefilled:
    return Prefilled(tokens=tokens, cached=0, seconds=0.1)


def ended(source: Any, keep: Any = lambda run: None) -> Run:
    """A run that is over."""
    run = Runs().start(source, keep)
    assert run.over.wait(WAIT_S)
    return run


def kinds(run: Run) -> list[str]:
    return [frame["kind"] for frame in run.frames()]


async def collect(run: Run, first: int = 0) -> list[str]:
    return [line async for batch in run.follow(first) for line in batch]


class Tap:
    """A source whose items are let through one by one."""

    def __init__(self, items: int) -> None:
        self._items, self._may = items, threading.Semaphore(0)

    def __call__(self, run: Run) -> Iterator[Any]:
        begin(run)
        for item in range(self._items):
            assert self._may.acquire(timeout=WAIT_S)
            yield read(item)

    def open(self, items: int) -> None:
        for _ in range(items):
            self._may.release()


JOINS = st.lists(st.tuples(st.integers(0, 150), st.integers(0, 160)), max_size=6)
"""(items made since the watcher before, number of the first frame that is wanted)."""


@settings(max_examples=60, deadline=None)
@given(joins=JOINS, rest=st.integers(0, 150), leaves=st.sets(st.integers(0, 5)))
def test_every_watcher_gets_every_frame_once(
    joins: list[tuple[int, int]], rest: int, leaves: set[int]
) -> None:
    total = sum(made for made, _ in joins) + rest

    async def watched() -> None:
        tap = Tap(total)
        run = Runs().start(tap)
        watchers = []
        for number, (made, first) in enumerate(joins):
            tap.open(made)
            watchers.append((first, asyncio.create_task(collect(run, first))))
            await asyncio.sleep(0)
            if number in leaves:
                watchers.pop()[1].cancel()
        tap.open(rest)
        found = await asyncio.wait_for(asyncio.gather(*(task for _, task in watchers)), WAIT_S)
        assert await asyncio.to_thread(run.over.wait, WAIT_S)
        assert [json.loads(line)["n"] for line in run.lines] == list(range(total + 2))
        for (first, _), lines in zip(watchers, found, strict=True):
            assert lines == run.lines[first:]
        assert await collect(run) == run.lines  # who comes late, too

    asyncio.run(watched())


def test_a_slow_watcher_holds_nobody_up_and_gets_batches() -> None:
    async def watched() -> None:
        tap = Tap(1000)
        run = Runs().start(tap)
        slow = run.follow()
        sizes = [len(await anext(slow))]  # it is not asked for more until the run is over
        tap.open(1000)
        assert await asyncio.to_thread(run.over.wait, WAIT_S)
        sizes += [len(batch) async for batch in slow]
        assert sum(sizes) == len(run.lines) == 1002
        assert max(sizes) <= BATCH and len(sizes) <= 2 + 1002 // BATCH

    asyncio.run(watched())


def test_a_watcher_whose_loop_is_gone_stops_nothing() -> None:
    tap = Tap(3)
    run = Runs().start(tap)

    async def first() -> None:
        await anext(run.follow())

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    loop.close()  # without a word
    tap.open(3)
    assert run.over.wait(WAIT_S) and len(run.lines) == 5


def test_frames_told_from_many_threads_are_in_order() -> None:
    tap = Tap(200)
    run = Runs().start(tap)

    def tell() -> None:
        for number in range(100):
            run.note(f"note {number}")

    tellers = [threading.Thread(target=tell) for _ in range(4)]
    for teller in tellers:
        teller.start()
    tap.open(200)
    for teller in tellers:
        teller.join()
    assert run.over.wait(WAIT_S)
    frames = run.frames()
    assert [frame["n"] for frame in frames] == list(range(len(frames)))
    times = [frame["at"] for frame in frames]
    assert times == sorted(times)
    assert frames[0]["kind"] == "begin" and frames[-1]["kind"] == "end"


def test_what_is_recorded_can_be_read_even_if_somebody_was_early() -> None:
    may = threading.Event()

    def source(run: Run) -> Iterator[Any]:
        assert may.wait(WAIT_S)
        begin(run)
        yield read()

    run = Runs().start(source)
    run.pause()
    run.note("it loads")
    run.resume()
    may.set()
    assert run.over.wait(WAIT_S)
    assert kinds(run) == ["begin", "pause", "note", "resume", "read", "end"]
    document = Recording(run.frames()).data(gz=False)
    assert Recording.of(document).frames == run.frames()


def test_nothing_comes_after_the_end() -> None:
    run = ended(lambda run: iter(()))
    run.pause()
    run.note("too late")
    run.resume()
    assert kinds(run) == ["end"]
    run = ended(Started())
    run.stop()
    run.touch(Touch(what="noise", block=0, positions=(0,)))
    run.note("too late")
    assert kinds(run) == ["begin", "end"]


class Started:
    """A source that begins, and then gives or raises something."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __call__(self, run: Run) -> Iterator[Any]:
        begin(run)
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            yield item


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (PromptError("the prompt is\n too long."), "error", "the prompt is too long."),
        (StoppedError("the edit was stopped."), "note", "the edit was stopped."),
        (
            RuntimeError("boom\nand more"),
            "error",
            "this run failed (RuntimeError: boom and more); try again.",
        ),
    ],
)
@pytest.mark.parametrize("began", [True, False])
def test_errors_are_a_sentence(error: Exception, kind: str, text: str, began: bool) -> None:
    def source(run: Run) -> Iterator[Any]:
        if began:
            begin(run)
            yield read()
        raise error

    run = ended(source)
    frames = run.frames()
    assert kinds(run) == [*(["begin", "read"] if began else []), kind, "end"]
    assert frames[-2]["text"] == text
    assert [frame["n"] for frame in frames] == list(range(len(frames)))
    assert frames[-1] | {"conversation": None, "message": None} == frames[-1]


def test_what_a_source_gives_becomes_frames() -> None:
    words = Words()
    ids = words.ids("a b c d")
    edited = Edited(text="x y", spans=[], fills=["y"])  # type: ignore[arg-type]

    def source(run: Run) -> Iterator[Any]:
        begin(run, words)
        run.kept |= {"conversation": "c", "message": "m"}
        yield LeftOut(turns=2)
        yield read()
        yield draft(1, ids)
        yield edited

    run = ended(source)
    assert kinds(run) == ["begin", "note", "read", "draft", "edited", "end"]
    frames = run.frames()
    assert frames[1]["text"] == LeftOut(turns=2).line
    assert frames[3]["g"] == ids and frames[4]["fills"] == ["y"]
    assert frames[5]["conversation"] == "c" and frames[5]["message"] == "m"


def test_it_is_kept_before_anybody_knows_that_it_is_over() -> None:
    may, seen = threading.Event(), []

    def keep(run: Run) -> None:
        seen.append((kinds(run)[-1], run.over.is_set()))
        assert may.wait(WAIT_S)

    async def watched() -> None:
        run = Runs().start(Started(read()), keep)
        following = run.follow()
        lines: list[str] = []
        while len(lines) < 2:
            lines += await asyncio.wait_for(anext(following), WAIT_S)
        last = asyncio.ensure_future(anext(following))
        late = asyncio.create_task(collect(run))
        await asyncio.sleep(0.05)
        assert not last.done() and not late.done()
        may.set()
        assert await asyncio.wait_for(last, WAIT_S) == run.lines[-1:]
        assert await asyncio.wait_for(late, WAIT_S) == run.lines

    asyncio.run(watched())
    assert seen == [("end", False)]


def test_what_cannot_be_kept_ends_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def keep(run: Run) -> None:
        raise OSError("the disk is full")

    assert kinds(ended(Started(read()), keep)) == ["begin", "read", "end"]
    assert "cannot be kept" in caplog.text


class Held:
    """A source that steps as its control says, until it is stopped."""

    def __init__(self) -> None:
        self.made = threading.Semaphore(0)
        self.control: Control | None = None

    def __call__(self, run: Run) -> Iterator[Any]:
        begin(run)
        self.control = run.control
        for step in count():
            if run.control.stopped.wait(0.001):
                return
            free = threading.Event()
            if run.control.gate.hold(free.set):
                assert free.wait(WAIT_S)
                if run.control.stopped.is_set():
                    return
            yield read(step)
            run.control.gate.count()
            for touch in run.control.take():
                run.control.report(touch, "" if touch.block == 0 else "this block is over.")
            self.made.release()


def held() -> tuple[Run, Held]:
    """A run that is held after a step."""
    source = Held()
    run = Run("1", lambda run: source(run), lambda run: None)
    run.control.gate.shut_after(1)
    run.start()
    assert source.made.acquire(timeout=WAIT_S)
    return run, source


def until(run: Run, wanted: Callable[[], bool]) -> None:
    watching = threading.Event()
    for _ in range(1000):
        if wanted():
            return
        watching.wait(0.01)
    raise AssertionError(kinds(run))


def test_pause_step_resume_and_stop_are_told_once() -> None:
    run, source = held()
    run.resume()
    run.resume()
    run.pause()
    run.pause()
    before = kinds(run).count("read")
    run.step()
    until(run, lambda: kinds(run).count("read") > before)
    run.stop()
    assert run.over.wait(WAIT_S)
    told = [kind for kind in kinds(run) if kind in ("pause", "resume")]
    assert told == ["resume", "pause"]
    assert run.frames()[-1]["kind"] == "end" and source.control is run.control


def test_touches_are_told_or_refused_in_a_note() -> None:
    run, _ = held()
    words = Words()
    run.touch(Touch(what="pin", block=0, positions=(1,)), " two words")
    run.touch(Touch(what="release", block=0, positions=(1, 2)))
    run.touch(Touch(what="noise", block=1, positions=(0,)))
    run.step()
    until(run, lambda: kinds(run)[-1] == "note")
    run.stop()
    assert run.over.wait(WAIT_S)
    pin, release, note = (f for f in run.frames() if f["kind"] in ("touch", "note"))
    assert pin["what"] == "pin" and pin["positions"] == [1, 2]
    assert pin["ids"] == words.ids(" two words")
    assert release["what"] == "release" and release["positions"] == [1, 2] and "ids" not in release
    assert note["text"] == "this block is over."


def test_runs_are_found_until_long_after_their_end() -> None:
    runs, tap = Runs(), Tap(0)
    going = Tap(1)
    first = runs.start(going)
    over = [runs.start(tap) for _ in range(KEPT + 3)]
    for run in over:
        assert run.over.wait(WAIT_S)
    last = runs.start(tap)
    assert last.over.wait(WAIT_S)
    assert runs.get(first.id) is first  # however many came after it
    assert [runs.get(run.id) for run in over[:3]] == [None] * 3
    assert [runs.get(run.id) for run in over[3:]] == over[3:]
    assert runs.get("no such run") is None
    going.open(1)
    assert first.over.wait(WAIT_S)


def test_close_stops_all_and_waits_until_they_are_kept() -> None:
    runs, kept = Runs(), []
    sources = [Held() for _ in range(3)]
    for source in sources:
        runs.start(source, lambda run: kept.append(run.id))
    for source in sources:
        assert source.made.acquire(timeout=WAIT_S)
    runs.close()
    assert len(kept) == 3


def test_close_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "CLOSING_S", 0.05)
    runs, tap = Runs(), Tap(1)
    run = runs.start(tap)
    runs.close()
    assert not run.over.is_set()
    tap.open(1)
    assert run.over.wait(WAIT_S)
