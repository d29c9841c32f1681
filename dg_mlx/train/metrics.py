"""What a run reports: frozen records for whoever draws them, and lines of JSON on the disk.

Evaluation is here too: the loss of held-out examples, and their answers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dg_mlx.backends import Backend
from dg_mlx.canvas.hold import Answer, Held
from dg_mlx.disk import write_text
from dg_mlx.events import Committed
from dg_mlx.generation import Generation, Request
from dg_mlx.model import DiffusionGemma
from dg_mlx.prefix import PrefixCache
from dg_mlx.processor import Processor, Prompt
from dg_mlx.sampling import SeededNoise
from dg_mlx.settings import GenerationSettings
from dg_mlx.worker import Cancelled

from . import loss
from .batch import Example, collate
from .loss import Objective

METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Everything is loaded."""

    step: int
    """Done before, in an earlier run."""
    steps: int
    examples: int | None
    """To train on; None: without end."""
    held_out: int
    trained: int
    """Numbers that change."""
    needed_bytes: int
    """The estimate of the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """One step is done. Losses are means over its examples, in nats."""

    step: int
    loss: float
    diffusion: float
    encoder: float
    lr: float
    """AdamW's rate."""
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Prompt and answer, without padding."""
    seconds: float
    peak_gb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Held-out examples were looked at."""

    step: int
    held_out_loss: float
    exact: float | None
    """The share of answers that are right to the last token; None: none were asked for."""
    answers: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The result is on the disk."""

    folder: Path


Event = Started | Stepped | Evaluated | Saved | Finished


class Metrics:
    """`metrics.jsonl`: a line per step, and a line per evaluation."""

    def __init__(self, folder: Path, step: int) -> None:
        """Go on after a step: what an interrupted run wrote beyond it is dropped."""
        self._path = folder / METRICS
        lines = [json.dumps(row) for row in read(folder) if row["step"] <= step]
        write_text(self._path, "".join(f"{line}\n" for line in lines))

    def write(self, event: Stepped | Evaluated) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(event)) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines but one that a crash cut short."""
    path, rows = folder / METRICS, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Answerer:
    """What answers held-out prompts: the checkpoint's own sampler on a device."""

    model: DiffusionGemma
    backend: Backend
    processor: Processor
    settings: GenerationSettings

    def exact(self, examples: Sequence[Example], cancelled: Cancelled) -> float:
        """The share of examples whose answer is right to the last token."""
        right = 0
        for number, example in enumerate(examples):
            wanted = self._cut(example.answer)
            found = [i for ids in self._answer(example, number, cancelled) for i in ids]
            right += self._cut(found) == wanted
            if cancelled():
                break
        return right / len(examples)

    def _answer(self, example: Example, seed: int, cancelled: Cancelled) -> Iterator[Sequence[int]]:
        """The ids of each block."""
        config, length = self.model.config, len(example.answer)
        settings = self.settings.replace(max_new_tokens=length)
        request = Request(
            prompt=Prompt(ids=list(example.ids), media=example.media),
            settings=settings,
            tokens=len(example.ids) + length,
            noise=SeededNoise(
                seed,
                vocab=config.text.vocab_size,
                canvas=config.canvas_length,
                backend=self.backend,
            ),
            reply=self.processor.reply(),
            answer=Answer(Held(), self.backend, settings, config.canvas_length),
            prefix=PrefixCache(marks=0),
        )
        for event in Generation(self.model, self.backend, request, cancelled).events():
            if isinstance(event, Committed):
                yield event.ids

    def _cut(self, ids: Sequence[int]) -> list[int]:
        """Up to the first end token."""
        ends = (i for i, token in enumerate(ids) if token in self.settings.eos_token_id)
        return list(ids[: next(ends, len(ids))])


def held_out_loss(
    model: DiffusionGemma, examples: Sequence[Example], objective: Objective, batch: int
) -> float:
    """The mean loss, under the same corruption whenever it is asked for."""
    config, total = model.config, 0.0
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        drawn = loss.draw(
            np.random.default_rng(start),
            np.array([e.canvases for e in part]),
            canvas=part[0].canvas,
            vocab=config.text.vocab_size,
            objective=objective,
        )
        total += float(loss.loss(model, collate(part, drawn), objective).total) * len(part)
    return total / len(examples)
