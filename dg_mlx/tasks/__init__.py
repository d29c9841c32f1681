"""Small tasks with right answers, without end: for training `nano`, and for evaluating it.

A tenth of all cases, by a hash of what they are about, is never given out for training.

    task = TASKS["sort"]
    case = task.make(np.random.default_rng(0), held_out=False)
    judge(case, case.answer)

A task's `make` gives a fresh case; `evaluation` gives a fixed list of held-out ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from dg_mlx.errors import SettingsError

from . import other, pictures, rewrite, text, thinking, tools, video
from .case import Answered, Case, Clip, Make, Rewrite, Task, is_held_out, judge, with_files
from .sudoku import Puzzles

__all__ = [
    "SUITES",
    "TASKS",
    "Answered",
    "Case",
    "Clip",
    "Make",
    "Rewrite",
    "Task",
    "evaluation",
    "is_held_out",
    "judge",
    "suite",
    "with_files",
]


def _puzzles(name: str, size: int, fewest: int, most: int) -> Task:
    about = f"{size}x{size} Sudoku, {fewest} to {most} of {size * size} given"
    return Task(
        name=name, about=about, make=Puzzles(name=name, size=size, fewest=fewest, most=most)
    )


_SUDOKU = (
    _puzzles("sudoku-4x4", 4, 5, 12),
    _puzzles("sudoku-6x6", 6, 18, 28),
    _puzzles("sudoku-9x9-45", 9, 45, 60),
    _puzzles("sudoku-9x9-35", 9, 35, 44),
    _puzzles("sudoku-9x9-30", 9, 30, 34),
)
_OTHERS: tuple[tuple[str, str, Make], ...] = (
    ("add", "sum of two numbers of up to 3 digits", text.add),
    ("subtract", "difference of two numbers of up to 3 digits", text.subtract),
    ("sort", "3 to 6 numbers of up to 2 digits in rising order", text.sort),
    ("reverse", "a word backwards", text.reverse),
    ("count-letter", "how often a letter is in a word", text.count_letter),
    ("fix-json", "wrong or missing closing brackets of a short JSON value", text.fix_json),
    ("uppercase", "a word in capital letters", text.uppercase),
    ("lowercase", "a word in small letters", text.lowercase),
    ("rewrite-typo", "one misspelt word, everything else pinned", rewrite.typo),
    (
        "rewrite-number",
        "one wrong number of a row or a sum, everything else pinned",
        rewrite.wrong_number,
    ),
    ("picture-color", "colour of one thing", pictures.color),
    ("picture-shape", "shape of one thing", pictures.shape),
    ("picture-object", "colour and shape of one thing", pictures.thing),
    ("picture-count", "1 to 6 things", pictures.count),
    ("picture-digit", "a written digit", pictures.digit),
    ("picture-same-shape", "two pictures: same shape?", pictures.same_shape),
    ("picture-same-color", "two pictures: same colour?", pictures.same_color),
    ("picture-larger", "two pictures: which thing is larger?", pictures.larger),
    ("picture-sudoku", "a drawn 4x4 Sudoku, solved as text", pictures.sudoku_picture),
    ("video-direction", "which way a dot moves", video.direction),
    ("video-first", "which of two shapes came first", video.first),
    ("tool-call", "the right one of three tools, with the right arguments", tools.call),
    ("tool-answer", "an answer from what a tool returned", tools.answer),
    ("thinking-sum", "two steps of arithmetic after a thought", thinking.two_steps),
    ("thinking-spell", "a word backwards after a thought that spells it", thinking.spell),
    ("other", "anything else: what the model can do", other.other),
)

TASKS = {
    task.name: task
    for task in (
        *_SUDOKU,
        *(Task(name=name, about=about, make=make) for name, about, make in _OTHERS),
    )
}
"""Tasks by name, in the order of reports."""

SUITES = {"nano": tuple(TASKS), "sudoku": tuple(task.name for task in _SUDOKU)}
"""Names of tasks that are reported together."""


def suite(name: str) -> tuple[Task, ...]:
    """The tasks of a suite. Raises `SettingsError`."""
    if name not in SUITES:
        raise SettingsError(f"suite is {name!r}; choose one of {', '.join(SUITES)}.")
    return tuple(TASKS[task] for task in SUITES[name])


def evaluation(task: Task, count: int, *, seed: int = 0) -> Iterator[Case]:
    """`count` held-out cases: the same for the same seed, whatever else is evaluated."""
    own = int.from_bytes(hashlib.blake2b(task.name.encode(), digest_size=8).digest(), "big")
    rng = np.random.default_rng([seed, own])
    for _ in range(count):
        yield task.make(rng, held_out=True)
