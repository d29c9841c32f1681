"""The members of an object: which there are, in what order, and how many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn

from dg_mlx.canvas.expression import SPACE, bracketed, repeat
from dg_mlx.errors import ConstraintError

_CHAINED = 6
"""So many members nest one in the other: fewer copies, but the regex crate nests only 250 deep."""


@dataclass(frozen=True, slots=True)
class Members:
    """Listed members, in order, and behind them extra ones of a kind, of any other names."""

    listed: tuple[tuple[str, bool], ...]
    """The expression of each, and whether it is required."""
    extra: str | None = None
    most_extra: int | None = None
    nonempty: bool = False

    @property
    def required(self) -> int:
        """How many of the listed ones are required."""
        return sum(required for _, required in self.listed)

    def counted(self, fewest: int, most: int | None, where: str) -> Members:
        """With no fewer and no more members. Some that could be are left out.

        Raises `ConstraintError` for numbers that cannot be or cannot be counted.
        """
        if most is not None and fewest > most:
            _refuse("minProperties", fewest, where, f'is above "maxProperties" {most}; swap them')
        limited = self if most is None else self._at_most(most, where)
        return limited._at_least(fewest, where)

    def _at_most(self, most: int, where: str) -> Members:
        left = most - len(self.listed)
        if left >= 0:
            return replace(self, extra=self.extra if left else None, most_extra=left)
        if most < self.required:
            why = f"is below the {self.required} that are required; raise it"
            _refuse("maxProperties", most, where, why)
        if most > self.required:
            why = f"cannot be counted over {len(self.listed)} properties; require more or remove it"
            _refuse("maxProperties", most, where, why)
        return Members(tuple(member for member in self.listed if member[1]))

    def _at_least(self, fewest: int, where: str) -> Members:
        if fewest <= self.required:
            return self
        if self.extra is None and fewest > len(self.listed):
            why = f"is more than the {len(self.listed)} that can be; lower it"
            _refuse("minProperties", fewest, where, why)
        if self.extra is None and fewest == len(self.listed):
            return Members(tuple((member, True) for member, _ in self.listed))
        if fewest > 1:
            why = "cannot be counted over optional properties or repeated names; require some"
            _refuse("minProperties", fewest, where, why)
        return replace(self, nonempty=True)

    def regex(self) -> str:
        """The object. Its size grows with n log n members, its automaton's with n."""
        if not self.listed and self.extra is None:
            return r"\{\}"
        if not self.required:
            inside = self._some(0, len(self.listed) + (self.extra is not None))
            return bracketed(inside, "{}", empty=not self.nonempty)
        first = [required for _, required in self.listed].index(True)
        inside = "".join(map(self._before, range(first))) + self.listed[first][0]
        for member, required in self.listed[first + 1 :]:
            inside += f",{SPACE}{member}" if required else f"(?:,{SPACE}{member})?"
        if self.extra is not None:
            inside += f"(?:,{SPACE}{self.extra}){repeat(0, self.most_extra)}"
        return bracketed(inside, "{}", empty=False)

    def _before(self, index: int) -> str:
        return f"(?:{self.listed[index][0]},{SPACE})?"

    def _some(self, start: int, end: int) -> str:
        """One or more of these optional members; what is behind the listed ones is extra."""
        if end - start > 1:
            middle = (start + end) // 2 if end - start > _CHAINED else start + 1
            head = "".join(map(self._before, range(start, middle)))
            return f"(?:{head}{self._some(middle, end)}|{self._some(start, middle)})"
        if start < len(self.listed):
            return self.listed[start][0]
        more = None if self.most_extra is None else self.most_extra - 1
        before = "" if more == 0 else f"(?:{self.extra},{SPACE}){repeat(0, more)}"
        return f"{before}{self.extra}"


def _refuse(keyword: str, number: int, where: str, why: str) -> NoReturn:
    raise ConstraintError(f'"{keyword}" {number} at {where} {why}.')
