"""How far an answer's tokens can be trusted, as `dg-mlx generate` shows it."""

import io
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import fakes
import numpy as np
import pytest

import dg_mlx
from dg_mlx import cli
from dg_mlx.cli import trust as drawing
from dg_mlx.cli.trust import Piece, explained
from dg_mlx.events import Committed, Done, Event, Prefilled, Reply, Trust
from dg_mlx.processor.reply import ControlTokens, ReplyParser

END, THINK, THOUGHT, CALL, CALLED = 1, 2, 3, 4, 5
BYTE = 0x2000
"""Plus its value: the token of a byte."""
MARK = re.compile(r"\x1b\[48;5;(\d+);38;5;(\d+)m(.*?)\x1b\[0m")


def trust(*probabilities: float) -> Trust:
    count = np.arange(len(probabilities), dtype=np.int32)
    return Trust(
        probability=np.array(probabilities, np.float32),
        entropy=1 - np.array(probabilities, np.float32),
        settled=count,
        changes=count % 2,
    )


def draw(texts: list[str], *probabilities: float, shaded: bool = False) -> str:
    pieces = [Piece(text=text, position=at) for at, text in enumerate(texts)]
    return explained(pieces, trust(*probabilities), shaded=shaded)


class Tokenizer:
    """Ids are code points; those from `BYTE` are bytes, and the first few are control tokens."""

    control: ClassVar = {
        "<|end|>": END,
        "<|channel>": THINK,
        "<channel|>": THOUGHT,
        "<|tool_call>": CALL,
        "<tool_call|>": CALLED,
    }
    all_special_ids: ClassVar = list(control.values())
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    eos_token_id = END

    def get_vocab(self) -> dict[str, int]:
        return self.control | {f"<0x{value:02X}>": BYTE + value for value in range(256)}

    def decode(self, ids: list[int], **_: Any) -> str:
        spelled = (bytes([i - BYTE]) if i >= BYTE else chr(i).encode() for i in ids if i > CALLED)
        return b"".join(spelled).decode(errors="replace")


class Processor:
    """As much of a checkpoint's as drawing needs."""

    control = ControlTokens.of(Tokenizer())

    def piece(self, token: int) -> str:
        return f"<{token}>" if token in self.control.special else Tokenizer().decode([token])

    def reply(self, *, thinking_open: bool = False) -> ReplyParser:
        return ReplyParser(Tokenizer(), self.control, thinking_open=thinking_open)


class Engine(fakes.FakeEngine):
    """Answers with the ids and probabilities it is given, in one block."""

    processor = Processor()

    def __init__(self, ids: list[int], *probabilities: float, thinking_open: bool = False) -> None:
        super().__init__()
        self._ids, self._trust, self._open = ids, trust(*probabilities), thinking_open

    def stream(self, messages: Any, **options: Any) -> Iterator[Event]:
        parser = self.processor.reply(thinking_open=self._open)
        parser.feed(self._ids)
        parser.finish()
        yield Prefilled(tokens=7, cached=0, seconds=0.5)
        yield self._draft(0, 1, self.settings)
        yield Committed(
            block=0,
            ids=self._ids,
            text=parser.text,
            thought=parser.thought,
            trust=self._trust,
        )
        yield Done(reason="end", stats=fakes.stats(len(self._ids)), tool_calls=parser.tool_calls)


def ids(text: str) -> list[int]:
    return [ord(char) for char in text]


def spelled(text: str) -> list[int]:
    return [BYTE + byte for byte in text.encode()]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs generate with an engine."""
    monkeypatch.setattr(sys, "stdin", None)

    def run(engine: Engine, *arguments: str) -> int:
        monkeypatch.setattr(dg_mlx, "load", lambda name, **_: engine, raising=False)
        return cli.main(["generate", "--model", "x", *arguments, "hi"])

    return run


# Drawing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "chances", "answer"),
    [
        (["all ", "sure"], (1, 0.995), "all sure\n"),
        (["a", " word"], (0.9, 0.62), "a word[0.62]\n"),
        (["one", "\n", "two"], (0.5, 1, 1), "one[0.50]\ntwo\n"),
        (["one", "\n\n", "two"], (1, 0.5, 1), "one\\n\\n[0.50]\n\ntwo\n"),
        (["one,\n", "two\n"], (0.5, 0.4), "one,[0.50]\ntwo[0.40]\n"),
        (["\x1b[2m"], (0.1,), "␛[2m[0.10]\n"),
    ],
)
def test_marks(texts: list[str], chances: tuple[float, ...], answer: str) -> None:
    shown, rest = draw(texts, *chances).split("\n[0.00]: ")
    assert shown == answer
    assert rest.startswith("the probability of the token before it, where it is below 0.90\n")


def test_shades_get_darker_with_doubt() -> None:
    text = draw(list("abcdef"), 1.0, 0.95, 0.8, 0.6, 0.2, 0.0, shaded=True)
    answer, legend = text.split("\n\n")
    shades = MARK.findall(answer)
    assert "".join(letter for *_, letter in shades) == "abcdef"
    greys = [int(background) for background, *_ in shades]
    assert greys[:5] == sorted(set(greys), reverse=True) and greys[4] == greys[5]
    for background, ink, _ in shades:  # 232 is black, 255 almost white; so are 16 and 231
        assert 232 <= int(background) <= 255
        assert ink == ("16" if int(background) > 244 else "231")
    explains = MARK.findall(legend)
    assert [int(background) for background, *_ in explains] == greys[:5]
    assert [words.strip() for *_, words in explains] == [
        "0.99+", "0.90+", "0.70+", "0.50+", "below 0.50",
    ]  # fmt: skip


def test_shades_end_with_the_line() -> None:
    answer = draw(["a\nb", "\n", "\n", "\x1b[2J"], 0.6, 1, 0.6, 1, shaded=True)
    for line in answer.splitlines():
        assert "\x1b" not in MARK.sub("", line)
    plain = MARK.sub(r"\3", answer)
    assert plain.startswith("a\nb\n\\n\n␛[2J\n\nprobability: ")


def test_the_least_certain_come_in_a_table() -> None:
    lines = draw(list("abcdefgh"), 0.5, 0.98, 0.3, 1, 0.99, 0.4, 0.6, 0.7).splitlines()
    head, *rows = lines[-6:]
    assert head == "least certain  probability  entropy (nats)  passes settled  changes  token"
    assert rows[0] == ("position 2           0.300           0.700               2        0  'c'")
    assert [row.split()[1] for row in rows] == ["2", "5", "0", "6", "7"]


def test_nothing_doubtful_and_nothing_at_all() -> None:
    assert draw(["a"], 0.99).endswith("\nevery token has a probability of 0.99 or more\n")
    assert explained([], trust(), shaded=True) == ""


@pytest.mark.parametrize(
    ("variable", "value", "shaded"),
    [
        ("TERM", "xterm", True),
        ("NO_COLOR", "", True),
        ("NO_COLOR", "1", False),
        ("TERM", "dumb", False),
    ],
)
def test_shades_are_for_terminals(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, shaded: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not drawing.shades()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert drawing.shades() == shaded


# What is visible ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "thinking_open", "texts"),
    [
        ([*ids("ab"), END], False, ["a", "b"]),
        ([*ids("a"), *spelled("b"), *ids("c"), END], False, ["a", "b", "c"]),
        ([*ids("a"), *spelled("é👍"), *ids("b"), END], False, ["a", "é👍b"]),
        ([*ids("a"), *spelled("é"), END], False, ["a", "é"]),
        ([*ids("a"), *spelled("é")[:1]], False, ["a", "\ufffd"]),
        ([THINK, *ids("thought\nhm\n"), THOUGHT, *ids("a"), END], False, ["a"]),
        ([*ids("hm\n"), THOUGHT, *ids("a"), END], True, ["a"]),
        ([*ids("hm")], True, []),
        ([*ids("a"), CALL, *ids("call:f{}"), CALLED, *ids("b"), END], False, ["a", "b"]),
        ([CALL, *ids("x"), CALLED, *ids("b"), END], False, ["x", "b"]),
        ([*spelled("é"), CALL, *ids("call:f{}"), CALLED, END], False, ["é"]),
        ([END], False, []),
    ],
)
def test_pieces_are_the_visible_answer(
    given: list[int], thinking_open: bool, texts: list[str]
) -> None:
    processor = Processor()
    parser = processor.reply(thinking_open=thinking_open)
    parser.feed(given)
    parser.finish()
    stats, chances = fakes.stats(len(given)), trust(*[1.0] * len(given))
    reply = Reply(text=parser.text, ids=given, reason="end", stats=stats, trust=chances)
    pieces = drawing.visible(reply, processor)
    assert [piece.text for piece in pieces] == texts
    assert "".join(texts) == parser.text


def test_a_letter_of_several_tokens_is_as_certain_as_the_least_of_them() -> None:
    given, chances = [*ids("a"), *spelled("é"), *ids("b")], trust(0.1, 1, 0.6, 0.9)
    reply = Reply(text="aéb", ids=given, reason="length", stats=fakes.stats(4), trust=chances)
    assert drawing.visible(reply, Processor()) == [
        Piece(text="a", position=0),
        Piece(text="éb", position=2),
    ]


# The options -------------------------------------------------------------------------------------


def test_explain(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine([THINK, *ids("hm"), THOUGHT, *ids("ok!"), END], 1, 1, 1, 1, 1, 0.4, 1, 0.2)
    assert generate(engine, "--explain", "--stats", "--think") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("ok[0.40]!\n\n[0.00]: ")
    assert "position 5 " in shown.out and "position 7" not in shown.out
    assert shown.err.startswith("thought: hm\n8 tokens in 2 steps")


def test_explain_with_a_call_and_without_text(
    generate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [CALL, *ids("call:f{}"), CALLED]
    assert generate(Engine(call, *[0.5] * len(call)), "--explain") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["function"]["name"] == "f"
    assert generate(Engine([END], 0.5), "--explain") == 0
    shown = capsys.readouterr()
    assert shown.out == "" and "empty answer" in shown.err


def test_explain_on_a_terminal(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    generate(Engine([*ids("a\x1bb"), END], 1, 0.3, 0.6, 1), "--explain")
    answer = screen.getvalue().splitlines()[0]
    assert [text for *_, text in MARK.findall(answer)] == ["a", "␛", "b"]


def test_explain_has_its_own_form(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine([END], 1)
    with pytest.raises(SystemExit) as left:
        generate(engine, "--explain", "--json")
    assert left.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
    assert generate(engine, "--explain", "--stream") == 1
    assert capsys.readouterr().err == (
        "dg-mlx: --explain shows the answer as a whole; drop --stream.\n"
    )


def test_json_has_the_trust_of_each_token(
    generate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(Engine([*ids("o"), *spelled("é"), END], 1 / 3, 1, 0.9, 0.25), "--json")
    reply = json.loads(capsys.readouterr().out)
    assert reply["text"] == "oé"
    assert [token["id"] for token in reply["trust"]] == reply["ids"]
    assert [token["text"] for token in reply["trust"]] == ["o", "\ufffd", "\ufffd", "<1>"]
    first = {"probability": 0.333333, "entropy": 0.666667, "settled": 0, "changes": 0}
    assert reply["trust"][0] == {"id": ord("o"), "text": "o", **first}
    assert reply["trust"][2]["probability"] == 0.9
    assert reply["trust"][3]["settled"] == 3


def test_json_events_have_lists(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    generate(Engine([*ids("o"), END], 1 / 3, 1), "--json", "--stream")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    _, draft, committed, done, reply = lines
    assert [line["event"] for line in lines] == [
        "prefilled", "draft", "committed", "done", "reply",
    ]  # fmt: skip
    assert draft["trust"] == {
        "probability": [1, 1, 1, 1],
        "entropy": [0, 0, 0, 0],
        "settled": [0, 0, 0, 0],
        "changes": [0, 0, 0, 0],
    }
    assert draft["frozen"] == [False] * fakes.CANVAS
    assert draft["entropy"] == [0, 0.333333, 0.666667, 1]
    assert committed["trust"]["probability"] == [0.333333, 1]
    assert committed["ids"] == [ord("o"), END]
    assert done["stats"]["tokens_per_step"] == 1
    assert [token["changes"] for token in reply["trust"]] == [0, 1]
