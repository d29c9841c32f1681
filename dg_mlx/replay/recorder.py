"""The events of a run as frames. docs/recordings.md has their format.

Legend of array names: L canvas length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dg_mlx.canvas.edit import Span
from dg_mlx.events import Committed, Done, Draft, Event, Prefilled
from dg_mlx.settings import GenerationSettings
from dg_mlx.signs import harmless

from .reading import Look, Processor, Reading
from .texts import Texts

Frame = dict[str, Any]

TOLD = frozenset({"touch", "pause", "resume", "note", "error", "edited", "end"})
"""Kinds of frames that are no events of the engine."""

_FIFTHS = np.array([0.2, 0.4, 0.6, 0.8], np.float32)


class Recorder:
    """Makes a frame of everything that happens in a run: one answer, or several that follow."""

    def __init__(
        self,
        processor: Processor,
        *,
        ends: Sequence[int],
        most: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """`ends`: tokens that end an answer; `most`: its longest, in tokens; `clock`: seconds."""
        self.frames: list[Frame] = []
        """All so far."""
        self._processor, self._ends, self._most, self._clock = processor, [*ends], most, clock
        self._texts = Texts(processor.piece, processor.control.bytes)
        self._known: set[int] = set()
        self._began = 0.0
        self._before: NDArray[np.int32] | None = None
        self._answer()

    def begin(
        self,
        *,
        model: str,
        prompt: str,
        settings: GenerationSettings | Mapping[str, Any],
        seed: int | None,
        length: int,
    ) -> Frame:
        """The first frame. `settings`: all, to which the recorder's `ends` belong; `length`:
        positions of a canvas."""
        assert not self.frames, "a run begins once"
        self._began = self._clock()
        known = asdict(settings) if isinstance(settings, GenerationSettings) else settings
        return self._frame(
            "begin",
            model=model,
            prompt=prompt,
            settings={**known, "eos_token_id": self._ends},
            seed=seed,
            length=length,
        )

    def take(self, event: Event) -> Frame:
        """The frame of an event. Every one must be taken."""
        match event:
            case Prefilled():
                self._answer()
                return self._frame("read", **asdict(event))
            case Draft():
                return self._draft(event)
            case Committed():
                self._reading.commit(event)
                self._before = None
                return self._frame(
                    "commit",
                    block=event.block,
                    tokens=len(event.ids),
                    text=event.text,
                    thought=event.thought,
                )
            case Done():
                return self._frame(
                    "done",
                    reason=event.reason,
                    stats=asdict(event.stats),
                    tool_calls=event.tool_calls,
                )

    def tell(self, kind: str, **what: Any) -> Frame:
        """The frame of something else: one of `TOLD`, with what it has."""
        assert kind in TOLD, kind
        if kind in ("note", "error"):
            what["text"] = " ".join(what["text"].split())
        elif kind == "edited":
            # A sign may be longer than what it stands for.
            text, spans = what["text"], map(_pair, what["spans"])
            what["spans"] = [[len(harmless(text[:at])) for at in span] for span in spans]
        elif kind == "touch" and "ids" in what:
            what["new"] = self._new({*what["ids"]})
        return self._frame(kind, **what)

    def _answer(self) -> None:
        """Another answer begins; what is known of tokens stays known."""
        self._reading = Reading(
            self._processor, ends=self._ends, most=self._most, texts=self._texts
        )
        self._before = None

    def _draft(self, draft: Draft) -> Frame:
        look = self._reading.note(draft)
        progress = look.progress
        changes = self._changes(look)
        return self._add(
            "draft",
            block=progress.block,
            step=progress.step,
            max=progress.max_steps,
            **changes,
            new=self._new({*changes["c"], *changes["g"]}),
            count=progress.positions,
            parts=[[*run] for run in look.runs],
            settled=progress.settled,
            entropy=progress.entropy,
            tokens=progress.tokens,
            steps=progress.steps,
        )

    def _changes(self, look: Look) -> dict[str, Any]:
        """What is another than in the draft before; all of it where that is shorter."""
        draft, before = look.draft, self._before
        now = np.stack([draft.canvas, draft.guess, _values(look)])
        self._before = now
        if before is not None and before.shape == now.shape and look.progress.step > 1:
            at = np.flatnonzero((now != before).any(axis=0))
            if 4 * len(at) < 3 * now.shape[1]:
                c, g, v = now[:, at].tolist()
                return {"key": False, "i": at.tolist(), "c": c, "g": g, "v": v}
        c, g, v = now.tolist()
        return {"key": True, "c": c, "g": g, "v": v}

    def _new(self, tokens: set[int]) -> dict[str, str | int]:
        """Texts of those that occur for the first time in the run."""
        new = sorted(tokens - self._known)
        self._known.update(new)
        return {str(token): self._texts.said(token) for token in new}

    def _frame(self, kind: str, **what: Any) -> Frame:
        return self._add(kind, **_plain(what))

    def _add(self, kind: str, **what: Any) -> Frame:
        """`what`: values of JSON."""
        at = round(self._clock() - self._began, 3) if self.frames else 0
        frame = {"n": len(self.frames), "at": at, "kind": kind, **what}
        self.frames.append(frame)
        return frame


def _values(look: Look) -> NDArray[np.int32]:
    """(L,): state + 8 * accepted + 16 * confidence."""
    draft = look.draft
    confidence_L = np.digitize(draft.trust.probability, _FIFTHS)
    return (look.state_L + 8 * draft.accepted + 16 * confidence_L).astype(np.int32)


def _pair(span: Span | Sequence[int]) -> Sequence[int]:
    return (span.start, span.end) if isinstance(span, Span) else span


def _plain(value: Any) -> Any:
    """As the values of JSON, texts harmless."""
    match value:
        case str():
            return harmless(value)
        case Mapping():
            return {harmless(str(key)): _plain(item) for key, item in value.items()}
        case np.ndarray() | np.generic():
            return value.tolist()
        case list() | tuple():
            return [_plain(item) for item in value]
    return value
