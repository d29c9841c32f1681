"""The log of a conversation: a line of JSON for every change.

docs/conversations.md has the format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from dg_mlx.errors import ConversationError, StoreError

from .jsonl import dump, load
from .message import Message
from .tree import Added, Change, Forgotten, Moved, System, Title, Tree, Way

VERSION = 1

_FORMAT = "dg-mlx conversation"


@dataclass(slots=True, kw_only=True)
class Log:
    """What a log says."""

    tree: Tree = field(default_factory=Tree)
    damaged: int = 0
    """Lines that could not be read, or do not fit what is before them."""
    size: int = 0
    """Bytes of the file."""
    end: int = 0
    """Bytes up to the end of its last whole line; what is behind was being written in a crash."""

    @staticmethod
    def read(path: Path) -> Log:
        """Raises `OSError`, and `StoreError` for a log of a newer version."""
        log = Log()
        adopted: dict[str, str | None] = {}
        with path.open("rb") as file:
            for line in file:
                log.size += len(line)
                if line.endswith(b"\n"):
                    log._take(line, adopted, path)
                    log.end = log.size
        return log

    def _take(self, line: bytes, adopted: dict[str, str | None], path: Path) -> None:
        try:
            data = load(line)
            if self.end == 0:
                _check(data, path)
                return
            self.tree.apply(_adopt(_decode(data), adopted, self.tree))
        except (ValueError, ConversationError):
            self.damaged += 1


def header() -> dict[str, Any]:
    """What a file in our format begins with."""
    return {"format": _FORMAT, "version": VERSION}


def is_ours(data: Any) -> bool:
    """Whether a value begins as our files do, in whatever version."""
    return isinstance(data, Mapping) and data.get("format") == _FORMAT


def newer(data: Any) -> bool:
    """Whether it was written by a later version of this package."""
    version = data.get("version")
    return not isinstance(version, int) or version > VERSION


def lines(changes: Iterable[Change]) -> Iterator[bytes]:
    """Each change as a line."""
    for change in changes:
        yield dump(_encode(change)) + b"\n"


def first_line() -> bytes:
    """The line that a log begins with."""
    return dump(header()) + b"\n"


def _check(data: Any, path: Path) -> None:
    if not is_ours(data):
        raise ValueError("not our header")
    if newer(data):
        raise StoreError(
            f"{path} is of version {data.get('version')!r:.20} and this dg-mlx reads {VERSION}; "
            "update dg-mlx."
        )


def _encode(change: Change) -> dict[str, Any]:
    match change:
        case Added(message=message):
            return {"do": "add", "message": message.to_json()}
        case Forgotten(id=id):
            return {"do": "forget", "id": id}
        case Moved(head=head, way=way):
            return {"do": way, "head": head}
        case System(text=text):
            return {"do": "system", "text": text}
        case Title(text=text):
            return {"do": "title", "text": text}


def _decode(data: Any) -> Change:
    match data:
        case {"do": "add", "message": message, **rest} if not rest:
            return Added(message=Message.from_json(message))
        case {"do": "forget", "id": str(id), **rest} if not rest:
            return Forgotten(id=id)
        case {"do": way, "head": str() | None as head, **rest} if way in get_args(Way) and not rest:
            return Moved(head=head, way=way)
        case {"do": "system", "text": str(text), **rest} if not rest:
            return System(text=text)
        case {"do": "title", "text": str(text), **rest} if not rest:
            return Title(text=text)
    raise ValueError("not a change")


def _adopt(change: Change, adopted: dict[str, str | None], tree: Tree) -> Change:
    """What followed a message whose line is damaged follows the one before it."""
    match change:
        case Added(message=message) if message.parent and message.parent not in tree.messages:
            parent = adopted.setdefault(message.parent, tree.head)
            return Added(message=replace(message, parent=parent))
        case Moved(head=head) if head in adopted:
            return replace(change, head=adopted[head])
    return change
