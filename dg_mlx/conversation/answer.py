"""An answer in the making, as the message that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from dg_mlx.events import Committed, Done
from dg_mlx.settings import GenerationSettings

from .context import Notice
from .jsonl import dump, load
from .message import Message, now

if TYPE_CHECKING:
    from dg_mlx.engine import Engine
    from dg_mlx.events import Event


class Answer:
    """Collects the events of one answer."""

    def __init__(self, engine: Engine, model: str, options: Mapping[str, Any]) -> None:
        """Who answers, and how: `options` are those of `Engine.stream`."""
        settings = options.get("settings") or engine.settings
        self._made: dict[str, Any] = {
            "model": model,
            "settings": _changed(settings, engine.settings),
            "seed": None if options.get("noise") else options.get("seed", 0),
        }
        self._text = self._thought = ""
        self._done: Done | None = None

    @property
    def said(self) -> bool:
        """Whether there is anything to keep: text, or a call."""
        return bool(self._text.strip() or (self._done and self._done.tool_calls))

    def take(self, event: Event | Notice) -> None:
        """Add what an event reports."""
        match event:
            case Committed(text=text, thought=thought):
                self._text, self._thought = self._text + text, self._thought + thought
            case Done():
                self._done = event

    def message(self) -> Message:
        """What was said so far, without a place yet. Without `Done`, it was stopped."""
        done = self._done
        return Message(
            id="",
            parent=None,
            role="assistant",
            content=self._text,
            time=now(),
            thought=self._thought,
            tool_calls=tuple(load(dump(done.tool_calls))) if done else (),
            reason=done.reason if done else "cancelled",
            figures=load(dump(asdict(done.stats))) if done else {},
            **self._made,
        )


def _changed(settings: GenerationSettings, own: GenerationSettings) -> dict[str, Any]:
    """Those that differ, as the values of JSON."""
    names = [f.name for f in fields(own) if getattr(settings, f.name) != getattr(own, f.name)]
    changed: dict[str, Any] = load(dump({name: getattr(settings, name) for name in names}))
    return changed
