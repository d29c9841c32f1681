"""Edit a text in place: some spans are denoised, everything else is frozen.

A text that fits a canvas is edited as a whole. Of a longer one the model is shown all, and writes
the lines around a span; several spans are then edited one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .canvas.control import Control
from .canvas.edit import Span, line_of, plain, put
from .engine import Engine
from .events import Event
from .infill import DRAWS, Gap, plan
from .settings import GenerationSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How to edit."""

    instruction: str
    strength: float = 1.0
    """1: from noise. Below 1: from the present text, of which this share is noise."""
    length: int | None = None
    """Tokens of each span's new text; None: found out by how confident the model is. A span that
    does not fit a canvas with the lines around it keeps the length that it has."""
    settings: GenerationSettings | None = None
    seed: int = 0
    draws: int = DRAWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """The end of an edit."""

    text: str
    fills: tuple[str, ...]
    """What stands in the spans now."""
    spans: tuple[Span, ...]
    """Where they are in the new text."""


def edit(
    engine: Engine,
    text: str,
    spans: Sequence[Span],
    change: Change,
    *,
    control: Control | None = None,
) -> Iterator[Event | Edited]:
    """Rewrite spans, in order and apart (see `canvas.edit.in_order`): events of every step, then
    `Edited`.

    Everything outside the spans is the same to the byte. `control` as in `Engine.stream`. Raises
    `PinError`, `PromptError` and `SettingsError`, and `StoppedError` when it is told to stop.
    """
    control = control or Control()
    settings = change.settings or engine.settings
    canvas = settings.canvas(engine.config.canvas_length)
    whole = len(engine.processor.tokenise(text)) + 1 <= canvas
    groups = [list(spans)] if whole else [[span] for span in spans]
    fills: list[str] = []
    for group in groups:
        now = put(text, spans[: len(fills)], fills)
        moved = len(now) - len(text)
        shifted = [Span(span.start + moved, span.end + moved) for span in group]
        window = Span(0, len(now)) if whole else _window(engine, now, shifted[0], canvas)
        length = change.length
        if length is None:
            length = _kept(engine, now, window, shifted, canvas)
        asked = plan(
            engine,
            _prompt(change.instruction, now, window),
            _parts(now, window, shifted, length),
            settings=settings,
            strength=change.strength,
            seed=change.seed,
            draws=change.draws,
            cancel=control.stopped,
        )
        events = []
        for event in asked.run(engine, seed=change.seed, control=control):
            events.append(event)
            yield event
        fills += asked.fills(engine, events)
    yield Edited(
        text=put(text, spans, fills), fills=tuple(fills), spans=_placed(text, spans, fills)
    )


def _placed(text: str, spans: Sequence[Span], fills: Sequence[str]) -> tuple[Span, ...]:
    """Where the spans are once they are filled."""
    lengths = [len(put(text, spans[:n], fills[:n])) for n in range(len(spans) + 1)]
    moved = [length - len(text) for length in lengths]
    return tuple(Span(s.start + moved[n], s.end + moved[n + 1]) for n, s in enumerate(spans))


def _parts(text: str, window: Span, spans: Sequence[Span], length: int | None) -> list[str | Gap]:
    """The window as texts and holes; the model is shown plain line breaks."""
    found, at = list[str | Gap](), window.start
    for span in spans:
        present = plain(text[span.start : span.end])
        found += [plain(text[at : span.start]), Gap(present=present, length=length)]
        at = span.end
    return [*found, plain(text[at : window.end])]


def _kept(
    engine: Engine, text: str, window: Span, spans: Sequence[Span], canvas: int
) -> int | None:
    """The length of a lone span that has more tokens than a search for its length may find."""
    if len(spans) > 1:
        return None  # then everything fits a canvas
    (span,) = spans
    before, present, after = (
        len(engine.processor.tokenise(plain(text[start:end])))
        for start, end in pairwise((window.start, span.start, span.end, window.end))
    )
    room = -(before + after + 1) % canvas or canvas
    return present if present > room else None


def _prompt(instruction: str, text: str, window: Span) -> str:
    asked = f"{instruction}\n{plain(text)}"
    if window == Span(0, len(text)):
        return asked
    first, last = line_of(text, window.start), line_of(text, max(window.start, window.end - 1))
    return f"{asked}\n\nAnswer with lines {first} to {last} of it, and nothing else."


def _window(engine: Engine, text: str, span: Span, canvas: int) -> Span:
    """Whole lines around a span, while a quarter of a canvas is free on each side."""

    def room(start: int, end: int) -> bool:
        return len(engine.processor.tokenise(text[start:end])) < canvas // 4

    start = text.rfind("\n", 0, span.start) + 1
    while start > 0 and room(text.rfind("\n", 0, start - 1) + 1, span.start):
        start = text.rfind("\n", 0, start - 1) + 1
    end = _line_end(text, span.end)
    while end < len(text) and room(span.end, _line_end(text, end)):
        end = _line_end(text, end)
    return Span(start, end)


def _line_end(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1
