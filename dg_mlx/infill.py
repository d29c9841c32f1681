"""Texts with holes: what to ask, what to hold fixed, and how long the holes are."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .canvas.control import Control
from .canvas.passage import Hole, Passage
from .canvas.pins import Pins
from .engine import Engine
from .errors import PinError, PromptError, SettingsError, StoppedError
from .events import Committed, Done, Event
from .lengths import Lengths
from .processor import Messages, Prompt
from .settings import GenerationSettings

MARK = "<fill>"
"""Where a hole is, in a text."""
DRAWS = 4
"""Noises over which a length's confidence is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A hole as text."""

    present: str = ""
    """What stands there now."""
    length: int | None = None
    """Tokens to fill it with; None: to be found out. As many as now where `strength` is below 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A text with holes, ready to be filled."""

    prompt: Prompt
    passage: Passage
    pins: Pins
    lengths: Lengths
    settings: GenerationSettings

    def run(
        self, engine: Engine, *, seed: int = 0, control: Control | None = None
    ) -> Iterator[Event]:
        """Fill the holes, reporting every step as `engine.stream` does."""
        return engine.stream(
            self.prompt, settings=self.settings, seed=seed, pins=self.pins, control=control
        )

    def fills(self, engine: Engine, events: Sequence[Event]) -> list[str]:
        """What stands in the holes once all events are in. Raises `StoppedError`."""
        if isinstance(events[-1], Done) and events[-1].reason == "cancelled":
            raise StoppedError("stopped; the text stays as it was.")
        ids = [token for event in events if isinstance(event, Committed) for token in event.ids]
        row = self.passage.row(self.lengths.chosen)
        assert len(ids) == len(row)
        assert all(want in (None, got) for want, got in zip(row, ids, strict=True))
        return [engine.processor.decode(ids[p]) for p in self.passage.places(self.lengths.chosen)]


def split(text: str, mark: str = MARK) -> list[str | Gap]:
    """A text with marks as texts and holes. Raises `PromptError` without a mark."""
    texts = text.split(mark)
    if len(texts) < 2:
        raise PromptError(f"there is no {mark} in the text; write it where something is missing.")
    found: list[str | Gap] = [texts[0]]
    for after in texts[1:]:
        found += [Gap(), after]
    return found


def plan(
    engine: Engine,
    messages: Messages | Prompt,
    parts: Sequence[str | Gap],
    *,
    settings: GenerationSettings | None = None,
    strength: float = 1.0,
    seed: int = 0,
    draws: int = DRAWS,
    cancel: threading.Event | None = None,
) -> Plan:
    """Find how long the holes are, and hold the rest.

    `strength` below 1 starts holes from their present text, of which that share is noise, and takes
    that share of the steps. Raises `PinError`, `PromptError` and `SettingsError`, and
    `StoppedError` once `cancel` is set.
    """
    settings, prompt = settings or engine.settings, engine.prompt(messages)
    passage = Passage(
        parts=tuple(_tokens(engine, part, keep=strength < 1) for part in parts),
        end=engine.processor.control.turn_end or settings.eos_token_id[0],
        barred=tuple(engine.processor.control.special),
    )
    lengths = engine.lengths(
        prompt, passage, settings=settings, draws=draws, seed=seed, cancel=cancel
    )
    pins = passage.pins(lengths.chosen, strength=strength, seed=seed)
    settings = settings.replace(max_new_tokens=passage.size(lengths.chosen))
    if strength < 1:
        # The end of the schedule: what is left of it when that share is still noise.
        steps = math.ceil(strength * settings.max_denoising_steps)
        t_max = settings.t_min + (settings.t_max - settings.t_min) * strength
        settings = settings.replace(max_denoising_steps=steps, t_max=t_max)
    return Plan(prompt=prompt, passage=passage, pins=pins, lengths=lengths, settings=settings)


def _tokens(engine: Engine, part: str | Gap, *, keep: bool) -> tuple[int, ...] | Hole:
    if isinstance(part, str):
        return _plain_ids(engine, part)
    present = _plain_ids(engine, part.present)
    if part.length is not None and part.length < 1:
        raise SettingsError(f"a hole's length is {part.length}; it must be 1 or more.")
    if keep and not present:
        raise PinError("nothing stands in a hole to start from; use a strength of 1.")
    length = part.length if not keep or part.length is not None else len(present)
    return Hole(present=present, length=length)


def _plain_ids(engine: Engine, text: str) -> tuple[int, ...]:
    """Ids of a text. Raises `PromptError` for control tokens: one held fixed may end the answer."""
    ids = tuple(engine.processor.tokenise(text))
    control = next((i for i in ids if i in engine.processor.control.special), None)
    if control is not None:
        raise PromptError(
            f"the text has the control token {engine.processor.piece(control)}; take it out."
        )
    return ids
