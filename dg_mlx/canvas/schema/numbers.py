"""Ranges of numbers as regular expressions of their decimal digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from dg_mlx.canvas.expression import either, repeat
from dg_mlx.errors import ConstraintError

DIGITS = 15
"""Decimals of no more digits differ as doubles too: a bound holds for who reads the text."""
PLACES = 6
_MIDDLE = (12, 3)
_MOST_DIGITS = 20
"""Those of 64-bit integers. Expressions of longer ranges nest deeper than the regex crate reads."""
ANY_INTEGER = f"(?:0|-?[1-9][0-9]{{0,{DIGITS - 1}}})"
ANY_NUMBER = f"-?(?:0|[1-9][0-9]{{0,{DIGITS - 1}}})(?:\\.[0-9]{{1,{PLACES}}})?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The numbers between two bounds, each of which may be missing or excluded."""

    low: Fraction | None = None
    high: Fraction | None = None
    low_open: bool = False
    high_open: bool = False
    places: int | None = None
    """At most so many decimals; None is any number of them."""

    def both(self, other: Range) -> Range:
        """The numbers that are in both."""
        low, low_open = max(self._floor, other._floor)
        high, high_closed = min(self._ceiling, other._ceiling)
        places = [r.places for r in (self, other) if r.places is not None]
        return Range(
            low=low if isinstance(low, Fraction) else None,
            high=high if isinstance(high, Fraction) else None,
            low_open=low_open,
            high_open=not high_closed,
            places=min(places, default=None),
        )

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        exact = exactly(value)
        if self.low is not None and (exact < self.low or (exact == self.low and self.low_open)):
            return False
        if self.high is not None and (exact > self.high or (exact == self.high and self.high_open)):
            return False
        return self.places is None or (exact * 10**self.places).denominator == 1

    def apart(self, other: Range) -> bool:
        """Whether no number is in both, as far as the bounds show."""
        return self.both(other).empty

    @property
    def empty(self) -> bool:
        """Whether the bounds leave no number."""
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    @property
    def _floor(self) -> tuple[Fraction | float, bool]:
        return -math.inf if self.low is None else self.low, self.low_open

    @property
    def _ceiling(self) -> tuple[Fraction | float, bool]:
        return math.inf if self.high is None else self.high, not self.high_open


def exactly(value: float) -> Fraction:
    """The number that was written. A whole double is taken as it is: it may have been rounded."""
    whole = isinstance(value, int) or value.is_integer()
    return Fraction(value) if whole else Fraction(repr(value))


def integer_regex(bounds: Range, where: str) -> str:
    """The integers of a range that have at most 20 digits, or 15 on a side without a bound.

    Raises `ConstraintError` when there are none.
    """
    if bounds.low is None and bounds.high is None:
        return ANY_INTEGER
    low, high = _scaled(bounds, _most_digits(bounds), 0)
    if low > high:
        raise ConstraintError(_none(bounds, "integer", where))
    return either(_signed(low, high, 0))


def number_regex(bounds: Range, where: str) -> str:
    """Decimals of a range, without exponents: the larger they are, the fewer decimals they have.

    Raises `ConstraintError` when there are none.
    """
    if bounds.low is None and bounds.high is None and bounds.places is None:
        return ANY_NUMBER
    parts: list[str] = []
    start = 0
    for digits, places in _zones(bounds):
        low, high = _scaled(bounds, digits, places)
        first = start * 10**places
        parts = _signed(max(low, first), high, places) + parts
        parts = _signed(low, min(high, -max(first, 1)), places) + parts
        start = 10**digits
    if not parts:
        raise ConstraintError(_none(bounds, "number", where))
    return either(parts)


def _zones(bounds: Range) -> list[tuple[int, int]]:
    """(digits before the point, decimals) of numbers of growing size, `DIGITS` together."""
    needed = max((_decimals(b) for b in (bounds.low, bounds.high) if b is not None), default=0)
    # Three decimals more than the bounds have: else little is between small ones.
    places = min(max(PLACES, needed + 3), DIGITS - 1)
    zones = [(DIGITS - places, places), _MIDDLE, (max(DIGITS, _most_digits(bounds)), 0)]
    most = bounds.places
    return [(digits, places if most is None else min(places, most)) for digits, places in zones]


def _decimals(bound: Fraction) -> int:
    places = 0
    while places < DIGITS and (bound * 10**places).denominator != 1:
        places += 1
    return places


def _most_digits(bounds: Range) -> int:
    """Digits before the point of the largest number."""
    given = [len(str(int(abs(b)))) for b in (bounds.low, bounds.high) if b is not None]
    most = max(given) if len(given) == 2 else max(DIGITS, *(n + 1 for n in given), 0)
    return min(most, _MOST_DIGITS)


def _scaled(bounds: Range, digits: int, places: int) -> tuple[int, int]:
    """The least and the greatest number in units of the last decimal."""
    scale = 10**places
    most = 10 ** (digits + places) - 1
    low, high = -most, most
    if bounds.low is not None:
        least = bounds.low * scale
        low = max(low, math.floor(least) + 1 if bounds.low_open else math.ceil(least))
    if bounds.high is not None:
        greatest = bounds.high * scale
        high = min(high, math.ceil(greatest) - 1 if bounds.high_open else math.floor(greatest))
    return low, high


def _signed(low: int, high: int, places: int) -> list[str]:
    """Numbers in units of the last decimal, the longest first: an automaton of the leftmost match
    stops at an end, and drops what comes later in the expression."""
    parts = []
    if low < 0 and low <= high:
        parts += ["-" + part for part in _unsigned(max(1, -high), -low, places)]
    if high >= 0 and low <= high:
        parts += _unsigned(max(0, low), high, places)
    return parts


def _unsigned(low: int, high: int, places: int) -> list[str]:
    if places == 0:
        return _whole(low, high)
    scale = 10**places
    (first, least), (last, greatest) = divmod(low, scale), divmod(high, scale)
    if first == last:
        return [f"{first}{_fraction(least, greatest, places)}"]
    parts = []
    if greatest < scale - 1:
        parts.append(f"{last}{_fraction(0, greatest, places)}")
        last -= 1
    start = first + (least > 0)
    if start <= last:
        parts.append(either(_whole(start, last)) + _fraction(0, scale - 1, places))
    if least > 0:
        parts.append(f"{first}{_fraction(least, scale - 1, places)}")
    return parts


def _fraction(low: int, high: int, places: int) -> str:
    """A point and decimals. They may end early, which stands for zeros."""
    digits = _digits(f"{low:0{places}}", f"{high:0{places}}", cut=True, started=False)
    return f"\\.{digits}" if low else f"(?:\\.{digits})?"


def _whole(low: int, high: int) -> list[str]:
    """Numbers from 0 on without leading zeros, the longest first."""
    shortest, longest = len(str(low)), len(str(high))
    # All numbers of the lengths from `first` to `last` are one expression.
    first = shortest if low == 10 ** (shortest - 1) else shortest + 1
    last = longest if high == 10**longest - 1 else longest - 1
    if first > last and shortest == longest:
        return [_digits(str(low), str(high))]
    parts = []
    if last < longest:
        parts.append(_digits(str(10 ** (longest - 1)), str(high)))
    if first <= last:
        parts.append(f"[1-9]{_any_digits(first - 1, last - 1)}")
    if first > shortest:
        parts.append(_digits(str(low), "9" * shortest))
    return parts


def _digits(low: str, high: str, *, cut: bool = False, started: bool = True) -> str:
    """Digits from `low` to `high`, which are as long; with `cut`, final zeros may be left out."""
    if not low:
        return ""
    length = len(low)
    optional = cut and started and not low.strip("0")
    if not low.strip("0") and not high.strip("9"):
        return _any_digits(int(not started) if cut else length, length)
    parts = []
    first, last = int(low[0]), int(high[0])
    if first == last:
        parts.append(low[0] + _digits(low[1:], high[1:], cut=cut))
    else:
        zeros, nines = "0" * (length - 1), "9" * (length - 1)
        if low[1:] != zeros:
            parts.append(low[0] + _digits(low[1:], nines, cut=cut))
            first += 1
        if high[1:] != nines:
            parts.append(high[0] + _digits(zeros, high[1:], cut=cut))
            last -= 1
        if first <= last:
            parts.append(_span(first, last) + _digits(zeros, nines, cut=cut))
    return f"(?:{'|'.join(parts)})?" if optional else either(parts)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"[{first}-{last}]"


def _any_digits(least: int, most: int) -> str:
    return f"[0-9]{repeat(least, most)}" if most else ""


def _none(bounds: Range, kind: str, where: str) -> str:
    low, high = (
        "" if bound is None else f" {word} {int(bound) if bound.denominator == 1 else float(bound)}"
        for word, bound in (
            ("above" if bounds.low_open else "from", bounds.low),
            ("below" if bounds.high_open else "to", bounds.high),
        )
    )
    long = "" if bounds.empty else f" of at most {_MOST_DIGITS} digits"
    return f'"minimum" and "maximum" at {where} leave no {kind}{long}{low}{high}; widen them.'
