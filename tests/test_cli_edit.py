"""`dg-mlx edit`: what it reads, what it writes, and what it leaves alone."""

import io
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest

import dg_mlx
from dg_mlx import cli
from dg_mlx.canvas.edit import Span, put
from dg_mlx.edit import Change, Edited
from dg_mlx.events import Prefilled

BOARD = b"A 1234\nB 3412\nC 21.3\nD 4321\n"
ODD = "\ufeffone\r\n\ttwo \U0001f44d\u200d\r\nthree \u00e9\r\n\r\nfive".encode()


class Editor:
    """An engine, and an edit that writes the same into every span."""

    def __init__(self) -> None:
        self.engine = fakes.FakeEngine()
        self.fill: str | BaseException = "NEW"
        self.asked: list[tuple[str, list[Span], Change]] = []

    def edit(self, engine: Any, text: str, spans: list[Span], change: Change) -> Iterator[Any]:
        assert engine is self.engine
        self.asked.append((text, spans, change))
        yield Prefilled(tokens=7, cached=0, seconds=0.5)
        yield fakes.FakeEngine._draft(0, 1, change.settings or self.engine.settings)
        if isinstance(self.fill, BaseException):
            raise self.fill
        fills = (self.fill,) * len(spans)
        yield Edited(text=put(text, spans, fills), fills=fills, spans=())


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> Editor:
    """What every edit goes through."""
    editor = Editor()
    monkeypatch.setattr(dg_mlx, "load", lambda name, **_: editor.engine, raising=False)
    monkeypatch.setattr("dg_mlx.edit.edit", editor.edit)
    return editor


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "odd.txt"
    path.write_bytes(ODD)
    return path


def edit(path: Path | str, *arguments: str) -> int:
    return cli.main(["edit", str(path), "--model", "m", "--instruction", "Do it:", *arguments])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("dg-mlx: ") and shown.err.count("\n") == 1
    return shown.err.removeprefix("dg-mlx: ").rstrip("\n")


def stdin_of(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")


# What is written ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        (["--lines", "1"], ODD.replace(b"one", b"NEW")),
        (["--lines", "3-5"], ODD[: ODD.index(b"three")] + b"NEW"),
        (["--lines", "4"], ODD.replace(b"\r\n\r\n", b"\r\nNEW\r\n")),
        (["--range", "0:6"], ODD.replace(b"one", b"NEW")),
        (["--range", "3:6"], ODD.replace(b"one", b"NEW")),
        (["--range", "0:0"], ODD.replace(b"one", b"NEWone")),
        (["--pattern", "t(.).*$"], ODD.replace(b"two", b"tNEWo").replace(b"thr", b"tNEWr")),
        (["--pattern", "^one$"], ODD.replace(b"one", b"NEW")),
        (
            ["--lines", "1", "--pattern", "five", "--range", "9:12", "--lines", "4"],
            ODD.replace(b"one", b"NEW").replace(b"two", b"NEW").replace(b"five", b"NEW")
            .replace(b"\r\n\r\n", b"\r\nNEW\r\n"),
        ),
    ],
)  # fmt: skip
def test_the_new_text_goes_to_stdout(
    editor: Editor,
    file: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    arguments: list[str],
    new: bytes,
) -> None:
    assert edit(file, *arguments) == 0
    shown = capsysbinary.readouterr()
    assert shown == (new, b"")
    assert file.read_bytes() == ODD
    assert os.listdir(file.parent) == [file.name]


def test_stdin(
    editor: Editor,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin_of(ODD))
    assert edit("-", "--lines", "5") == 0
    assert capsysbinary.readouterr().out == ODD.replace(b"five", b"NEW")


def test_a_terminal_gets_harmless_text(
    editor: Editor, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", screen)
    editor.fill = "\x1b[2J"
    assert edit(file, "--lines", "3-5") == 0
    assert screen.getvalue() == "\ufeffone\n\ttwo \U0001f44d\u200d\n␛[2J"


def test_diff(editor: Editor, file: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert edit(file, "--lines", "5", "--lines", "1", "--diff") == 0
    found = capsysbinary.readouterr().out
    assert found.startswith(f"--- {file}\n+++ {file}\n@@ -1,5 +1,5 @@\n".encode())
    assert found.endswith(
        b"-five\n\\ No newline at end of file\n+NEW\n\\ No newline at end of file\n"
    )
    assert b"-\xef\xbb\xbfone\r\n+\xef\xbb\xbfNEW\r\n \ttwo " in found


def test_patch_takes_the_diff(
    editor: Editor, file: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    editor.fill = "a\x0bb\u2028c"  # no line breaks to patch
    edit(file, "--lines", "2", "--lines", "5", "--diff")
    diff = capsysbinary.readouterr().out
    edit(file, "--lines", "2", "--lines", "5")
    wanted = capsysbinary.readouterr().out
    try:
        subprocess.run(["patch", "--binary", file], input=diff, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no patch here")
    assert file.read_bytes() == wanted


def test_a_diff_of_nothing(
    editor: Editor, file: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    editor.fill = "five"
    assert edit(file, "--lines", "5", "--diff") == 0
    assert capsysbinary.readouterr() == (b"", b"")


def test_write_keeps_a_backup_and_the_mode(
    editor: Editor, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.chmod(0o640)
    assert edit(file, "--lines", "1", "--write") == 0
    backup = file.with_name("odd.txt.bak")
    assert one_line(capsys) == f"wrote {file}; its old text is in {backup}"
    assert file.read_bytes() == ODD.replace(b"one", b"NEW")
    assert backup.read_bytes() == ODD
    assert {stat.S_IMODE(path.stat().st_mode) for path in (file, backup)} == {0o640}
    assert sorted(os.listdir(file.parent)) == ["odd.txt", "odd.txt.bak"]


def test_no_backup_is_ever_lost(
    editor: Editor, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (file.with_name(f"odd.txt.bak{end}") for end in ("", ".1", ".2"))
    first.write_text("mine")
    second.mkdir()
    for _ in range(2):  # the second time, the same bytes are in a backup already
        file.write_bytes(ODD)
        assert edit(file, "--lines", "1", "--write") == 0
        assert one_line(capsys).endswith(f"in {third}")
    assert first.read_text() == "mine"
    assert third.read_bytes() == ODD
    assert len(os.listdir(file.parent)) == 4


def test_a_link_stays_one(editor: Editor, file: Path) -> None:
    link = file.parent / "folder" / "link.txt"
    link.parent.mkdir()
    link.symlink_to(file)
    assert edit(link, "--lines", "1", "--write") == 0
    assert link.is_symlink()
    assert file.read_bytes() == ODD.replace(b"one", b"NEW")
    assert file.with_name("odd.txt.bak").read_bytes() == ODD


def test_nothing_is_written_when_nothing_changed(
    editor: Editor, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    editor.fill = "one"
    before = file.stat()
    assert edit(file, "--lines", "1", "--write") == 0
    assert one_line(capsys) == f"nothing changed; {file} is as it was"
    assert file.stat() == before
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize(("fill", "code", "what"), [("one", 0, "not change"), ("1", 1, "change")])
def test_check(
    editor: Editor,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    fill: str,
    code: int,
    what: str,
) -> None:
    editor.fill = fill
    assert edit(file, "--lines", "1", "--check") == code
    assert one_line(capsys) == f"{file} would {what}"
    assert file.read_bytes() == ODD
    assert os.listdir(file.parent) == [file.name]


# What cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"a\0b", ["--lines", "1"], "FILE is a binary file; choose a text file."),
        (b"\xff\xfea\0", ["--lines", "1"], "FILE is not UTF-8 text (byte 0); convert it, or"),
        (BOARD, ["--lines", "5"], "lines 5 are not in the text; it has lines 1-4."),
        (BOARD, ["--lines", "x"], "lines 'x' cannot be read; write 10-20, or 10."),
        (BOARD, ["--range", "0:99"], "range 0:99 is not in the text; it has bytes 0:28."),
        ("é".encode(), ["--range", "0:1"], "byte 1 is inside a character; move the range's edge."),
        (b"a\r\n", ["--range", "0:2"], "byte 2 is inside a line break; move the range's edge."),
        (BOARD, ["--pattern", "E"], "pattern 'E' does not occur in the text; correct it."),
        (BOARD, ["--pattern", "["], "pattern '[' is no regular expression"),
        (BOARD, ["--lines", "1-2", "--lines", "2-3"], "overlap; choose them apart."),
        (BOARD, [], "nothing is chosen to change; give --lines, --range or --pattern."),
        (BOARD, ["--instruction", " "], 'there is no instruction; say what to do: --instruction "'),
        (BOARD, ["--strength", "0"], "--strength is 0.0; it must be above 0 and at most 1."),
        (BOARD, ["--strength", "nan"], "--strength is nan; it must be above 0 and at most 1."),
        (
            BOARD,
            ["--strength", ".5", "--length", "3"],
            "keeps the length of a text; drop --length.",
        ),
        (BOARD, ["--strength", ".5", "--draws", "3"], "here they are given; drop it."),
        (BOARD, ["--length", "3", "--draws", "3"], "here they are given; drop it."),
        (BOARD, ["--length", "0"], "--length is 0; it must be 1 or more."),
        (BOARD, ["--max-tokens", "9"], "--max-tokens does not change how holes are filled"),
        (BOARD, ["--think"], "--think does not change how holes are filled"),
        (BOARD, ["--system", "x"], "(say it in --instruction); drop it."),
    ],
)
def test_one_line_and_exit_1(
    editor: Editor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    arguments: list[str],
    message: str,
) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    assert edit(file, *arguments, "--write") == 1
    assert message in one_line(capsys).replace(str(file), "FILE")
    assert editor.asked == []
    assert os.listdir(tmp_path) == ["a.txt"]


def test_files_that_cannot_be_read(
    editor: Editor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert edit(tmp_path / "no.txt", "--lines", "1") == 1
    assert one_line(capsys) == f"there is no file '{tmp_path / 'no.txt'}'; check the path."
    assert edit(tmp_path, "--lines", "1") == 1
    assert one_line(capsys) == f"{tmp_path} is a folder; name a file in it."

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert edit("a.txt", "--lines", "1") == 1
    assert one_line(capsys) == "a.txt cannot be read (Permission denied); change that."


def test_files_that_cannot_be_written(
    editor: Editor,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin_of(ODD))
    assert edit("-", "--lines", "1", "--write") == 1
    assert one_line(capsys).startswith("--write needs a file, and - is stdin; name one, or drop")
    pipe = file.with_name("pipe")
    os.mkfifo(pipe)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: ODD)
        assert edit(pipe, "--lines", "1", "--write") == 1
    assert one_line(capsys) == f"{pipe} is not a regular file; drop --write."
    monkeypatch.setattr(os, "access", lambda path, how: path != file)
    assert edit(file, "--lines", "1", "--write") == 1
    assert one_line(capsys).endswith(
        "or its folder may not be written; change that, or drop --write."
    )
    assert editor.asked == []


def test_a_full_disk_changes_nothing(
    editor: Editor,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dg_mlx.cli.files.sync", fail)
    assert edit(file, "--lines", "1", "--write") == 1
    assert "cannot be written (No space left on device), and is as it was" in one_line(capsys)
    assert file.read_bytes() == ODD
    assert os.listdir(file.parent) == [file.name]


def test_a_file_that_changes_meanwhile_is_left_alone(
    editor: Editor, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit_slowly(*arguments: Any) -> Iterator[Any]:
        file.write_text("other")
        return editor.edit(*arguments)

    monkeypatch.setattr("dg_mlx.edit.edit", edit_slowly)
    assert edit(file, "--lines", "1", "--write") == 1
    assert one_line(capsys).endswith("was changed by another program meanwhile; run it again.")
    assert file.read_text() == "other"


def test_ctrl_c_leaves_the_file(
    editor: Editor, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor.fill = KeyboardInterrupt()
    assert edit(file, "--lines", "1", "--write") == 130
    assert os.listdir(file.parent) == [file.name]

    def interrupt(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    editor.fill = "NEW"
    assert edit(file, "--lines", "1", "--write") == 130
    assert sorted(os.listdir(file.parent)) == ["odd.txt", "odd.txt.bak"]
    assert {path.read_bytes() for path in file.parent.iterdir()} == {ODD}


def test_a_byte_outside_that_changed_is_a_bug(
    editor: Editor, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(engine: Any, text: str, spans: Any, change: Any) -> Iterator[Any]:
        yield Edited(text=text.replace("\r\n", "\n"), fills=("one",), spans=())

    monkeypatch.setattr("dg_mlx.edit.edit", careless)
    with pytest.raises(AssertionError):
        edit(file, "--lines", "1", "--write")
    assert file.read_bytes() == ODD


@pytest.mark.parametrize("pair", [("--diff", "--write"), ("--write", "--check")])
def test_one_form_at_a_time(
    file: Path, capsys: pytest.CaptureFixture[str], pair: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit) as left:
        edit(file, "--lines", "1", *pair)
    assert left.value.code == 2
    assert f"{pair[1]}: not allowed with argument {pair[0]}" in capsys.readouterr().err


# What the model is asked -------------------------------------------------------------------------


def test_options_reach_the_edit(editor: Editor, file: Path) -> None:
    how = "--length 3 --seed 4 --steps 9 --canvas 2 --t-max .9"
    edit(file, "--lines", "5", *how.split())
    edit(file, "--lines", "1", "--strength", "0.25")
    edit(file, "--lines", "1", "--draws", "2")
    (text, spans, long), (_, _, weak), (_, _, often) = editor.asked
    assert text == ODD.decode().removeprefix("\ufeff")
    assert spans == [Span(len(text) - 4, len(text))]
    assert (long.instruction, long.length, long.seed, long.strength) == ("Do it:", 3, 4, 1.0)
    assert long.settings is not None
    assert (long.settings.max_denoising_steps, long.settings.canvas_length) == (9, 2)
    assert long.settings.t_max == 0.9
    assert (weak.strength, weak.length, weak.draws) == (0.25, None, 4)
    assert (often.draws, often.length) == (2, None)


def test_a_terminal_is_told_how_far_it_is(
    editor: Editor, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    assert edit(file, "--lines", "1") == 0
    clear = "\r\x1b[2K"
    assert screen.getvalue() == f"{clear}reading{clear}block 1 · step 1 of at most 3{clear}"
    screen.truncate(0)
    editor.fill = KeyboardInterrupt()
    assert edit(file, "--lines", "1") == 130
    assert screen.getvalue().endswith(clear)


def test_nano(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    monkeypatch.setattr(sys, "stdin", stdin_of(BOARD.replace(b"\n", b"\r\n")))
    arguments = ["--model", "nano", "--pattern", r"\.", "--length", "1", "--instruction", "Solve:"]
    assert cli.main(["edit", "-", *arguments]) == 0
    assert capsysbinary.readouterr().out == BOARD.replace(b".", b"4").replace(b"\n", b"\r\n")


@pytest.mark.parametrize("verb", ["edit", "infill", "decide"])
def test_help_shows_an_example_and_needs_no_mlx(verb: str) -> None:
    program = (
        "import sys; from dg_mlx.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(' '.join({'mlx', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, verb, "--help"], capture_output=True, text=True
    )
    assert done.stderr.strip() == ""
    assert re.search(f"\nexamples:\n  dg-mlx {verb} ", done.stdout)
    for option in ("--max-tokens", "--think"):
        assert option not in done.stdout
