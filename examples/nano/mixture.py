"""What nano learns from: fresh cases of every task, a group of them at a step."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.random import Generator
from tokenizer import IDS

from dg_mlx.config import ModelConfig
from dg_mlx.processor import Processor
from dg_mlx.tasks import TASKS, Case, evaluation, with_files
from dg_mlx.train.batch import Example
from dg_mlx.train.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tasks whose examples are much alike in size, so that they make large batches."""

    share: float
    """Parts of all steps."""
    canvases: dict[int, tuple[float, int]]
    """By length: parts of the group's steps, and examples of one process. A task is asked only on
    canvases that hold its answers."""
    tasks: dict[str, float]
    """Parts of the group's examples."""


WHOLE = 112
"""The checkpoint's canvas."""
GROUPS = (
    Group(
        share=26,
        canvases={24: (0.6, 48), 40: (0.2, 40), WHOLE: (0.2, 24)},
        tasks={
            "add": 22,
            "subtract": 22,
            "sort": 12,
            "reverse": 6,
            "count-letter": 14,
            "uppercase": 5,
            "lowercase": 5,
            "fix-json": 10,
            "other": 4,
        },
    ),
    Group(
        share=20,
        canvases={64: (0.6, 24), WHOLE: (0.4, 18)},
        tasks={
            "rewrite-typo": 20,
            "rewrite-number": 20,
            "thinking-sum": 15,
            "thinking-spell": 10,
            "sudoku-6x6": 30,
            "sudoku-4x4": 20,
        },
    ),
    Group(
        share=20,
        canvases={WHOLE: (1, 16)},
        tasks={"sudoku-9x9-45": 30, "sudoku-9x9-35": 40, "sudoku-9x9-30": 30},
    ),
    Group(
        share=6,
        canvases={40: (0.7, 20), WHOLE: (0.3, 14)},
        tasks={"tool-call": 1, "tool-answer": 1},
    ),
    Group(
        share=16,
        canvases={24: (0.7, 24), WHOLE: (0.3, 16)},
        tasks={
            "picture-color": 6,
            "picture-shape": 26,
            "picture-object": 20,
            "picture-count": 24,
            "picture-digit": 24,
        },
    ),
    Group(share=2, canvases={40: (0.7, 32), WHOLE: (0.3, 20)}, tasks={"picture-sudoku": 1}),
    Group(
        share=6,
        canvases={24: (0.7, 20), WHOLE: (0.3, 16)},
        tasks={"picture-same-shape": 4, "picture-same-color": 3, "picture-larger": 3},
    ),
    Group(
        share=4,
        canvases={24: (0.7, 10), WHOLE: (0.3, 8)},
        tasks={"video-direction": 1, "video-first": 1},
    ),
)
PARTS = 2
"""Batches of a step, for as many processes."""
HELD_OUT = 2
"""Held-out cases of each task that give the loss of held-out examples."""

_HELD = 0.15
"""Share of the examples of which a part is pinned; rewrites are pinned outside their span."""
_CASES = 3
"""Beside the seed: no number that anything else is drawn with."""


class Mixture:
    """A source of endless examples: those of a step depend on the seed and the step's number."""

    count = None

    def __init__(
        self, settings: TrainSettings, _base: Path, config: ModelConfig, processor: Processor
    ) -> None:
        assert config.canvas_length == WHOLE
        self._settings, self._processor = settings, processor
        self._groups = [g for g in GROUPS if config.vision is not None or not _shows(g)]
        plan = json.dumps([*map(asdict, self._groups), PARTS])
        self.identity = {"mixture": hashlib.blake2b(plan.encode(), digest_size=16).hexdigest()}
        self.largest = max(
            ((examples, 350) for g in self._groups for _, examples in g.canvases.values()),
        )
        self.held_out = [
            self._example(case, WHOLE)
            for number in range(HELD_OUT)
            for group in self._groups
            for name in group.tasks
            for case in evaluation(TASKS[name], 1, seed=number + 1)
        ]

    def batches(self, step: int) -> list[list[Example]]:
        """Examples of one group on one canvas, dealt out to `PARTS` batches by length."""
        rng = np.random.default_rng([self._settings.seed, _CASES, step])
        group = self._groups[_index(rng, [g.share for g in self._groups])]
        canvas = list(group.canvases)[_index(rng, [share for share, _ in group.canvases.values()])]
        count, names = PARTS * group.canvases[canvas][1], list(group.tasks)
        made: list[Example] = []
        while len(made) < count:
            name = names[_index(rng, list(group.tasks.values()))]
            example = self._example(TASKS[name].make(rng, held_out=False), canvas)
            if example.canvas == canvas:
                made.append(example if example.held is not None else _pinned(rng, example))
        made.sort(key=lambda e: len(e.ids))
        return [made[part::PARTS] for part in range(PARTS)]

    def _example(self, case: Case, canvas: int) -> Example:
        """A case whose answer is filled up to a canvas; it stays longer where it does not fit."""
        with TemporaryDirectory() as folder:
            shown = with_files(case, Path(folder))
            prompt = self._processor.encode(
                shown.messages, tools=case.tools or None, thinking=case.thinking
            )
        ids = self._processor.tokenizer.encode(case.target, add_special_tokens=False)
        ids.append(IDS["<turn|>"] if case.call is None else IDS["<|tool_response>"])
        held = None
        if case.rewrite is not None:  # a character of a rewrite is a token
            free = range(case.rewrite.start, case.rewrite.end)
            held = [at not in free and at < len(ids) for at in range(max(canvas, len(ids)))]
        ids += [IDS["<turn|>"]] * (canvas - len(ids))
        return Example(ids=prompt.ids, answer=ids, media=prompt.media, held=held)


def _pinned(rng: Generator, example: Example) -> Example:
    """Now and then with a share of its tokens pinned, as a user does who keeps what is right."""
    if rng.random() >= _HELD:
        return example
    return replace(example, held=(rng.random(len(example.answer)) < rng.random()).tolist())


def _shows(group: Group) -> bool:
    return any(name.startswith(("picture", "video")) for name in group.tasks)


def _index(rng: Generator, parts: list[float]) -> int:
    shares = np.array(parts) / sum(parts)
    return int(rng.choice(len(shares), p=shares))
