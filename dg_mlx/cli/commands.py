"""The commands of the chat: names, what may follow them, and what they do."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dg_mlx.conversation import Store, export, import_
from dg_mlx.errors import ConversationError, DGError, PromptError, SettingsError
from dg_mlx.presets import PRESETS, preset
from dg_mlx.signs import harmless
from dg_mlx.units import size

from .attach import is_file, unquoted
from .options import SETTINGS, json_file
from .terminal import stats_line

if TYPE_CHECKING:
    from .session import Session

LISTED = 20
"""Conversations that /load shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is typed after a slash."""

    name: str
    usage: str
    """What may follow it, as help shows it."""
    meaning: str
    run: Callable[[Session, str], None]
    options: tuple[str, ...] = ()
    """What to complete."""
    path: bool = False
    """A path may follow."""


def _help(session: Session, _value: str) -> None:
    """What can be typed."""
    width = max(len(f"{c.name} {c.usage}") for c in COMMANDS.values())
    for command in COMMANDS.values():
        print(f"{f'{command.name} {command.usage}':{width}}  {command.meaning}")
    print("Alt-Enter, or \\ at the end, begins a new line; pasted lines stay together.")
    print("Ctrl-C stops an answer. The path of a picture, dropped here, attaches it.")


def _clear(session: Session, _value: str) -> None:
    """Another conversation."""
    session.open(session.new())
    session.attached = []
    print("(a new conversation; /load opens the one before)")


def _undo(session: Session, _value: str) -> None:
    """Before the last turn."""
    said = session.conversation.undo()
    print(f"(taken back: {_short(said.text)})")


def _redo(session: Session, _value: str) -> None:
    """Behind it again."""
    session.conversation.redo()
    print("(it is back)")


def _branch(session: Session, value: str) -> None:
    """Other answers and turns where the line forks last."""
    for message in reversed(session.conversation.line):
        found = session.conversation.branches(message.id)
        if len(found) > 1:
            break
    else:
        raise ConversationError(
            "there is one line only; /regen and /edit make others, and /branch goes between."
        )
    if value:
        session.conversation.switch(found[_number("/branch", value, len(found)) - 1].id)
        message = found[int(value) - 1]
    for number, other in enumerate(found, 1):
        here = "*" if other.id == message.id else " "
        print(f"{here} {number}  {other.role}: {_short(other.text)}")


def _system(session: Session, value: str) -> None:
    """What the model is told first."""
    if value:
        session.conversation.system = "" if value == "off" else value
    print(session.conversation.system or "(no system text)")


def _think(session: Session, value: str) -> None:
    """Thoughts, from now on, or the last one."""
    if value == "show":
        thought = next((m.thought for m in reversed(session.conversation.line) if m.thought), "")
        print(harmless(thought.strip()) or "(nothing was thought)")
    elif value in ("on", "off"):
        session.sampling.thinking = value == "on"
        print("(it thinks first)" if session.sampling.thinking else "(it answers at once)")
    else:
        raise SettingsError(f"/think is {value!r}; say /think on, off or show.")


def _set(session: Session, value: str) -> None:
    """A setting of the sampler, or all of them."""
    name, _, given = value.partition(" ")
    known = {name: (kind, meaning) for name, kind, meaning in SETTINGS.values()}
    if name and name not in known:
        raise SettingsError(f"there is no setting {name!r}; choose from {', '.join(known)}.")
    if given == "default":
        session.sampling.changes.pop(name, None)
    elif given:
        changed = _value(name, known[name][0], given.strip())
        session.settings.replace(**{name: changed})  # raises for what it cannot be
        session.sampling.changes[name] = changed
    now, own = session.settings, session.engine.settings
    for one, (_, meaning) in known.items():
        if not name or one == name:
            value, first = getattr(now, one), getattr(own, one)
            was = "" if value == first else f" (the checkpoint's own: {first})"
            print(f"{one} = {value}{was}: {meaning}")


def _seed(session: Session, value: str) -> None:
    """Of the noise."""
    session.sampling.seed = _number("/seed", value)
    print(f"(seed {value})")


def _preset(session: Session, value: str) -> None:
    """Settings under a name."""
    if value:
        preset(value)
        session.sampling.preset = value
    for name, one in PRESETS.items():
        print(f"{'*' if name == session.sampling.preset else ' '} {name:10} {one.about}")


def _json(session: Session, value: str) -> None:
    """Answers that parse."""
    from dg_mlx.canvas.constraint import Constraint

    match value:
        case "" | "on":
            session.sampling.constraint = Constraint.any_json()
        case "off":
            session.sampling.constraint = None
        case _:
            session.sampling.constraint = Constraint.schema(json_file(unquoted(value)))
    print("(answers are free)" if session.sampling.constraint is None else "(answers are JSON)")


def _save(session: Session, value: str) -> None:
    """Give the conversation a name, and save it if it is not."""
    if session.store is not None and not session.conversation.id:
        session.store.keep(session.conversation)
    if value:
        session.conversation.rename(value)
    where = session.conversation.id or "in memory only, as --no-save says"
    print(f"({session.conversation.title or 'nothing was said yet'}; {where})")


def _load(session: Session, value: str) -> None:
    """Earlier conversations, one of them, or one in a file."""
    if session.store is None:
        raise SettingsError("--no-save was given; drop it to open saved conversations.")
    if value.isdecimal() and session.listed:
        id = session.listed[_number("/load", value, len(session.listed)) - 1]
        session.open(session.store.load(id))
        _recall(session)
        return
    if is_file(unquoted(value)):
        _import(session, Path(unquoted(value)).expanduser(), session.store)
        return
    found = session.store.list()
    if value:
        hits = {hit.id for hit in session.store.search(value)}
        found = [s for s in found if s.id in hits or value.casefold() in s.title.casefold()]
    session.listed = [summary.id for summary in found[:LISTED]]
    for number, summary in enumerate(found[:LISTED], 1):
        when = summary.updated.astimezone().strftime("%Y-%m-%d %H:%M")
        what = summary.problem or summary.title or "(pictures only)"
        print(f"{number:3}  {when}  {summary.count:4} messages  {harmless(what)}")
    print("/load N opens one" if found else "(there is none)")


def _import(session: Session, path: Path, store: Store) -> None:
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
        session.open(found[-1])
        _recall(session)


def _recall(session: Session) -> None:
    """What was said last, so that one knows where one is."""
    print(f"({session.conversation.title}; {len(session.conversation.line)} messages)")
    for message in session.conversation.line[-2:]:
        print(f"{message.role}: {_short(message.text, 300)}")


def _export(session: Session, value: str) -> None:
    """Write the conversation to a file."""
    if not value:
        raise SettingsError("/export needs a file: /export talk.md, .json or .html.")
    path = Path(unquoted(value)).expanduser()
    export(session.conversation, path)
    print(f"(written to {path})")


def _stats(session: Session, _value: str) -> None:
    """What the last answer cost."""
    print(stats_line(session.stats) if session.stats else "(no answer yet)")


def _model(session: Session, value: str) -> None:
    """Which model answers, and how it fits."""
    if value:
        session.change_model(value)
    from dg_mlx.fits import candidate, machine, verdict
    from dg_mlx.hub import find

    engine, name = session.engine, session.model
    device = engine.backend.describe()
    print(f"{name} on {device.chip} ({device.name}), computed in {engine.dtype}")
    with contextlib.suppress(DGError):  # it runs, wherever its folder is
        print(f"{verdict(candidate(name, find(name)), machine(device.name))}")


def _memory(session: Session, _value: str) -> None:
    """What is in memory."""
    import mlx.core as mx

    device = session.engine.backend.describe()
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage says kilobytes elsewhere
    rows = {
        "arrays": mx.get_active_memory(),
        "of the conversation": session.conversation.prefix.nbytes,
        "highest of the process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "of the machine, for a model": device.memory_bytes,
    }
    for name, count in rows.items():
        print(f"{name:28} {size(count):>9}")


def _exit(session: Session, _value: str) -> None:
    """End the chat."""
    session.left = True


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


def _command(
    name: str,
    usage: str,
    meaning: str,
    run: Callable[[Session, str], None],
    *options: str,
    path: bool = False,
) -> Command:
    return Command(name=name, usage=usage, meaning=meaning, run=run, options=options, path=path)


_ALL = (
    _command("/help", "", "this list", _help),
    _command("/image", "PATH", "a picture for the next turn", lambda s, v: s.attach("image", v),
             path=True),
    _command("/video", "PATH", "a video for the next turn", lambda s, v: s.attach("video", v),
             path=True),
    _command("/file", "PATH", "a text file for the next turn", lambda s, v: s.attach("file", v),
             path=True),
    _command("/clear", "", "begin a new conversation; this one is kept", _clear),
    _command("/regen", "", "another answer, with the next seed", lambda s, v: s.regenerate()),
    _command("/edit", "[TEXT]", "say your last turn differently", lambda s, v: s.edit(v)),
    _command("/undo", "", "take back your last turn", _undo),
    _command("/redo", "", "and bring it back", _redo),
    _command("/branch", "[N]", "other answers and turns at the last fork, or go to one", _branch),
    _command("/system", "[TEXT|off]", "what the model is told first", _system, "off"),
    _command("/think", "on|off|show", "let it think first; show the last thought",
             _think, "on", "off", "show"),
    _command("/set", "[NAME [VALUE]]", "settings of the sampler, what they are and mean", _set),
    _command("/seed", "N", "of the noise, for the turns that follow", _seed),
    _command("/steps", "N", "most denoising steps per block",
             lambda s, v: _set(s, f"max_denoising_steps {v}")),
    _command("/preset", "[NAME]", "settings under a name", _preset, *PRESETS),
    _command("/json", "[on|off|SCHEMA FILE]", "answers that always parse",
             _json, "on", "off", path=True),
    _command("/save", "[NAME]", "name this conversation; it is saved as you go", _save),
    _command("/load", "[N|WORDS|FILE]", "earlier conversations; open one, or one in a .json file",
             _load, path=True),
    _command("/export", "FILE", "write it as .md, .json or .html", _export, path=True),
    _command("/stats", "", "what the last answer cost", _stats),
    _command("/replay", "[SPEED]", "draw the last answer's canvas again",
             lambda s, v: s.replay(_speed(v))),
    _command("/canvas", "on|off|guess|raw|grid", "how the canvas is drawn",
             lambda s, v: s.screen.choose(v), "on", "off", "guess", "raw", "grid"),
    _command("/model", "[NAME]", "which model this is, or load another", _model, path=True),
    _command("/memory", "", "what is in memory", _memory),
    _command("/exit", "", "leave; so does Ctrl-D", _exit),
)  # fmt: skip

COMMANDS = {command.name: command for command in _ALL}
"""By name, in the order of the help."""


def obey(session: Session, text: str) -> None:
    """Run a command as it was typed. Raises what can be put right."""
    name, _, value = text.strip().partition(" ")
    if name not in COMMANDS:
        raise SettingsError(f"there is no command {name}; /help lists them.")
    COMMANDS[name].run(session, value.strip())
