"""`dg-mlx decide`: what it asks, how it shows probabilities, and what it cannot decide."""

import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import pytest

import dg_mlx
from dg_mlx import cli
from dg_mlx.ballot import Ballot
from dg_mlx.cli.decide import _row, _shown
from dg_mlx.decide import Decision, Field

UNSURE = Field(
    probabilities={"no": 0.0672, "yes": 0.9312, "per\nhaps": 0.0016},
    errors={"no": 0.02, "yes": 0.0219, "per\nhaps": 0.0},
    entropy=0.254,
)
SINGLE = Field(
    probabilities={"a": 0.25, "b": 0.75}, errors={"a": math.nan, "b": math.nan}, entropy=0.5
)
"""From one draw."""


class Engine(fakes.FakeEngine):
    """Notes what it is asked to decide."""

    def __init__(self, *fields: Field) -> None:
        super().__init__()
        names = ["answer"] if len(fields) == 1 else [f"field {i}" for i in range(len(fields))]
        self.decision = Decision(fields=dict(zip(names, fields, strict=True)), seconds=0.5)
        self.interrupt_after = math.inf

    def decide(self, messages: Any, **options: Any) -> Decision:
        self.asked.append({"messages": messages, **options})
        return self.decision

    def decide_all(self, prompts: Any, **options: Any) -> Iterator[Decision]:
        self.asked = [{"messages": messages, **options} for messages in prompts]
        for number in range(len(self.asked)):
            if number >= self.interrupt_after:
                raise KeyboardInterrupt
            yield self.decision


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine that decide loads."""
    engine = Engine(UNSURE)
    monkeypatch.setattr(dg_mlx, "load", lambda name, **_: engine, raising=False)
    monkeypatch.setattr(sys, "stdin", None)
    return engine


def decide(*arguments: str) -> int:
    return cli.main(["decide", "--model", "nano", *arguments])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("dg-mlx: ") and shown.err.count("\n") == 1
    return shown.err


def schema_file(folder: Path, properties: Any) -> str:
    path = folder / "schema.json"
    path.write_text(json.dumps({"properties": properties}), encoding="utf-8")
    return str(path)


# What is shown -----------------------------------------------------------------------------------


def test_the_likeliest_comes_first(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert decide("Spam?", "--choices", "no,yes,perhaps") == 0
    assert capsys.readouterr() == (
        "yes        0.93 ± 0.02\n"
        "no         0.07 ± 0.02\n"
        "per\\nhaps  0.00 ± 0.00\n"
        "entropy 0.25 nats\n",
        "",
    )


def test_fields_have_names() -> None:
    assert _shown(Engine(UNSURE, SINGLE).decision) == (
        "field 0\n"
        "  yes        0.93 ± 0.02\n"
        "  no         0.07 ± 0.02\n"
        "  per\\nhaps  0.00 ± 0.00\n"
        "  entropy 0.25 nats\n"
        "field 1\n"
        "  b  0.75\n"
        "  a  0.25\n"
        "  entropy 0.50 nats\n"
    )


def test_json(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.decision = Engine(UNSURE, SINGLE).decision
    assert decide("Spam?", "--choices", "a,b", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] == 0.5
    assert found["fields"]["field 0"] == {
        "best": "yes",
        "probabilities": dict(UNSURE.probabilities),
        "errors": dict(UNSURE.errors),
        "entropy": 0.254,
    }
    assert found["fields"]["field 1"]["errors"] == {"a": None, "b": None}


# What is asked -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "piped", "question"),
    [
        (["Spam?"], "", "Spam?"),
        ([], "Spam?\n", "Spam?"),
        (["Spam?"], "You won!\n", "Spam?\n\nYou won!"),
    ],
)
def test_question_and_stdin(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    piped: str,
    question: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
    assert decide("--choices", "yes,no", *arguments) == 0
    assert engine.asked == [
        {
            "messages": [{"role": "user", "content": question}],
            "ballot": Ballot.of(["yes", "no"], None),
            "seed": 0,
        }
    ]


def test_options_reach_the_engine(engine: Engine, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.touch()
    how = ["--draws", "7", "--passes", "2", "--seed", "3", "--system", "be"]
    schema = schema_file(tmp_path, {"spam": {"type": "boolean"}})
    assert decide("Spam?", "--schema", schema, "--image", str(picture), *how) == 0
    (asked,) = engine.asked
    assert (asked["draws"], asked["passes"], asked["seed"]) == (7, 2, 3)
    assert asked["ballot"] == Ballot.of(None, {"properties": {"spam": {"type": "boolean"}}})
    system, user = asked["messages"]
    assert system == {"role": "system", "content": "be"}
    assert user["content"] == [
        {"type": "image", "image": str(picture)},
        {"type": "text", "text": "Spam?"},
    ]


def test_commas_in_choices(engine: Engine) -> None:
    assert decide("Well?", "--choices", r"no\, never, yes") == 0
    assert engine.asked[0]["ballot"].values == {"answer": ["no, never", "yes"]}


# A question for each line ------------------------------------------------------------------------

LINES = ["You won!", "  See you at eight\t", "\u00e9\u202e"]


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "lines.txt"
    path.write_bytes(("\ufeff" + "\r\n".join(LINES) + "\n\n").encode())
    return str(path)


def terminal(monkeypatch: pytest.MonkeyPatch, name: str) -> io.StringIO:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, name, screen)
    return screen


def test_a_row_for_each_line(
    engine: Engine, lines: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decide("Spam?", "--choices", "no,yes,perhaps", "--each", lines) == 0
    assert capsys.readouterr() == (
        "".join(f"yes        0.93 ± 0.02  {line}\n" for line in LINES),
        "",
    )
    assert [asked["messages"] for asked in engine.asked] == [
        [{"role": "user", "content": f"Spam?\n\n{line}"}] for line in LINES
    ]


def test_rows_of_a_schema() -> None:
    decision = Engine(UNSURE, SINGLE).decision
    assert _row(decision, "a b") == "field 0 yes        0.93 ± 0.02  field 1 b  0.75  a b\n"


def test_json_for_each_line(engine: Engine, lines: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert decide("Spam?", "--choices", "a,b", "--json", "--each", lines) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["line"], each["text"]) for each in found] == list(enumerate(LINES, start=1))
    assert all(each["fields"]["answer"]["best"] == "yes" for each in found)


@pytest.mark.parametrize("question", [[], ["Spam?"]])
def test_lines_from_stdin(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, question: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo")))
    assert decide(*question, "--choices", "yes,no", "--each", "-", "--system", "be") == 0
    before = "".join(f"{text}\n\n" for text in question)
    assert [asked["messages"] for asked in engine.asked] == [
        [{"role": "system", "content": "be"}, {"role": "user", "content": f"{before}{line}"}]
        for line in ("one", "two")
    ]


def test_what_is_piped_in_stands_before_each_line(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, lines: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"context\n")))
    picture = tmp_path / "a.png"
    picture.touch()
    assert decide("?", "--choices", "a,b", "--each", lines, "--image", str(picture)) == 0
    for asked, line in zip(engine.asked, LINES, strict=True):
        (user,) = asked["messages"]
        assert user["content"] == [
            {"type": "image", "image": str(picture)},
            {"type": "text", "text": f"?\n\ncontext\n\n{line}"},
        ]


def test_a_terminal_is_told_how_far_it_is(
    engine: Engine,
    lines: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = terminal(monkeypatch, "stderr")
    assert decide("?", "--choices", "a,b", "--each", lines) == 0
    clear = "\r\x1b[2K"
    shown = [f"{clear}{clear}{done} of 3 lines" for done in (1, 2, 3)]
    assert screen.getvalue() == f"{clear}reading{''.join(shown)}{clear}"
    assert capsys.readouterr().out.count("\n") == 3


def test_a_row_fits_a_terminal(engine: Engine, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    screen = terminal(monkeypatch, "stdout")
    assert decide("?", "--choices", "a,b", "--each", lines) == 0
    first, second, third = screen.getvalue().splitlines()
    assert first == "yes        0.93 ± 0.02  You won!"[:29] + "…"
    assert len(second) == 30
    assert third.endswith("é<U+202E>")


def test_ctrl_c_keeps_what_there_is(
    engine: Engine, lines: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.interrupt_after = 2
    assert decide("?", "--choices", "a,b", "--each", lines) == 130
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 2
    assert shown.err == "dg-mlx: stopped after 2 of 3 lines\n"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file 'FILE'; check the path."),
        (b"", "FILE is empty; write one text per line."),
        (b"\n\r\n", "FILE is empty; write one text per line."),
        (b"a\n \nb\n", "line 2 of FILE is empty; write one text per line."),
        (b"a\0", "FILE is a binary file; choose a text file."),
        (b"\xff\xfe", "FILE is not UTF-8 text (byte 0); convert it, or choose another file."),
    ],
)
def test_files_without_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    file = tmp_path / "lines.txt"
    if content is not None:
        file.write_bytes(content)
    assert decide("?", "--choices", "a,b", "--each", str(file)) == 1
    assert one_line(capsys) == f"dg-mlx: {message}\n".replace("FILE", str(file))


# What cannot be decided --------------------------------------------------------------------------


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--choices", "yes", "?"], "to decide takes two or more different choices; give more."),
        (["--choices", "yes,yes", "?"], "to decide takes two or more different choices;"),
        (["--choices", "yes,", "?"], "a choice is empty; give one or more texts."),
        (["--choices", "yes,no"], 'there is no question; write one: dg-mlx decide "…", or pipe'),
        (["--choices", "yes,no", "--image", "no.png"], "there is no image 'no.png'; check the"),
        (["--schema", "/no/such", "?"], "--schema /no/such cannot be read (No such file"),
    ],
)
def test_one_line_and_exit_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decide(*arguments) == 1
    assert message in one_line(capsys)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"name": {"type": "string"}}, "property 'name' can have any number of values; to decide"),
        ({"n": {"enum": []}}, "property 'n' can have any number of values; to decide, give it an"),
        ({}, "a schema to decide by needs properties; give each an enum."),
    ],
)
def test_schemas_without_a_few_values(
    tmp_path: Path, properties: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decide("?", "--schema", schema_file(tmp_path, properties)) == 1
    assert message in one_line(capsys)


def test_stdin_that_is_no_text(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert decide("--choices", "yes,no", "Spam?") == 1
    assert "stdin is not UTF-8 text (byte 0); convert it" in one_line(capsys)


@pytest.mark.parametrize("arguments", [["?"], ["?", "--choices", "a,b", "--schema", "x"]])
def test_choices_or_a_schema(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        decide(*arguments)
    assert left.value.code == 2
    assert "--schema" in capsys.readouterr().err


# With a model ------------------------------------------------------------------------------------


def test_nano_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nano = dg_mlx.load("nano")
    monkeypatch.setattr(dg_mlx, "load", lambda name, **_: nano, raising=False)
    monkeypatch.setattr(sys, "stdin", None)
    assert decide("A 1.3.", "--choices", "1234,1432,x", "--json") == 0
    (field,) = json.loads(capsys.readouterr().out)["fields"].values()
    assert sum(field["probabilities"].values()) == pytest.approx(1)
    assert set(field["errors"]) == {"1234", "1432", "x"}
    properties = {"spam": {"type": "boolean"}, "kind": {"enum": [1, "1", "\u00e9"]}}
    schema = schema_file(tmp_path, properties)
    assert decide("A 1.3.", "--schema", schema, "--draws", "1", "--passes", "2", "--json") == 0
    fields = json.loads(capsys.readouterr().out)["fields"]
    assert set(fields["spam"]["probabilities"]) == {"true", "false"}
    assert set(fields["kind"]["probabilities"]) == {"1", '"1"', '"é"'}
    for field in fields.values():
        assert sum(field["probabilities"].values()) == pytest.approx(1)
        assert set(field["errors"].values()) == {None}
    texts = tmp_path / "texts.txt"
    texts.write_text("A 1.3.\nB .41.\n")
    each = ("--choices", "1234,1432", "--each", str(texts), "--json")
    assert decide(*each) == 0
    assert [json.loads(line)["line"] for line in capsys.readouterr().out.splitlines()] == [1, 2]
    texts.write_text("A\n" + "long" * 40_000)
    assert decide(*each) == 1
    assert "prompt 2 of 2: the prompt has 16" in one_line(capsys)
    for wrong in ("--draws", "--passes"):
        assert decide("?", "--choices", "a,b", wrong, "0") == 1
        assert f"{wrong[2:]} is 0; it must be 1 or more." in one_line(capsys)


def spelled(text: str) -> list[int]:
    """A token to a byte."""
    return list(text.encode())


def test_the_longest_answer_is_the_one_of_most_tokens() -> None:
    assert Ballot.of(["abcde", "漢字"], None).longest(spelled) == "漢字"
    assert Ballot.of(['""', "abc"], None).longest(spelled) == "abc"
    properties = {"a": {"enum": ["abcde", "漢字"]}, "b": {"type": "boolean"}}
    ballot = Ballot.of(None, {"properties": properties})
    assert json.loads(ballot.longest(spelled)) == {"a": "漢字", "b": False}


def test_values_that_look_alike_are_told_apart() -> None:
    properties = {"a": {"enum": [1, "1", None]}, "b": {"enum": [1, "x"]}}
    first, other = Ballot.of(None, {"properties": properties}).choices
    assert list(first.options) == ["1", '"1"', "null"]
    assert list(other.options) == ["1", "x"]
