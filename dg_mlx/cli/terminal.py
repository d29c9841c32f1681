"""What the verbs write: text that cannot harm a terminal, and numbers as people read them."""

from __future__ import annotations

import sys
import unicodedata
from typing import TextIO

from dg_mlx.events import Stats

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


def write(text: str, out: TextIO | None = None) -> None:
    """Write model text at once; made harmless where the reader is a terminal."""
    out = out or sys.stdout
    out.write(harmless(text) if out.isatty() else text)
    out.flush()


def note(text: str) -> None:
    """One line about the run, which is not part of the answer."""
    print(f"dg-mlx: {text}", file=sys.stderr, flush=True)


def size(count: float) -> str:
    """Bytes in decimal units: "16.5 GB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def stats_line(stats: Stats) -> str:
    """What an answer cost, in one line."""
    steps = f"{stats.steps} step" + ("" if stats.steps == 1 else "s")
    return " · ".join(
        (
            f"{stats.tokens} tokens in {steps} ({stats.tokens_per_step:.1f} tokens/step)",
            f"{stats.denoise_s + stats.commit_s:.2f} s",
            f"{stats.tokens_per_second:.0f} tok/s",
            f"prompt {stats.prompt_tokens} tokens in {stats.prefill_s:.2f} s",
            f"peak {stats.peak_gb:.2f} GB",
        )
    )


def empty_answer(reason: str, thought: str) -> str:
    """The sentence for an answer without text."""
    if thought:
        why = "all of it was thought; allow more with --max-tokens"
    else:
        why = {
            "end": "it ended before any text; ask differently or try another seed",
            "length": "it has control tokens only; allow more with --max-tokens",
            "cancelled": "it was stopped before the first block was done",
            "tool_call": "its tool call cannot be read; ask again or try another seed",
        }[reason]
    return f"the model returned an empty answer ({why})"
