"""Conversations: turns, answers that are stopped, branches, tools, and a context that is full."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import small
from PIL import Image
from talk import Talker, ask, texts

import dg_mlx
from dg_mlx.conversation import Conversation, LeftOut, Message, Store
from dg_mlx.errors import ConversationError, MediaError, PromptError, SettingsError
from dg_mlx.events import Committed, Done, Draft, Prefilled

CALL = {
    "type": "function",
    "id": "call_0",
    "function": {"name": "weather", "arguments": {"city": "Bern"}},
}
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="


def spoken(conversation: Conversation) -> list[tuple[str, Any]]:
    return [(m["role"], m["content"]) for m in conversation.messages()]


# Turns -------------------------------------------------------------------------------------------


def test_two_turns() -> None:
    talk = Conversation(system="be brief", model="fake")
    engine = Talker(["on", "e"], ["two"])
    kinds = [type(event) for event in talk.ask(engine, "first", seed=7)]
    assert kinds == [Prefilled, Draft, Draft, Committed, Draft, Draft, Committed, Done]
    list(talk.ask(engine, "second", settings=engine.settings.replace(max_new_tokens=5)))
    assert spoken(talk) == [
        ("system", "be brief"),
        ("user", "first"),
        ("assistant", "one"),
        ("user", "second"),
        ("assistant", "two"),
    ]
    assert engine.asked[1]["messages"] == talk.messages()[:-1]
    assert engine.prefix is talk.prefix
    _, one, _, two = talk.line
    assert (one.reason, one.cut, one.model, one.seed, one.settings) == (
        "end", False, "fake", 7, {},
    )  # fmt: skip
    assert one.figures["tokens"] == 4 and one.figures["steps_per_block"] == [2]
    assert (two.seed, two.settings) == (0, {"max_new_tokens": 5})


def test_thought_is_kept_beside_the_answer() -> None:
    talk = Conversation()
    ask(talk, "hi", "HMyes")
    assert (talk.line[1].text, talk.line[1].thought) == ("yes", "HM")
    assert talk.messages()[1] == {"role": "assistant", "content": "yes", "reasoning": "HM"}


def test_the_system_text_can_change_between_turns() -> None:
    talk = Conversation()
    ask(talk, "hi", "one")
    talk.system = "be brief"
    engine = Talker(["two"])
    list(talk.ask(engine, "again"))
    assert engine.asked[0]["messages"][0] == {"role": "system", "content": "be brief"}
    talk.system = ""
    assert talk.messages()[0]["role"] == "user"


@pytest.mark.parametrize("wrong", ["refuse", "", [], [{"type": "sound"}]])
def test_what_cannot_be_asked_is_not_kept(wrong: Any) -> None:
    talk = Conversation()
    with pytest.raises(PromptError):
        talk.ask(Talker(["one"]), wrong)
    assert not talk.tree.messages
    ask(talk, "hi", "one")
    assert texts(talk) == ["hi", "one"]


def test_nothing_happens_before_the_first_event() -> None:
    talk = Conversation()
    talk.ask(Talker(["one"]), "hi")
    assert not talk.line


# Answers that are stopped ------------------------------------------------------------------------


def test_cancelled_with_text_is_kept_as_cut() -> None:
    talk, cancel = Conversation(), threading.Event()
    for event in talk.ask(Talker(["on", "e"]), "hi", cancel=cancel):
        if isinstance(event, Committed):
            cancel.set()
    assert texts(talk) == ["hi", "on"]
    assert talk.line[1].cut and talk.line[1].reason == "cancelled"
    assert talk.line[1].figures["tokens"] == 2
    ask(talk, "go on", "two")
    assert texts(talk) == ["hi", "on", "go on", "two"]


def test_closed_with_text_is_kept_as_cut() -> None:
    talk = Conversation()
    stream = talk.ask(Talker(["on", "e"]), "hi")
    while not isinstance(next(stream), Committed):
        pass
    stream.close()
    assert texts(talk) == ["hi", "on"] and talk.line[1].cut
    ask(talk, "go on", "two")


@pytest.mark.parametrize("how", ["cancel", "close", "error", "empty", "thought"])
def test_without_text_the_turn_is_forgotten(how: str) -> None:
    talk, cancel = Conversation(), threading.Event()
    ask(talk, "hi", "one")
    talk.undo()
    engine = Talker([""] if how == "empty" else ["HM"] if how == "thought" else ["on", "e"])

    def fail(step: int) -> None:
        raise RuntimeError("out of memory")

    if how == "error":
        engine.on_step = fail
    stream = talk.ask(engine, "again", cancel=cancel)
    next(stream)
    assert texts(talk) == ["again"]
    if how == "cancel":
        cancel.set()
    if how == "close":
        stream.close()
    if how == "error":
        with pytest.raises(RuntimeError, match="out of memory"):
            list(stream)
    list(stream)
    assert texts(talk) == []
    talk.redo()  # as if nothing had been said
    assert texts(talk) == ["hi", "one"]
    assert len(talk.tree.messages) == 2


def test_an_error_after_a_block_keeps_what_was_said() -> None:
    talk, engine, steps = Conversation(), Talker(["on", "e"]), []

    def fail(step: int) -> None:
        steps.append(step)
        if len(steps) == 3:
            raise RuntimeError("out of memory")

    engine.on_step = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        list(talk.ask(engine, "hi"))
    assert texts(talk) == ["hi", "on"] and talk.line[1].cut


def test_whoever_stops_reading_at_done_has_a_whole_answer() -> None:
    talk = Conversation()
    stream = talk.ask(Talker(["one"]), "hi")
    while not isinstance(next(stream), Done):
        pass
    assert talk.line[1].reason == "end"
    stream.close()
    assert not talk.line[1].cut and len(talk.tree.messages) == 2


def test_nothing_else_while_an_answer_is_written() -> None:
    talk = Conversation()
    ask(talk, "hi", "one")
    stream = talk.ask(Talker(["two"]), "again")
    next(stream)
    for change in (
        talk.undo,
        talk.clear,
        lambda: talk.switch("1"),
        lambda: talk.edit("1", "x"),
        lambda: talk.append("user", "x"),
        lambda: talk.ask(Talker(["x"]), "x"),
    ):
        with pytest.raises(ConversationError, match="an answer is being written; stop it first"):
            change()
    talk.rename("a name")  # not about the line
    list(stream)
    assert texts(talk) == ["hi", "one", "again", "two"]


def test_closing_stops_the_answer(tmp_path: Path) -> None:
    with Store(tmp_path).create() as talk:
        stream = talk.ask(Talker(["on", "e"]), "hi")
        while not isinstance(next(stream), Committed):
            pass
    assert texts(talk) == ["hi", "on"] and talk.line[1].cut
    with pytest.raises(ConversationError, match="this conversation is closed; load it again"):
        talk.undo()


# Branches ----------------------------------------------------------------------------------------


def test_regenerate_edit_and_switch() -> None:
    talk, engine = Conversation(), Talker(["one"], ["two"], ["three"])
    list(talk.ask(engine, "hi"))
    list(talk.regenerate(engine, seed=1))
    assert texts(talk) == ["hi", "two"]
    assert engine.asked[1]["messages"] == [{"role": "user", "content": "hi"}]
    assert [m.text for m in talk.branches(talk.line[1].id)] == ["one", "two"]
    list(talk.ask(engine, "hello", edits="1"))
    assert texts(talk) == ["hello", "three"]
    talk.switch("1")
    assert texts(talk) == ["hi", "two"]
    talk.switch(talk.branches(talk.line[1].id)[0].id)
    assert texts(talk) == ["hi", "one"]


def test_an_edit_is_answered_by_regenerate() -> None:
    talk = Conversation()
    ask(talk, "hi", "one")
    edited = talk.edit("1", "hello")
    assert (edited.text, texts(talk)) == ("hello", ["hello"])
    list(talk.regenerate(Talker(["two"])))
    assert texts(talk) == ["hello", "two"]


def test_a_failed_edit_or_answer_leaves_the_line_as_it_was() -> None:
    talk = Conversation()
    ask(talk, "hi", "one")
    list(talk.ask(Talker([""]), "hello", edits="1"))
    list(talk.regenerate(Talker([""])))
    assert texts(talk) == ["hi", "one"] and len(talk.tree.messages) == 2


def test_an_earlier_answer_can_be_regenerated() -> None:
    talk, engine = Conversation(), Talker(["one"], ["two"], ["three"])
    list(talk.ask(engine, "hi"))
    list(talk.ask(engine, "again"))
    list(talk.regenerate(engine, id="2"))
    assert texts(talk) == ["hi", "three"]


def test_undo_and_redo() -> None:
    talk = Conversation()
    ask(talk, "hi", "one")
    ask(talk, "again", "two")
    assert talk.undo().text == "again"
    assert talk.undo().text == "hi"
    assert texts(talk) == []
    with pytest.raises(ConversationError, match="there is nothing to undo"):
        talk.undo()
    talk.redo()
    talk.redo()
    assert texts(talk) == ["hi", "one", "again", "two"]
    talk.clear()
    assert texts(talk) == []
    talk.redo()
    talk.undo()
    ask(talk, "else", "three")
    with pytest.raises(ConversationError, match="there is nothing to redo"):
        talk.redo()
    assert texts(talk) == ["hi", "one", "else", "three"]


def test_impossible_requests() -> None:
    talk = Conversation()
    with pytest.raises(ConversationError, match="there is nothing to answer; say something"):
        talk.regenerate(Talker())
    ask(talk, "hi", "one")
    for call in (talk.switch, talk.branches, lambda id: talk.edit(id, "x")):
        with pytest.raises(ConversationError, match="there is no message 'x'"):
            call("x")
    with pytest.raises(ConversationError, match="message '2' is from the assistant; only the user"):
        talk.edit("2", "x")
    with pytest.raises(ConversationError, match="a message is from 'system'; it can be from user"):
        talk.append("system", "x")
    with pytest.raises(ConversationError, match=r"a message cannot be read .*'y' is none of"):
        talk.append("assistant", "x", reason="y")


def test_messages_from_elsewhere() -> None:
    talk = Conversation()
    talk.append("user", "hi")
    talk.append("assistant", "one", model="other", thought="hm")
    assert isinstance(talk.line[1], Message)
    assert spoken(talk) == [("user", "hi"), ("assistant", "one")]


# Tools -------------------------------------------------------------------------------------------


def test_tools() -> None:
    talk, engine = Conversation(), Talker([""], ["sunny"], calls=[CALL])
    events = list(talk.ask(engine, "weather?", tools=small.TOOLS))
    assert events[-1].tool_calls == [CALL]
    assert talk.line[1].reason == "tool_call" and talk.line[1].tool_calls == (CALL,)
    list(talk.resume(engine, {"call_0": {"sky": "clear"}}, tools=small.TOOLS))
    assert talk.messages() == [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {
            "role": "tool",
            "tool_call_id": "call_0",
            "name": "weather",
            "content": {"sky": "clear"},
        },
        {"role": "assistant", "content": "sunny"},
    ]
    assert engine.asked[1]["messages"] == talk.messages()[:-1]
    talk.undo()
    assert talk.line == []


def test_a_call_that_nobody_answers_is_not_told() -> None:
    talk, engine = Conversation(), Talker([""], ["one"], calls=[CALL])
    list(talk.ask(engine, "weather?"))
    list(talk.ask(engine, "never mind"))
    assert engine.asked[1]["messages"] == [
        {"role": "user", "content": "weather?"},
        {"role": "user", "content": "never mind"},
    ]


def test_results_must_fit_the_calls() -> None:
    talk, engine = Conversation(), Talker([""], [""], calls=[CALL])
    with pytest.raises(ConversationError, match="results for a; the last message calls nothing"):
        talk.resume(engine, {"a": "x"})
    list(talk.ask(engine, "weather?"))
    with pytest.raises(ConversationError, match="results for nothing; the last message calls call"):
        talk.resume(engine, {})
    with pytest.raises(PromptError, match="a tool's result cannot be written as JSON"):
        talk.resume(engine, {"call_0": {"when": object()}})
    list(talk.resume(engine, {"call_0": "x"}))  # an empty answer: the results are taken back
    assert talk.line[-1].tool_calls == (CALL,)


# Pictures ----------------------------------------------------------------------------------------


def test_pictures_come_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "a.jpeg"
    Image.new("RGB", (4, 4), "red").save(path)
    content = [
        {"type": "image", "image": str(path)},
        {"type": "image", "image": path.read_bytes()},
        {"type": "image_url", "image_url": {"url": DOT}},
        {"type": "image", "image": Image.new("L", (4, 4))},
        {"type": "text", "text": "which?"},
    ]
    talk = Conversation()
    ask(talk, content, "all")
    one, same, gif, png = talk.line[0].files
    assert one == same and one.name.endswith(".jpg")
    assert (gif.name[-4:], png.name[-4:]) == (".gif", ".png")
    path.unlink()  # it is ours now
    parts = talk.messages()[0]["content"]
    assert parts[0]["image"].startswith(b"\xff\xd8") and parts[-1] == content[-1]
    again = talk.reworded(talk.line[0], "why?")
    assert [part["type"] for part in again] == [*["image"] * 4, "text"]
    assert talk.reworded(talk.line[1], "why?") == "why?"
    assert talk.edit("1", again).files == talk.tree["1"].files


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image", "image": "no.png"}, "no.png is not a file; check the picture's path"),
        ({"type": "image", "image": b"x"}, "the picture is not a picture"),
        ({"type": "image", "image": "https://a/b.png"}, "is a web address; nothing is fetched"),
        ({"type": "video", "video": "no.mp4"}, "no.mp4 is not a file; check the video's path"),
        ({"type": "video", "video": b"x"}, "a video is b'x'; give the path of a file"),
        ({"type": "image", "image": 3}, "a picture is 3; give a path"),
    ],
)
def test_bad_media(part: Any, message: str) -> None:
    talk = Conversation()
    with pytest.raises(MediaError, match=message):
        talk.ask(Talker(["x"]), [part])
    assert not talk.tree.messages


# A full context ----------------------------------------------------------------------------------


def turns(talk: Conversation, engine: Talker, count: int) -> list[list[Any]]:
    seen = []
    for number in range(count):
        engine.answers.append(["yes"])
        seen.append(list(talk.ask(engine, f"{number:03}")))
    return seen


def test_the_oldest_turns_are_left_out() -> None:
    talk, engine = Conversation(system="sys"), Talker(context=8 + 4 + 40)  # a turn takes 8
    seen = turns(talk, engine, 10)
    told = [[m["content"] for m in asked["messages"]] for asked in engine.asked]
    assert told[4] == ["sys", "000", "yes", "001", "yes", "002", "yes", "003", "yes", "004"]
    assert not any(isinstance(event, LeftOut) for event in seen[4])
    notice = seen[5][0]
    assert isinstance(notice, LeftOut) and notice.turns == 2
    assert notice.line == "the oldest 2 turns do not fit the context and are left out"
    assert told[5] == ["sys", "002", "yes", "003", "yes", "004", "yes", "005"]
    for number in range(10):
        assert told[number][0] == "sys"  # it stays
        assert told[number][-1] == f"{number:03}"  # and so does the last turn
    assert len(talk.line) == 20  # nothing is forgotten


def test_prompts_begin_alike_for_several_turns() -> None:
    talk, engine = Conversation(), Talker(context=8 + 200)
    turns(talk, engine, 100)
    begins = [asked["messages"][0]["content"] for asked in engine.asked]
    assert len(set(begins)) < 20


def test_the_same_line_is_the_same_prompt() -> None:
    talk, engine = Conversation(), Talker(context=8 + 60)
    turns(talk, engine, 20)
    engine.answers += [["no"], ["yes"]]
    list(talk.regenerate(engine))
    talk.undo()
    list(talk.ask(engine, "019"))
    assert engine.asked[-1]["messages"] == engine.asked[-2]["messages"]
    assert engine.asked[-1]["messages"] == engine.asked[-3]["messages"]


def test_one_turn_that_is_too_long() -> None:
    talk, engine = Conversation(), Talker(context=8 + 60)
    turns(talk, engine, 3)
    with pytest.raises(PromptError, match="the prompt has 101 tokens; shorten it"):
        talk.ask(engine, "x" * 100)
    assert len(talk.line) == 6
    engine.answers.append(["yes"])
    events = list(talk.ask(engine, "x" * 58))
    assert isinstance(events[0], LeftOut) and events[0].turns == 3


def test_refused_for_another_reason() -> None:
    talk, engine = Conversation(), Talker(context=8 + 60)
    turns(talk, engine, 3)
    with pytest.raises(PromptError, match="refused; ask differently"):
        talk.ask(engine, "refuse")


def test_whole_turns_are_left_out() -> None:
    talk = Conversation()
    talk.append("user", "a" * 20)
    talk.append("assistant", "", tool_calls=[CALL])
    talk.append("tool", "b" * 20, tool_call_id="call_0")
    talk.append("assistant", "c" * 20)
    engine = Talker(["yes"], context=8 + 40)
    list(talk.ask(engine, "d"))
    assert engine.asked[0]["messages"] == [{"role": "user", "content": "d"}]


# nano --------------------------------------------------------------------------------------------

PUZZLE = "A 1.3.\nB .41.\nC ....\nD ..21"
SOLVED = "A 1234\nB 3412\nC 2143\nD 4321"


@pytest.fixture(scope="module")
def nano() -> dg_mlx.Engine:
    return dg_mlx.load("nano", backend="cpu")


def test_nano_solves_twice_and_is_saved(nano: dg_mlx.Engine, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.create(model="nano") as talk:
        list(talk.ask(nano, PUZZLE, seed=1))
        events = list(talk.ask(nano, PUZZLE, seed=2))
        assert texts(talk) == [PUZZLE, SOLVED, PUZZLE, SOLVED]
        read = next(event for event in events if isinstance(event, Prefilled))
        assert 0 < read.cached < read.tokens  # the first turn was known
    with store.load(talk.id) as again:
        assert again.line == talk.line
        assert again.line[3].figures["prompt_tokens"] == read.tokens
        list(again.regenerate(nano, seed=3))
        assert [m.seed for m in again.branches(again.line[3].id)] == [2, 3]
        again.undo()
        assert texts(again) == [PUZZLE, SOLVED]


def test_nano_can_be_stopped(nano: dg_mlx.Engine) -> None:
    talk, cancel = Conversation(), threading.Event()
    for _ in talk.ask(nano, PUZZLE, cancel=cancel):
        cancel.set()
    assert talk.line == []
    stream = talk.ask(nano, PUZZLE)
    next(stream)
    stream.close()
    assert talk.line == []
    list(talk.ask(nano, PUZZLE))
    assert texts(talk) == [PUZZLE, SOLVED]


def test_nano_with_a_full_context(nano: dg_mlx.Engine) -> None:
    context = nano.config.text.max_position_embeddings
    settings = nano.settings.replace(max_new_tokens=context - 250)
    talk = Conversation()
    left_out = []
    for _ in range(5):
        events = list(talk.ask(nano, PUZZLE, settings=settings))
        left_out += [event.turns for event in events if isinstance(event, LeftOut)]
        assert talk.line[-1].text == SOLVED
    assert left_out
    with pytest.raises(PromptError, match="this checkpoint's context is"):
        talk.ask(nano, PUZZLE * 10, settings=settings)
    with pytest.raises(SettingsError):
        talk.ask(nano, PUZZLE, settings=nano.settings.replace(canvas_length=1000))
    assert len(talk.line) == 10
