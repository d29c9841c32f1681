"""Small parts of regular expressions, in the syntax that Rust's regex crate and `re` share."""

from __future__ import annotations

import re
from collections.abc import Iterable

SPACE = r"(?:\n *| )?"
"""White space behind a comma and inside brackets."""
COLON = ": ?"
_SYNTAX = frozenset("\\^$.*+?()[]{}|")
_TOKEN = re.compile(
    r"(?P<free>\(\?[a-zA-Z-]+\)|[|*+?])|(?P<open>\((?:\?(?:P?<\w+>|[a-zA-Z-]*:))?)|(?P<close>\))"
    r"|\{(?P<least>[0-9]+)(?:,(?P<most>[0-9]*))?\}|(?P<class>\[(?:\\.|[^]\\])*\]|\.|\\[dDsSwWpP])"
    r"|(?P<text>\\?.)",
    re.DOTALL,
)
_UTF8 = 9
"""States of a class beyond ASCII, whose characters have up to four bytes."""


def either(parts: Iterable[str]) -> str:
    """One of these expressions, as one that can be followed by others."""
    distinct = list(dict.fromkeys(parts))
    return distinct[0] if len(distinct) == 1 else f"(?:{'|'.join(distinct)})"


def repeat(least: int, most: int | None) -> str:
    """The quantifier of so many times; None is without end."""
    short = {(1, 1): "", (0, None): "*", (1, None): "+", (0, 1): "?"}
    if (least, most) in short:
        return short[least, most]
    if least == most:
        return f"{{{least}}}"
    return f"{{{least},{'' if most is None else most}}}"


def bracketed(inside: str, brackets: str, *, empty: bool) -> str:
    """An array or object of what is inside, which may be missing with `empty`."""
    inside = f"{SPACE}{inside}{SPACE}"
    opening, closing = map(escaped, brackets)
    return f"{opening}{f'(?:{inside})?' if empty else inside}{closing}"


def escaped(text: str) -> str:
    """The expression of this text alone."""
    return "".join("\\" + c if c in _SYNTAX else c for c in text)


def size(regex: str) -> int:
    """About how many states an automaton over bytes needs, before equal ones become one."""
    groups, last = [0], 0
    for token in _TOKEN.finditer(regex):
        if token["open"]:
            groups.append(0)
        elif token["close"] and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif token["least"]:
            least, most = int(token["least"]), token["most"]
            times = least if most is None else int(most or least + 1)
            groups[-1] += last * (times - 1)
        elif token["class"] or token["text"]:
            last = _UTF8 if _beyond_ascii(token["class"] or "") else 1
            last = last if token["class"] else len(token["text"].encode())
            groups[-1] += last
    return sum(groups)


def _beyond_ascii(group: str) -> bool:
    return (
        not group.isascii()
        or group[:2] in ("[^", ".", "\\D", "\\S", "\\w", "\\W", "\\p", "\\P")
        or ("\\u" in group.lower())
    )
