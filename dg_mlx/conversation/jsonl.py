"""Values as one line of JSON, whatever their text, and back."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def dump(value: Any) -> bytes:
    """One line of UTF-8, without its newline. Half characters (lone surrogates) are escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # What UTF-8 cannot say stands inside a string, where \\udc00 is JSON's own escape.
    return text.encode("utf-8", "backslashreplace")


def load(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `ValueError`, also for NaN and for endless nesting."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
