"""What the tabs of a page share: conversations that are open, and the runs in them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dg_mlx.app.asked import Asked
from dg_mlx.app.desk import OPEN, Desk, Sent, answers
from paced import PacedEngine
from talk import quick_folder

from dg_mlx.conversation import Conversation, Store
from dg_mlx.errors import ConversationError, SettingsError, StoreError
from dg_mlx.serve.models import Models
from dg_mlx.serve.runs import Run

WAIT_S = 30


class Steps:
    """Lets an engine make its steps; all of them, until it is told to wait."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()

    def __call__(self) -> None:
        assert self.free.wait(WAIT_S)


@pytest.fixture
def steps() -> Iterator[Steps]:
    found = Steps()
    yield found
    found.free.set()


@pytest.fixture
def engine(steps: Steps) -> PacedEngine:
    return PacedEngine(0, steps)


@pytest.fixture
def home() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


@pytest.fixture
def desk(engine: Any, home: Path, steps: Steps) -> Iterator[Desk]:
    found = Desk(Models(lambda name: engine, "nano"), Store(home))
    yield found
    steps.free.set()
    found.close()


def saying(text: str, **options: Any) -> Callable[[Conversation], Any]:
    def begin(conversation: Conversation) -> Any:
        return lambda engine, given: conversation.ask(engine, text, **options, **given)

    return begin


def send(desk: Desk, id: str, text: str, **options: Any) -> Run:
    asked = options.pop("asked", Asked(seed=5))
    return desk.answer(id, asked, saying(text), sent=Sent(text=text), **options)


def ended(run: Run) -> Run:
    assert run.over.wait(WAIT_S)
    return run


def texts(desk: Desk, id: str) -> list[str]:
    return [message.text for message in desk.conversation(id).line]


def test_an_answer_is_kept_with_its_recording(desk: Desk) -> None:
    id, told = desk.new(), []
    run = ended(send(desk, id, "hello", after=lambda run: told.append(run.kept["message"])))
    question, answer = desk.conversation(id).line
    assert (question.text, answer.text) == ("hello", "Answer 1 to “hello”.")
    assert run.kept == {"conversation": id, "message": answer.id} and told == [answer.id]
    recording = desk.recording(id, answer.id)
    assert recording is not None and recording.frames == run.frames()
    begin, end = run.frames()[0], run.frames()[-1]
    assert begin["prompt"] == "hello" and begin["seed"] == 5 and begin["model"] == "nano"
    assert end["message"] == answer.id
    assert desk.run_of(id) is None and answers(desk.conversation(id)) == [answer]


def test_settings_go_to_the_engine(desk: Desk, engine: PacedEngine) -> None:
    id = desk.new()
    asked = Asked(seed=9, numbers={"max_denoising_steps": 11}, system="Be brief.", thinking=True)
    run = ended(send(desk, id, "hello", asked=asked))
    (given,) = engine.asked
    assert given["settings"].max_denoising_steps == 11
    assert given["seed"] == 9 and given["thinking"] is True
    assert given["messages"][0] == {"role": "system", "content": "Be brief."}
    assert run.frames()[0]["settings"]["max_denoising_steps"] == 11
    assert desk.conversation(id).system == "Be brief."


def test_wrong_settings_are_told_and_keep_nothing(desk: Desk) -> None:
    id = desk.new()
    with pytest.raises(SettingsError, match="the tools are no JSON"):
        send(desk, id, "hello", asked=Asked(tools="{"))
    run = ended(send(desk, id, "hello", asked=Asked(numbers={"t_min": -1})))
    assert [frame["kind"] for frame in run.frames()] == ["error", "end"]
    assert "t_min is -1" in run.frames()[0]["text"]
    assert texts(desk, id) == [] and run.kept["message"] is None
    assert desk.sent_last(id) == "hello"  # to be sent again


def test_one_answer_at_a_time_in_a_conversation(desk: Desk, steps: Steps) -> None:
    one, other = desk.new(), desk.new()
    steps.free.clear()
    run = send(desk, one, "hello")
    assert desk.run_of(one) is run and desk.run_of(other) is None
    with pytest.raises(ConversationError, match="an answer is being written; stop it first"):
        send(desk, one, "again")
    with pytest.raises(ConversationError):
        desk.idle(one)
    with pytest.raises(ConversationError):
        desk.delete(one)
    beside = send(desk, other, "hello too")
    steps.free.set()
    ended(run), ended(beside)
    assert texts(desk, one)[0] == "hello" and texts(desk, other)[0] == "hello too"
    ended(send(desk, one, "again"))
    assert len(texts(desk, one)) == 4


def until(wanted: Callable[[], Any]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if wanted():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come")


def test_what_is_final_before_a_stop_is_kept(desk: Desk) -> None:
    id = desk.new()
    run = send(desk, id, "endless")
    until(lambda: any(frame["kind"] == "commit" for frame in run.frames()))
    run.stop()
    ended(run)
    answer = desk.conversation(id).line[-1]
    assert answer.cut and answer.text.startswith(" and 0 and 1")
    assert run.kept["message"] == answer.id and desk.recording(id, answer.id) is not None


def test_a_failure_takes_the_question_back(desk: Desk) -> None:
    id = desk.new()
    ended(send(desk, id, "hello"))
    run = ended(send(desk, id, "fail"))
    assert texts(desk, id) == ["hello", "Answer 1 to “hello”."]
    assert run.kept == {"conversation": None, "message": None}
    assert desk.sent_last(id) == "fail"
    ended(send(desk, id, "go on"))
    assert len(texts(desk, id)) == 4


def test_what_is_said_anew_hides_what_it_replaces(desk: Desk, steps: Steps) -> None:
    id = desk.new()
    ended(send(desk, id, "hello"))
    question, answer = desk.conversation(id).line

    def again(conversation: Conversation) -> Any:
        return lambda engine, options: conversation.regenerate(engine, id=answer.id, **options)

    steps.free.clear()
    run = desk.answer(id, Asked(), again, sent=Sent(), until=question.id)
    assert desk.line(id) == [question]
    steps.free.set()
    ended(run)
    new = desk.conversation(id).line[-1]
    assert desk.line(id) == [question, new] and new.id != answer.id
    assert [m.id for m in desk.conversation(id).branches(new.id)] == [answer.id, new.id]


def test_what_is_tried_out_is_kept_nowhere(desk: Desk, engine: PacedEngine) -> None:
    run = ended(desk.try_out("hello", Asked(system="Be brief.", seed=1), text="hello"))
    assert run.kept == {"conversation": None, "message": None}
    assert [frame["kind"] for frame in run.frames()][-2:] == ["done", "end"]
    assert [m["role"] for m in engine.asked[0]["messages"]] == ["system", "user"]
    assert desk.store is not None and desk.store.list() == []


def test_step_by_step_is_held_from_the_start(desk: Desk) -> None:
    run = desk.try_out("hello", Asked(stepwise=True), text="hello")
    until(lambda: any(frame["kind"] == "read" for frame in run.frames()))
    assert run.control.paused and not run.over.is_set()
    run.step()
    until(lambda: any(frame["kind"] == "draft" for frame in run.frames()))
    run.resume()
    ended(run)


def test_old_conversations_are_closed_but_not_one_that_is_answered(
    desk: Desk, home: Path, steps: Steps
) -> None:
    first = desk.new()
    ended(send(desk, first, "hello"))
    steps.free.clear()
    run = send(desk, first, "and now?")
    others = [desk.new() for _ in range(OPEN + 2)]
    for other in others:
        desk.conversation(other)
    assert desk.run_of(first) is run
    steps.free.set()
    ended(run)
    assert len(texts(desk, first)) == 4
    for other in others:
        assert texts(desk, other) == []


def test_deleted_conversations_come_back(desk: Desk) -> None:
    id = desk.new()
    ended(send(desk, id, "hello"))
    desk.delete(id)
    with pytest.raises(StoreError):
        desk.conversation(id)
    assert desk.store is not None
    desk.store.restore(id)
    assert texts(desk, id)[0] == "hello"


def test_an_id_that_is_not_known_gives_a_new_one(desk: Desk) -> None:
    id = desk.new()
    assert desk.known(id) == id
    assert desk.known("20200101-000000-00000000") not in ("20200101-000000-00000000", id)


def test_in_memory_nothing_is_deleted_and_everything_else_works(engine: Any) -> None:
    desk = Desk(Models(lambda name: engine, "nano"), None)
    ids = [desk.new() for _ in range(OPEN + 3)]
    assert len({*ids}) == len(ids)
    ended(send(desk, ids[0], "hello"))
    answer = desk.conversation(ids[0]).line[-1]
    assert desk.recording(ids[0], answer.id) is not None
    with pytest.raises(StoreError, match="not saved"):
        desk.delete(ids[0])
    with pytest.raises(StoreError, match="no such conversation"):
        desk.conversation("memory-999")
    desk.close()


def test_close_stops_runs_and_lets_others_in(desk: Desk, home: Path) -> None:
    id = desk.new()
    run = send(desk, id, "endless")
    until(lambda: any(frame["kind"] == "commit" for frame in run.frames()))
    with pytest.raises(StoreError):
        Store(home).load(id)
    desk.close()
    assert run.over.is_set()
    with Store(home).load(id) as talk:
        assert talk.line[-1].cut


def test_a_model_that_is_unloaded_is_not_remembered(desk: Desk) -> None:
    id = desk.new()
    ended(send(desk, id, "hello"))
    forgotten = []
    conversation = desk.conversation(id)
    conversation.prefix.forget = lambda: forgotten.append(id)  # type: ignore[method-assign]
    desk.models.unload("nano")
    assert forgotten == [id]
    ended(send(desk, id, "again"))
