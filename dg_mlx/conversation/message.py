"""One message of a conversation, and how it is written as JSON.

docs/conversations.md has the format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from dg_mlx.errors import ConversationError
from dg_mlx.events import Reason

from .jsonl import dump

Role = Literal["user", "assistant", "tool"]

_FILE = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A part of a message: text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A part of a message: a picture or a video."""

    kind: Literal["image", "video"]
    name: str
    """SHA-256 of its bytes, a dot, and a file name's usual ending."""


Content = str | tuple[Text | File, ...] | dict[str, Any]
"""Text, parts, or what a tool returned as an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What was said once."""

    id: str
    """Unique in its conversation."""
    parent: str | None
    """The message before it; None: the first of its line."""
    role: Role
    content: Content
    time: datetime
    """In UTC."""
    thought: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """As `Done` has them."""
    reason: Reason | None = None
    """Why the answer ended; None: not an answer of ours."""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Those that were not the checkpoint's own."""
    seed: int | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    """What the answer cost, by the names of `Stats`."""
    tool_call_id: str = ""
    """Of a tool's result: the call that it answers."""
    name: str = ""
    """Of a tool's result: the tool."""

    @property
    def cut(self) -> bool:
        """Whether the answer was stopped, so that its end is missing."""
        return self.reason == "cancelled"

    @property
    def text(self) -> str:
        """What was said, without pictures and videos."""
        match self.content:
            case str():
                return self.content
            case dict():
                return dump(self.content).decode()
        return "\n".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def files(self) -> tuple[File, ...]:
        """Its pictures and videos."""
        parts = self.content if isinstance(self.content, tuple) else ()
        return tuple(part for part in parts if isinstance(part, File))

    def checked(self) -> Message:
        """The same; raises `ConversationError` if it could not be read once it is written."""
        return Message.from_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As the values of JSON; what is not set is left out."""
        return {
            f.name: _plain(value)
            for f in fields(self)
            if (value := getattr(self, f.name)) != _default(f)
        }

    @staticmethod
    def from_json(data: Any) -> Message:
        """The message that `to_json` wrote. Raises `ConversationError`."""
        if not isinstance(data, Mapping):
            raise ConversationError("a message is not an object")
        known = {f.name: f for f in fields(Message)}
        if wrong := [key for key in data if key not in known]:
            raise ConversationError(f"a message has {wrong[0]!r}, which this version does not know")
        if missing := [n for n, f in known.items() if n not in data and _default(f) is MISSING]:
            raise ConversationError(f"a message has no {missing[0]}")
        try:
            return Message(**{name: _READ[name](value) for name, value in data.items()})
        except (ValueError, OverflowError) as error:
            raise ConversationError(f"a message cannot be read ({error})") from None


def now() -> datetime:
    """The time, in UTC, to the millisecond."""
    time = datetime.now(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def _default(f: Any) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case Text(text=text):
            return {"type": "text", "text": text}
        case File(kind=kind, name=name):
            return {"type": kind, "file": name}
        case tuple():
            return [_plain(item) for item in value]
    return value


# How each field is read: functions that raise ValueError.


def _of(*kinds: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{value!r:.40} where {wanted} is expected")
        return value

    return read


def _one_of(names: Sequence[str]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value not in names:
            raise ValueError(f"{value!r:.40} is none of {', '.join(names)}")
        return value

    return read


def _id(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise ValueError(f"{value!r:.40} where an id is expected")
    return value


def _time(value: Any) -> datetime:
    return datetime.fromisoformat(_of(str)(value)).astimezone(UTC)


def _content(value: Any) -> Content:
    if isinstance(value, list):
        return tuple(_part(part) for part in value)
    content: Content = _of(str, dict)(value)
    return content


def _part(value: Any) -> Text | File:
    match value:
        case {"type": "text", "text": str(text), **rest} if not rest:
            return Text(text=text)
        case {"type": "image" | "video" as kind, "file": str(name), **rest} if not rest:
            if not _FILE.fullmatch(name):
                raise ValueError(f"{name!r:.40} is not a file's name")
            return File(kind=kind, name=name)
    raise ValueError(f"{value!r:.40} is not a part")


def _calls(value: Any) -> tuple[dict[str, Any], ...]:
    for call in _of(list)(value):
        match call:
            case {"function": {"name": str(), "arguments": dict()}}:
                pass
            case _:
                raise ValueError(f"{call!r:.40} is not a tool call")
    return tuple(value)


_READ: dict[str, Callable[[Any], Any]] = {
    "id": _id,
    "parent": lambda value: None if value is None else _id(value),
    "role": _one_of(get_args(Role)),
    "content": _content,
    "time": _time,
    "thought": _of(str),
    "tool_calls": _calls,
    "reason": _one_of(get_args(Reason)),
    "model": _of(str),
    "settings": _of(dict),
    "seed": _of(int),
    "figures": _of(dict),
    "tool_call_id": _of(str),
    "name": _of(str),
}
