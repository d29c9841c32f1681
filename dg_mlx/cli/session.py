"""A chat in progress: its conversation, how it samples, and its turns."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dg_mlx.conversation import Conversation, LeftOut, Store, Unsaved
from dg_mlx.errors import ConversationError, DGError, SettingsError
from dg_mlx.events import Committed, Done, Event, Stats
from dg_mlx.presets import DEFAULT, preset
from dg_mlx.replay import Recorder, Recording
from dg_mlx.settings import GenerationSettings

from . import attach
from .terminal import empty_answer, note, stats_line

if TYPE_CHECKING:
    from dg_mlx.canvas.constraint import Constraint
    from dg_mlx.engine import Engine
    from dg_mlx.loading import Loading

    from .screen import Screen


@dataclass(slots=True, kw_only=True)
class Sampling:
    """How the answers to come are made."""

    preset: str = DEFAULT
    changes: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from the preset."""
    seed: int = 0
    thinking: bool = False
    constraint: Constraint | None = None

    def settings(self, own: GenerationSettings) -> GenerationSettings:
        """The checkpoint's own, under the preset, with the changes."""
        return preset(self.preset).apply(own).replace(**self.changes)


class Session:
    """What is typed becomes commands and turns; errors become one line each."""

    def __init__(
        self,
        load: Callable[[str], Loading],
        model: str,
        screen: Screen,
        conversation: Conversation,
        *,
        sampling: Sampling,
        store: Store | None = None,
        cache: Path | None = None,
    ) -> None:
        """`load`: begins to load the model of a name. `store`: None keeps all in memory.

        `cache`: the folder in which long prompts are kept as they were read.
        """
        self.screen: Screen = screen
        self.store, self.sampling = store, sampling
        self.failed = 0
        """1 once a turn or a command failed: the exit code when nobody is watching."""
        self.ask: Callable[[str], str | None] | None = None
        """Has a text edited by the person who is there; None: nobody is."""
        self.attached: list[dict[str, Any]] = []
        """Parts of the next turn."""
        self.events: list[tuple[float, Event]] = []
        """Of the last answer, with the seconds since it began."""
        self.stats: Stats | None = None
        self.listed: list[str] = []
        """Conversations by the numbers that they were shown with."""
        self.left = False
        self._load, self._cache = load, cache
        self._loading = load(model)
        self._remarked = ""
        self._begin(conversation)

    # What is typed.

    def take(self, text: str) -> bool:
        """Handle one input. False: leave."""
        from .commands import obey

        try:
            if (dropped := attach.dropped(text)) is not None:
                self.attach(*dropped)
            elif text.startswith("/"):
                obey(self, text)
            elif text.strip():
                self.say(text)
        except DGError as error:
            self.failed = 1
            note(" ".join(str(error).split()))
        return not self.left

    def status(self) -> str:
        """The line at the bottom of the screen."""
        if not self._loading.done:
            return f" loading {self.model} · {self._loading.seconds} s · type meanwhile"
        parts = [self.model, self.sampling.preset]
        if self.sampling.thinking:
            parts.append("thinks")
        if self.sampling.constraint is not None:
            parts.append("JSON")
        if self.attached:
            parts.append(f"{len(self.attached)} attached")
        return " " + " · ".join([*parts, "Alt-Enter: new line", "Tab: complete", "/help"])

    # The model.

    @property
    def model(self) -> str:
        """The name of the one that answers."""
        return self._loading.name

    @property
    def engine(self) -> Engine:
        """Waits until it is loaded. Raises what the loading raised."""
        return self._loading.engine()

    @property
    def settings(self) -> GenerationSettings:
        """Of the answers to come."""
        return self.sampling.settings(self.engine.settings)

    def check(self) -> None:
        """Raise what the loading of the model raised."""
        self._loading.check()

    def change_model(self, name: str) -> None:
        """Load another in the place of this one, which is back if that fails."""
        before = self.model
        self._unload()
        self._loading = self._load(name)
        try:
            self._loading.engine()
        except DGError:
            self._loading = self._load(before)
            raise
        self.conversation.model = name

    def _unload(self) -> None:
        """Two models need not fit into memory at once."""
        from dg_mlx.loading import give_back_memory

        self._loading.engine()  # it may be loading still
        self._loading.drop()
        self.conversation.prefix.forget()
        give_back_memory()

    # The conversation.

    def open(self, conversation: Conversation) -> None:
        """Go on with another one."""
        self.conversation.close()
        self._begin(conversation)

    def new(self) -> Conversation:
        """An empty one, saved if this one is."""
        system = self.conversation.system
        if self.store is None or not self.conversation.id:
            return Conversation(system=system, model=self.model)
        return self.store.create(system=system, model=self.model)

    def close(self) -> None:
        """Let others open the conversation."""
        self.conversation.close()

    def _begin(self, conversation: Conversation) -> None:
        self.conversation = conversation
        conversation.model = self.model
        if self._cache is not None:
            from dg_mlx.prefix import PrefixCache
            from dg_mlx.prefix_store import PrefixStore

            conversation.prefix = PrefixCache(store=PrefixStore(self._cache))

    # Turns.

    def attach(self, kind: str, path: str) -> None:
        """Something for the next turn."""
        if not path:
            raise SettingsError(f"/{kind} needs a path: /{kind} PATH.")
        self.attached.append(attach.part(kind, path))
        name = {"image": "picture"}.get(kind, kind)
        print(f"(the {name} goes with your next turn)")

    def say(self, text: str) -> None:
        """A turn of the user."""
        engine, content = self.engine, attach.content(text, self.attached)
        self._answer(lambda options: self.conversation.ask(engine, content, **options))
        self.attached = []

    def regenerate(self) -> None:
        """Another answer to the last turn, in its place; the others stay, see /branch."""
        if self.conversation.tree.head is None:
            raise ConversationError("there is nothing to answer yet; say something.")
        engine = self.engine
        self.sampling.seed += 1
        self._answer(lambda options: self.conversation.regenerate(engine, **options))

    def edit(self, value: str) -> None:
        """The last turn of the user, said differently; the first stays, see /branch."""
        said = next((m for m in reversed(self.conversation.line) if m.role == "user"), None)
        if said is None:
            raise ConversationError("there is nothing to edit yet; say something.")
        if not value and self.ask is None:
            raise SettingsError("/edit needs the new text here: /edit TEXT.")
        text = value or (self.ask(said.text) if self.ask else None)
        if text:
            engine, content = self.engine, self.conversation.reworded(said, text)
            self._answer(
                lambda options: self.conversation.ask(engine, content, edits=said.id, **options)
            )

    def replay(self, speed: float) -> None:
        """Draw the last answer's canvas again."""
        if not self.events:
            raise ConversationError("there is no answer to replay yet; say something.")
        stop, now = threading.Event(), 0.0
        with ctrl_c_sets(stop), self.screen.replay(self.engine, self.settings) as show:
            for at, event in self.events:
                if stop.wait(max(at - now, 0) / speed):
                    break
                now = at
                show(event)

    def _answer(self, begin: Callable[[dict[str, Any]], Iterator[Any]]) -> None:
        """Show an answer. Ctrl-C stops it within a step, and what there is of it is kept."""
        cancel, settings = threading.Event(), self.settings
        options = {
            "settings": settings,
            "seed": self.sampling.seed,
            "cancel": cancel,
            "thinking": self.sampling.thinking,
            "constraint": self.sampling.constraint,
        }
        answer = begin(options)
        before = self.conversation.tree.head
        recorder: Recorder | None = None
        self.events, started = [], perf_counter()
        with ctrl_c_sets(cancel), self.screen.answer(self.engine, settings) as show:
            for event in answer:
                if isinstance(event, (LeftOut, Unsaved)):
                    self._remark(event.line)
                    continue
                self.events.append((perf_counter() - started, event))
                recorder = recorder or self._recorder(settings)
                recorder.take(event)
                show(event)
        head = self.conversation.tree.head
        if recorder is not None and head is not None and head != before:
            self.conversation.record(head, Recording(recorder.frames))
        self._conclude()

    def _recorder(self, settings: GenerationSettings) -> Recorder:
        """Of an answer that has begun: `dg-mlx replay` shows it again on another day."""
        recorder = Recorder(
            self.engine.processor, ends=settings.eos_token_id, most=settings.max_new_tokens
        )
        said = (m.text for m in reversed(self.conversation.line) if m.role == "user")
        recorder.begin(
            model=self.model,
            prompt=next(said, ""),
            settings=settings,
            seed=self.sampling.seed,
            length=settings.canvas(self.engine.config.canvas_length),
        )
        return recorder

    def _conclude(self) -> None:
        """What is said beside an answer."""
        _, last = self.events[-1]
        assert isinstance(last, Done)
        self.stats = last.stats
        blocks = [event for _, event in self.events if isinstance(event, Committed)]
        text, thought = ("".join(getattr(b, name) for b in blocks) for name in ("text", "thought"))
        if last.reason == "cancelled":
            note("stopped" if text else "stopped; the turn is forgotten")
        elif not text.strip() and not last.tool_calls:
            note(empty_answer(last.reason, thought))
        for call in last.tool_calls:
            self.screen.aside(f"calls {json.dumps(call['function'], ensure_ascii=False)}")
        if text:
            self.screen.aside(stats_line(last.stats, brief=True))

    def _remark(self, line: str) -> None:
        """What holds for many turns is said once."""
        if line != self._remarked:
            note(line)
            self._remarked = line


@contextlib.contextmanager
def ctrl_c_sets(cancel: threading.Event) -> Iterator[None]:
    """Ctrl-C asks what goes on to stop; a second one, while it does, interrupts the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
