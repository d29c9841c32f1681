"""A recording: read, written, and played again.

Legend of array names: L canvas length, N ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dg_mlx.disk import write_bytes
from dg_mlx.errors import StoreError
from dg_mlx.events import Committed, Done, Draft, Event, Prefilled, Stats, Trust

from . import files
from .check import FORMAT, VERSION, frames_of
from .parts import of_part
from .reading import Look, Progress
from .recorder import Frame
from .states import State
from .texts import Texts

HELD_S = 1.0
"""What a longer wait of a run that somebody held counts for."""

_CHANCES = np.array([0.1, 0.3, 0.5, 0.7, 0.9], np.float32)


class Recording:
    """The frames of one run. docs/recordings.md has their format."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        """`frames`: of a `Recorder`, which are not checked."""
        self.frames = [*frames]

    @staticmethod
    def of(data: bytes, where: str = "this") -> Recording:
        """From JSON or gzip. Raises `StoreError` for anything else; `where` is its name in that."""
        try:
            document = files.unpack(data)
        except ValueError as error:
            raise StoreError(
                f"{where} is not a recording ({error}); choose another file."
            ) from None
        return Recording(frames_of(document, where))

    @staticmethod
    def read(path: Path) -> Recording:
        """From a file. Raises `StoreError`."""
        try:
            data = files.read(path)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be read ({error.strerror}); check the path."
            ) from error
        return Recording.of(data, str(path))

    def write(self, path: Path) -> None:
        """To a file that is whole or as it was; gzipped if its name ends in .gz.

        Raises `StoreError`.
        """
        try:
            write_bytes(path, self.data(gz=path.suffix == ".gz"))
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written ({error.strerror}); name another."
            ) from error

    def data(self, *, gz: bool) -> bytes:
        """As bytes."""
        return files.pack(self.document, gz=gz)

    @property
    def document(self) -> dict[str, Any]:
        """As one value of JSON."""
        return {"format": FORMAT, "version": VERSION, "frames": self.frames}

    @property
    def text(self) -> str:
        """What the run left: the edited text, or the visible answers, one below another."""
        edited = [frame["text"] for frame in self.frames if frame["kind"] == "edited"]
        if edited:
            return str(edited[-1])
        answers = [""]
        for frame in self.frames:
            if frame["kind"] == "commit":
                answers[-1] += frame["text"]
            elif frame["kind"] == "done":
                answers.append("")
        return "\n".join(filter(None, answers))

    @property
    def edits(self) -> bool:
        """It is one of an edit."""
        return any(frame["kind"] == "edited" for frame in self.frames)

    @property
    def error(self) -> str | None:
        """Why the run failed; None: it did not."""
        return next((f["text"] for f in self.frames if f["kind"] == "error"), None)

    def events(self) -> Iterator[tuple[float, Event]]:
        """The events, each with its second.

        Of each wait while somebody held the run, a second counts at most. Ids, states and what
        counts are as they were; what a recording lacks is filled in: a draft's probabilities are
        the middle of their fifth, its entropies their mean; ids of a block that was never drafted,
        since all of it was pinned, are -1.
        """
        for at, event, _ in self._play():
            yield at, event

    def reader(self) -> Recorded:
        """A `Reader` of this recording's drafts, which are noted in the order of `events`."""
        return Recorded(self._texts(), (look for _, _, look in self._play() if look is not None))

    def _texts(self) -> Texts:
        said = {
            int(token): text
            for frame in self.frames
            for token, text in frame.get("new", {}).items()
        }
        pieces = {token: text for token, text in said.items() if isinstance(text, str)}
        bytes_ = {token: byte for token, byte in said.items() if isinstance(byte, int)}
        return Texts(pieces.__getitem__, bytes_)

    def _play(self) -> Iterator[tuple[float, Event, Look | None]]:
        ends = self.frames[0]["settings"]["eos_token_id"]
        fold, clock = _Fold(ends), _Clock()
        for frame in self.frames:
            at = clock.at(frame)
            match frame["kind"]:
                case "read":
                    fold = _Fold(ends)
                    yield at, Prefilled(**_known(Prefilled, frame)), None
                case "draft":
                    look = fold.draft(frame)
                    yield at, look.draft, look
                case "touch":
                    fold.touch(frame)
                case "commit":
                    yield at, fold.commit(frame), None
                case "done":
                    stats = _known(Stats, frame["stats"])
                    stats["steps_per_block"] = tuple(stats["steps_per_block"])
                    done = Done(
                        reason=frame["reason"], stats=Stats(**stats), tool_calls=frame["tool_calls"]
                    )
                    yield at, done, None


class Recorded:
    """Reads the drafts of a recording, by what it says of each."""

    def __init__(self, texts: Texts, looks: Iterator[Look]) -> None:
        self.texts = texts
        self._looks = looks

    def note(self, draft: Draft) -> Look:
        """What the recording says of its next draft, which this must be."""
        look = next(self._looks)
        assert (look.draft.block, look.draft.step) == (draft.block, draft.step)
        return look

    def commit(self, event: Committed) -> None:
        """The recording says all about that too."""


class _Clock:
    """Seconds of a run, without most of the time that it was held."""

    def __init__(self) -> None:
        self._last = self._left_out = 0.0
        self._held = False

    def at(self, frame: Frame) -> float:
        waited = frame["at"] - self._last
        if self._held and waited > HELD_S:
            self._left_out += waited - HELD_S
        self._last = frame["at"]
        self._held = frame["kind"] == "pause" or (self._held and frame["kind"] != "resume")
        return float(frame["at"] - self._left_out)


@dataclass(slots=True)
class _Block:
    """What the drafts of a block have said so far."""

    said: NDArray[np.int32]
    """(3, L): canvas, best guess, value of the state."""
    settled: NDArray[np.int32]
    changes: NDArray[np.int32]


class _Fold:
    """Makes the drafts of one answer whole again."""

    def __init__(self, ends: Sequence[int]) -> None:
        self._ends = ends
        self._block: _Block | None = None
        self._look: Look | None = None
        self._pins: dict[int, int] = {}
        """Of this block, by somebody's hand."""
        self._thought = 0

    def touch(self, frame: Frame) -> None:
        if frame["what"] == "pin":
            self._pins |= zip(frame["positions"], frame["ids"], strict=True)
        elif frame["what"] == "release":
            self._pins = {p: id for p, id in self._pins.items() if p not in frame["positions"]}

    def draft(self, frame: Frame) -> Look:
        said = np.array([frame["c"], frame["g"], frame["v"]], np.int32)
        block = self._block = _next(self._block, said, frame.get("i"))
        canvas, guess, value = block.said
        state_L = (value % 8).astype(np.int8)
        count = frame["count"]
        self._look = Look(
            draft=Draft(
                block=frame["block"],
                step=frame["step"],
                max_steps=frame["max"],
                canvas=canvas,
                guess=guess,
                accepted=value & 8 > 0,
                frozen=state_L == State.FROZEN,
                entropy=np.full(len(guess), frame["entropy"], np.float32),
                trust=_trust(block, frame["entropy"]),
            ),
            state_L=state_L,
            ended=count > 0 and int(guess[count - 1]) in self._ends,
            runs=[(start, stop, part) for start, stop, part in frame["parts"]],
            thought=self._thought,
            progress=_progress(frame),
        )
        return self._look

    def commit(self, frame: Frame) -> Committed:
        count, look = frame["tokens"], self._look
        ids, trust = [-1] * count, Trust.joined([])
        if look is not None:
            known = look.draft.guess[:count].tolist()
            ids[: len(known)] = known
            for position, id in self._pins.items():  # the last may be newer than the last draft
                if position < count:
                    ids[position] = id
            trust = look.draft.trust.first(count)
            self._thought += of_part(look.runs, "thought", count)
        self._block = self._look = None
        self._pins = {}
        return Committed(
            block=frame["block"],
            ids=ids,
            text=frame["text"],
            thought=frame["thought"],
            trust=Trust.joined([trust, _certain(count - len(trust.settled))]),
        )


def _next(block: _Block | None, said: NDArray[np.int32], at: list[int] | None) -> _Block:
    """A block after another draft; `at`: what it speaks of, None for all positions."""
    if block is None or at is None:
        now = said
    else:
        now = block.said.copy()
        now[:, at] = said
    if block is None or block.said.shape != now.shape:
        none = np.zeros(now.shape[1], np.int32)
        return _Block(now, none, none)
    same = now[1] == block.said[1]
    settled = np.where(same, block.settled + 1, 0).astype(np.int32)
    return _Block(now, settled, (block.changes + ~same).astype(np.int32))


def _trust(block: _Block, entropy: float) -> Trust:
    """Within what is known of it, such that the states follow from it."""
    value = block.said[2]
    state_L = value % 8
    chance_L = _CHANCES[value // 16]
    chance_L[(state_L == State.NOISE) & (chance_L == 0.5)] = 0.45
    settled_L = np.where(state_L == State.SETTLED, np.maximum(block.settled, 1), block.settled)
    settled_L[(state_L == State.CANDIDATE) & (value & 8 > 0)] = 0
    return Trust(
        probability=chance_L,
        entropy=np.full(len(value), entropy, np.float32),
        settled=settled_L.astype(np.int32),
        changes=block.changes,
    )


def _certain(count: int) -> Trust:
    """Of tokens that were pinned."""
    none = np.zeros(count, np.int32)
    return Trust(
        probability=np.ones(count, np.float32),
        entropy=np.zeros(count, np.float32),
        settled=none,
        changes=none,
    )


def _progress(frame: Frame) -> Progress:
    return Progress(
        block=frame["block"],
        step=frame["step"],
        max_steps=frame["max"],
        settled=frame["settled"],
        positions=frame["count"],
        entropy=frame["entropy"],
        tokens=frame["tokens"],
        steps=frame["steps"],
    )


def _known(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that a record has."""
    return {f.name: values[f.name] for f in fields(kind) if f.name in values}
