"""A chat in progress: its conversation, its settings, and what the commands do to them."""

from __future__ import annotations

import contextlib
import gc
import json
import mimetypes
import resource
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from dg_mlx.conversation import Conversation, LeftOut, Store, Unsaved, export, import_
from dg_mlx.errors import ConversationError, DGError, PromptError, SettingsError
from dg_mlx.events import Committed, Done, Event, Stats
from dg_mlx.presets import DEFAULT, PRESETS, preset
from dg_mlx.settings import GenerationSettings
from dg_mlx.signs import harmless

from .commands import COMMANDS
from .options import SETTINGS, json_file, media_part
from .terminal import empty_answer, note, size, stats_line

if TYPE_CHECKING:
    from dg_mlx.canvas.constraint import Constraint
    from dg_mlx.engine import Engine

    from .loading import Loading
    from .screen import Screen

MOST_FILE = 1_000_000
"""Bytes of a text file that goes into a turn."""
LISTED = 20
"""Conversations that /load shows."""


class Session:
    """What is typed becomes commands and turns; errors become one line each."""

    def __init__(
        self,
        loading: Loading,
        screen: Screen,
        *,
        store: Store | None,
        conversation: Conversation,
        changes: dict[str, Any],
        preset: str = DEFAULT,
        seed: int = 0,
        thinking: bool = False,
        load: Callable[[str], Loading],
        cache: Path | None = None,
    ) -> None:
        """`changes`: settings given as options. `load`: begins to load another model.

        `cache`: the folder in which long prompts are kept as they were read.
        """
        self.failed = 0
        """1 once a turn or a command failed: the exit code when nobody is watching."""
        self.ask: Callable[[str], str | None] | None = None
        """Has a text edited by the person who is there; None: nobody is."""
        self._loading, self._load, self._cache = loading, load, cache
        self._screen, self._store = screen, store
        self._preset, self._changes = preset, changes
        self._seed, self._thinking = seed, thinking
        self._constraint: Constraint | None = None
        self._attached: list[dict[str, Any]] = []
        self._events: list[tuple[float, Event]] = []
        self._stats: Stats | None = None
        self._listed: list[str] = []
        self._remarked = ""
        self._left = False
        self._begin(conversation)

    # What is typed.

    def check(self) -> None:
        """Raise what the loading of the model raised."""
        self._loading.check()

    def take(self, text: str) -> bool:
        """Handle one input. False: leave."""
        try:
            if text.startswith("/") and (dropped := _dropped(text)) is None:
                name, _, value = text.strip().partition(" ")
                if name not in COMMANDS:
                    raise SettingsError(f"there is no command {name}; /help lists them.")
                COMMANDS[name].run(self, value.strip())
            elif (dropped := _dropped(text)) is not None:
                self.attach(*dropped)
            elif text.strip():
                self.say(text)
        except DGError as error:
            self.failed = 1
            note(" ".join(str(error).split()))
        return not self._left

    def wait(self) -> None:
        """Until the model is loaded. Raises what the loading raised."""
        self._loading.engine()

    def status(self) -> str:
        """The line at the bottom of the screen."""
        if not self._loading.done:
            return f" loading {self._loading.name} · {self._loading.seconds} s · type meanwhile"
        parts = [self._loading.name, self._preset]
        if self._thinking:
            parts.append("thinks")
        if self._constraint is not None:
            parts.append("JSON")
        if self._attached:
            parts.append(f"{len(self._attached)} attached")
        return " " + " · ".join([*parts, "Alt-Enter: new line", "Tab: complete", "/help"])

    # Turns.

    def say(self, text: str) -> None:
        """A turn of the user."""
        engine, content = self.engine, self._content(text)
        self._answer(lambda options: self.conversation.ask(engine, content, **options))
        self._attached = []

    def regenerate(self) -> None:
        """Another answer to the last turn, in its place; the others stay, see /branch."""
        if self.conversation.tree.head is None:
            raise ConversationError("there is nothing to answer yet; say something.")
        engine, self._seed = self.engine, self._seed + 1
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

    @property
    def engine(self) -> Engine:
        """Waits until it is loaded."""
        return self._loading.engine()

    @property
    def settings(self) -> GenerationSettings:
        """The checkpoint's own, under the preset, with what was set."""
        return preset(self._preset).apply(self.engine.settings).replace(**self._changes)

    def _content(self, text: str) -> Any:
        files = [part["text"] for part in self._attached if part["type"] == "text"]
        media = [part for part in self._attached if part["type"] != "text"]
        whole = "\n\n".join([*files, text])
        return [*media, {"type": "text", "text": whole}] if media else whole

    def _answer(self, begin: Callable[[dict[str, Any]], Iterator[Any]]) -> None:
        """Show an answer. Ctrl-C stops it within a step, and what there is of it is kept."""
        cancel, settings = threading.Event(), self.settings
        options = {
            "settings": settings,
            "seed": self._seed,
            "cancel": cancel,
            "thinking": self._thinking,
            "constraint": self._constraint,
        }
        events = begin(options)
        self._events, started, last = [], perf_counter(), None
        text = thought = ""
        with _ctrl_c_sets(cancel), self._screen.answer(self.engine, settings) as show:
            for event in events:
                if isinstance(event, (LeftOut, Unsaved)):
                    self._remark(event.line)
                    continue
                self._events.append((perf_counter() - started, event))
                show(event)
                match event:
                    case Committed():
                        text, thought = text + event.text, thought + event.thought
                    case Done():
                        last = event
        assert last is not None
        self._stats = last.stats
        if last.reason == "cancelled":
            note("stopped" if text else "stopped; the turn is forgotten")
        elif not text.strip() and not last.tool_calls:
            note(empty_answer(last.reason, thought))
        for call in last.tool_calls:
            self._screen.aside(f"calls {json.dumps(call['function'], ensure_ascii=False)}")
        if text:
            self._screen.aside(stats_line(last.stats))

    def _remark(self, line: str) -> None:
        """What holds for many turns is said once."""
        if line != self._remarked:
            note(line)
            self._remarked = line

    # Commands.

    def help(self) -> None:
        """What can be typed."""
        width = max(len(f"{c.name} {c.usage}") for c in COMMANDS.values())
        for command in COMMANDS.values():
            print(f"{f'{command.name} {command.usage}':{width}}  {command.meaning}")
        print("Alt-Enter, or \\ at the end, begins a new line; pasted lines stay together.")
        print("Ctrl-C stops an answer. The path of a picture, dropped here, attaches it.")

    def attach(self, kind: str, path: str) -> None:
        """Something for the next turn."""
        if not path:
            raise SettingsError(f"/{kind} needs a path: /{kind} PATH.")
        path = _unquoted(path)
        part = _text_part(path) if kind == "file" else media_part(kind, path)
        self._attached.append(part)
        name = {"image": "picture", "video": "video", "file": "file"}[kind]
        print(f"(the {name} goes with your next turn)")

    def clear(self) -> None:
        """Another conversation."""
        self._open(self._new())
        self._attached = []
        print("(a new conversation; /load opens the one before)")

    def undo(self) -> None:
        """Before the last turn."""
        said = self.conversation.undo()
        print(f"(taken back: {_short(said.text)})")

    def redo(self) -> None:
        """Behind it again."""
        self.conversation.redo()
        print("(it is back)")

    def branch(self, value: str) -> None:
        """Other answers and turns where the line forks last."""
        for message in reversed(self.conversation.line):
            found = self.conversation.branches(message.id)
            if len(found) > 1:
                break
        else:
            raise ConversationError(
                "there is one line only; /regen and /edit make others, and /branch goes between."
            )
        if value:
            self.conversation.switch(found[_number("/branch", value, len(found)) - 1].id)
            message = found[int(value) - 1]
        for number, other in enumerate(found, 1):
            here = "*" if other.id == message.id else " "
            print(f"{here} {number}  {other.role}: {_short(other.text)}")

    def set_system(self, value: str) -> None:
        """What the model is told first."""
        if value:
            self.conversation.system = "" if value == "off" else value
        print(self.conversation.system or "(no system text)")

    def think(self, value: str) -> None:
        """Thoughts, from now on, or the last one."""
        if value == "show":
            thought = next((m.thought for m in reversed(self.conversation.line) if m.thought), "")
            print(harmless(thought.strip()) or "(nothing was thought)")
        elif value in ("on", "off"):
            self._thinking = value == "on"
        else:
            raise SettingsError(f"/think is {value!r}; say /think on, off or show.")

    def set(self, value: str) -> None:
        """A setting of the sampler, or all of them."""
        name, _, given = value.partition(" ")
        known = {name: (kind, meaning) for name, kind, meaning in SETTINGS.values()}
        if name and name not in known:
            raise SettingsError(f"there is no setting {name!r}; choose from {', '.join(known)}.")
        if given == "default":
            self._changes.pop(name, None)
        elif given:
            changed = _value(name, known[name][0], given.strip())
            self.settings.replace(**{name: changed})  # raises for what it cannot be
            self._changes[name] = changed
        now, own = self.settings, self.engine.settings
        for one, (_, meaning) in known.items():
            if not name or one == name:
                value, first = getattr(now, one), getattr(own, one)
                was = "" if value == first else f" (the checkpoint's own: {first})"
                print(f"{one} = {value}{was}: {meaning}")

    def set_seed(self, value: str) -> None:
        """Of the noise."""
        self._seed = _number("/seed", value)

    def set_preset(self, value: str) -> None:
        """Settings under a name."""
        if value:
            preset(value)
            self._preset = value
        for name, one in PRESETS.items():
            print(f"{'*' if name == self._preset else ' '} {name:10} {one.about}")

    def set_json(self, value: str) -> None:
        """Answers that parse."""
        from dg_mlx.canvas.constraint import Constraint

        match value:
            case "" | "on":
                self._constraint = Constraint.any_json()
            case "off":
                self._constraint = None
            case _:
                self._constraint = Constraint.schema(json_file(_unquoted(value)))
        print("(answers are free)" if self._constraint is None else "(answers are JSON)")

    def save(self, value: str) -> None:
        """Give the conversation a name, and save it if it is not."""
        if self._store is not None and not self.conversation.id:
            self._store.keep(self.conversation)
        if value:
            self.conversation.rename(value)
        where = self.conversation.id or "in memory only, as --no-save says"
        print(f"({self.conversation.title or 'nothing was said yet'}; {where})")

    def load(self, value: str) -> None:
        """Earlier conversations, one of them, or one in a file."""
        if self._store is None:
            raise SettingsError("--no-save was given; drop it to open saved conversations.")
        if value.isdecimal() and self._listed:
            id = self._listed[_number("/load", value, len(self._listed)) - 1]
            self._open(self._store.load(id))
            self._recall()
            return
        path = Path(_unquoted(value)).expanduser()
        if value and path.is_file():
            self._import(path, self._store)
            return
        found = self._store.list()
        if value:
            hits = {hit.id for hit in self._store.search(value)}
            found = [s for s in found if s.id in hits or value.casefold() in s.title.casefold()]
        self._listed = [summary.id for summary in found[:LISTED]]
        for number, summary in enumerate(found[:LISTED], 1):
            when = summary.updated.astimezone().strftime("%Y-%m-%d %H:%M")
            what = summary.problem or summary.title or "(pictures only)"
            print(f"{number:3}  {when}  {summary.count:4} messages  {harmless(what)}")
        print("/load N opens one" if found else "(there is none)")

    def _import(self, path: Path, store: Store) -> None:
        """What /export wrote as JSON, or messages as others write them."""
        try:
            found = import_(path.read_bytes())
        except OSError as error:
            raise PromptError(f"{path} cannot be read ({error.strerror}).") from None
        for conversation in found:
            store.keep(conversation)
        for conversation in found[:-1]:
            conversation.close()
        if found:
            self._open(found[-1])
            self._recall()

    def export(self, value: str) -> None:
        """Write the conversation to a file."""
        if not value:
            raise SettingsError("/export needs a file: /export talk.md, .json or .html.")
        path = Path(_unquoted(value)).expanduser()
        export(self.conversation, path)
        print(f"(written to {path})")

    def stats(self) -> None:
        """What the last answer cost."""
        print(stats_line(self._stats) if self._stats else "(no answer yet)")

    def replay(self, value: str) -> None:
        """Draw the last answer's canvas again."""
        speed = _speed(value)
        if not self._events:
            raise ConversationError("there is no answer to replay yet; say something.")
        stop = threading.Event()
        with _ctrl_c_sets(stop), self._screen.replay(self.engine, self.settings) as show:
            now = 0.0
            for at, event in self._events:
                if stop.wait(max(at - now, 0) / speed):
                    break
                now = at
                show(event)

    def set_canvas(self, value: str) -> None:
        """How the canvas is drawn."""
        self._screen.choose(value)

    def set_model(self, value: str) -> None:
        """Which model answers, and how it fits."""
        if value:
            self._change_model(value)
        from dg_mlx.hub import find

        from .fits import candidate, machine, verdict

        engine, name = self.engine, self._loading.name
        device = engine.backend.describe()
        print(f"{name} on {device.chip} ({device.name}), computed in {engine.dtype}")
        with contextlib.suppress(DGError):  # it runs, wherever its folder is
            print(f"{verdict(candidate(name, find(name)), machine(device.name))}")

    def _change_model(self, name: str) -> None:
        """Load another in the place of this one, which is back if that fails."""
        before = self._loading.name
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
        from dg_mlx.worker import WORKER

        self.engine  # noqa: B018 - it may be loading still
        self._loading.drop()
        self.conversation.prefix.forget()
        gc.collect()
        WORKER.call(_give_back_memory)

    def memory(self) -> None:
        """What is in memory."""
        import mlx.core as mx

        device = self.engine.backend.describe()
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage says kilobytes elsewhere
        rows = {
            "arrays": mx.get_active_memory(),
            "of the conversation": self.conversation.prefix.nbytes,
            "highest of the process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
            "of the machine, for a model": device.memory_bytes,
        }
        for name, count in rows.items():
            print(f"{name:28} {size(count):>9}")

    def leave(self) -> None:
        """End the chat."""
        self._left = True

    def close(self) -> None:
        """Let others open the conversation."""
        self.conversation.close()

    def _new(self) -> Conversation:
        system, name = self.conversation.system, self._loading.name
        if self._store is None or not self.conversation.id:
            return Conversation(system=system, model=name)
        return self._store.create(system=system, model=name)

    def _open(self, conversation: Conversation) -> None:
        self.conversation.close()
        self._begin(conversation)
        conversation.model = self._loading.name

    def _begin(self, conversation: Conversation) -> None:
        self.conversation = conversation
        if self._cache is not None:
            from dg_mlx.prefix import PrefixCache
            from dg_mlx.prefix_store import PrefixStore

            conversation.prefix = PrefixCache(store=PrefixStore(self._cache))

    def _recall(self) -> None:
        """What was said last, so that one knows where one is."""
        print(f"({self.conversation.title}; {len(self.conversation.line)} messages)")
        for message in self.conversation.line[-2:]:
            print(f"{message.role}: {_short(message.text, 300)}")


def _give_back_memory() -> None:
    import mlx.core as mx

    mx.clear_cache()


def _number(name: str, value: str, most: int | None = None) -> int:
    if not (value.isascii() and value.isdecimal()):
        raise SettingsError(f"{name} is {value!r}; it must be a whole number: {name} 1.")
    if most is not None and not 1 <= int(value) <= most:
        raise SettingsError(f"{name} is {value}; choose 1 to {most}.")
    return int(value)


def _value(name: str, kind: type, given: str) -> Any:
    try:
        return kind(given)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise SettingsError(f"{name} is {given!r}; it must be {what}.") from None


def _speed(value: str) -> float:
    try:
        speed = float(value or 1)
    except ValueError:
        speed = 0
    if not 0 < speed < float("inf"):
        raise SettingsError(f"/replay is {value!r}; give a speed: 1 is as it was, 0.5 half of it.")
    return speed


def _short(text: str, most: int = 60) -> str:
    line = harmless(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def _text_part(path: str) -> dict[str, Any]:
    """A text file as a part of a turn. Raises `PromptError`."""
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > MOST_FILE:
            raise PromptError(f"{path} has {size(file.stat().st_size)}; a turn takes 1 MB.")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptError(f"{path} cannot be read ({error.strerror}); check the path.") from None
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not UTF-8 text; /image and /video take others.") from None
    return {"type": "text", "text": f"{file.name}:\n{text.rstrip()}"}


def _dropped(text: str) -> tuple[str, str] | None:
    """(kind, path) of a picture or video whose path is all that was typed."""
    path = _unquoted(text.strip())
    kind = (mimetypes.guess_type(path)[0] or "").partition("/")[0]
    if "\n" in path or kind not in ("image", "video"):
        return None
    with contextlib.suppress(OSError):
        if Path(path).expanduser().is_file():
            return kind, path
    return None


def _unquoted(path: str) -> str:
    """A path as terminals write one that is dropped: quoted, escaped, or a file: address."""
    if path.startswith("file://"):
        return unquote(path.removeprefix("file://"))
    if Path(path).expanduser().exists():
        return path
    with contextlib.suppress(ValueError):
        parts = shlex.split(path)
        if len(parts) == 1:
            return parts[0]
    return path


@contextlib.contextmanager
def _ctrl_c_sets(cancel: threading.Event) -> Iterator[None]:
    """Ctrl-C asks the answer to stop; a second one, while it does, interrupts the program."""
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
