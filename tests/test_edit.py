"""Edits in place: what is chosen changes, and every other byte stays."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dg_mlx
from dg_mlx.canvas.edit import (
    Span,
    in_order,
    line_of,
    of_bytes,
    of_lines,
    of_pattern,
    outside,
    plain,
    put,
    read_text,
)
from dg_mlx.edit import Change, Edited, edit
from dg_mlx.engine import Engine
from dg_mlx.errors import EditError, PinError, PromptError, SettingsError
from dg_mlx.events import Draft, Prefilled
from dg_mlx.settings import GenerationSettings

BOARD = "A 1234\nB 3412\nC 21.3\nD 4321\n"

TEXTS = st.lists(
    st.sampled_from(["a", "b b", "\t", "é", "漢", "👍\u200d", "\n", "\r\n", "\r", "\ufeff", ""])
    | st.text(max_size=3),
    max_size=12,
).map("".join)


@st.composite
def texts_and_spans(draw: Any) -> tuple[str, list[Span]]:
    """A text, and spans that split no line break."""
    text = draw(TEXTS)
    edges = [at for at in range(len(text) + 1) if text[max(0, at - 1) : at + 1] != "\r\n"]
    chosen = sorted(draw(st.lists(st.sampled_from(edges), max_size=6)))
    return text, [Span(start, end) for start, end in zip(chosen[::2], chosen[1::2], strict=False)]


def assert_outside_stays(text: str, spans: list[Span], new: str) -> None:
    """Byte by byte."""
    data, pieces = new.encode(), [piece.encode() for piece in outside(text, spans)]
    assert data.startswith(pieces[0])
    assert data.endswith(pieces[-1])
    at = 0
    for piece in pieces[:-1]:
        at = data.index(piece, at) + len(piece)
    assert at <= len(data) - len(pieces[-1])


# Where -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines", "chosen"),
    [
        ("a\nb\nc\n", "2", "b"),
        ("a\nb\nc\n", "2-3", "b\nc"),
        ("a\nb\nc", "3", "c"),
        ("a\r\nb\r\nc", "1-2", "a\r\nb"),
        ("a\n\n\nb\n", "1-2", "a\n"),
        ("a\r\n\r\nb", "1-2", "a\r\n"),
        ("a\n\nb", "2", ""),
        ("", "1", ""),
        ("\n", "1", ""),
        ("a\rb\r", "1", "a\rb\r"),
    ],
)
def test_lines(text: str, lines: str, chosen: str) -> None:
    span = of_lines(text, lines)
    assert text[span.start : span.end] == chosen
    assert line_of(text, span.start) == int(lines[0])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("3-4", "lines 3-4 are not in the text; it has lines 1-3."),
        ("0", "lines 0 are not in the text; it has lines 1-3."),
        ("3-2", "lines 3-2 are not in the text; it has lines 1-3."),
        ("two", "lines 'two' cannot be read; write 10-20, or 10."),
        ("-2", "lines '-2' cannot be read; write 10-20, or 10."),
    ],
)
def test_lines_that_are_not_there(lines: str, message: str) -> None:
    with pytest.raises(EditError) as raised:
        of_lines("a\nb\nc\n", lines)
    assert str(raised.value) == message


@given(texts_and_spans())
def test_bytes_of_any_span_find_it(given: tuple[str, list[Span]]) -> None:
    text, spans = given
    for span in spans:
        start, end = (len(text[:at].encode()) for at in (span.start, span.end))
        assert of_bytes(text, f"{start}:{end}") == span


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ("1:2", "byte 2 is inside a character; move the range's edge."),
        ("4:6", "byte 4 is inside a line break; move the range's edge."),
        ("3:99", "range 3:99 is not in the text; it has bytes 0:6."),
        ("5:3", "range 5:3 is not in the text; it has bytes 0:6."),
        ("1-3", "range '1-3' cannot be read; write START:END, in bytes from 0."),
    ],
)
def test_ranges_that_cannot_be(span: str, message: str) -> None:
    with pytest.raises(EditError) as raised:
        of_bytes("aé\r\nb", span)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("text", "pattern", "chosen"),
    [
        ("teh cat, teh dog", "teh", ["teh", "teh"]),
        ("def f(x):\ndef g(y):", r"def (\w)\(", ["f", "g"]),
        ("a1\nb\na2", "^a.*$", ["a1", "a2"]),
        ("a1\r\nb\r\na2\r\n", "^a.*$", ["a1", "a2"]),
        ("a1\r\nb\r\na2\r\n", "1\nb\na", ["1\r\nb\r\na"]),
        ("x\r\n\r\ny", "x\n", ["x\r\n"]),
        ("a\nb", "^", ["", ""]),
        ("ab ac", "a(b)|ac", ["b"]),
    ],
)
def test_patterns(text: str, pattern: str, chosen: list[str]) -> None:
    assert [text[span.start : span.end] for span in of_pattern(text, pattern)] == chosen


def test_patterns_that_find_nothing() -> None:
    with pytest.raises(EditError, match=r"^pattern 'x' does not occur in the text; correct it\.$"):
        of_pattern("abc", "x")
    with pytest.raises(EditError, match=r"^pattern '\(' is no regular expression \(.*\)\.$"):
        of_pattern("abc", "(")


def test_spans_stand_in_order_and_apart() -> None:
    spans = [Span(5, 7), Span(0, 2), Span(5, 7), Span(2, 5)]
    assert in_order(spans) == [Span(0, 2), Span(2, 5), Span(5, 7)]
    with pytest.raises(EditError, match=r"the spans 0:3 and 2:4 \(characters\) overlap; choose"):
        in_order([Span(2, 4), Span(0, 3)])
    with pytest.raises(EditError, match="give --lines, --range or --pattern"):
        in_order([])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\xff", "f is not UTF-8 text (byte 1); convert it, or choose another file."),
        (b"\x7fELF\0", "f is a binary file; choose a text file."),
    ],
)
def test_what_is_no_text(data: bytes, message: str) -> None:
    with pytest.raises(EditError) as raised:
        read_text(data, "f")
    assert str(raised.value) == message


# Putting it back ---------------------------------------------------------------------------------


@given(texts_and_spans(), st.lists(TEXTS, min_size=3, max_size=3))
def test_everything_outside_stays(given: tuple[str, list[Span]], fills: list[str]) -> None:
    text, spans = given
    assert_outside_stays(text, spans, put(text, spans, fills[: len(spans)]))


@given(texts_and_spans())
def test_what_stands_there_already_changes_nothing(given: tuple[str, list[Span]]) -> None:
    text, spans = given
    assert put(text, spans, [text[s.start : s.end] for s in spans]) == text
    assert put(text, spans, [plain(text[s.start : s.end]) for s in spans]) == text


def test_line_breaks_are_the_text_s_own() -> None:
    assert put("a\r\nb\r\nc", [Span(3, 4)], ["x\ny"]) == "a\r\nx\r\ny\r\nc"
    assert put("a\r\nb\r\nc", [Span(3, 4)], ["x\r\ny"]) == "a\r\nx\r\ny\r\nc"
    assert put("a\nb\nc", [Span(2, 3)], ["x\r\ny"]) == "a\nx\ny\nc"


# With a model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano() -> Engine:
    return dg_mlx.load("nano")


def quick(engine: Engine, **changes: Any) -> GenerationSettings:
    return engine.settings.replace(max_denoising_steps=2, **changes)


def small(engine: Engine) -> GenerationSettings:
    """A canvas that a few lines fill."""
    return quick(engine, canvas_length=64)


def edited(engine: Engine, text: str, spans: list[Span], **options: Any) -> Edited:
    options.setdefault("instruction", "Solve:")
    *_, last = edit(engine, text, spans, Change(**options))
    assert isinstance(last, Edited)
    assert last.text == put(text, spans, last.fills)
    assert_outside_stays(text, spans, last.text)
    return last


def test_a_board_is_completed(nano: Engine) -> None:
    result = edited(nano, BOARD, of_pattern(BOARD, r"\."), length=1)
    assert result.fills == ("4",)
    assert result.text == "A 1234\nB 3412\nC 2143\nD 4321\n"


@settings(max_examples=4, deadline=None)
@given(given=texts_and_spans().filter(lambda given: bool(given[1])))
def test_any_text_keeps_what_is_outside(nano: Engine, given: tuple[str, list[Span]]) -> None:
    text, spans = given
    edited(nano, text, in_order(spans), length=2, settings=quick(nano))


def test_a_length_is_found(nano: Engine) -> None:
    text = "A 1234\nB 3412\n"
    result = edited(nano, text, [of_lines(text, "2")], draws=1, settings=quick(nano))
    assert result.fills[0]


def test_of_a_long_text_each_span_is_written_with_the_lines_around_it(nano: Engine) -> None:
    lines = [f"line {number:02} is here" for number in range(30)]
    text = "\r\n".join(lines)
    spans = in_order([*of_pattern(text, "(here)$")[3:4], of_lines(text, "9"), of_lines(text, "30")])
    events = list(
        edit(nano, text, spans, Change(instruction="Do:", length=3, settings=small(nano)))
    )
    prompts = [event.tokens for event in events if isinstance(event, Prefilled)]
    assert len(prompts) == len(spans)
    assert all(tokens > len(plain(text)) for tokens in prompts)
    result = events[-1]
    assert isinstance(result, Edited)
    assert_outside_stays(text, spans, result.text)


def test_a_long_text_is_named_by_its_lines(nano: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    encode = nano.processor.encode
    monkeypatch.setattr(
        nano.processor,
        "encode",
        lambda messages, **o: asked.append(messages) or encode(messages, **o),
    )
    text = "".join(f"{number:03}\n" for number in range(1, 60))
    edited(nano, text, [of_lines(text, "30")], length=3, settings=small(nano))
    (prompt,) = asked
    # Less than a quarter of a canvas on each side: 3 lines of 4 tokens.
    assert prompt == f"Solve:\n{text}\n\nAnswer with lines 27 to 33 of it, and nothing else."


def test_a_span_longer_than_a_canvas_keeps_its_length(nano: Engine) -> None:
    text = "".join(f"line {number:02} is here\n" for number in range(20))
    span = of_lines(text, "4-14")
    events = list(edit(nano, text, [span], Change(instruction="Do:", settings=small(nano))))
    free = {event.block: int((~event.frozen).sum()) for event in events if isinstance(event, Draft)}
    assert sum(free.values()) == len(nano.processor.tokenise(text[span.start : span.end])) > 2 * 64


def test_a_strength_below_1_keeps_the_length(nano: Engine) -> None:
    spans = [of_lines(BOARD, "3")]
    events = list(edit(nano, BOARD, spans, Change(instruction="Solve:", strength=0.5)))
    drafts = [event for event in events if isinstance(event, Draft)]
    assert {draft.max_steps for draft in drafts} == {
        math.ceil(nano.settings.max_denoising_steps / 2)
    }
    (frozen,) = {tuple(draft.frozen) for draft in drafts}
    assert [at for at, held in enumerate(frozen) if not held] == list(range(14, 20))


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("a b", {"length": 0}, SettingsError, "a hole's length is 0; it must be 1 or more."),
        ("a b", {"strength": 0.5, "length": 3}, PinError, "keeps the length of 1 tokens"),
        ("a b", {"strength": 1.5, "length": 3}, PinError, "strength is 1.5; it must be above 0"),
        ("a b", {"draws": 0}, SettingsError, "draws is 0; it must be 1 or more."),
        ("a <turn|>", {}, PromptError, "the text has the control token <turn|>; take it out."),
    ],
)
def test_what_cannot_be_edited(
    nano: Engine, text: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        edited(nano, text, [Span(0, 1)], **options)
    assert message in str(raised.value)


def test_nothing_has_no_strength(nano: Engine) -> None:
    with pytest.raises(PinError, match="nothing stands in a hole to start from; use a strength"):
        edited(nano, "a b", [Span(1, 1)], strength=0.5)
    assert edited(nano, "a b", [Span(1, 1)], length=2, settings=quick(nano)).fills[0]


def test_outside() -> None:
    assert outside("0123456789", [Span(2, 4), Span(4, 7)]) == ["01", "", "789"]
