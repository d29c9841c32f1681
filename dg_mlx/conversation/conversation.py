"""A conversation: it asks an engine, keeps what was said, and saves it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

from dg_mlx.errors import ConversationError, StoreError
from dg_mlx.events import Done, Event

from .answer import Answer
from .context import Context, LeftOut, Notice, Said, Unsaved, said, spoken, system_of
from .journal import Journal
from .media import MediaFiles
from .message import Content, Message, Role, Text, now
from .recordings import Recordings
from .summary import title
from .tree import Added, Change, Forgotten, Moved, System, Title, Tree, Way

if TYPE_CHECKING:
    from dg_mlx.engine import Engine
    from dg_mlx.prefix import PrefixCache
    from dg_mlx.replay import Recording

Stream = Iterator[Event | Notice]

TITLE = 200
"""Most characters of a title that is given."""


class Conversation:
    """What was said, on all lines, and which line is the present one.

    Saved with every change if a `Store` made it; if that fails, it goes on in memory and tries
    again with the next change: see `unsaved`. While an answer is written, the tree stays as it is.
    """

    def __init__(
        self,
        *,
        system: str = "",
        model: str = "",
        journal: Journal | None = None,
        damaged: int = 0,
        recordings: Recordings | None = None,
    ) -> None:
        """A new one; a store gives those that it loads a journal, what was damaged, and their
        recordings."""
        self.model = model
        """The name that answers to come are kept under."""
        self.journal = journal or Journal(Tree(), MediaFiles())
        self.damaged = damaged
        """Lines of the log that were skipped, since they could not be read."""
        self.recordings = recordings or Recordings()
        self._context = Context()
        self._answering = threading.Lock()
        self._streams: WeakSet[Generator[Event | Notice]] = WeakSet()
        if system:
            self.system = system

    # What is there.

    @property
    def id(self) -> str:
        """What a store knows it by; empty: it belongs to none."""
        return "" if self.journal.folder is None else self.journal.folder.path.name

    @property
    def title(self) -> str:
        """The name that was given, or the user's first words."""
        return title(self.tree)

    @property
    def tree(self) -> Tree:
        """All lines; to read, since changes are made by the methods here."""
        return self.journal.tree

    @property
    def line(self) -> list[Message]:
        """The present line, from its first message on."""
        return self.tree.line(self.tree.head)

    @property
    def unsaved(self) -> StoreError | None:
        """Why changes are not saved; None: they are, or it belongs to no store."""
        return self.journal.unsaved

    @property
    def system(self) -> str:
        """The system text for answers to come. Setting it is a change like those below."""
        return self.tree.system

    @system.setter
    def system(self, text: str) -> None:
        if text != self.system:
            self._change(System(text=text))

    @cached_property
    def prefix(self) -> PrefixCache:
        """What the model has read, kept from turn to turn."""
        from dg_mlx.prefix import PrefixCache

        return PrefixCache()

    def messages(self) -> list[Said]:
        """The present line as `Engine.stream` takes it, the system text first."""
        return [*system_of(self.tree), *said(self.line, self.journal.media)]

    def reworded(self, message: Message, text: str) -> Any:
        """What `ask` and `edit` take for a message's pictures and videos with another text."""
        if not message.files:
            return text
        return spoken((*message.files, Text(text=text)), self.journal.media)

    def branches(self, id: str) -> tuple[Message, ...]:
        """A message and those that were said in its place, oldest first."""
        return self.tree.after(self.tree[id].parent)

    # How answers settled.

    @property
    def recorded(self) -> frozenset[str]:
        """The messages that `recording` has one of."""
        return self.recordings.of(self.tree.messages)

    def recording(self, id: str) -> Recording | None:
        """How a message settled; None: nobody recorded it, or that is too long ago.

        Raises `ConversationError`: there is no such message, and `StoreError`: it is damaged.
        """
        return self.recordings.get(self.tree[id].id)

    def record(self, id: str, recording: Recording) -> None:
        """Keep how a message settled, beside the conversation; the oldest recordings go.

        What cannot be written stays in memory, and is tried again with the next one. Raises
        `ConversationError`: there is no such message, or the conversation is closed.
        """
        self.journal.require_open()
        self.recordings.put(self.tree[id].id, recording, self.journal.folder)

    # Answers. The iterator yields the engine's events and, before them or before `Done`, notices.

    def ask(
        self, engine: Engine, content: Any, *, edits: str | None = None, **options: Any
    ) -> Stream:
        """Say something and stream the answer.

        `content` is text or parts, as in `Engine.stream`, whose options and errors these are;
        errors come at once. `edits`: the message of the user in whose place this is said. Message
        and answer are kept when the answer ends, and what there is of it when it is cancelled,
        closed or fails (`Message.cut`). If that is no text, the turn is forgotten.
        """
        parent = self.tree.head if edits is None else self._of_user(edits).parent
        return self._answer(engine, [self._new("user", content)], parent, options)

    def regenerate(self, engine: Engine, *, id: str | None = None, **options: Any) -> Stream:
        """Stream another answer in the place of one (None: the last). Otherwise as `ask`.

        Also answers a message that has no answer yet.
        """
        at = self.tree.head if id is None else id
        if at is not None and self.tree[at].role == "assistant":
            at = self.tree[at].parent
        return self._answer(engine, [], at, options)

    def resume(self, engine: Engine, results: Mapping[str, Any], **options: Any) -> Stream:
        """Answer the last message's tool calls, by their ids, and stream what follows.

        A result is text, parts or an object. Otherwise as `ask`.
        """
        last = self.line[-1:]
        calls = {call.get("id", ""): call for m in last for call in m.tool_calls}
        if not calls or calls.keys() != results.keys():
            raise ConversationError(
                f"there are results for {', '.join(results) or 'nothing'}; the last message calls "
                f"{', '.join(calls) or 'nothing'}. Give a result for every call."
            )
        new = [
            replace(
                self._new("tool", result),
                tool_call_id=call,
                name=calls[call]["function"]["name"],
            )
            for call, result in results.items()
        ]
        return self._answer(engine, new, self.tree.head, options)

    # Changes. `StoreError` is raised after a change was made, if it is the first one not saved.

    def append(self, role: Role, content: Any, **details: Any) -> Message:
        """Add a message to the present line; `details` as in `Message`.

        Raises `PromptError`, `MediaError` and `ConversationError`.
        """
        if role not in ("user", "assistant", "tool"):
            raise ConversationError(
                f"a message is from {role!r}; it can be from user, assistant or tool. The system "
                "text belongs to the conversation."
            )
        message = replace(self._new(role, content), id=self.tree.next_id(), **details)
        return self._say(message.checked(), self.tree.head)

    def edit(self, id: str, content: Any) -> Message:
        """Say something in the place of a message of the user; `regenerate` answers it."""
        return self._say(self._new("user", content), self._of_user(id).parent)

    def switch(self, id: str) -> None:
        """Make the line through a message the present one, to where it was left last."""
        self._move(self.tree.end(id), "switch")

    def undo(self) -> Message:
        """Go back to before the user's last message, which is returned."""
        for message in reversed(self.line):
            if message.role == "user":
                self._move(message.parent, "undo")
                return message
        raise ConversationError("there is nothing to undo; nothing was said yet.")

    def redo(self) -> None:
        """Take back the last `undo` or `clear`; possible until something is said."""
        self._move(self.tree.undone, "redo")

    def clear(self) -> None:
        """Begin again with an empty line; the others stay, and `redo` goes back."""
        if self.tree.head is not None:
            self._move(None, "undo")

    def rename(self, text: str) -> None:
        """Give it a name; an empty one: the first words again."""
        self._change(Title(text=" ".join(text.split())[:TITLE]))

    def close(self) -> None:
        """Stop an answer, if one is written, and let others write the folder; it can still be read.

        Refused while another thread waits for the answer's next event.
        """
        for stream in [*self._streams]:
            try:
                stream.close()
            except ValueError:  # it runs at this moment
                raise ConversationError("an answer is being written; stop it first.") from None
        self.journal.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new(self, role: Role, content: Any) -> Message:
        """A message whose place is not known yet."""
        kept: Content = self.journal.media.content(role, content)
        return Message(id="", parent=None, role=role, content=kept, time=now())

    def _of_user(self, id: str) -> Message:
        message = self.tree[id]
        if message.role != "user":
            raise ConversationError(
                f"message {id!r} is from the {message.role}; only the user's can be edited. "
                "regenerate makes another answer."
            )
        return message

    def _answer(
        self, engine: Engine, new: Sequence[Message], parent: str | None, options: dict[str, Any]
    ) -> Stream:
        """Ask for an answer to the line up to `parent`, and what is added to it."""
        self.journal.require_open()
        with self._alone():
            told = said([*self.tree.line(parent), *new], self.journal.media)
        options = {"prefix": self.prefix, **options}
        events, turns = self._context.stream(engine, system_of(self.tree), told, options)
        stream = self._kept(events, turns, new, parent, Answer(engine, self.model, options))
        self._streams.add(stream)
        return stream

    def _kept(
        self,
        events: Iterator[Event],
        left_out: int,
        new: Sequence[Message],
        parent: str | None,
        answer: Answer,
    ) -> Generator[Event | Notice]:
        """Pass on the events of an answer, and keep what was said."""
        added: list[str] = []
        kept = False
        with self._alone(), closing(cast("Generator[Event]", events)):
            try:
                for message in new:
                    parent = self._add(message, parent)
                    added.append(parent)
                if left_out:
                    yield LeftOut(turns=left_out)
                yield from self._notices()
                for event in events:
                    answer.take(event)
                    if isinstance(event, Done):
                        kept = True
                        self._keep(answer, added, parent)
                        yield from self._notices()
                    yield event
            finally:
                if not kept:
                    self._keep(answer, added, parent)

    def _keep(self, answer: Answer, added: Sequence[str], parent: str | None) -> None:
        """Add an answer, or take back what it should have answered."""
        if answer.said:
            self._add(answer.message(), parent)
            return
        for id in reversed(added):
            self.journal.make(Forgotten(id=id))

    def _notices(self) -> Iterator[Notice]:
        if (error := self.journal.news()) is not None:
            yield Unsaved(error=error)

    def _say(self, message: Message, parent: str | None) -> Message:
        with self._alone():
            id = self._add(message, parent)
        self._raise_news()
        return self.tree[id]

    def _add(self, message: Message, parent: str | None) -> str:
        message = replace(message, id=self.tree.next_id(), parent=parent)
        self.journal.make(Added(message=message))
        return message.id

    def _move(self, head: str | None, way: Way) -> None:
        with self._alone():
            self.journal.make(Moved(head=head, way=way))
        self._raise_news()

    def _change(self, change: Change) -> None:
        self.journal.make(change)
        self._raise_news()

    def _raise_news(self) -> None:
        if (error := self.journal.news()) is not None:
            raise error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Raises `ConversationError` while an answer is written."""
        if not self._answering.acquire(blocking=False):
            raise ConversationError("an answer is being written; stop it first.")
        try:
            yield
        finally:
            self._answering.release()
