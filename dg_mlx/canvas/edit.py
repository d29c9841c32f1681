"""Spans of a file that may change, and everything else that may not."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dg_mlx.errors import EditError


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Characters [start, end) of a text."""

    start: int
    end: int


def read_text(data: bytes, name: str) -> str:
    """A file's text. Raises `EditError` for what is no UTF-8 text."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise EditError(
            f"{name} is not UTF-8 text (byte {error.start}); convert it, or choose another file."
        ) from None
    if "\0" in text:
        raise EditError(f"{name} is a binary file; choose a text file.")
    return text


def of_lines(text: str, lines: str) -> Span:
    """Lines "10-20" or "10", counted from 1, without the last one's line break.

    A lone carriage return is no line break. Raises `EditError`, as all that finds spans.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", lines)
    if match is None:
        raise EditError(f"lines {lines!r} cannot be read; write 10-20, or 10.")
    first = int(match[1])
    last = int(match[2] or first)
    starts = _line_starts(text)
    if not 1 <= first <= last <= len(starts):
        raise EditError(f"lines {lines} are not in the text; it has lines 1-{len(starts)}.")
    start, end = starts[first - 1], starts[last] if last < len(starts) else len(text)
    for ending in ("\r\n", "\n"):
        if text.endswith(ending, start, end):
            return Span(start, end - len(ending))
    return Span(start, end)


def of_bytes(text: str, span: str) -> Span:
    """Bytes "100:140" of the text as UTF-8, counted from 0, the end not included."""
    match = re.fullmatch(r"(\d+):(\d+)", span)
    if match is None:
        raise EditError(f"range {span!r} cannot be read; write START:END, in bytes from 0.")
    data = text.encode()
    start, end = int(match[1]), int(match[2])
    if not start <= end <= len(data):
        raise EditError(f"range {span} is not in the text; it has bytes 0:{len(data)}.")
    for at in (start, end):
        if at < len(data) and data[at] & 0xC0 == 0x80:
            raise EditError(f"byte {at} is inside a character; move the range's edge.")
        if data[at - 1 : at + 1] == b"\r\n":
            raise EditError(f"byte {at} is inside a line break; move the range's edge.")
    return Span(len(data[:start].decode()), len(data[:end].decode()))


def of_pattern(text: str, pattern: str) -> list[Span]:
    """Every match of a regular expression (Python's), or its first group where it has one.

    ^ and $ are the edges of lines, and every line break is one character, as the model is shown it.
    """
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise EditError(f"pattern {pattern!r} is no regular expression ({error}).") from None
    group = 1 if compiled.groups else 0
    matches = [m.span(group) for m in compiled.finditer(plain(text)) if m.start(group) >= 0]
    if not matches:
        raise EditError(f"pattern {pattern!r} does not occur in the text; correct it.")
    # Where in the plain text a carriage return was left out.
    left_out = [m.start() - before for before, m in enumerate(re.finditer("\r\n", text))]
    return [Span(*(at + bisect_left(left_out, at) for at in match)) for match in matches]


def in_order(spans: Iterable[Span]) -> list[Span]:
    """Spans from first to last, each once. Raises `EditError` where two overlap, or without any."""
    found = sorted(set(spans))
    if not found:
        raise EditError("nothing is chosen to change; give --lines, --range or --pattern.")
    for one, other in pairwise(found):
        if other.start < one.end:
            raise EditError(
                f"the spans {one.start}:{one.end} and {other.start}:{other.end} (characters) "
                "overlap; choose them apart."
            )
    return found


def line_of(text: str, at: int) -> int:
    """The line, counted from 1, of a character."""
    return text.count("\n", 0, at) + 1


def put(text: str, spans: Sequence[Span], fills: Sequence[str]) -> str:
    """The text with spans replaced; line breaks are written as the text writes them.

    A span whose fill is what stands there stays as it is, whatever its line breaks.
    """
    found, at = [], 0
    crlf = "\r\n" in text
    for span, fill in zip(spans, fills, strict=True):
        present, new = text[span.start : span.end], plain(fill)
        if new == plain(present):
            new = present
        elif crlf:
            new = new.replace("\n", "\r\n")
        found += [text[at : span.start], new]
        at = span.end
    return "".join([*found, text[at:]])


def outside(text: str, spans: Sequence[Span]) -> list[str]:
    """What stands before, between and behind spans."""
    edges = [0, *(edge for span in spans for edge in (span.start, span.end)), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def plain(text: str) -> str:
    """The text with every line break as a line feed."""
    return text.replace("\r\n", "\n")


def _line_starts(text: str) -> list[int]:
    starts = [0, *(m.end() for m in re.finditer("\n", text))]
    return starts if starts[-1] < len(text) or len(starts) == 1 else starts[:-1]
