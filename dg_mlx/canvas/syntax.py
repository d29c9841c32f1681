"""What a regular expression is made of, in the syntax of Rust's regex crate.

Only what is between characters is read here; what stands for one character (a class, an escape) is
kept as it is, with the flags that hold there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dg_mlx.errors import ConstraintError


@dataclass(frozen=True, slots=True)
class Character:
    """What stands for one character, by an expression of its own."""

    regex: str


@dataclass(frozen=True, slots=True)
class Row:
    """One part behind the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A part so many times; None is without end."""

    part: Part
    least: int
    most: int | None


Part = Character | Row | Choice | Repeat

_FLAGS = re.compile(r"\(\?([a-zA-Z-]+)\)")
_GROUP = re.compile(r"\((?:\?(?:P?<[^>]+>|([a-zA-Z-]*):))?")
_QUANTIFIER = re.compile(r"(?:([*+?])|\{\s*([0-9]+)\s*(,?)\s*([0-9]*)\s*\})\??")
_ESCAPE = re.compile(r"\\(?:[pPxuUb]\{[^}]*\}|x..|u.{4}|U.{8}|[pP].|.)", re.DOTALL)
_BRACKET = re.compile(r"\[\^?(?:-+|\])?")
_TIMES: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_AROUND = ("^", "$", r"\A", r"\z", r"\b", r"\B", r"\<", r"\>")


def read(regex: str) -> Part:
    """Read an expression whose syntax is known to be right.

    Raises `ConstraintError` for look-around, and for the flag "x".
    """
    return _Reader(regex).whole()


class _Reader:
    """Reads from left to right; what begins at `at` is not read yet."""

    def __init__(self, regex: str) -> None:
        self.regex, self.at, self.flags = regex, 0, ""

    def whole(self) -> Part:
        part = self._choice()
        if self.at < len(self.regex):
            raise ConstraintError(
                f'the regular expression has an unmatched ")" at {self.at}; write "\\)".'
            )
        return part

    def _choice(self) -> Part:
        """Up to where the group ends, as do the flags that are set in it."""
        outer, branches = self.flags, [list[Part]()]
        while self.at < len(self.regex) and self.regex[self.at] != ")":
            if self.regex[self.at] == "|":
                self.at += 1
                branches.append([])
            elif flags := _FLAGS.match(self.regex, self.at):
                self._set(flags[1])
                self.at = flags.end()
            else:
                branches[-1].append(self._repeated())
        self.flags = outer
        rows = [branch[0] if len(branch) == 1 else Row(tuple(branch)) for branch in branches]
        return rows[0] if len(rows) == 1 else Choice(tuple(rows))

    def _repeated(self) -> Part:
        part = self._group() if self.regex[self.at] == "(" else self._character()
        while times := _QUANTIFIER.match(self.regex, self.at):
            self.at = times.end()
            sign, first, comma, last = times.groups()
            if sign:
                part = Repeat(part, *_TIMES[sign])
            else:
                most = (int(last) if last else None) if comma else int(first)
                part = Repeat(part, int(first), most)
        return part

    def _group(self) -> Part:
        outer, opening = self.flags, _GROUP.match(self.regex, self.at)
        assert opening is not None
        self.at = opening.end()
        self._set(opening[1] or "")
        part = self._choice()
        self.at += 1
        self.flags = outer
        return part

    def _set(self, flags: str) -> None:
        if "x" in flags.partition("-")[0]:
            raise ConstraintError(
                'the regular expression has the flag "x", which is not supported; write it without '
                "comments and white space."
            )
        self.flags += f"(?{flags})" if flags else ""

    def _character(self) -> Part:
        start, self.at = self.at, self._end(self.at)
        regex = self.regex[start : self.at]
        if regex.startswith(_AROUND):
            raise ConstraintError(
                f'the regular expression has "{regex}", and look-around is not supported; leave it '
                "out (the whole answer is matched)."
            )
        return Character(self.flags + regex)

    def _end(self, at: int) -> int:
        """Where the class, the escape or the character that begins here ends."""
        if self.regex[at] == "\\":
            escape = _ESCAPE.match(self.regex, at)
            assert escape is not None
            return escape.end()
        if self.regex[at] != "[":
            return at + 1
        # A bracket that closes first thing in a class stands for itself.
        first = _BRACKET.match(self.regex, at)
        assert first is not None
        at = first.end()
        while self.regex[at] != "]":
            at = self._end(at)
        return at + 1
