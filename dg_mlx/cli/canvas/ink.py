"""How each state of a position looks on a terminal. Attributes differ too, never hue alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from dg_mlx.replay import State

Background = Literal["dark", "light"]
Depth = Literal["none", "16", "256", "true"]


class Ink(IntEnum):
    """The states of a position, and what else is drawn in a way of its own."""

    NOISE = State.NOISE
    CANDIDATE = State.CANDIDATE
    SETTLED = State.SETTLED
    RENOISED = State.RENOISED
    FROZEN = State.FROZEN
    FRESH = 5
    """Settled since the frame before."""
    QUIET = 6
    """Remarks in the place of text."""
    STATUS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """Attributes, and (light, dark) colours as SGR codes; no colours: the terminal's own."""

    attribute: str = ""
    rgb: tuple[str, str] = ("", "")
    indexed: tuple[int, int] | None = None
    """Those of the 256 colours that are nearest to `rgb`."""
    basic: tuple[str, str] = ("", "")

    def code(self, depth: Depth, side: int) -> str:
        if depth == "true" and self.rgb[side]:
            red, green, blue = bytes.fromhex(self.rgb[side])
            colour = f"38;2;{red};{green};{blue}"
        elif depth == "256" and self.indexed:
            colour = f"38;5;{self.indexed[side]}"
        else:
            colour = self.basic[side] if depth == "16" else ""
        return ";".join(filter(None, (self.attribute, colour)))


_GREY = _Look(attribute="2", rgb=("767676", "8d8d8d"), indexed=(243, 245))
_LOOKS = {
    Ink.NOISE: _GREY,
    Ink.CANDIDATE: _Look(
        attribute="4", rgb=("0072B2", "56B4E9"), indexed=(25, 74), basic=("34", "94")
    ),
    Ink.SETTLED: _Look(),
    Ink.FRESH: _Look(attribute="1", rgb=("009E73", "009E73"), indexed=(36, 36), basic=("32", "92")),
    Ink.RENOISED: _Look(
        attribute="9", rgb=("B34A00", "E69F00"), indexed=(130, 178), basic=("31", "33")
    ),
    Ink.FROZEN: _Look(attribute="7", rgb=("6b6b6b", "9a9a9a"), indexed=(242, 247)),
    Ink.QUIET: _GREY,
    Ink.STATUS: _Look(attribute="7"),
}


def palette(depth: Depth, background: Background) -> dict[Ink, str]:
    """Ink → SGR codes, as between CSI and m; empty: plain text."""
    side = ("light", "dark").index(background)
    return {ink: look.code(depth, side) for ink, look in _LOOKS.items()}


def depth(environ: Mapping[str, str]) -> Depth:
    """How many colours the terminal says it has."""
    if environ.get("NO_COLOR"):
        return "none"
    if environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "true"
    term = environ.get("TERM", "")
    return "true" if term.endswith("-direct") else "256" if "256color" in term else "16"
