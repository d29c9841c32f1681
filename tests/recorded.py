"""Recordings of scripted answers, at times that no clock decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import fakes
from scripted import BYTE, END, NOISE, SCRIPTS, THINK, THOUGHT, Words, settling

from dg_mlx.events import Committed, Done, Event, Prefilled
from dg_mlx.replay import Recorder

SETTINGS = {"max_new_tokens": 4096, "max_denoising_steps": 28}


@dataclass
class Tape:
    """A recorder whose clock goes on by `pace` seconds a frame."""

    length: int = 256
    pace: float = 0.25
    words: Words = field(default_factory=Words)

    def __post_init__(self) -> None:
        self.now = 0.0
        self.recorder = Recorder(self.words, ends=[END], most=100_000, clock=lambda: self.now)
        self.noise = [self.words.id(word) for word in NOISE]
        self.tokens = 0

    @property
    def frames(self) -> list[dict[str, Any]]:
        return self.recorder.frames

    def begin(self, prompt: str = "What is block diffusion?") -> None:
        self.recorder.begin(
            model="nano", prompt=prompt, settings=SETTINGS, seed=7, length=self.length
        )
        self.take(Prefilled(tokens=7, cached=0, seconds=0.25))

    def take(self, event: Event) -> dict[str, Any]:
        self.now += self.pace
        return self.recorder.take(event)

    def tell(self, kind: str, **what: Any) -> dict[str, Any]:
        self.now += self.pace
        return self.recorder.tell(kind, **what)

    def drafts(self, ids: Sequence[int], block: int = 0, steps: int = 20) -> Iterable[Any]:
        canvas = [*ids, *[END] * (self.length - len(ids))]
        return settling(canvas, self.noise, block=block, steps=steps, seed=block)

    def block(self, ids: Sequence[int], text: str, block: int = 0, *, steps: int = 20) -> None:
        for step in self.drafts(ids, block, steps):
            self.take(step)
        self.tokens += len(ids)
        trust = fakes.trust(len(ids))
        self.take(Committed(block=block, ids=[*ids], text=text, trust=trust))

    def end(self) -> None:
        self.take(Done(reason="end", stats=fakes.stats(self.tokens)))
        self.tell("end", conversation=None, message=None)


def recorded(*texts: str, length: int = 256, steps: int = 20, prompt: str = "Tell me.") -> Tape:
    """An answer, a text a block."""
    tape = Tape(length=length)
    tape.begin(prompt)
    for block, text in enumerate(texts):
        ends = [END] if block == len(texts) - 1 else []
        tape.block([*tape.words.ids(text), *ends], text, block, steps=steps)
    tape.end()
    return tape


def thinking(length: int = 64) -> Tape:
    """An answer after a thought, with an emoji in bytes."""
    tape = Tape(length=length)
    tape.begin()
    words = tape.words
    emoji = [BYTE + value for value in "🦊é".encode()]
    thought, text = words.ids(" Let me think of it"), words.ids("A fox: ")
    ids = [THINK, *thought, THOUGHT, *text, *emoji, *words.ids(" is here."), END]
    tape.block(ids, "A fox: 🦊é is here.")
    tape.end()
    return tape


def sudoku(size: int = 4) -> Tape:
    """A puzzle and its solution, a token for each character."""
    puzzle, answer = PUZZLES[size]
    tape = Tape(length={4: 32, 6: 64, 9: 128}[size])
    tape.begin(f"Solve:\n{puzzle}")
    ids = [tape.words.id(char) for char in answer]
    tape.block([*ids, END], answer, steps=14)
    tape.end()
    return tape


def _rows(cells: str) -> str:
    lines = cells.split()
    return "\n".join(f"{chr(65 + i)} {line}" for i, line in enumerate(lines))


PUZZLES = {
    4: (_rows("1.3. ..12 2..3 .3.1"), _rows("1234 3412 2143 4321")),
    6: (
        _rows("1.3.56 4.612. ..156. .642.1 31...5 6.5312"),
        _rows("123456 456123 231564 564231 312645 645312"),
    ),
    9: (
        _rows(
            "53..7.... 6..195... .98....6. 8...6...3 4..8.3..1 7...2...6 .6....28. ...419..5 "
            "....8..79"
        ),
        _rows(
            "534678912 672195348 198342567 859761423 426853791 713924856 961537284 287419635 "
            "345286179"
        ),
    ),
}
LONG = SCRIPTS["long"][0]
