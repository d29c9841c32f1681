"""The chat: turns, commands, stopping, and what a pipe gives."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import ClassVar

import fakes
import pytest
from PIL import Image

from dg_mlx.cli import chat as chat_verb
from dg_mlx.cli import main
from dg_mlx.cli.commands import COMMANDS
from dg_mlx.cli.input import PipeInput
from dg_mlx.cli.screen import Screen
from dg_mlx.cli.session import Sampling, Session
from dg_mlx.conversation import Conversation, Store
from dg_mlx.errors import CheckpointError, PromptError
from dg_mlx.loading import Loading


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DG_MLX_HOME", str(tmp_path / "home"))
    yield
    for chat in Chat.made:
        chat.close()
    Chat.made.clear()


class Chat(Session):
    """A session with a scripted engine."""

    made: ClassVar[list["Chat"]] = []

    def __init__(self, *answers: list[str] | Exception, saved: bool = False) -> None:
        self.scripted = fakes.FakeEngine(*answers)
        self.models: list[str] = []
        self.made.append(self)
        store = Store()

        def load(name: str) -> Loading:
            self.models.append(name)
            return Loading(name, lambda: self.scripted)

        super().__init__(
            load,
            "nano",
            Screen(),
            store.create() if saved else Conversation(),
            sampling=Sampling(),
            store=store,
        )

    @property
    def asked(self) -> list[dict]:
        return self.scripted.asked

    def said(self) -> list[str]:
        return [message.text for message in self.conversation.line]


Capture = pytest.CaptureFixture[str]


def test_the_conversation_is_kept(capsys: Capture) -> None:
    chat = Chat(["on", "e"], ["two"])
    assert chat.take("first")
    assert chat.take("second")
    assert capsys.readouterr().out == "one\ntwo\n"
    assert chat.asked[1]["messages"] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
    ]
    assert chat.asked[0]["prefix"] is chat.asked[1]["prefix"] is not None


def test_a_new_conversation_keeps_the_system_text(capsys: Capture) -> None:
    chat = Chat(["one"], ["two"])
    chat.take("/system be brief")
    chat.take("first")
    chat.take("/clear")
    chat.take("second")
    assert [m["role"] for m in chat.asked[1]["messages"]] == ["system", "user"]
    chat.take("/system off")
    capsys.readouterr()
    chat.take("/system")
    assert capsys.readouterr().out == "(no system text)\n"


def test_commands_change_what_follows(tmp_path: Path, capsys: Capture) -> None:
    chat = Chat(["one"], ["two"])
    picture = tmp_path / "a b.png"
    Image.new("RGB", (8, 8)).save(picture)
    notes = tmp_path / "notes.txt"
    notes.write_text("ten lines\n")
    for command in (
        "/seed 9",
        "/steps 2",
        "/set entropy_bound 0.25",
        "/think on",
        f"/image '{picture}'",
        f"/file {notes}",
    ):
        assert chat.take(command)
    assert chat.failed == 0
    chat.take("look")
    asked = chat.asked[0]
    settings = asked["settings"]
    assert (asked["seed"], settings.max_denoising_steps, asked["thinking"]) == (9, 2, True)
    assert settings.entropy_bound == 0.25
    image, text = asked["messages"][0]["content"]
    assert image["type"] == "image"
    assert text == {"type": "text", "text": "notes.txt:\nten lines\n\nlook"}
    chat.take("again")  # the picture went with the turn before
    assert chat.asked[1]["messages"][-1] == {"role": "user", "content": "again"}
    capsys.readouterr()
    chat.take("/set entropy_bound default")
    assert "entropy_bound = 0.1:" in capsys.readouterr().out
    chat.take("/stats")
    shown = capsys.readouterr().out
    assert "2 steps" in shown
    assert "prompt 7 tokens in 0.50 s" in shown
    assert not chat.take("/exit")


def test_help_names_every_command(capsys: Capture) -> None:
    Chat().take("/help")
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown for name in COMMANDS)


def test_presets(capsys: Capture) -> None:
    chat = Chat(["one"])
    chat.take("/preset fast")
    chat.take("/steps 5")  # what is set stays above the preset
    chat.take("hi")
    settings = chat.asked[0]["settings"]
    assert settings.max_denoising_steps == 5
    assert settings.entropy_bound > chat.scripted.settings.entropy_bound
    assert "* fast" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["x" * 100_000, "~nobody/a.png", "a\0.png", "/" + "y" * 5000])
def test_any_text_can_be_typed(text: str) -> None:
    chat = Chat(["one"])
    chat.take(text)
    assert chat.failed == (text[0] == "/")


def test_a_dropped_picture_is_attached(tmp_path: Path, capsys: Capture) -> None:
    chat = Chat(["one"], ["two"], ["three"])
    picture = tmp_path / "a b.png"
    Image.new("RGB", (8, 8)).save(picture)
    for shape in (str(picture).replace(" ", "\\ "), f"'{picture}'", f"file://{tmp_path}/a%20b.png"):
        chat.take(shape)
        chat.take("look")
        assert [p["type"] for p in chat.asked[-1]["messages"][-1]["content"]] == ["image", "text"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/seed x", "/seed is 'x'; it must be a whole number"),
        ("/steps 0", "max_denoising_steps is 0; it must be"),
        ("/set t_min hot", "t_min is 'hot'; it must be a number."),
        ("/set heat 3", "there is no setting 'heat'; choose from max_new_tokens"),
        ("/think maybe", "/think is 'maybe'; say /think on, off or show."),
        ("/image no.png", "there is no image 'no.png'; check the path."),
        ("/image", "/image needs a path"),
        ("/file no.txt", "no.txt cannot be read (No such file or directory)"),
        ("/dance", "there is no command /dance; /help lists them."),
        ("/preset slow", "there is no preset 'slow'; choose from faithful"),
        ("/regen", "there is nothing to answer yet"),
        ("/edit other", "there is nothing to edit yet"),
        ("/undo", "there is nothing to undo"),
        ("/redo", "there is nothing to redo"),
        ("/branch", "there is one line only"),
        ("/replay", "there is no answer to replay yet"),
        ("/replay fast", "/replay is 'fast'; give a speed"),
        ("/canvas grid", "the canvas needs a terminal"),
        ("/json no.json", "no.json cannot be read"),
        ("/export", "/export needs a file"),
        ("/export talk.exe", "talk.exe"),
    ],
)
def test_bad_commands_are_one_line(command: str, message: str, capsys: Capture) -> None:
    chat = Chat()
    assert chat.take(command)
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
    assert chat.failed == 1


def test_other_answers_and_turns(capsys: Capture) -> None:
    chat = Chat(["one"], ["two"], ["three"], ["four"])
    chat.take("first")
    chat.take("/regen")
    assert chat.said() == ["first", "two"]
    assert [asked["seed"] for asked in chat.asked] == [0, 1]
    capsys.readouterr()
    chat.take("/branch")
    assert capsys.readouterr().out == "  1  assistant: one\n* 2  assistant: two\n"
    chat.take("/branch 1")
    chat.take("second")
    assert chat.said() == ["first", "one", "second", "three"]
    chat.take("/edit another second")
    assert chat.said() == ["first", "one", "another second", "four"]
    chat.take("/undo")
    assert chat.said() == ["first", "one"]
    chat.take("/redo")
    assert chat.said() == ["first", "one", "another second", "four"]


def test_an_edit_keeps_pictures(tmp_path: Path) -> None:
    chat = Chat(["one"], ["two"])
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    chat.take(f"/image {picture}")
    chat.take("look")
    chat.ask = lambda text: text.upper()
    chat.take("/edit")
    image, text = chat.asked[1]["messages"][0]["content"]
    assert (image["type"], text["text"]) == ("image", "LOOK")


def test_answers_that_parse(tmp_path: Path, capsys: Capture) -> None:
    chat = Chat(["one"], ["two"], ["three"])
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "boolean"}))
    for command in ("/json", f"/json {schema}", "/json off"):
        chat.take(command)
        chat.take("hi")
    any_json, boolean, free = (asked["constraint"] for asked in chat.asked)
    assert any_json.json
    assert boolean.json
    assert any_json != boolean
    assert free is None


def test_conversations_are_saved_listed_and_opened(capsys: Capture) -> None:
    chat = Chat(["one"], ["two"], ["three"], saved=True)
    chat.take("about bread")
    chat.take("/save My bread")
    chat.take("/clear")
    chat.take("about cats")
    capsys.readouterr()
    chat.take("/load bread")
    assert "My bread" in capsys.readouterr().out
    chat.take("/load 1")
    assert chat.said() == ["about bread", "one"]
    assert "about bread" in capsys.readouterr().out
    chat.take("more")
    assert [m["content"] for m in chat.asked[-1]["messages"]] == ["about bread", "one", "more"]
    chat.close()
    assert len(Store().list()) == 2


def test_a_piped_conversation_is_saved_when_asked_for() -> None:
    chat = Chat(["one"])
    chat.take("hi")
    assert Store().list() == []
    chat.take("/save kept")
    assert [summary.title for summary in Store().list()] == ["kept"]


@pytest.mark.parametrize("ending", ["md", "json", "html"])
def test_export(ending: str, tmp_path: Path, capsys: Capture) -> None:
    chat = Chat(["one"])
    chat.take("first")
    chat.take(f"/export {tmp_path}/talk.{ending}")
    text = (tmp_path / f"talk.{ending}").read_text()
    assert "first" in text
    assert "one" in text


def test_what_was_exported_can_be_opened(tmp_path: Path, capsys: Capture) -> None:
    chat = Chat(["one"], ["two"], ["three"])
    chat.take("first")
    chat.take("/regen")
    chat.take(f"/export {tmp_path}/talk.json")
    other = Chat(["four"])
    other.take(f"/load {tmp_path}/talk.json")
    assert other.said() == ["first", "two"]
    other.take("/branch 1")
    assert other.said() == ["first", "one"]
    (tmp_path / "broken.json").write_text("[{")
    other.take(f"/load {tmp_path}/broken.json")
    assert other.failed == 1


def test_another_model(capsys: Capture) -> None:
    chat = Chat(["one"])
    chat.take("hi")
    chat.take("/model other")
    assert chat.models == ["nano", "other"]
    assert "other on a chip (cpu), computed in float32" in capsys.readouterr().out
    chat.take("/model")
    chat.take("/model nano")
    assert "nano on a chip" in capsys.readouterr().out


def test_the_model_stays_when_another_cannot_be_loaded(capsys: Capture) -> None:
    chat = Chat(["one"])
    load = chat._load

    def fail() -> None:
        raise CheckpointError("it is broken; fetch it again.")

    chat._load = lambda name: Loading(name, fail) if name == "broken" else load(name)
    chat.take("/model broken")
    assert "it is broken; fetch it again." in capsys.readouterr().err
    chat.take("hi")
    assert chat.said() == ["hi", "one"]


def test_a_failed_turn_is_forgotten(capsys: Capture) -> None:
    chat = Chat(PromptError("too long; shorten it."), ["fine"])
    chat.take("first")
    chat.take("second")
    assert len(chat.asked[1]["messages"]) == 1
    assert "too long; shorten it." in capsys.readouterr().err


def test_an_empty_answer_is_said(capsys: Capture) -> None:
    chat = Chat([""])
    chat.take("hi")
    assert "the model returned an empty answer" in capsys.readouterr().err
    assert chat.said() == []


def test_thought_is_not_the_answer(capsys: Capture) -> None:
    chat = Chat(["HMyes"])
    chat.take("hi")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("yes\n", "HM")
    assert chat.said() == ["hi", "yes"]
    chat.take("/think show")
    assert capsys.readouterr().out == "HM\n"


def test_ctrl_c_stops_the_turn_and_keeps_what_there_is(capsys: Capture) -> None:
    chat = Chat(["one", "two"], ["more"])
    steps: list[int] = []

    def on_step(step: int) -> None:
        steps.append(step)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    chat.scripted.on_step = on_step
    before = signal.getsignal(signal.SIGINT)
    assert chat.take("hi")
    assert len(steps) == 3  # stopped within the step
    assert "stopped" in capsys.readouterr().err
    assert chat.said() == ["hi", "one"]
    assert chat.conversation.line[-1].cut
    assert signal.getsignal(signal.SIGINT) is before
    assert chat.take("again")


def test_a_turn_stopped_before_any_text_is_forgotten(capsys: Capture) -> None:
    chat = Chat(["one"])
    chat.scripted.on_step = lambda step: os.kill(os.getpid(), signal.SIGINT)
    assert chat.take("hi")
    assert "stopped; the turn is forgotten" in capsys.readouterr().err
    assert chat.said() == []


def test_a_second_ctrl_c_leaves() -> None:
    chat = Chat(["one"])

    def on_step(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    chat.scripted.on_step = on_step
    with pytest.raises(KeyboardInterrupt):
        chat.take("hi")


def test_turns_in_another_thread_leave_signals_alone() -> None:
    chat = Chat(["one"])
    thread = threading.Thread(target=chat.take, args=("hi",))
    thread.start()
    thread.join()
    assert chat.said() == ["hi", "one"]


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    chat = Chat(["a\x1b[2mb"])
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "vt100")
    chat.take("hi")
    assert "block 1 · step 2/3 · settled 2/4" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[2Ka␛[2mb\n")  # the line is gone, the text harmless


def test_what_loading_raises_is_raised_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise CheckpointError("it is broken; fetch it again.")

    loading = Loading("broken", fail)
    for wait in (loading.engine, loading.check):
        with pytest.raises(CheckpointError, match="fetch it again"):
            wait()


# Input -------------------------------------------------------------------------------------------


def read_all(text: str) -> list[str]:
    source = PipeInput(StringIO(text))
    return list(iter(source.read, None))


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("", []),
        ("\n\n", []),
        ("hi", ["hi"]),
        ("A 1.\nB .2\n", ["A 1.\nB .2"]),
        ("one\n\n\ntwo\r\n", ["one", "two"]),
        ("/seed 3\none\n/stats\n\ntwo", ["/seed 3", "one", "/stats", "two"]),
    ],
)
def test_piped_turns(text: str, turns: list[str]) -> None:
    assert read_all(text) == turns


def test_piped_bytes_that_are_not_text() -> None:
    from io import BytesIO

    stream = TextIOWrapper(BytesIO(b"\xff\xfe\xff"), encoding="utf-8")
    with pytest.raises(PromptError, match="not UTF-8"):
        PipeInput(stream).read()


# The verb ----------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, engine: fakes.FakeEngine, text: str, *options: str) -> int:
    monkeypatch.setattr(chat_verb, "open_engine", lambda args: engine)
    monkeypatch.setattr(sys, "stdin", StringIO(text))
    return main(["chat", "--model", "nano", *options])


def test_a_piped_chat(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    engine = fakes.FakeEngine(["one"], ["two"])
    assert run(monkeypatch, engine, "first\n\nsecond\n/exit\nthird") == 0
    assert capsys.readouterr().out == "one\ntwo\n"  # no greeting, no progress
    assert Store().list() == []


def test_a_piped_chat_reports_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, fakes.FakeEngine(["one"]), "/dance\nfirst") == 1


def test_one_question_about_what_is_piped_in(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = fakes.FakeEngine(["short"])
    assert run(monkeypatch, engine, "a long text\n", "summarise") == 0
    assert engine.asked[0]["messages"] == [{"role": "user", "content": "summarise\n\na long text"}]
    assert capsys.readouterr().out == "short\n"


def test_going_on(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert run(monkeypatch, fakes.FakeEngine(), "", "--continue") == 1
    assert "there is no conversation to go on with" in capsys.readouterr().err
    assert run(monkeypatch, fakes.FakeEngine(["one"]), "first\n/save") == 0
    engine = fakes.FakeEngine(["two"])
    assert run(monkeypatch, engine, "second", "--continue") == 0
    assert [m["content"] for m in engine.asked[0]["messages"]] == ["first", "one", "second"]


def test_a_preset_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert run(monkeypatch, fakes.FakeEngine(), "hi", "--preset", "slow") == 1
    assert "there is no preset 'slow'" in capsys.readouterr().err


def test_the_greeting_names_a_puzzle(capsys: Capture) -> None:
    chat_verb._greet("nano")
    shown = capsys.readouterr().out
    assert "A 1.3.\nB .41.\nC ....\nD ..21" in shown
    assert "a toy of" in shown


def test_an_answer_can_be_replayed_on_another_day() -> None:
    chat = Chat(["on", "e"], ["two"], saved=True)
    chat.take("first")
    chat.take("second")
    chat.close()
    kept = Store().read(chat.conversation.id)
    answers = [message for message in kept.line if message.role == "assistant"]
    recordings = [kept.recording(message.id) for message in answers]
    assert [r.frames[0]["prompt"] for r in recordings] == ["first", "second"]
    assert [r.text for r in recordings] == ["one", "two"]
