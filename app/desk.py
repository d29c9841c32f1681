"""What all tabs of the page share: models, conversations that are open, and runs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from dg_mlx.conversation import Conversation, Message, Store
from dg_mlx.edit import Change, edit
from dg_mlx.errors import ConversationError, DGError, StoreError
from dg_mlx.replay import Recorder, Recording
from dg_mlx.serve.jobs import Jobs
from dg_mlx.serve.models import Models
from dg_mlx.serve.runs import Item, Run, Runs
from dg_mlx.settings import GenerationSettings
from dg_mlx.worker import WORKER

from .asked import Asked

if TYPE_CHECKING:
    from dg_mlx.canvas.edit import Span
    from dg_mlx.engine import Engine

OPEN = 8
"""Conversations that stay open, with what the model has read of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a user sent, as it was typed and chosen."""

    text: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The last run in a conversation."""

    run: Run
    sent: Sent
    before: str | None
    """Where the line ended."""
    until: str | None
    """What is said anew follows this message; None: nothing is."""


Begin = Callable[["Engine", dict[str, Any]], Iterator[Item]]
"""Starts an answer with the options of `Engine.stream`."""


class Desk:
    """Any thread may call it."""

    def __init__(self, models: Models, store: Store | None) -> None:
        """`store`: None keeps conversations in memory."""
        self.models, self.store = models, store
        self.runs, self.jobs = Runs(), Jobs()
        self._open: OrderedDict[str, Conversation] = OrderedDict()
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._count = count()
        self._lock = threading.RLock()
        models.on_unload(lambda name: self._forget())

    # Conversations.

    def new(self) -> str:
        """An empty conversation's id."""
        conversation = Conversation() if self.store is None else self.store.create()
        id = conversation.id or f"memory-{next(self._count)}"
        with self._lock:
            self._open[id] = conversation
        return id

    def conversation(self, id: str) -> Conversation:
        """By id; opened if it is not. Raises `StoreError`."""
        with self._lock:
            if id not in self._open:
                if self.store is None:
                    raise StoreError("there is no such conversation; begin a new one.")
                self._open[id] = self.store.load(id)
            self._open.move_to_end(id)
            old = list(self._open)[:-OPEN] if self.store is not None else []
            for other in old:
                # One in which nothing was said is nowhere else.
                if self.run_of(other) is None and self._open[other].tree.messages:
                    self._open.pop(other).close()
            return self._open[id]

    def known(self, id: str) -> str:
        """The id, or that of a new conversation: one in which nothing was said yet ends with the
        server, and its page may not."""
        try:
            self.conversation(id)
        except StoreError:
            if self.store is not None and any(found.id == id for found in self.store.list()):
                raise
            return self.new()
        return id

    def delete(self, id: str) -> None:
        """Move a conversation to the trash; `restore` brings it back. Raises `DGError`s."""
        if self.store is None:
            raise StoreError("conversations are not saved here, so there is nothing to delete.")
        with self._lock:
            if id in self._open:
                self.idle(id).close()
                del self._open[id]
        self.store.delete(id)

    def run_of(self, id: str) -> Run | None:
        """The answer that is being written in a conversation."""
        answer = self._answers.get(id)
        return None if answer is None or answer.run.over.is_set() else answer.run

    def line(self, id: str) -> list[Message]:
        """What is shown of a conversation: while something is said anew, not what it replaces."""
        conversation, answer = self.conversation(id), self._answers.get(id)
        if self.run_of(id) is None or answer is None or answer.until is None:
            return conversation.line
        if conversation.tree.head != answer.before:
            return conversation.line
        return conversation.tree.line(answer.until)

    def idle(self, id: str) -> Conversation:
        """A conversation in which nothing is being written. Raises `ConversationError`."""
        if self.run_of(id) is not None:
            raise ConversationError("an answer is being written; stop it first.")
        return self.conversation(id)

    def pending(self, id: str) -> Sent | None:
        """What was sent and is not part of the conversation yet."""
        answer = self._answers.get(id)
        if answer is None or self.run_of(id) is None:
            return None
        return answer.sent if self.conversation(id).tree.head == answer.before else None

    def sent_last(self, id: str) -> str:
        """The text that was sent last."""
        return self._answers[id].sent.text if id in self._answers else ""

    def recording(self, id: str, message: str) -> Recording | None:
        """How an answer settled; None: nobody recorded it."""
        return self.conversation(id).recording(message)

    # Runs.

    def answer(
        self,
        id: str,
        asked: Asked,
        begin: Callable[[Conversation], Begin],
        *,
        sent: Sent,
        until: str | None = None,
        after: Callable[[Run], None] = lambda run: None,
    ) -> Run:
        """Have something answered in a conversation. `after` is called once it is over.

        `until`: the last message before what is said anew; None: nothing is. Raises
        `ConversationError` while another answer is written there, and what `asked` does.
        """
        conversation = self.idle(id)
        options = asked.options()
        start = begin(conversation)
        before = conversation.tree.head

        def begun(engine: Engine, options: dict[str, Any]) -> Iterator[Item]:
            conversation.model = self.models.default
            if asked.system != conversation.system:
                with suppress(StoreError):  # a notice says so, too
                    conversation.system = asked.system
            return start(engine, options)

        def keep(run: Run) -> None:
            if run.kept["message"] is not None:
                conversation.record(run.kept["message"], Recording(run.frames()))
            after(run)

        def source(run: Run) -> Iterator[Item]:
            try:
                yield from self._events(run, asked, options, begun, sent.text, None)
            finally:
                head = conversation.tree.head
                said = head if head != before and head is not None else None
                if said is not None and conversation.tree[said].role == "assistant":
                    run.kept |= {"conversation": id, "message": said}

        run = self.runs.start(source, keep)
        with self._lock:
            self._answers.pop(id, None)
            self._answers[id] = _Answer(run=run, sent=sent, before=before, until=until)
            for other in list(self._answers)[:-OPEN]:
                if self.run_of(other) is None:
                    del self._answers[other]
        return run

    def try_out(self, prompt: Any, asked: Asked, *, text: str, model: str | None = None) -> Run:
        """Answer a prompt outside of any conversation. Raises as `answer`."""
        options = asked.options()
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        if asked.system:
            messages.insert(0, {"role": "system", "content": asked.system})

        def begin(engine: Engine, options: dict[str, Any]) -> Iterator[Item]:
            return engine.stream(messages, **options)

        return self.runs.start(lambda run: self._events(run, asked, options, begin, text, model))

    def rewrite(self, text: str, spans: Sequence[Span], change: Change, asked: Asked) -> Run:
        """Edit a text in place; `change.settings` and `change.seed` come from `asked`."""
        seed = asked.options()["seed"]

        def source(run: Run) -> Iterator[Item]:
            with self.models.lease() as engine:
                settings = asked.settings(engine.settings)
                asked_for = change.instruction
                self._begin(run, engine, settings, seed, asked_for, self.models.default, whole=True)
                how = replace(change, settings=settings, seed=seed)
                yield from edit(engine, text, spans, how, control=run.control)

        return self.runs.start(source)

    def close(self) -> None:
        """Stop what is going on, and let others open the conversations."""
        self.runs.close()
        self.jobs.close()
        with self._lock:
            for conversation in self._open.values():
                with suppress(DGError):
                    conversation.close()
            self._open.clear()

    def _events(
        self,
        run: Run,
        asked: Asked,
        options: dict[str, Any],
        begin: Begin,
        prompt: str,
        model: str | None,
    ) -> Iterator[Item]:
        with self.models.lease(model) as engine:
            settings = asked.settings(engine.settings)
            name = model or self.models.default
            self._begin(run, engine, settings, options["seed"], prompt, name)
            if asked.stepwise:
                run.pause()
            yield from begin(engine, {**options, "settings": settings, "control": run.control})

    @staticmethod
    def _begin(
        run: Run,
        engine: Engine,
        settings: GenerationSettings,
        seed: int,
        prompt: str,
        model: str,
        *,
        whole: bool = False,
    ) -> None:
        """`whole`: the answer may be as long as the context."""
        context = engine.config.text.max_position_embeddings
        most = context if whole else settings.max_new_tokens
        recorder = Recorder(engine.processor, ends=settings.eos_token_id, most=most)
        recorder.begin(
            model=model,
            prompt=prompt,
            settings=settings,
            seed=seed,
            length=settings.canvas(engine.config.canvas_length),
        )
        run.begin(recorder, engine.processor.exact)

    def _forget(self) -> None:
        """What was read with a model that is gone."""
        with self._lock:
            prefixes = [conversation.prefix for conversation in self._open.values()]

        def forget() -> None:
            for prefix in prefixes:
                prefix.forget()

        WORKER.call(forget)


def answers(conversation: Conversation) -> list[Message]:
    """The model's messages on the present line."""
    return [message for message in conversation.line if message.role == "assistant"]
