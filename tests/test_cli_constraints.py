"""`dg-mlx generate` with a constraint or pins: what nano then answers, and what cannot be."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dg_mlx
from dg_mlx import cli
from dg_mlx.cli import options
from dg_mlx.engine import Engine

PUZZLE = "A 1.3.\nB .41.\nC ....\nD ..21"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return dg_mlx.load("nano")


@pytest.fixture
def nano(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that generate finds loaded."""
    monkeypatch.setattr(dg_mlx, "load", lambda name, **_: engine, raising=False)
    monkeypatch.setattr(sys, "stdin", None)


def generate(*arguments: str) -> int:
    return cli.main(["generate", "--model", "nano", "--steps", "4", *arguments, PUZZLE])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("dg-mlx: ") and shown.err.count("\n") == 1
    return shown.err


# Constraints -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize(
    ("choices", "answers"),
    [
        ("yes,no", ["yes", "no"]),
        ("maybe, yes", ["maybe", "yes"]),
        (r"no\, never", ["no, never"]),
        ("A 1234\nB 3412,A 4321\nB 2143", ["A 1234\nB 3412", "A 4321\nB 2143"]),
    ],
)
def test_choices(choices: str, answers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--choices", choices) == 0
    assert capsys.readouterr().out.removesuffix("\n") in answers


@pytest.mark.usefixtures("nano")
def test_regex(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--regex", "A [1-4]{4}(, B [1-4]{4})?") == 0
    assert re.fullmatch("A [1-4]{4}(, B [1-4]{4})?\n", capsys.readouterr().out)


@pytest.mark.usefixtures("nano")
def test_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    (tmp_path / "ok.json").write_text(json.dumps(schema))
    assert generate("--schema", str(tmp_path / "ok.json")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer in ({"ok": True}, {"ok": False})


@pytest.mark.usefixtures("nano")
def test_any_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--any-json", "--max-tokens", "24") == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict | list)


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regex", "(A"], "(A"),
        (["--choices", "yes,,no"], "a choice is empty; give one or more texts."),
        (["--choices", "yes", "--max-tokens", "1"], "raise max_new_tokens (--max-tokens) to"),
        (["--choices", "yes,no", "--pin", "0=A"], "change one of them."),
    ],
)
def test_what_cannot_be_met(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*arguments) == 1
    assert message in one_line(capsys)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); give a file with a JSON Schema."),
        (b"{'type': 1}", "is not JSON ("),
        (b"\xff\xfe", "is not JSON ("),
    ],
)
def test_a_schema_that_cannot_be_read(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    assert generate("--schema", str(path)) == 1
    assert f"--schema {path} {message}" in one_line(capsys)


def test_one_constraint_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        generate("--any-json", "--regex", "a")
    assert left.value.code == 2
    assert "--regex: not allowed with argument --any-json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("yes,no", ["yes", "no"]),
        (" yes , no ", ["yes", "no"]),
        (r"a\,b,c", ["a,b", "c"]),
        ("a\n,\tb", ["a\n", "\tb"]),
        (r"C:\dir,\n", [r"C:\dir", r"\n"]),
    ],
)
def test_how_choices_are_written(given: str, texts: list[str]) -> None:
    assert options.choices_of(given) == texts


# Pins --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize(
    ("pins", "start"),
    [
        (["2=4"], "A 4"),
        (["0=A 43", "7=B 2"], "A 43"),
        (["2=4", "2=4"], "A 4"),
        (["0=a=b"], "a=b"),
        ([r"0=\n"], r"\n"),
    ],
)
def test_pins(pins: list[str], start: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--json", *(word for pin in pins for word in ("--pin", pin))) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["text"].startswith(start)
    pieces = [token["text"] for token in reply["trust"]]
    for pin in pins:
        position, _, text = pin.partition("=")
        assert "".join(pieces[int(position) :]).startswith(text)
        assert reply["trust"][int(position)]["probability"] == 1


@pytest.mark.usefixtures("nano")
def test_a_pin_within_a_constraint(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--regex", "A [1-4]{4}", "--pin", "5=4", "--pin", "2=3") == 0
    assert re.fullmatch("A 3[1-4][1-4]4\n", capsys.readouterr().out)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("pins", "message"),
    [
        (["yes"], "--pin is 'yes'; write a token's position, =, and the text that begins there:"),
        (["=yes"], "--pin is '=yes'; write"),
        (["3="], "--pin is '3='; write"),
        (["a=b"], "--pin is 'a=b'; write"),
        (["1.5=b"], "--pin is '1.5=b'; write"),
        (["²=b"], "--pin is '²=b'; write"),
        (["-1=b"], "--pin is '-1=b'; write"),
        (["2=a", "2=b"], "--pin gives position 2 the texts 'a' and 'b'; keep one of them."),
    ],
)
def test_bad_pins(pins: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(*(f"--pin={pin}" for pin in pins)) == 1
    assert message in one_line(capsys)


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pin", "0=12", "--pin", "1=3"], "position 1 is pinned to"),
        (["--pin", "9=1", "--max-tokens", "9"], "position 9 is pinned, and the answer has 0..8;"),
        (["--pin", "0=<turn|>"], "cannot spell"),
    ],
)
def test_pins_that_cannot_be_held(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*arguments) == 1
    assert message in one_line(capsys)


# The library -------------------------------------------------------------------------------------


def test_help_needs_no_mlx() -> None:
    program = (
        "import sys; from dg_mlx.cli import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(' '.join({'mlx', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    for option in ("--schema", "--regex", "--choices", "--any-json", "--pin", "--explain"):
        assert option in done.stdout


def test_names() -> None:
    assert dg_mlx.Constraint.choices(["a", "b"]).pattern == "a|b"
    assert dg_mlx.Pins(fixed={0: 1}).fixed == {0: 1}
    assert dg_mlx.Trust.joined([]).probability.shape == (0,)
    for name in ("ConstraintError", "PinError"):
        assert issubclass(getattr(dg_mlx, name), dg_mlx.DGError)
