"""Strings of a JSON document: their lengths, patterns and formats."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from dg_mlx.canvas.expression import repeat
from dg_mlx.errors import ConstraintError

from .chars import ANY_CHAR
from .pattern import Pattern, read_pattern, within

ANY_STRING = f'"{ANY_CHAR}*"'

# Years that Python, JavaScript and RFC 3339 all read; 29 February only in leap years.
_YEAR = "[12][0-9]{3}"
_LEAP = "[12][0-9](?:0[48]|[2468][048]|[13579][26])|(?:12|16|20|24|28)00"
_DAY_28 = "0[1-9]|1[0-9]|2[0-8]"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-(?:{_DAY_28})|(?:0[13-9]|1[0-2])-(?:29|30)"
    f"|(?:0[13578]|1[02])-31)|(?:{_LEAP})-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,20}){0,2}"
_HOST = rf"(?:{_LABEL}\.){{0,4}}{_LABEL}"
_LOCAL = r"[A-Za-z0-9_+-]{1,20}(?:\.[A-Za-z0-9_+-]{1,20}){0,2}"
_IN_PATH = "(?:[A-Za-z0-9._~!$&()*+,;=:@-]|%[0-9A-F]{2})"
_URI = (
    rf"(?:https?|ftp|wss?)://{_HOST}(?::[1-9][0-9]{{0,3}})?(?:/{_IN_PATH}*)*"
    rf"(?:\?(?:{_IN_PATH}|[/?])*)?(?:#(?:{_IN_PATH}|[/?])*)?"
)
_POINTER = "(?:/[A-Za-z0-9_.-]*)*"
_DURATION = (
    "P(?:[0-9]{1,6}W|(?:[0-9]{1,6}D|[0-9]{1,6}M(?:[0-9]{1,6}D)?|[0-9]{1,6}Y(?:[0-9]{1,6}M"
    "(?:[0-9]{1,6}D)?)?)(?:T{0})?|T{0})"
).replace(
    "{0}", "(?:[0-9]{1,6}S|[0-9]{1,6}M(?:[0-9]{1,6}S)?|[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?)"
)
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": _DURATION,
    "uuid": "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
    "email": rf"{_LOCAL}@(?:{_LABEL}\.){{1,4}}[A-Za-z]{{2,24}}",
    "hostname": _HOST,
    "ipv4": rf"(?:{_BYTE}\.){{3}}{_BYTE}",
    "ipv6": "(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}",
    "uri": _URI,
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(?:0|[1-9][0-9]{{0,5}})(?:#|{_POINTER})",
}
# What is one of these is one of those.
_FORMATS |= {"idn-email": _FORMATS["email"], "idn-hostname": _FORMATS["hostname"]}
_FORMATS |= dict.fromkeys(("uri-reference", "iri", "iri-reference", "uri-template"), _URI)
FORMATS = frozenset(_FORMATS)
"""Those that are enforced; each with some of its texts, of the common kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What strings must be."""

    shortest: int = 0
    longest: int | None = None
    """In Unicode code points."""
    pattern: str | None = None
    format: str | None = None

    def both(self, other: Text, where: str) -> Text:
        """The strings that are in both. Raises `ConstraintError` for two patterns or formats."""
        for keyword in ("pattern", "format"):
            one, two = getattr(self, keyword), getattr(other, keyword)
            if None not in (one, two) and one != two:
                raise ConstraintError(
                    f'"{keyword}" at {where} is both {one!r} and {two!r}, which cannot be '
                    "combined; write one that says both."
                )
        longest = [t.longest for t in (self, other) if t.longest is not None]
        return Text(
            shortest=max(self.shortest, other.shortest),
            longest=min(longest, default=None),
            pattern=self.pattern if other.pattern is None else other.pattern,
            format=self.format if other.format is None else other.format,
        )

    def regex(self, where: str) -> str:
        """The JSON strings that fit, with their quotes. Raises `ConstraintError` if none does."""
        if not within(self.shortest, self.longest):
            raise ConstraintError(
                f'"minLength" {self.shortest} at {where} is above "maxLength" {self.longest}; '
                "swap them."
            )
        if self.pattern is None and self.format is None:
            return f'"{ANY_CHAR}{repeat(self.shortest, self.longest)}"'
        return f'"{self._pattern(where).regex()}"'

    def in_length(self, value: str) -> bool:
        """Whether a string is neither too short nor too long."""
        return self.shortest <= len(value) and within(len(value), self.longest)

    def holds(self, value: str, where: str) -> bool:
        """Whether a string fits, as far as patterns and formats are written here."""
        if self.pattern is None and self.format is None:
            return self.in_length(value)
        return re.fullmatch(self.regex(where), json.dumps(value, ensure_ascii=False)) is not None

    def _pattern(self, where: str) -> Pattern:
        if self.pattern is not None and self.format is not None:
            raise ConstraintError(
                f'"pattern" and "format" {self.format!r} at {where} cannot be combined; keep one.'
            )
        if self.pattern is not None:
            keyword, pattern = f'"pattern" {self.pattern!r}', read_pattern(self.pattern, where)
            fix = "write the lengths into its quantifiers"
        else:
            keyword, fix = f'"format" {self.format!r}', 'remove them, or write a "pattern"'
            pattern = read_pattern(f"^(?:{_FORMATS[self.format or '']})$", where)
        fitted = pattern.of_length(self.shortest, self.longest)
        if fitted is None:
            raise ConstraintError(
                f'{keyword} at {where} cannot be combined with "minLength" or "maxLength"; {fix}.'
            )
        if not fitted.alternatives:
            most = "" if self.longest is None else f" to {self.longest}"
            raise ConstraintError(
                f"{keyword} at {where} has no text of {self.shortest}{most} characters; change "
                "the lengths."
            )
        return fitted
