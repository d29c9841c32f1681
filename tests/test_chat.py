"""The plain chat: turns, commands, stopping, and what a pipe gives."""

import io
import os
import pty
import signal
import sys
import threading
from argparse import Namespace
from pathlib import Path

import fakes
import pytest

from dg_mlx.cli import chat as chat_verb
from dg_mlx.cli import input as chat_input
from dg_mlx.cli.chat import Chat
from dg_mlx.errors import PromptError


def make(*answers: list[str] | Exception) -> tuple[Chat, fakes.FakeEngine]:
    engine = fakes.FakeEngine(*answers)
    return Chat(engine, settings=engine.settings), engine


def test_the_conversation_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    chat, engine = make(["on", "e"], ["two"])
    assert chat.take("first")
    assert chat.take("second")
    assert capsys.readouterr().out == "one\ntwo\n"
    assert engine.asked[1]["messages"] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
    ]


def test_reset_and_system(capsys: pytest.CaptureFixture[str]) -> None:
    chat, engine = make(["one"], ["two"])
    chat.system = "be brief"
    chat.take("first")
    chat.take("/reset")
    chat.take("second")
    assert [m["role"] for m in engine.asked[1]["messages"]] == ["system", "user"]


def test_commands_change_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat, engine = make(["one"], ["two"])
    picture = tmp_path / "a.png"
    picture.touch()
    for command in ("/seed 9", "/steps 2", "/think on", f"/image {picture}"):
        assert chat.take(command)
    chat.take("look")
    asked = engine.asked[0]
    assert (asked["seed"], asked["settings"].max_denoising_steps, asked["thinking"]) == (9, 2, True)
    assert asked["messages"][0]["content"][0] == {"type": "image", "image": str(picture)}
    chat.take("again")  # the picture went with the turn before
    assert engine.asked[1]["messages"][-1] == {"role": "user", "content": "again"}
    capsys.readouterr()
    chat.take("/stats")
    assert "2 steps" in capsys.readouterr().out
    chat.take("/help")
    assert "/reset" in capsys.readouterr().out
    assert not chat.take("/exit")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/seed x", "/seed is 'x'; it must be a whole number"),
        ("/steps", "/steps is ''; it must be a whole number"),
        ("/steps 0", "max_denoising_steps is 0; it must be"),
        ("/think maybe", "/think is 'maybe'; say /think on or /think off."),
        ("/image no.png", "there is no image 'no.png'; check the path."),
        ("/dance", "there is no command /dance; /help lists them."),
    ],
)
def test_bad_commands_are_one_line(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat, _ = make()
    assert chat.take(command)
    error = capsys.readouterr().err
    assert error.startswith(f"dg-mlx: {message}")
    assert error.count("\n") == 1
    assert chat.failed == 1


def test_a_failed_turn_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    chat, engine = make(PromptError("too long; shorten it."), ["fine"])
    chat.take("first")
    chat.take("second")
    assert len(engine.asked[1]["messages"]) == 1
    assert "too long; shorten it." in capsys.readouterr().err


def test_an_empty_answer_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    chat, _ = make([""])
    chat.take("hi")
    assert "the model returned an empty answer" in capsys.readouterr().err
    assert chat.messages == []


def test_thought_is_not_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    chat, _ = make(["HMyes"])
    chat.take("hi")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("yes\n", "HM")
    assert chat.messages[-1]["content"] == "yes"


def test_ctrl_c_stops_the_turn_and_keeps_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    chat, engine = make(["one", "two"], ["more"])
    steps: list[int] = []

    def on_step(step: int) -> None:
        steps.append(step)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    engine.on_step = on_step
    before = signal.getsignal(signal.SIGINT)
    assert chat.take("hi")
    assert len(steps) == 2  # stopped within the step
    assert "stopped; the turn is forgotten" in capsys.readouterr().err
    assert chat.messages == []
    assert signal.getsignal(signal.SIGINT) is before
    assert chat.take("again")


def test_a_second_ctrl_c_leaves() -> None:
    chat, engine = make(["one"])

    def on_step(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    engine.on_step = on_step
    with pytest.raises(KeyboardInterrupt):
        chat.take("hi")


def test_turns_in_another_thread_leave_signals_alone() -> None:
    chat, _ = make(["one"])
    thread = threading.Thread(target=chat.take, args=("hi",))
    thread.start()
    thread.join()
    assert len(chat.messages) == 2


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    chat, _ = make(["a\x1b[2mb"])
    chat.take("hi")
    assert "block 1 · step 2/3 · settled 2/4" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[2Ka␛[2mb\n")  # the line is gone, the text harmless


# Input -------------------------------------------------------------------------------------------


def read_all(text: str) -> list[str]:
    source = chat_input.PipeInput(io.StringIO(text))
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
    stream = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\xff"), encoding="utf-8")
    with pytest.raises(PromptError, match="not UTF-8"):
        chat_input.PipeInput(stream).read()


def test_lines_that_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["A 1.\\", "B .2"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    monkeypatch.setattr(chat_input, "_pending", lambda: False)
    assert chat_input.LineInput().read() == "A 1.\nB .2"


def test_a_paste_is_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, more = iter(["A 1.", "B .2", ""]), iter([True, True, False])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    monkeypatch.setattr(chat_input, "_pending", lambda: next(more))
    assert chat_input.LineInput().read() == "A 1.\nB .2"


def test_end_and_interrupt_at_the_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(prompt: str = "") -> str:
        raise KeyboardInterrupt

    def ended(prompt: str = "") -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", interrupted)
    assert chat_input.LineInput().read() == ""
    assert "Ctrl-D leaves" in capsys.readouterr().err
    monkeypatch.setattr("builtins.input", ended)
    assert chat_input.LineInput().read() is None


def test_pending_input_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal, os.fdopen(ours, "wb", buffering=0) as keyboard:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert not chat_input._pending()
        keyboard.write(b"B .2\n")
        assert chat_input._pending()


# The verb ----------------------------------------------------------------------------------------


def run(
    monkeypatch: pytest.MonkeyPatch, engine: fakes.FakeEngine, text: str, **options: object
) -> int:
    monkeypatch.setattr(chat_verb, "open_engine", lambda args: engine)
    monkeypatch.setattr(chat_verb, "settings_from", lambda args, own: own)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    given = {"seed": 0, "think": False, "system": None} | options
    return chat_verb.run(Namespace(**given))


def test_a_piped_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engine = fakes.FakeEngine(["one"], ["two"])
    assert run(monkeypatch, engine, "first\n\nsecond\n/exit\nthird") == 0
    assert capsys.readouterr().out == "one\ntwo\n"  # no greeting, no progress


def test_a_piped_chat_reports_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, fakes.FakeEngine(["one"]), "/dance\nfirst") == 1


def test_the_greeting_names_a_puzzle(capsys: pytest.CaptureFixture[str]) -> None:
    chat_verb._greet(fakes.FakeEngine())
    shown = capsys.readouterr()
    assert "A 1.3.\nB .41.\nC ....\nD ..21" in shown.out
    assert "do this" in shown.err
