"""The messages of a conversation as a tree, and which of its lines is the present one.

An edited or repeated message is a sibling of the one before it, so nothing is lost. All changes are
values: the same changes make the same tree, today and from a log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dg_mlx.errors import ConversationError

from .message import Message

Way = Literal["switch", "undo", "redo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A message was said; the present line ends with it."""

    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """The message that was added last is taken back, as if it had not been said."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The present line ends elsewhere."""

    head: str | None
    way: Way
    """"undo" can be taken back by "redo" until something is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The system text is another."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Title:
    """The conversation has a name."""

    text: str


Change = Added | Forgotten | Moved | System | Title


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the present line ends, and what led there."""

    head: str | None
    undone: tuple[str | None, ...]
    """Where `undo` came from, the last one at the end."""


class Tree:
    """What the changes so far add up to. Changed by `apply` only."""

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        """By id; a message comes after its parent."""
        self.system = ""
        self.title = ""
        """The name that was given; empty: none was."""
        self.model = ""
        """The one that answered last."""
        self._place = _Place(None, ())
        self._children: dict[str | None, list[str]] = {None: []}
        self._ways: dict[str | None, str] = {}
        """Message → the one after it, on the way to the place below it that was left last."""
        self._fresh: list[tuple[str, _Place, dict[str | None, str | None]]] = []
        """Messages that can be forgotten: each with the place and the ways before it."""
        self._number = 0

    @property
    def head(self) -> str | None:
        """The last message of the present line; None: it is empty."""
        return self._place.head

    @property
    def undone(self) -> str | None:
        """Where `redo` goes. Raises `ConversationError`."""
        if not self._place.undone:
            raise ConversationError("there is nothing to redo; something was said since, or never.")
        return self._place.undone[-1]

    def __getitem__(self, id: str) -> Message:
        if id not in self.messages:
            raise ConversationError(f"there is no message {id!r:.40} in this conversation.")
        return self.messages[id]

    def line(self, head: str | None) -> list[Message]:
        """The messages from the first to `head`."""
        return [*self._up(head)][::-1]

    def after(self, id: str | None) -> tuple[Message, ...]:
        """The messages that follow one, each on a line of its own, in the order they were said."""
        return tuple(self.messages[child] for child in self._children.get(id, ()))

    def end(self, id: str) -> str:
        """Where the line through a message was left last: the message itself, or one below it."""
        at = self[id].id
        while at in self._ways:
            at = self._ways[at]
        return at

    def next_id(self) -> str:
        """An id that no message has, nor had."""
        return str(self._number + 1)

    def changes(self) -> Iterator[Change]:
        """The fewest changes that make this tree, without what was undone."""
        if self.system:
            yield System(text=self.system)
        if self.title:
            yield Title(text=self.title)
        for message in self.messages.values():
            yield Added(message=message)
        if self.messages and self.head != next(reversed(self.messages)):
            yield Moved(head=self.head, way="switch")

    def apply(self, change: Change) -> None:
        """Make a change, or none. Raises `ConversationError` for one that is impossible."""
        match change:
            case Added(message=message):
                self._add(message)
            case Forgotten(id=id):
                self._forget(id)
            case Moved():
                self._move(change)
            case System(text=text):
                self.system = text
            case Title(text=text):
                self.title = text

    def _add(self, message: Message) -> None:
        if message.parent is not None:
            self[message.parent]
        if message.id in self.messages:
            raise ConversationError(f"there are two messages {message.id!r:.40}.")
        before = self._place
        self.messages[message.id] = message
        self.model = message.model or self.model
        self._children[message.id] = []
        self._children[message.parent].append(message.id)
        number = message.id.isascii() and message.id.isdecimal() and len(message.id) < 10
        self._number = max(self._number + 1, int(message.id) if number else 0)
        self._fresh.append((message.id, before, self._go(_Place(message.id, ()))))

    def _forget(self, id: str) -> None:
        if not self._fresh or self._fresh[-1][0] != id:
            raise ConversationError(f"message {id!r:.40} is not the last one, so it stays.")
        _, self._place, ways = self._fresh.pop()
        message = self.messages.pop(id)
        del self._children[id]
        self._children[message.parent].remove(id)
        for at, to in ways.items():
            if to is None:
                self._ways.pop(at, None)
            else:
                self._ways[at] = to

    def _move(self, change: Moved) -> None:
        if change.head is not None:
            self[change.head]
        undone = self._place.undone
        if change.way == "undo":
            undone = (*undone, self.head)
        elif change.way == "redo":
            if self.undone != change.head:
                raise ConversationError("this is not what was undone.")
            undone = undone[:-1]
        self._fresh.clear()
        self._go(_Place(change.head, undone))

    def _go(self, place: _Place) -> dict[str | None, str | None]:
        """Go there. Returns the ways that this changed, as they were."""
        before: dict[str | None, str | None] = {}
        if place.head in self._ways:
            before[place.head] = self._ways.pop(place.head)
        for message in self._up(place.head):
            before[message.parent] = self._ways.get(message.parent)
            self._ways[message.parent] = message.id
            if message.parent == self.head:
                break  # above it, the ways lead here already
        self._place = place
        return before

    def _up(self, head: str | None) -> Iterator[Message]:
        while head is not None:
            message = self[head]
            yield message
            head = message.parent
