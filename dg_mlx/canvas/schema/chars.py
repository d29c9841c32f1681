"""Classes of characters, and how a JSON string spells them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dg_mlx.canvas.expression import escaped

Ranges = tuple[tuple[int, int], ...]
"""Code points from first to last, rising."""

_ALL: Ranges = ((0, 0x10FFFF),)
_BEYOND_ASCII = (0x80, 0x10FFFF)
# Without plane 16, which has private characters only.
_PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, 0xFFFFF))
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_IN_CLASS = frozenset("\\^[]-&~|#")


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Rising, and what touches as one."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return tuple(found)


def _other(ranges: Ranges) -> Ranges:
    """All code points that are not in these."""
    found, at = [], 0
    for low, high in _joined(ranges):
        if at < low:
            found.append((at, low - 1))
        at = high + 1
    return (*found, (at, 0x10FFFF)) if at <= 0x10FFFF else tuple(found)


def _common(ranges: Ranges, others: Ranges) -> Ranges:
    pairs = [(max(a, c), min(b, d)) for a, b in ranges for c, d in others]
    return tuple((low, high) for low, high in pairs if low <= high)


@dataclass(frozen=True, slots=True)
class Chars:
    """A character class. Dialects differ on some characters; what is written must hold in all."""

    surely: Ranges
    perhaps: Ranges
    """No dialect has more than these."""

    @staticmethod
    def of(first: int, last: int | None = None) -> Chars:
        """One code point, or all up to the last."""
        ranges = ((first, first if last is None else last),)
        return Chars(ranges, ranges)

    @staticmethod
    def any_of(members: Iterable[Chars]) -> Chars:
        """What is in one of these."""
        members = list(members)
        return Chars(
            _joined(pair for m in members for pair in m.surely),
            _joined(pair for m in members for pair in m.perhaps),
        )

    def inverted(self) -> Chars:
        """All other characters."""
        return Chars(_other(self.perhaps), _other(self.surely))

    def point(self) -> int | None:
        """The code point, where there is one alone."""
        return (
            self.surely[0][0] if self.surely and self.surely[0][0] == self.surely[-1][1] else None
        )


_DIGITS = Chars(((0x30, 0x39),), ((0x30, 0x39), _BEYOND_ASCII))
_WORD_RANGES: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_WORDS = Chars(_WORD_RANGES, (*_WORD_RANGES, _BEYOND_ASCII))
_SPACES = Chars(
    ((0x09, 0x0D), (0x20, 0x20)),
    (
        *((0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680)),
        *((0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F)),
        *((0x3000, 0x3000), (0xFEFF, 0xFEFF)),
    ),
)
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
CLASSES = {
    **{"d": _DIGITS, "w": _WORDS, "s": _SPACES},
    **{"D": _DIGITS.inverted(), "W": _WORDS.inverted(), "S": _SPACES.inverted()},
    ".": Chars(_LINE_ENDS, _LINE_ENDS).inverted(),
}
"""By their letters in a pattern."""


def spelled(ranges: Ranges) -> str | None:
    """One character of these in a JSON string, as an expression that can be repeated.

    None where none has a short spelling there.
    """
    plain = _common(ranges, _PLAIN)
    escapes = [e for c, e in _ESCAPES.items() if any(a <= ord(c) <= b for a, b in ranges)]
    if len(plain) == 1 and plain[0][0] == plain[0][1] and escapes in ([], ["/"]):
        return escaped(chr(plain[0][0]))
    parts = [f"[{''.join(_span(a, b) for a, b in plain)}]"] if plain else []
    if escapes:
        parts.append(rf"\\[{''.join(_quoted(ord(e)) for e in escapes)}]")
        return f"(?:{'|'.join(parts)})"
    return parts[0] if parts else None


def _span(low: int, high: int) -> str:
    return _quoted(low) if low == high else f"{_quoted(low)}-{_quoted(high)}"


def _quoted(point: int) -> str:
    if point < 0x80:
        return "\\" + chr(point) if chr(point) in _IN_CLASS else chr(point)
    return f"\\u{point:04X}" if point < 0x10000 else f"\\U{point:08X}"


ANY_CHAR = spelled(_ALL) or ""
"""One character of a JSON string: itself, or a short escape."""


def other_than(names: Iterable[str]) -> str:
    """The inside of JSON strings that are none of these."""
    tails: dict[str, list[str]] = {}
    names = set(names)
    for name in names - {""}:
        tails.setdefault(name[0], []).append(name[1:])
    others = _other(_joined((ord(c), ord(c)) for c in tails))
    parts = [f"{spelled(others)}{ANY_CHAR}*"]
    for first, rest in sorted(tails.items()):
        # Where JSON has no short spelling for a character, no text here begins with it.
        character = spelled(Chars.of(ord(first)).surely)
        if character is not None:
            parts.append(character + other_than(rest))
    return f"(?:{'|'.join(parts)}){'' if '' in names else '?'}"
