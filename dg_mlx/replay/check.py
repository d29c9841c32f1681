"""Whether a document is a recording that can be played: every frame, before any is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from itertools import pairwise
from math import isfinite
from typing import Any, TypeGuard, get_args

from dg_mlx.errors import StoreError
from dg_mlx.events import Reason, Stats

from .parts import Part
from .states import State

FORMAT = "dg-mlx recording"
VERSION = 1

Check = Callable[[Any], bool]

_IDS = 2**31
"""Ids are below."""


def frames_of(document: Any, where: str) -> list[dict[str, Any]]:
    """The frames of a document. Raises `StoreError`; `where` is its name in that."""
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise StoreError(f"{where} is not a recording of dg-mlx; choose another file.")
    version = document.get("version")
    if not _whole(version) or version > VERSION:
        raise StoreError(
            f"{where} is of version {version!r:.20} and this dg-mlx reads {VERSION}; update dg-mlx."
        )
    frames = document.get("frames")
    try:
        if not isinstance(frames, list) or not frames:
            raise ValueError("it has no frames")
        checker = _Checker()
        for number, frame in enumerate(frames):
            try:
                checker.take(frame, number)
            except ValueError as error:
                raise ValueError(f"frame {number} {error}") from None
    except ValueError as error:
        raise StoreError(f"{where} is a damaged recording ({error}); get it again.") from None
    return frames


# What values may be.


def _whole(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _IDS


def _number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and isfinite(value) and value >= 0


def _is(*kinds: type) -> Check:
    return lambda value: isinstance(value, kinds)


def _one_of(*values: Any) -> Check:
    return lambda value: isinstance(value, str) and value in values


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _state(value: Any) -> bool:
    return _whole(value) and value < 128 and value % 8 <= max(State) and value // 16 <= 4


def _text_of(value: Any) -> bool:
    return isinstance(value, str) or (_whole(value) and value < 256)


def _said(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    ids = (key.isascii() and key.isdecimal() and len(key) < 11 for key in value)
    return all(ids) and all(map(_id, map(int, value))) and all(map(_text_of, value.values()))


def _settings(value: Any) -> bool:
    return isinstance(value, dict) and _list(_id)(value.get("eos_token_id"))


def _stats(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    needed = {f.name for f in fields(Stats) if f.default is MISSING}
    steps = _list(_whole)(value.get("steps_per_block"))
    rest = {name: figure for name, figure in value.items() if name != "steps_per_block"}
    return steps and needed <= value.keys() and all(map(_number, rest.values()))


_POSITIONS = _list(_whole)
_PART = _one_of(*get_args(Part))
_KINDS: dict[str, dict[str, Check]] = {
    "begin": {
        "model": _is(str),
        "prompt": _is(str),
        "settings": _settings,
        "seed": _is(int, type(None)),
        "length": _whole,
    },
    "read": {"tokens": _whole, "cached": _whole, "seconds": _number},
    "draft": {
        "block": _whole,
        "step": _whole,
        "max": _whole,
        "c": _list(_id),
        "g": _list(_id),
        "v": _list(_state),
        "new": _said,
        "count": _whole,
        "parts": _is(list),
        "settled": _whole,
        "entropy": _number,
        "tokens": _whole,
        "steps": _whole,
    },
    "commit": {"block": _whole, "tokens": _whole, "text": _is(str), "thought": _is(str)},
    "done": {"reason": _one_of(*get_args(Reason)), "stats": _stats, "tool_calls": _list(_is(dict))},
    "touch": {
        "block": _whole,
        "what": _one_of("pin", "release", "noise"),
        "positions": _POSITIONS,
    },
    "pause": {},
    "resume": {},
    "note": {"text": _is(str)},
    "error": {"text": _is(str)},
    "edited": {"text": _is(str), "spans": _list(_POSITIONS), "fills": _list(_is(str))},
    "end": {"conversation": _is(str, type(None)), "message": _is(str, type(None))},
}


class _Checker:
    """Goes through the frames, and knows what they have said so far. Raises `ValueError`."""

    def __init__(self) -> None:
        self._at = 0.0
        self._over = False
        self._known: set[int] = set()
        self._length: int | None = None
        """Of the canvas; None: its block has no draft yet."""

    def take(self, frame: Any, number: int) -> None:
        if not isinstance(frame, dict):
            raise ValueError("is no object")
        kind, at = frame.get("kind"), frame.get("at")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"is of the kind {kind!r:.20}, which is none")
        if frame.get("n") != number:
            raise ValueError(f"has the number {frame.get('n')!r:.20}")
        if not _number(at) or at < self._at:
            raise ValueError(f"is at {at!r:.20}, before the frame before it")
        if (kind == "begin") != (number == 0) or self._over:
            raise ValueError(f"is a {kind!r} in the wrong place")
        for key, check in _KINDS[kind].items():
            if key not in frame:
                raise ValueError(f"has no {key!r}")
            if not check(frame[key]):
                raise ValueError(f"has a wrong {key!r}")
        self._at, self._over = at, kind == "end"
        match kind:
            case "draft":
                self._draft(frame)
            case "commit" | "read":
                self._length = None
            case "touch":
                wanted = len(frame["positions"]) if frame["what"] == "pin" else 0
                ids = frame.get("ids", [])
                if not _list(_id)(ids) or len(ids) != wanted:
                    raise ValueError("has a wrong 'ids'")
                if not _said(frame.get("new", {})):
                    raise ValueError("has a wrong 'new'")
                self._known.update(map(int, frame.get("new", ())))
                if not self._known.issuperset(ids):
                    raise ValueError("has tokens without a text")

    def _draft(self, frame: dict[str, Any]) -> None:
        self._known.update(map(int, frame["new"]))
        if not self._known.issuperset(frame["c"]) or not self._known.issuperset(frame["g"]):
            raise ValueError("has tokens without a text")
        size = len(frame["c"])
        if len(frame["g"]) != size or len(frame["v"]) != size:
            raise ValueError("has lists of different lengths")
        at = frame.get("i")
        if at is None:
            self._length = size
        elif self._length is None:
            raise ValueError("is the first of a block and does not say all of it")
        elif not _POSITIONS(at) or len(at) != size or not _rising(at, self._length):
            raise ValueError("has wrong positions")
        if not frame["settled"] <= frame["count"] <= self._length:
            raise ValueError("counts more than there is")
        self._parts(frame["parts"], frame["count"])

    def _parts(self, parts: list[Any], count: int) -> None:
        end = 0
        for part in parts:
            match part:
                case [int(start), int(stop), name] if _PART(name) and end <= start < stop:
                    end = stop
                case _:
                    raise ValueError("has wrong parts")
        if end > count:
            raise ValueError("has parts behind its end")


def _rising(positions: list[int], length: int) -> bool:
    """They are of a canvas, in order, each once."""
    rising = all(a < b for a, b in pairwise(positions))
    return rising and (not positions or positions[-1] < length)
