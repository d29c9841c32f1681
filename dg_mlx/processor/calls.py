"""The tool-call syntax of Gemma 4: `call:name{key:value,…}`."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Sequence
from typing import Any

_MAX_DEPTH = 64
_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[{}\[\],:])|(?P<json>"(?:[^"\\]|\\.)*")|(?P<word>[^\s{}\[\],:"][^{}\[\],:"]*))""",
    re.DOTALL,
)
_Tokens = deque[tuple[str, str]]


def parse_call(segments: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """(name, arguments) of `call:name{…}`; None when it cannot be read.

    `segments` alternate between structure and strings, which were between quote tokens. Bare words
    and strings in JSON's quotes are read too.
    """
    head = re.match(r"\s*call:\s*([^\s{]+)\s*(?=\{)", segments[0])
    if head is None or len(segments) % 2 == 0:
        return None
    try:
        tokens: _Tokens = deque()
        for i, segment in enumerate(segments):
            if i % 2:
                tokens.append(("string", segment))
            else:
                tokens.extend(_lex(segment if i else segment[head.end() :]))
        arguments = _value(tokens, 0)
    except (ValueError, IndexError):
        return None
    return None if tokens else (head[1], arguments)


def _lex(text: str) -> list[tuple[str, str]]:
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ValueError(text[at:])
        kind, value, at = match.lastgroup, match[match.lastgroup], match.end()
        if kind == "json":
            kind, value = "string", json.loads(value, strict=False)
        tokens.append((kind, value.rstrip() if kind == "word" else value))
    return tokens


def _value(tokens: _Tokens, depth: int) -> Any:
    kind, text = tokens.popleft()
    if kind == "string":
        return text
    if kind == "word":
        return _scalar(text)
    if depth == _MAX_DEPTH or text not in "{[":
        raise ValueError(text)
    result: dict[str, Any] = {}
    items: list[Any] = []
    end = "}" if text == "{" else "]"
    while tokens[0] != ("mark", end):
        if end == "}":
            (kind, key), colon = tokens.popleft(), tokens.popleft()
            if kind == "mark" or colon != ("mark", ":"):
                raise ValueError(key)
            result[key] = _value(tokens, depth + 1)
        else:
            items.append(_value(tokens, depth + 1))
        if tokens[0] == ("mark", ","):
            tokens.popleft()
        elif tokens[0] != ("mark", end):
            raise ValueError(tokens[0])
    tokens.popleft()
    return result if end == "}" else items


def _scalar(word: str) -> Any:
    """A number, true, false or null; any other bare word is a string."""
    try:
        value = json.loads(word, parse_constant=str)
    except ValueError:
        return word
    return word if isinstance(value, float) and not math.isfinite(value) else value
