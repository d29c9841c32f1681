"""`dg-mlx infill`: what it takes for a text, what it asks, and what it gives back."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import dg_mlx
from dg_mlx import cli
from dg_mlx.cli.infill import INSTRUCTION, _table
from dg_mlx.engine import Engine
from dg_mlx.infill import MARK, split
from dg_mlx.lengths import Lengths

BOARD = r"A 1.34\nB .412\nC 21.3\nD 43.1"
SOLVED = "A 1234\nB 3412\nC 2143\nD 4321"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return dg_mlx.load("nano")


@pytest.fixture
def asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Nano, loaded already; the prompts that it is given."""
    prompts: list[Any] = []
    encode = engine.processor.encode

    def noted(messages: Any, **options: Any) -> Any:
        prompts.append(messages)
        return encode(messages, **options)

    monkeypatch.setattr(dg_mlx, "load", lambda name, **_: engine, raising=False)
    monkeypatch.setattr(engine.processor, "encode", noted)
    monkeypatch.setattr(sys, "stdin", None)
    return prompts


def infill(*arguments: str) -> int:
    return cli.main(["infill", "--model", "nano", *arguments])


def quick(*arguments: str) -> int:
    return infill("--steps", "2", "--length", "2", *arguments)


def test_a_board_is_completed(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert infill("--mark", ".", "--length", "1", "--instruction", "", BOARD) == 0
    assert capsys.readouterr() == (SOLVED + "\n", "")
    assert asked == [BOARD.replace(r"\n", "\n")]


def test_json(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    how = ("--mark", ".", "--length", "1", "--instruction", "", "--json")
    assert infill(*how, BOARD) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == SOLVED
    assert found["fills"] == ["2", "3", "4", "2"]
    assert found["lengths"] == [1, 1, 1, 1]
    assert found["confidence"] == [{}, {}, {}, {}]
    assert found["stats"]["steps"] >= 1


def test_lengths_are_found_and_shown(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    text = "A 1234\nB <fill>"
    assert infill("--draws", "1", "--steps", "2", "--lengths", "--json", text) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    (length,), (tried,), (fill,) = found["lengths"], found["confidence"], found["fills"]
    assert max(tried, key=tried.get) == str(length)
    assert found["text"] == text.replace("<fill>", fill)
    head, *rows = shown.err.splitlines()
    assert head == "hole  tokens    score (nats)"
    assert [row.split()[:2] for row in rows] == [["1", tokens] for tokens in tried]
    (best,) = [row for row in rows if row.endswith("*")]
    assert best.split()[1] == str(length)


def test_the_table_of_given_lengths() -> None:
    lengths = Lengths(chosen=(3, 12), confidence=({}, {9: -7.125, 12: -3.5}))
    assert _table(lengths) == (
        "hole  tokens    score (nats)\n"
        "   1       3  as given\n"
        "   2       9           -7.12\n"
        "   2      12           -3.50  *"
    )


def test_lengths_of_each_hole(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert infill("--steps", "2", "--length", "1", "--length", "5", "--json", "a<fill>b<fill>") == 0
    assert json.loads(capsys.readouterr().out)["lengths"] == [1, 5]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (r"a\n\tb <fill>", "a\n\tb "),
        (r"a\\n \\\t \d <fill>", "a\\n \\\t \\d "),
        ("a\nb <fill>", "a\nb "),
    ],
)
def test_escapes_of_the_argument(
    asked: list[Any], capsysbinary: pytest.CaptureFixture[bytes], given: str, text: str
) -> None:
    assert quick(given) == 0
    assert capsysbinary.readouterr().out.startswith(text.encode())
    assert asked == [f"{INSTRUCTION.format(mark=MARK)}\n{text}<fill>"]


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_files_and_stdin_are_taken_as_they_are(
    asked: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
    way: str,
) -> None:
    before, after = "\ufeffa\\n\r\n\U0001f44d ".encode(), b"\tb\r\n\r\nc"
    (tmp_path / "a.txt").write_bytes(before + b"[]" + after)
    if way == "stdin":
        data = io.BytesIO((tmp_path / "a.txt").read_bytes())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data, encoding="utf-8"))
    named = ["--file", str(tmp_path / "a.txt")] if way == "file" else []
    assert quick("--mark", "[]", "--instruction", "Do it:", *named) == 0
    out = capsysbinary.readouterr().out
    assert out.startswith(before) and out.endswith(after)
    assert asked == ["Do it:\na\\n\n\U0001f44d []\tb\n\nc"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a b"], "there is no <fill> in the text; write it where something is missing."),
        (["--mark", "_", "a <fill>"], "there is no _ in the text; write it where"),
        ([], "there is no <fill> in the text"),
        (["--mark", "", "a"], "--mark is empty; give the text that marks a hole."),
        (["--length", "0", "<fill>"], "--length is 0; it must be 1 or more."),
        (
            ["--length", "1", "--length", "2", "<fill>"],
            "--length is given 2 times, and the text has 1 holes; give it once, or for each.",
        ),
        (["--length", "1", "--draws", "2", "<fill>"], "here they are given; drop it."),
        (["--max-tokens", "1", "<fill>"], "--max-tokens does not change how holes are filled"),
        (["--file", "/no/such"], "there is no file '/no/such'; check the path."),
        (["--file", "/"], "/ is a folder; name a file in it."),
    ],
)
def test_one_line_and_exit_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infill(*arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("dg-mlx: ") and shown.err.count("\n") == 1
    assert message in shown.err


def test_what_does_not_fit(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert infill("--canvas", "999", "--length", "1", "<fill>") == 1
    assert "canvas is 999; this checkpoint allows" in capsys.readouterr().err
    assert infill("--draws", "0", "<fill>") == 1
    assert "draws is 0; it must be 1 or more." in capsys.readouterr().err
    assert infill("--length", "1", "<eos><fill>") == 1
    assert "the text has the control token <eos>; take it out." in capsys.readouterr().err


def test_text_or_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        infill("<fill>", "--file", "a.txt")
    assert left.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_help_names_the_mark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        infill("--help")
    assert f"(default: {MARK})" in capsys.readouterr().out


def test_marks() -> None:
    first, one, between, other, last = split("a<fill><fill>b")
    assert (first, between, last) == ("a", "", "b")
    assert one == other
