"""`dg-mlx replay`: on a terminal, through a pipe, and as a page."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import scripted
from emulator import Emulator, printed

from dg_mlx.cli import main
from dg_mlx.cli.canvas import live
from dg_mlx.cli.canvas.live import Live
from dg_mlx.conversation import Store
from dg_mlx.events import Event
from dg_mlx.replay import Recorder, Recording

ENGINE = scripted.ScriptedEngine(0, canvas=32, steps=6)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_MLX_HOME", str(tmp_path / "home"))


def recorded(script: str = "blocks", *, step_s: float = 0.001) -> Recording:
    now = 0.0
    recorder = Recorder(ENGINE.processor, ends=(scripted.END,), most=4096, clock=lambda: now)
    begin = {"model": "nano", "prompt": "say\nit", "seed": 1, "length": 32}
    recorder.begin(settings=ENGINE.settings, **begin)
    events: Iterator[Event] = ENGINE.stream([{"content": script}])
    for event in events:
        now += step_s
        recorder.take(event)
    recorder.tell("end", conversation=None, message=None)
    return Recording(recorder.frames)


def edited() -> Recording:
    """Two answers, and the text that they changed."""
    frames = [frame for frame in recorded("short").frames if frame["kind"] != "end"]
    frames += frames[1:]
    last = {"kind": "edited", "text": "one and two", "spans": [[0, 3]], "fills": ["one"]}
    numbered = enumerate([*frames, last])
    return Recording([{**frame, "n": number, "at": 0.001 * number} for number, frame in numbered])


def write(recording: Recording, folder: Path, name: str = "a.json.gz") -> str:
    recording.write(folder / name)
    return str(folder / name)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Emulator:
    emulator = Emulator(90, 16)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORFGBG", "15;0")
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setattr(live, "Terminal", lambda: emulator)
    return emulator


def on(terminal: Emulator, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run it there. pytest puts its own stdout back after fixtures."""
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    return main(["replay", *arguments])


ANSWER = (
    "The first block ends in the middle of a sentence, and the second ends with a line.\n"
    "The third is the last: it has 漢字 and 🦊.\n"
)


def test_through_a_pipe_it_is_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", write(recorded(), tmp_path)]) == 0
    assert capsys.readouterr() == (ANSWER, "")
    assert main(["replay", write(edited(), tmp_path, "b.json")]) == 0
    assert capsys.readouterr() == ("one and two\n", "")


def test_on_a_terminal_the_canvas_is_drawn_and_the_text_stays(
    tmp_path: Path, terminal: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, show = write(recorded(step_s=0.1), tmp_path), Live.show

    def draw_too(shown: Live, event: Event) -> None:
        show(shown, event)
        shown.draw()

    monkeypatch.setattr(Live, "show", draw_too)
    assert on(terminal, monkeypatch, path, "--speed", "1000", "--view", "grid") == 0
    sent = "".join(terminal.frames)
    # The grid has fields behind the end.
    assert "step 6/" in sent and any(frame.count("·") > 9 for frame in terminal.frames)
    # Rates are those of the run: a step every 0.1 s, at whatever speed it is played.
    assert "10.0 steps/s" in sent
    assert terminal.everything == printed(ANSWER, 90, 16)
    assert terminal.restored


def test_an_edit_leaves_its_text(
    tmp_path: Path, terminal: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on(terminal, monkeypatch, write(edited(), tmp_path), "--speed", "0.1") == 0
    assert "settled" in "".join(terminal.frames)
    assert terminal.everything == ["one and two"]


def test_ctrl_c_goes_to_the_end(
    tmp_path: Path, terminal: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, send = write(recorded("short", step_s=3600), tmp_path), terminal.send

    def interrupting(text: str) -> None:
        send(text)
        if "reading the prompt" in text:
            threading.Timer(0, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(terminal, "send", interrupting)
    assert on(terminal, monkeypatch, path) == 0
    assert terminal.everything == ["All is well."]
    assert terminal.restored


def test_what_a_failed_run_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = recorded("short").frames
    begin, error = frames[0], {"n": 1, "at": 1, "kind": "error", "text": "no memory is left"}
    assert main(["replay", write(Recording([begin, error]), tmp_path)]) == 0
    assert capsys.readouterr() == ("", "dg-mlx: this run failed: no memory is left\n")
    assert main(["replay", write(Recording([begin]), tmp_path)]) == 0
    assert capsys.readouterr() == ("", "dg-mlx: this run left no text\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--speed", "0"], "--speed is 0.0; it must be above 0."),
        (["--speed", "nan"], "--speed is nan; it must be above 0."),
        (["--speed", "2"], "--speed needs a terminal that can move its cursor; drop it."),
        (["--view", "raw"], "--view needs a terminal that can move its cursor; drop it."),
        (["--html", "a.html", "--view", "raw"], "--view is for terminals; drop it, or --html."),
        (["--html", "/no/where.html"], "/no/where.html cannot be written (No such file"),
    ],
)
def test_options_that_cannot_be(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", write(recorded("short"), tmp_path), *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"dg-mlx: {said}") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no.json", "dg-mlx: no.json cannot be read (No such file or directory); check the path."),
        ("a/b", "dg-mlx: a/b cannot be read (No such file or directory); check the path."),
        ("20261121-205025-a3f95c01", "dg-mlx: there is no conversation '20261121-205025-a3f95c01'"),
        ("hello", "dg-mlx: there is no conversation 'hello'"),
    ],
)
def test_names_of_nothing(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", name]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(said) and err.count("\n") == 1


def test_a_damaged_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(recorded().data(gz=True)[:-20])
    assert main(["replay", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "its gzip is damaged" in err and err.count("\n") == 1


def test_a_conversation_plays_its_last_recorded_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Store().create() as talk:
        for script in ("short", "blocks", "short"):
            talk.append("user", script)
            message = talk.append("assistant", script)
            if script == "blocks":
                talk.record(message.id, recorded(script))
        assert main(["replay", talk.id]) == 0  # also while it is open
    assert capsys.readouterr() == (ANSWER, "")
    with Store().create() as talk:
        talk.append("user", "hi")
    assert main(["replay", talk.id]) == 1
    said = f"dg-mlx: no answer of conversation {talk.id} was recorded; choose another one.\n"
    assert capsys.readouterr() == ("", said)


def test_a_page_that_plays_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dg_mlx.app.export")
    recording, out = recorded("short"), tmp_path / "a.html"
    assert main(["replay", write(recording, tmp_path), "--html", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "<title>say it</title>" in page and "All is well." in page
    assert capsys.readouterr() == ("", f"dg-mlx: wrote {out}\n")


def test_a_page_needs_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dg_mlx.app", ModuleType("dg_mlx.app"))
    monkeypatch.delitem(sys.modules, "dg_mlx.app.export", raising=False)
    path = write(recorded("short"), tmp_path)
    assert main(["replay", path, "--html", str(tmp_path / "a.html")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "--html needs dg_mlx.app" in err and err.count("\n") == 1
