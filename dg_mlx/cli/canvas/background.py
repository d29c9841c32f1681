"""Whether a terminal is dark or light."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic

from .ink import Background

WAIT_S = 0.5
"""A terminal that has not answered by then does not answer."""

# What is the background, and what are you? Every terminal answers the second, so nobody waits.
_QUESTION = b"\x1b]11;?\x1b\\\x1b[c"
_COLOUR = re.compile(rb"\x1b\]11;rgba?:([0-9a-fA-F]+)/([0-9a-fA-F]+)/([0-9a-fA-F]+)")
_END = re.compile(rb"\x1b\[\?[0-9;]*c")


def background(environ: Mapping[str, str], *, ask: bool = True) -> Background:
    """From COLORFGBG, or from the terminal itself; dark where neither says."""
    colour = environ.get("COLORFGBG", "").rpartition(";")[2]
    if colour.isdecimal():
        return "light" if int(colour) in (7, 15) else "dark"
    with suppress(Exception):  # no terminal, or one that cannot be asked
        if ask and environ.get("TERM") != "linux":
            return answered(_ask(sys.stdin.fileno(), sys.stdout.fileno()))
    return "dark"


def answered(answer: bytes) -> Background:
    """What a terminal's answer means: each colour is 1 to 4 hexadecimal digits."""
    found = _COLOUR.search(answer)
    if found is None:
        return "dark"
    red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in found.groups())
    return "light" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "dark"


def _ask(keyboard: int, screen: int) -> bytes:
    """The answer; nothing if something is typed already, which must not be taken for it."""
    import termios

    if select.select([keyboard], [], [], 0)[0]:
        return b""
    before = termios.tcgetattr(keyboard)
    raw = [*before[:3], before[3] & ~(termios.ICANON | termios.ECHO), *before[4:]]
    termios.tcsetattr(keyboard, termios.TCSADRAIN, raw)
    answer, end = b"", monotonic() + WAIT_S
    try:
        os.write(screen, _QUESTION)
        while not _END.search(answer) and (left := end - monotonic()) > 0:
            if select.select([keyboard], [], [], left)[0]:
                answer += os.read(keyboard, 256)
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
    return answer
