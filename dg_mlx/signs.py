"""Text that cannot harm whoever reads it."""

from __future__ import annotations

import unicodedata

_KEPT = frozenset("\n\t")
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def harmless(text: str) -> str:
    """Control characters and bidi marks as visible signs: ESC becomes ␛, U+202E becomes <U+202E>.

    So a model's text can neither move the cursor nor show in another order than it has.
    """
    return "".join(map(_sign, text))


def _sign(char: str) -> str:
    if char in _KEPT:
        return char
    if char < " ":
        return chr(0x2400 + ord(char))
    if char == "\x7f":
        return "␡"
    if char in _BIDI or unicodedata.category(char) in ("Cc", "Cs"):
        return f"<U+{ord(char):04X}>"
    return char
