"""The commands of the chat: names, what may follow them, and what they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session


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
    _command("/help", "", "this list", lambda s, v: s.help()),
    _command("/image", "PATH", "a picture for the next turn", lambda s, v: s.attach("image", v),
             path=True),
    _command("/video", "PATH", "a video for the next turn", lambda s, v: s.attach("video", v),
             path=True),
    _command("/file", "PATH", "a text file for the next turn", lambda s, v: s.attach("file", v),
             path=True),
    _command("/clear", "", "begin a new conversation; this one is kept", lambda s, v: s.clear()),
    _command("/regen", "", "another answer, with the next seed", lambda s, v: s.regenerate()),
    _command("/edit", "[TEXT]", "say your last turn differently", lambda s, v: s.edit(v)),
    _command("/undo", "", "take back your last turn", lambda s, v: s.undo()),
    _command("/redo", "", "and bring it back", lambda s, v: s.redo()),
    _command("/branch", "[N]", "other answers and turns at the last fork, or go to one",
             lambda s, v: s.branch(v)),
    _command("/system", "[TEXT|off]", "what the model is told first", lambda s, v: s.set_system(v),
             "off"),
    _command("/think", "on|off|show", "let it think first; show the last thought",
             lambda s, v: s.think(v), "on", "off", "show"),
    _command("/set", "[NAME [VALUE]]", "settings of the sampler, what they are and mean",
             lambda s, v: s.set(v)),
    _command("/seed", "N", "of the noise, for the turns that follow",
             lambda s, v: s.set_seed(v)),
    _command("/steps", "N", "most denoising steps per block",
             lambda s, v: s.set(f"max_denoising_steps {v}")),
    _command("/preset", "[NAME]", "settings under a name", lambda s, v: s.set_preset(v),
             "faithful", "balanced", "fast"),
    _command("/json", "[on|off|SCHEMA FILE]", "answers that always parse",
             lambda s, v: s.set_json(v), "on", "off", path=True),
    _command("/save", "[NAME]", "name this conversation; it is saved as you go",
             lambda s, v: s.save(v)),
    _command("/load", "[N|WORDS|FILE]", "earlier conversations; open one, or one in a .json file",
             lambda s, v: s.load(v), path=True),
    _command("/export", "FILE", "write it as .md, .json or .html", lambda s, v: s.export(v),
             path=True),
    _command("/stats", "", "what the last answer cost", lambda s, v: s.stats()),
    _command("/replay", "[SPEED]", "draw the last answer's canvas again",
             lambda s, v: s.replay(v)),
    _command("/canvas", "on|off|guess|raw|grid", "how the canvas is drawn",
             lambda s, v: s.set_canvas(v), "on", "off", "guess", "raw", "grid"),
    _command("/model", "[NAME]", "which model this is, or load another",
             lambda s, v: s.set_model(v), path=True),
    _command("/memory", "", "what is in memory", lambda s, v: s.memory()),
    _command("/exit", "", "leave; so does Ctrl-D", lambda s, v: s.leave()),
)  # fmt: skip

COMMANDS = {command.name: command for command in _ALL}
"""By name, in the order of the help."""
