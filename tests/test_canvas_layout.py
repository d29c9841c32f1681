"""Cells to rows: no row is too wide, and no text is lost."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from wcwidth import wcswidth

from dg_mlx.cli.canvas.ink import Ink
from dg_mlx.cli.canvas.layout import Cell, Row, clip, grid, wrap
from dg_mlx.signs import harmless

SETTLED, NOISE = Ink.SETTLED, Ink.NOISE
HARD = (
    "ab ~é漢字ｗ한ㅎ\u1112\u1161\u11ab🦊👩👧👍🏽🇩🇪❤1\u20e3☺─…"  # wide, narrow, joined, disputed
    "\u0301\u0e31\u0e19\u094d\u0915\u0937\u200d\u200b\ufe0f\u00ad\ufeff\u0600\u202e\x1b\x00\x9b\n"
)
texts = st.one_of(st.text(st.sampled_from(HARD), max_size=8), st.text(max_size=8)).map(
    lambda text: harmless(text).replace("\t", "")
)
cells = st.lists(st.tuples(texts, st.sampled_from(list(Ink))), max_size=20)


@given(cells, st.integers(2, 40))
@example([("👩", SETTLED), ("\u200d", NOISE), ("👧", SETTLED)], 2)
@example([("❤", SETTLED), ("\ufe0f", SETTLED), ("🇩", SETTLED), ("🇪", SETTLED)], 3)
@example([("\u0301", SETTLED)], 2)
def test_no_row_is_too_wide_and_all_text_is_there(given: list[Cell], width: int) -> None:
    rows = wrap(given, width)
    for row in rows:
        assert sum(max(wcswidth(span.text), 0) for span in row.spans) == row.width <= width
        # Beside others, a character that is disputed may be wider yet.
        assert not all(span.sure for span in row.spans) or wcswidth(row.text) == row.width
    text = "".join(text for text, _ in given)
    assert "".join(row.text for row in rows) == text.replace("\n", "")
    assert len(rows) >= text.count("\n") + 1


@given(cells, st.integers(2, 100))
def test_no_field_is_too_wide(given: list[Cell], width: int) -> None:
    columns = min(16, width)
    rows = grid(given, width)
    assert len(rows) == -(-len(given) // columns)
    assert all(row.width <= width for row in rows)
    assert all(row.width == width // columns * columns for row in rows[:-1])


@given(cells, st.integers(2, 40), st.integers(2, 40))
def test_a_begun_row_goes_on(given: list[Cell], width: int, cut: int) -> None:
    plain = [(text, ink) for text, ink in given if text.isascii()]
    before = wrap(plain[:cut], width)
    assert before[:-1] + wrap(plain[cut:], width, before[-1]) == wrap(plain, width)


def shown(rows: list[Row]) -> list[str]:
    return [row.text for row in rows]


@pytest.mark.parametrize(
    ("text", "width", "rows"),
    [
        ("", 5, [""]),
        ("abcde", 5, ["abcde"]),
        ("abcdef", 5, ["abcde", "f"]),
        ("abcde\nf", 5, ["abcde", "f"]),  # no empty row where the width is just met
        ("ab\n\ncd\n", 5, ["ab", "", "cd", ""]),
        ("a漢字b", 4, ["a漢", "字b"]),  # half an ideograph never hangs over
        ("a\tb", 20, ["a       b"]),
        ("abcd\tb", 5, ["abcd ", "b"]),
        ("e\u0301e\u0301e\u0301", 2, ["e\u0301e\u0301", "e\u0301"]),
        ("👩\u200d👩\u200d👧🇩🇪❤\ufe0f", 4, ["👩\u200d👩\u200d👧🇩🇪", "❤\ufe0f"]),
    ],
)
def test_wrapping_is_a_terminals(text: str, width: int, rows: list[str]) -> None:
    assert shown(wrap([(text, SETTLED)], width)) == rows


def test_what_joins_goes_to_the_cell_before() -> None:
    row = wrap([("e", SETTLED), ("\u0301x", NOISE)], 9)[0]
    assert [(span.text, span.ink) for span in row.spans] == [("e\u0301", SETTLED), ("x", NOISE)]


def test_widths_that_terminals_dispute_are_unsure() -> None:
    spans = wrap([("a漢é", SETTLED), ("🦊", SETTLED), ("e\u0301", SETTLED)], 20)[0].spans
    assert [(span.text, span.sure) for span in spans] == [
        ("a", True),
        ("漢", True),
        ("é", True),
        ("🦊", False),
        ("e\u0301", False),
    ]


def test_a_field_holds_the_beginning_of_a_token() -> None:
    cells = [(" the", SETTLED), (" longer", NOISE), ("\n", NOISE), ("  ", NOISE), ("漢字字", NOISE)]
    assert shown(grid(cells, 80)) == ["the  long ↵    ␣    漢字 "]
    assert shown(grid([("ab", NOISE)] * 17, 20)) == ["a" * 16, "a"]


def test_clipped_text_is_one_row() -> None:
    assert clip("one\ntwo", SETTLED, 5).text == "one↵t"
