"""Markdown on a terminal: nothing is lost, nothing is printed twice, lines stay lines."""

import re
from io import StringIO
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dg_mlx.cli.markdown import MarkdownStream

ANSWER = """\
# A title

A 1234
B 3412

- one **bold** word
- two

```python
def f(x):

    return x
```

| a | b |
|---|---|
| 1 | 2 |

The end, with <b>tags</b> and 漢字.
"""


def printed(parts: list[str], width: int = 60) -> str:
    out = StringIO()
    stream = MarkdownStream(out, width)
    for part in parts:
        stream.feed(part)
    stream.finish()
    assert stream.rest == ""
    return out.getvalue()


def test_what_it_looks_like() -> None:
    shown = printed([ANSWER])
    assert "A 1234\nB 3412\n" in shown  # one line under the other
    assert "**" not in shown
    assert "```" not in shown
    assert " def f(x):\n\n     return x\n" in shown
    assert "<b>tags</b>" in shown
    assert not re.search(r" $", shown, re.MULTILINE)  # for who copies it


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, len(ANSWER)), max_size=20))
def test_the_parts_do_not_matter(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(ANSWER)]
    parts = [ANSWER[a:b] for a, b in pairwise(places)]
    assert printed(parts) == printed([ANSWER])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab\n\n *-#|<>[]()!:1.", max_size=12), max_size=6))
def test_every_letter_comes_once(parts: list[str]) -> None:
    shown = printed(parts, width=200)
    assert re.findall("[ab]", shown) == re.findall("[ab]", "".join(parts))


def test_what_is_complete_is_printed_at_once() -> None:
    out = StringIO()
    stream = MarkdownStream(out, 60)
    stream.feed("First paragraph.\n\nSecond, which ")
    assert out.getvalue() == "First paragraph.\n"
    assert stream.rest == "Second, which "
    stream.feed("goes on.\n\n```\ncode\n\n")
    assert "goes on." in out.getvalue()
    assert "code" not in out.getvalue()  # its end is not there


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x1b]0;title\x07", "a\rb", "\u202eabc"])
def test_it_cannot_harm_a_terminal(text: str) -> None:
    shown = printed([text])
    assert not set(shown) & set("\x1b\x07\r\u202e")
