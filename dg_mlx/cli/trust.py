"""How far each token of an answer can be trusted: as data, and as a drawing for people."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dg_mlx.events import Reply, Trust
from dg_mlx.signs import harmless

if TYPE_CHECKING:
    from dg_mlx.processor import Processor, ReplyParser

DIGITS = 6
"""Decimals of what is written as data."""
SURE = 0.99
"""A token with this probability is not worth a look."""
MARKED = 0.9
"""Without shades, tokens below this have their probability behind them."""
MOST = 5
"""Tokens in the table."""

# From this probability on → background and text. The darker, the less certain; both are given, so
# that it reads the same on dark and light terminals.
_SHADES = ((SURE, 255, 16), (0.9, 251, 16), (0.7, 247, 16), (0.5, 242, 231), (0.0, 236, 231))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of the visible answer that cannot be split: a token, or those that share a letter."""

    text: str
    position: int
    """Of its least certain token."""


def plain(record: Any) -> dict[str, Any]:
    """A dataclass as what JSON can say: arrays become lists, floats of `DIGITS` decimals."""

    def value(given: Any) -> Any:
        if hasattr(given, "tolist"):
            return [_rounded(number) for number in given.tolist()]
        return plain(given) if dataclasses.is_dataclass(given) else given

    return {f.name: value(getattr(record, f.name)) for f in dataclasses.fields(record)}


def rows(
    ids: Sequence[int], trust: Trust, piece: Callable[[int], str]
) -> list[dict[str, int | float | str]]:
    """One record per token; `piece` says its text."""
    columns = plain(trust)
    numbers = zip(*columns.values(), strict=True)
    return [
        {"id": token, "text": piece(token), **dict(zip(columns, row, strict=True))}
        for token, row in zip(ids, numbers, strict=True)
    ]


def visible(reply: Reply, processor: Processor) -> list[Piece]:
    """What of an answer is to be seen: no thought, no calls, no control tokens."""
    pieces = _read(reply, processor, processor.reply())
    if "".join(piece.text for piece in pieces) == reply.text:
        return pieces
    # Then the prompt had opened a thought.
    return _read(reply, processor, processor.reply(thinking_open=True))


def explained(pieces: Sequence[Piece], trust: Trust, *, shaded: bool) -> str:
    """The answer with its tokens shaded, or marked, by probability; a legend; the least certain.

    Without pieces it is empty.
    """
    if not pieces:
        return ""
    draw = _shaded if shaded else _marked
    text = "".join(draw(harmless(p.text), _chance(trust, p)) for p in pieces)
    end = "" if pieces[-1].text.endswith("\n") else "\n"
    return f"{text}{end}\n{_legend(shaded)}\n{_table(pieces, trust)}\n"


def shades() -> bool:
    """Whether stdout takes them: a terminal, unless NO_COLOR is set."""
    unable = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not unable


def _read(reply: Reply, processor: Processor, parser: ReplyParser) -> list[Piece]:
    """Each text that the parser lets go, with the tokens that it was held for."""
    control, found, held = processor.control, list[Piece](), list[int]()
    for position, token in enumerate(reply.ids):
        new = parser.feed([token])
        if token not in control.special:
            held.append(position)
        if new.text:
            found += _split(new.text, held or [position], reply, processor)
        if new.text or new.thought or token in control.opens or token in control.closes.values():
            held = []
    rest = parser.finish().text
    return found + (_split(rest, held or [len(reply.ids) - 1], reply, processor) if rest else [])


def _split(text: str, positions: list[int], reply: Reply, processor: Processor) -> list[Piece]:
    """A text by tokens, or as one piece where they do not spell it one by one."""
    texts = [processor.piece(reply.ids[position]) for position in positions]
    if "".join(texts) == text:
        return [Piece(text=t, position=p) for t, p in zip(texts, positions, strict=True)]
    return [Piece(text=text, position=min(positions, key=lambda p: reply.trust.probability[p]))]


def _shaded(text: str, chance: float) -> str:
    """Background and text in greys. No shade runs over the end of a line."""
    background, ink = next((b, i) for least, b, i in _SHADES if chance >= least)
    start, stop = f"\x1b[48;5;{background};38;5;{ink}m", "\x1b[0m"
    if not text.strip("\n") and chance < SURE:
        text = r"\n" * len(text) + text  # else there is nothing to shade
    return "\n".join(f"{start}{line}{stop}" if line else "" for line in text.split("\n"))


def _marked(text: str, chance: float) -> str:
    """The probability behind a doubtful token, on the same line: word[0.62]."""
    if chance >= MARKED:
        return text
    body = text.rstrip("\n")
    breaks = text[len(body) :]
    body = body or r"\n" * len(breaks)
    return f"{body}[{chance:.2f}]{breaks}"


def _legend(shaded: bool) -> str:
    if not shaded:
        return f"[0.00]: the probability of the token before it, where it is below {MARKED:.2f}"
    names = [f" {least:.2f}+ " for least, _, _ in _SHADES[:-1]] + [f" below {_SHADES[-2][0]:.2f} "]
    drawn = (_shaded(n, least) for n, (least, _, _) in zip(names, _SHADES, strict=True))
    return "probability: " + "".join(drawn)


def _table(pieces: Sequence[Piece], trust: Trust) -> str:
    """The least certain tokens, at most `MOST`."""
    doubtful = [piece for piece in pieces if _chance(trust, piece) < SURE]
    if not doubtful:
        return f"every token has a probability of {SURE} or more"
    doubtful.sort(key=lambda piece: _chance(trust, piece))
    lines = ["least certain  probability  entropy (nats)  passes settled  changes  token"]
    for piece in doubtful[:MOST]:
        at = piece.position
        lines.append(
            f"{f'position {at}':<13}{_chance(trust, piece):>13.3f}{trust.entropy[at]:>16.3f}"
            f"{trust.settled[at]:>16}{trust.changes[at]:>9}  {harmless(piece.text)!r}"
        )
    return "\n".join(lines)


def _chance(trust: Trust, piece: Piece) -> float:
    return float(_rounded(float(trust.probability[piece.position])))


def _rounded(number: Any) -> Any:
    return round(number, DIGITS) if isinstance(number, float) else number
