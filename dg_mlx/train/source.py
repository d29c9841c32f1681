"""Where a run's examples come from, and which of them each step learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dg_mlx.config import ModelConfig
from dg_mlx.disk import digest
from dg_mlx.errors import SettingsError
from dg_mlx.processor import Processor
from dg_mlx.settings import GenerationSettings

from .batch import Example
from .data import Examples
from .settings import TrainSettings

BUCKET = 64
"""Batches whose examples are sorted by length together."""

_SPLIT = 2
"""Beside the seed: no number that order or noise are drawn with."""


class Source(Protocol):
    """Examples of a run. A step's are a function of its number, so that a run can go on."""

    @property
    def identity(self) -> dict[str, str]:
        """What the examples are, by what it is for: a run with other ones is another run."""

    @property
    def count(self) -> int | None:
        """How many there are to train on; None: without end."""

    @property
    def held_out(self) -> Sequence[Example]:
        """Examples to evaluate on."""

    @property
    def largest(self) -> tuple[int, int]:
        """Most examples of a batch, and most tokens of one."""

    def batches(self, step: int) -> list[list[Example]]:
        """What a step, counted from 1, learns from: the examples of a batch have one canvas."""


class Open(Protocol):
    """Opens a source for a checkpoint."""

    def __call__(
        self, settings: TrainSettings, base: Path, config: ModelConfig, processor: Processor, /
    ) -> Source:
        """Raises `DGError`s for what cannot be used."""


class Chats:
    """The chats of JSONL files, in batches of similar length, in an order that the seed fixes."""

    def __init__(
        self, settings: TrainSettings, base: Path, config: ModelConfig, processor: Processor
    ) -> None:
        """Read and check every file. Raises `DGError`s naming file and line."""
        if not settings.data:
            raise SettingsError("there is no data; give --data FILE.jsonl.")
        files = {f"data file {n}": Path(p).expanduser() for n, p in enumerate(settings.data, 1)}
        if settings.held_out is not None:
            files["held-out file"] = Path(settings.held_out).expanduser()
        generation = GenerationSettings.load(base)
        found = {
            name: Examples(path, processor, config, generation, settings.examples)
            for name, path in files.items()
        }
        held_out = found.pop("held-out file", None)
        pairs = [(of, i) for of in found.values() for i in range(len(of))]
        if held_out is not None:
            kept = [(held_out, i) for i in range(len(held_out))]
        else:
            order = np.random.default_rng([settings.seed, _SPLIT, 0]).permutation(len(pairs))
            chosen = {int(i) for i in order[: round(settings.held_out_share * len(pairs))]}
            kept = [pairs[i] for i in sorted(chosen)]
            pairs = [pair for i, pair in enumerate(pairs) if i not in chosen]
        if not pairs or (settings.held_out_share and not kept):
            raise SettingsError(
                f"held_out_share {settings.held_out_share} of {len(pairs) + len(kept)} examples "
                f"leaves {len(pairs)} to train on and {len(kept)} to evaluate; choose another."
            )
        self.identity = {name: digest(path) for name, path in files.items()}
        self.held_out: Sequence[Example] = _Picked(kept)
        self.largest = (settings.batch, max(of.lengths[i] for of, i in [*pairs, *kept]))
        self._train = _Picked(pairs)
        self._lengths = [of.lengths[i] for of, i in pairs]
        self._settings = settings
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def count(self) -> int:
        """Examples to train on."""
        return len(self._train)

    def batches(self, step: int) -> list[list[Example]]:
        """The next `accumulate` batches of the epochs, one after another."""
        size, first = self._settings.batch, (step - 1) * self._settings.accumulate
        each = batches_of_epoch(len(self._lengths), size)
        found = []
        for place in range(first, first + self._settings.accumulate):
            number, index = divmod(place, each)
            if self._epoch[0] != number:
                drawn = epoch(self._lengths, size=size, seed=self._settings.seed, number=number)
                self._epoch = (number, drawn)
            found.append([self._train[i] for i in self._epoch[1][index]])
        return found


class _Picked(Sequence[Example]):
    """Some examples of several files."""

    def __init__(self, pairs: Sequence[tuple[Examples, int]]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [examples[i] for examples, i in self._pairs[index]]
        examples, i = self._pairs[index]
        return examples[i]


def epoch(lengths: Sequence[int], *, size: int, seed: int, number: int) -> list[list[int]]:
    """Every example once, as indices in batches of similar length, in random order.

    The order depends on the seed and the epoch's number only. The last batch may be smaller.
    """
    assert size >= 1
    assert lengths
    rng = np.random.default_rng([seed, number])
    order, batches = rng.permutation(len(lengths)), []
    for first in range(0, len(order), size * BUCKET):
        bucket = sorted(order[first : first + size * BUCKET].tolist(), key=lengths.__getitem__)
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def batches_of_epoch(count: int, size: int) -> int:
    """How many batches `epoch` makes of so many examples: only the last bucket's last is short."""
    return -(-count // size)
