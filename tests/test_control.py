"""A person's hand on an answer: hold it, step, and change its canvas."""

from __future__ import annotations

import queue
import threading
from itertools import zip_longest

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import dg_mlx
from dg_mlx import Committed, Constraint, Done, Draft
from dg_mlx.canvas.control import Control, Touch
from dg_mlx.events import collect

PROMPT = [2, 30, 31, 32, 33]
L = tiny.CANVAS
SOON_S = 20.0


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tiny.write_tokenizer(tiny.write(tmp_path_factory.mktemp("control")))
    return dg_mlx.load(str(folder), backend="cpu")


@pytest.fixture(scope="module")
def long(engine):
    return engine.settings.replace(max_new_tokens=2 * L, max_denoising_steps=6)


class Watched:
    """A run whose events are read on a thread of their own."""

    def __init__(self, engine, long, **options):
        self.reports: list[tuple[Touch, str]] = []
        self.control = Control(lambda *report: self.reports.append(report))
        self.events: queue.Queue = queue.Queue()
        self._stream = engine.stream(PROMPT, settings=long, control=self.control, **options)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self):
        self._thread.start()
        if self.control.paused:
            self.next(dg_mlx.Prefilled)
        return self

    def __exit__(self, *_):
        self.control.stop()
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()

    def _read(self):
        for event in self._stream:
            self.events.put(event)

    def next(self, kind):
        """The next event of a kind."""
        while True:
            event = self.events.get(timeout=SOON_S)
            if isinstance(event, kind):
                return event

    def rest(self):
        """What is reported until it is over."""
        events = []
        while not events or not isinstance(events[-1], Done):
            events.append(self.events.get(timeout=SOON_S))
        return events


def paused(engine, long, **options):
    """A run that is held once its prompt is read."""
    run = Watched(engine, long, **options)
    run.control.pause()
    return run


def test_a_held_answer_makes_no_step_until_it_may(engine, long):
    with paused(engine, long) as run:
        assert run.control.paused
        with pytest.raises(queue.Empty):
            run.events.get(timeout=0.3)
        for step in (1, 2, 3):
            run.control.step()
            assert run.next(Draft).step == step
            with pytest.raises(queue.Empty):
                run.events.get(timeout=0.1)
        run.control.resume()
        assert not run.control.paused
        assert run.rest()[-1].reason == "length"


def test_a_held_answer_keeps_nobody_waiting(engine, long):
    with paused(engine, long):
        assert engine.generate(PROMPT, settings=long).ids


def test_a_held_answer_can_be_stopped(engine, long):
    with paused(engine, long) as run:
        run.control.step()
        run.next(Draft)
        run.control.stop()
        assert run.rest()[-1].reason == "cancelled"


def test_a_held_answer_can_be_closed(engine, long):
    control = Control()
    stream = engine.stream(PROMPT, settings=long, control=control)
    control.pause()
    next(stream)
    stream.close()
    assert engine.generate(PROMPT, settings=long).ids


def test_answers_that_go_on_together_are_those_that_each_gives_alone(engine, long):
    alone = [collect(engine.stream(PROMPT, settings=long, seed=seed)) for seed in range(3)]
    streams = [engine.stream(PROMPT, settings=long, seed=seed) for seed in range(3)]
    together = [[], [], []]
    for events in zip_longest(*streams):
        for kept, event in zip(together, events, strict=True):
            if event is not None:
                kept.append(event)
    assert [collect(events).ids for events in together] == [reply.ids for reply in alone]


def test_answers_that_share_what_is_known_do_not_disturb_each_other(engine, long):
    from dg_mlx.prefix import PrefixCache

    alone = engine.generate(PROMPT, settings=long).ids
    prefix = PrefixCache()
    one = engine.stream(PROMPT, settings=long, prefix=prefix)
    next(one)
    assert engine.generate(PROMPT, settings=long, prefix=prefix).ids == alone
    assert collect(one).ids == alone
    assert engine.generate(PROMPT, settings=long, prefix=prefix).ids == alone


def test_a_pinned_token_stays_and_a_released_one_is_free(engine, long):
    with paused(engine, long) as run:
        run.control.step()
        before = run.next(Draft)
        token = int(before.guess[3]) % 90 + 5
        run.control.touch(Touch(what="pin", block=0, positions=(3,), ids=(token,)))
        run.control.step()
        held = run.next(Draft)
        assert held.canvas[3] == held.guess[3] == token
        assert set(np.flatnonzero(held.frozen)) == {3}
        run.control.touch(Touch(what="release", block=0, positions=(3,)))
        run.control.step()
        assert not run.next(Draft).frozen.any()
        run.control.touch(Touch(what="pin", block=0, positions=(5, 6), ids=(7, 8)))
        run.control.resume()
        ids = [i for e in run.rest() if isinstance(e, Committed) for i in e.ids]
        assert ids[5:7] == [7, 8]
        assert [problem for _, problem in run.reports] == ["", "", ""]


def test_positions_thrown_back_to_noise_are_drawn_anew(engine, long):
    def canvas(*touches):
        with paused(engine, long.replace(entropy_bound=1e9)) as run:
            run.control.step()
            first = run.next(Draft)
            for touch in touches:
                run.control.touch(touch)
            run.control.step()
            return first, run.next(Draft)

    first, plain = canvas()
    again, noised = canvas(Touch(what="noise", block=0, positions=tuple(range(L))))
    assert (first.canvas == again.canvas).all()
    assert (plain.guess != noised.guess).any()


def test_a_change_makes_room_for_as_many_steps_again(engine, long):
    with paused(engine, long) as run:
        for _ in range(long.max_denoising_steps):
            run.control.step()
            last = run.next(Draft)
        assert last.block == 0
        run.control.touch(Touch(what="noise", block=0, positions=(0,)))
        run.control.step()
        more = run.next(Draft)
        assert (more.block, more.step) == (0, last.step + 1)
        assert more.max_steps == last.step + long.max_denoising_steps
        run.control.resume()
        assert run.rest()[-1].reason in ("end", "length")


def test_what_cannot_be_is_refused_in_a_sentence(engine, long):
    with paused(engine, long, pins={1: 9}) as run:
        run.control.step()
        run.next(Draft)
        for touch in (
            Touch(what="pin", block=1, positions=(0,), ids=(5,)),
            Touch(what="pin", block=0, positions=(L,), ids=(5,)),
            Touch(what="pin", block=0, positions=(0,), ids=(10_000,)),
            Touch(what="pin", block=0, positions=(0,), ids=(tiny.END,)),
            Touch(what="noise", block=0, positions=(1,)),
        ):
            run.control.touch(touch)
        run.control.step()
        after = run.next(Draft)
        assert set(np.flatnonzero(after.frozen)) == {1}
        assert len(run.reports) == 5
        for touch, problem in run.reports:
            assert problem.endswith("."), touch
            assert "\n" not in problem


def test_a_pin_against_the_constraint_is_refused(engine, long):
    constraint = Constraint.regex("[ab]{3}")
    with paused(engine, long, constraint=constraint) as run:
        run.control.step()
        run.next(Draft)
        never = engine.processor.exact("z")[0]
        run.control.touch(Touch(what="pin", block=0, positions=(0,), ids=(never,)))
        run.control.resume()
        run.rest()
        ((_, problem),) = run.reports
        assert "constraint" in problem


@given(st.data())
@settings(deadline=None, max_examples=15)
def test_pins_made_on_the_way_are_in_the_answer(engine, long, data):
    """Whatever is pinned, released and noised between steps: what is pinned at last is there."""
    with paused(engine, long.replace(max_new_tokens=L)) as run:
        expected: dict[int, int] = {}
        for _ in range(data.draw(st.integers(1, 5))):
            run.control.step()
            run.next(Draft)
            at = data.draw(st.integers(0, L - 1))
            if at in expected:
                run.control.touch(Touch(what="release", block=0, positions=(at,)))
                del expected[at]
            elif data.draw(st.booleans()):
                token = data.draw(st.integers(4, 99))
                run.control.touch(Touch(what="pin", block=0, positions=(at,), ids=(token,)))
                expected[at] = token
            else:
                run.control.touch(Touch(what="noise", block=0, positions=(at,)))
        run.control.resume()
        ids = [i for e in run.rest() if isinstance(e, Committed) for i in e.ids]
        assert {at: ids[at] for at in expected} == expected
        assert not any(problem for _, problem in run.reports)
