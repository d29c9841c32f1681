"""Patterns of JSON Schema (ECMA-262) as regular expressions of a JSON string's inside.

A pattern speaks of characters; the text has their spellings: a quote is a backslash and a quote.
So every character class is written anew, without what JSON can only spell as `\\uXXXX`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from dg_mlx.canvas.expression import either, repeat
from dg_mlx.errors import ConstraintError

from .chars import ANY_CHAR, CLASSES, Chars, Ranges, spelled

_LETTERS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "0": "\0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """`least` to `most` times a part of a pattern that stands for a number of characters."""

    regex: str
    shortest: int = 1
    longest: int | None = 1
    """Characters of the part once; None has no limit."""
    least: int = 1
    most: int | None = 1

    @property
    def span(self) -> tuple[int, int | None]:
        """The least and the greatest number of characters."""
        if 0 in (self.longest, self.most):
            return self.shortest * self.least, 0
        unlimited = self.longest is None or self.most is None
        longest = None if unlimited else (self.longest or 0) * (self.most or 0)
        return self.shortest * self.least, longest

    def __str__(self) -> str:
        return self.regex + repeat(self.least, self.most)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern that was read: alternatives, each of pieces one behind the other."""

    alternatives: tuple[tuple[Piece, ...], ...]

    def regex(self) -> str:
        """The inside of the JSON strings that match."""
        return either(["".join(map(str, pieces)) for pieces in self.alternatives])

    def span(self) -> tuple[int, int | None]:
        """The least and the greatest number of characters."""
        spans = [_sum(piece.span for piece in pieces) for pieces in self.alternatives]
        longest = [longest for _, longest in spans if longest is not None]
        unlimited = len(longest) < len(spans)
        return min(shortest for shortest, _ in spans), None if unlimited else max(longest)

    def of_length(self, shortest: int, longest: int | None) -> Pattern | None:
        """Only the texts of so many characters; None where the pieces cannot say it.

        A pattern without such texts has no alternatives left.
        """
        found = []
        for pieces in self.alternatives:
            least, most = _sum(piece.span for piece in pieces)
            if (longest is not None and least > longest) or (most is not None and most < shortest):
                continue
            if least < shortest or not within(most, longest):
                fitted = _fitted(pieces, shortest, longest)
                if fitted is None:
                    return None
                if not fitted:
                    continue
                pieces = fitted
            found.append(pieces)
        return Pattern(tuple(found))


def within(number: int | None, limit: int | None) -> bool:
    """Whether a greatest number is at most a limit; None is without end."""
    return limit is None or (number is not None and number <= limit)


def read_pattern(pattern: str, where: str) -> Pattern:
    """Read a pattern, which may match anywhere in a text unless it has anchors.

    Raises `ConstraintError` for what has no regular expression here, naming it.
    """
    return _Reader(pattern, where).whole()


class _Reader:
    """Reads from left to right; what follows at `at` is not read yet."""

    def __init__(self, pattern: str, where: str) -> None:
        self.pattern, self.where, self.at = pattern, where, 0

    def whole(self) -> Pattern:
        alternatives = self._alternatives(top=True)
        if self.at < len(self.pattern):
            self._refuse('an unmatched ")"', r'write "\)"')
        return Pattern(tuple(alternatives))

    def _refuse(self, what: str, fix: str) -> NoReturn:
        raise ConstraintError(
            f'"pattern" {self.pattern!r} at {self.where} has {what}, which is not supported; {fix}.'
        )

    def _next(self, text: str) -> bool:
        """Read `text` if it is what follows."""
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _take(self) -> str:
        if self.at == len(self.pattern):
            self._refuse("no end", "complete it")
        self.at += 1
        return self.pattern[self.at - 1]

    def _alternatives(self, *, top: bool) -> list[tuple[Piece, ...]]:
        found = [self._sequence(top=top)]
        while self._next("|"):
            found.append(self._sequence(top=top))
        return found

    def _sequence(self, *, top: bool) -> tuple[Piece, ...]:
        pieces: list[Piece] = []
        anything = Piece(regex=ANY_CHAR, least=0, most=None)
        if top and not self._next("^"):
            pieces.append(anything)
        while (c := self._peek()) and c not in "|)":
            if c == "$" and top and self.pattern[self.at + 1 : self.at + 2] in ("", "|"):
                self.at += 1
                return tuple(pieces)
            pieces.append(self._piece())
        return (*pieces, anything) if top else tuple(pieces)

    def _piece(self) -> Piece:
        piece = self._atom()
        c = self._peek()
        if not c or c not in "*+?{":
            return piece
        least, most = self._quantifier()
        if self._peek() and self._peek() in "*+?{":
            self._refuse("two quantifiers in a row", "group the first")
        shortest, longest = piece.span
        return Piece(regex=piece.regex, shortest=shortest, longest=longest, least=least, most=most)

    def _quantifier(self) -> tuple[int, int | None]:
        c = self._take()
        if c == "{":
            end = self.pattern.find("}", self.at)
            first, comma, last = self.pattern[self.at : max(end, self.at)].partition(",")
            if not _is_count(first) or not (_is_count(last) or last == ""):
                self._refuse('a "{" that is no quantifier', r'write "\{"')
            self.at = end + 1
            bounds = int(first), (int(last) if last else None) if comma else int(first)
        else:
            bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
        self._next("?")  # a lazy one matches the same texts
        if bounds[1] is not None and bounds[0] > bounds[1]:
            self._refuse(f"a quantifier from {bounds[0]} to {bounds[1]}", "swap them")
        return bounds

    def _atom(self) -> Piece:
        c = self._take()
        if c == "(":
            return self._group()
        if c == "[":
            return self._character(self._class().surely)
        if c == "\\":
            return self._character(self._escape().surely)
        if c == ".":
            return self._character(CLASSES["."].surely)
        if c in "^$":
            self._refuse(f'"{c}" inside', "put anchors at its ends, not in groups")
        if c in "*+?{}]":
            self._refuse(f'"{c}" without what it belongs to', rf'write "\{c}"')
        return self._character(Chars.of(ord(c)).surely)

    def _character(self, ranges: Ranges) -> Piece:
        regex = spelled(ranges)
        if regex is None:
            self._refuse("a class of nothing but control characters or surrogates", "leave it out")
        return Piece(regex=regex)

    def _group(self) -> Piece:
        if self._next("?"):
            if self._next("<") and self._peek() not in "=!":
                while self._take() != ">":
                    pass
            elif not self._next(":"):
                self._refuse(f'"(?{self._peek()}"', "use groups only to repeat and to choose")
        inside = Pattern(tuple(self._alternatives(top=False)))
        if not self._next(")"):
            self._refuse("an open group", 'close it with ")"')
        shortest, longest = inside.span()
        regex = "|".join("".join(map(str, pieces)) for pieces in inside.alternatives)
        return Piece(regex=f"(?:{regex})", shortest=shortest, longest=longest)

    def _class(self) -> Chars:
        negated = self._next("^")
        members: list[Chars] = []
        if self._peek() == "]":
            self._refuse("an empty class", r'write "\]" for a bracket')
        while not self._next("]"):
            chars = self._member()
            if self._peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                chars = self._range(chars, self._member())
            members.append(chars)
        found = Chars.any_of(members)
        return found.inverted() if negated else found

    def _member(self) -> Chars:
        if self._next("\\"):
            return Chars.of(0x08) if self._next("b") else self._escape()
        return Chars.of(ord(self._take()))

    def _range(self, first: Chars, last: Chars) -> Chars:
        low, high = first.point(), last.point()
        if low is None or high is None:
            self._refuse("a range between classes", r'write "\-" for a hyphen')
        if low > high:
            self._refuse("a range from high to low", "swap its ends")
        return Chars.of(low, high)

    def _escape(self) -> Chars:
        c = self._take()
        if c in CLASSES and c != ".":
            return CLASSES[c]
        if c in _LETTERS and not (c == "0" and self._peek().isdigit()):
            return Chars.of(ord(_LETTERS[c]))
        if c in "xu":
            return Chars.of(self._hexadecimal(c))
        if c.isascii() and (c.isalnum() or c == "_"):
            hint = "look-around" if c in "bB" else "a back reference" if c.isdigit() else "a class"
            self._refuse(f'"\\{c}"', f"{hint} of this kind has to be written out")
        return Chars.of(ord(c))

    def _hexadecimal(self, kind: str) -> int:
        if kind == "u" and self._next("{"):
            end = self.pattern.find("}", self.at)
            text, self.at = self.pattern[self.at : max(end, self.at)], end + 1
        else:
            length = 2 if kind == "x" else 4
            text, self.at = self.pattern[self.at : self.at + length], self.at + length
            if len(text) < length:
                text = ""
        if not text or set(text.lower()) - set("0123456789abcdef") or int(text, 16) > 0x10FFFF:
            self._refuse(f'a broken "\\{kind}"', r'write "\xHH", "\uHHHH" or "\u{H}"')
        return int(text, 16)


def _fitted(
    pieces: tuple[Piece, ...], shortest: int, longest: int | None
) -> tuple[Piece, ...] | None:
    """Only the texts of a length, if one piece alone varies in length, by being repeated.

    Without such a piece None; without such texts no pieces.
    """
    free = [i for i, piece in enumerate(pieces) if piece.span[0] != piece.span[1]]
    if len(free) != 1:
        return None
    at = free[0]
    piece = pieces[at]
    size = piece.shortest
    if size == 0 or piece.longest != size:
        return None
    rest = sum(other.span[0] for i, other in enumerate(pieces) if i != at)
    least = max(piece.least, -((rest - shortest) // size))
    most = piece.most
    if longest is not None:
        room = (longest - rest) // size
        most = room if most is None else min(most, room)
    if most is not None and most < least:
        return ()
    fitted = Piece(regex=piece.regex, shortest=size, longest=size, least=least, most=most)
    return (*pieces[:at], fitted, *pieces[at + 1 :])


def _sum(spans: Iterable[tuple[int, int | None]]) -> tuple[int, int | None]:
    shortest, longest = 0, 0
    unlimited = False
    for least, most in spans:
        shortest += least
        longest += most or 0
        unlimited |= most is None
    return shortest, None if unlimited else longest


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 7
