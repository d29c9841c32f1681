"""The line editor, with keys as a terminal sends them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from dg_mlx.cli.keyboard import CommandCompleter, Keyboard
from dg_mlx.errors import CheckpointError

ENTER, ALT_ENTER, CTRL_C, CTRL_D, UP = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield keys


def typed(keys: PipeInput, text: str, **options: object) -> str | None:
    keys.send_text(text)
    return Keyboard(lambda: "status", **options).read()


def test_enter_sends(keys: PipeInput) -> None:
    assert typed(keys, "hello" + ENTER) == "hello"


@pytest.mark.parametrize("between", [ALT_ENTER, "\\" + ENTER, "\n"])
def test_lines(keys: PipeInput, between: str) -> None:
    assert typed(keys, f"A 1.{between}B .2{ENTER}") == "A 1.\nB .2"


def test_a_paste_stays_together(keys: PipeInput) -> None:
    assert typed(keys, "\x1b[200~A 1.\nB .2\n\x1b[201~" + ENTER) == "A 1.\nB .2"


def test_the_end_and_an_interrupt(keys: PipeInput, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(keys, "half a line" + CTRL_C) == ""
    assert "Ctrl-D leaves" in capsys.readouterr().err
    assert typed(keys, CTRL_D) is None


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("/pre", ["/preset"]),
        ("/re", ["/regen", "/redo", "/replay"]),
        ("/preset f", ["faithful", "fast"]),
        ("/think o", ["on", "off"]),
        ("pre", []),
        ("/nothing x", []),
        ("/preset\nfa", []),
    ],
)
def test_commands_are_completed(text: str, offered: list[str]) -> None:
    assert completed(text) == offered


def test_paths_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat.png").touch()
    monkeypatch.chdir(tmp_path)
    assert completed("/image ca") == ["t.png"]


def completed(text: str) -> list[str]:
    found = CommandCompleter().get_completions(Document(text), CompleteEvent())
    return [completion.text for completion in found]


def test_history_is_kept(keys: PipeInput, tmp_path: Path) -> None:
    history = tmp_path / "new" / "history"
    assert typed(keys, "one\\" + ENTER + "line" + ENTER, history=history) == "one\nline"
    assert history.stat().st_mode & 0o77 == 0
    assert typed(keys, UP + ENTER, history=history) == "one\nline"


def test_a_history_that_cannot_be_kept_is_no_error(keys: PipeInput, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert typed(keys, "one" + ENTER, history=tmp_path / "file" / "history") == "one"


def test_a_text_to_edit(keys: PipeInput) -> None:
    keys.send_text("!" + ENTER)
    assert Keyboard(lambda: "").read(default="hello") == "hello!"


def test_what_happens_meanwhile_ends_the_wait(keys: PipeInput) -> None:
    def fail() -> None:
        raise CheckpointError("it is broken; fetch it again.")

    with pytest.raises(CheckpointError):
        Keyboard(lambda: "").read(ready=fail)
