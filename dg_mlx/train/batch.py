"""Examples, and batches of them: one canvas of each answer, behind everything before it.

A batch holds numpy arrays: it may be made on any thread, and torch can be given the same.

Legend: B batch, S context, L canvas, R tokens behind the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dg_mlx.model import Media
from dg_mlx.processor import Prompt
from dg_mlx.processor.padded import Padded

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A prompt and the answer to learn."""

    ids: Sequence[int]
    """The prompt; at least one."""
    answer: Sequence[int]
    """Whole canvases: the answer, its end token, and more end tokens up to the canvas's end."""
    media: Media | None = None
    """The prompt's pictures."""
    canvases: int = 1
    """How many the answer has."""
    held: Sequence[bool] | None = None
    """Which tokens of the answer are never corrupted, as if a user had pinned them; None: none."""

    @property
    def canvas(self) -> int:
        """Tokens of one canvas, the same in all examples of a batch."""
        return len(self.answer) // self.canvases


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """All randomness of one training step."""

    block_B: NDArray[np.int64]
    """Which canvas of each answer is denoised; those before it are context."""
    replaced_BL: Mask
    """Where the canvas is corrupted."""
    noise_BL: Ids
    """What stands there instead."""
    conditioned_B: Mask
    """Which examples condition on a first pass."""
    copied_BL: NDArray[np.int64] | None = None
    """Where in the same canvas noise is copied from instead; -1: it is not. None: nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one training step computes with."""

    context_BS: Ids
    """Prompt and committed blocks, padded on the left: all canvases begin at S."""
    context_real_BS: Mask
    canvas_BL: Ids
    """What is to be predicted."""
    noisy_BL: Ids
    """What the decoder is given."""
    conditioned_B: Mask
    later_BR: Ids
    """The blocks behind the canvas, padded on the right: only the encoder reads them."""
    later_real_BR: Mask
    media: Media | None
    """Pictures, by row of the batch and place in the padded context."""

    @property
    def clean(self) -> Ids:
        """All clean tokens (B, T): context, canvas and what follows."""
        return np.concatenate([self.context_BS, self.canvas_BL, self.later_BR], axis=1)

    @property
    def real(self) -> Mask:
        """Which of `clean` are no padding, (B, T)."""
        canvas_BL = np.ones(self.canvas_BL.shape, np.bool_)
        return np.concatenate([self.context_real_BS, canvas_BL, self.later_real_BR], axis=1)

    @property
    def pictures(self) -> Mask:
        """Which of `clean` are a picture's soft tokens, (B, T)."""
        found_BT = np.zeros(self.real.shape, np.bool_)
        for image in self.media.images if self.media is not None else ():
            found_BT[image.row, image.start : image.start + image.tokens] = True
        return found_BT


def collate(examples: Sequence[Example], draw: Draw) -> Batch:
    """The arrays of one step, for one canvas of every example."""
    length = draw.noise_BL.shape[1]
    assert all(e.ids and e.answer and len(e.answer) == length * e.canvases for e in examples)
    assert all(e.held is None or len(e.held) == len(e.answer) for e in examples)
    starts = [int(block) * length for block in draw.block_B]
    pairs = list(zip(examples, starts, strict=True))
    context = Padded.of([Prompt(ids=[*e.ids, *e.answer[:at]], media=e.media) for e, at in pairs])
    later_BR, later_real_BR = _padded([e.answer[at + length :] for e, at in pairs])
    canvas_BL = np.array([e.answer[at : at + length] for e, at in pairs], np.int32)
    noise_BL, copied_BL = draw.noise_BL, draw.copied_BL
    if copied_BL is not None:
        own_BL = np.take_along_axis(canvas_BL, np.maximum(copied_BL, 0), axis=1)
        noise_BL = np.where(copied_BL >= 0, own_BL, noise_BL)
    real_BS = context.real_BS
    held_BL = np.zeros(canvas_BL.shape, np.bool_)
    for row, (example, at) in enumerate(pairs):
        if example.held is not None:
            held_BL[row] = example.held[at : at + length]
    return Batch(
        context_BS=context.ids_BS,
        context_real_BS=np.ones(context.ids_BS.shape, np.bool_) if real_BS is None else real_BS,
        canvas_BL=canvas_BL,
        noisy_BL=np.where(draw.replaced_BL & ~held_BL, noise_BL, canvas_BL).astype(np.int32),
        conditioned_B=draw.conditioned_B,
        later_BR=later_BR,
        later_real_BR=later_real_BR,
        media=context.media,
    )


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Ids, Mask]:
    """Rows of different length as one array, with id 0 behind them, and what is real."""
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int32)
    real = np.zeros((len(rows), longest), np.bool_)
    for index, row in enumerate(rows):
        ids[index, : len(row)], real[index, : len(row)] = row, True
    return ids, real
