"""The objective that the published weights were trained with.

Each example gives one canvas of its answer, picked at random; the prompt and the canvases before it
are clean context. Each of the canvas's tokens is replaced with probability t by a uniformly random
id (which may be the same one); there is no mask token. The loss is the plain mean cross-entropy
over the whole canvas, replaced or not, plus the encoder's next-token loss over all clean tokens.
Half of the examples condition on the logits of a first pass, through which no gradient goes.

Sources: google-deepmind/gemma, `gemma/diffusion/hackable_diffusion_adapter`: `hd/sft_model.py`
(`SFTDiffusion`, `EncoderARLoss`), `configs/sft_sudoku.py` (weights 1 and 1, gradients from the
decoder into the context, time uniform), `data/data.py` (`SequenceTargetShift`); and
google/hackable_diffusion, `lib/corruption/discrete.py` (`uniform_process`) and
`lib/training/discrete_loss.py` (`NoWeightDiscreteLoss`: a mean per example, then over examples).

Legend: B batch, S context, T all clean tokens, L canvas, V vocabulary, H hidden, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from dg_mlx.errors import SettingsError
from dg_mlx.model import DiffusionGemma

from .batch import Batch, Draw
from .forward import Context, decode, encode, recomputed, spread

LOGITS_BYTES = 1 << 28
"""Logits of one run of positions, of which several copies exist at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised. The defaults are Google's."""

    encoder_weight: float = 1.0
    """Of the encoder's next-token loss; 0 leaves it out."""
    self_conditioning: float = 0.5
    """Probability with which an example conditions on a first pass."""
    noise_power: float = 1.0
    """t is this power of a uniform number: below 1, canvases are noisier."""
    noise_from_answer: float = 0.0
    """Share of the noise that is copied from elsewhere in the canvas: plausible, and wrong."""

    def __post_init__(self) -> None:
        if not 0 <= self.encoder_weight < float("inf"):
            raise SettingsError(f"encoder_weight is {self.encoder_weight}; give 0 or more.")
        if not 0 < self.noise_power < float("inf"):
            raise SettingsError(f"noise_power is {self.noise_power}; give more than 0.")
        for name in ("self_conditioning", "noise_from_answer"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise SettingsError(f"{name} is {value}; it is a probability: give 0 to 1.")


class Loss(NamedTuple):
    """Means over examples, in nats."""

    total: mx.array
    diffusion: mx.array
    encoder: mx.array
    """Before its weight; 0 when left out."""


def draw(
    rng: np.random.Generator,
    blocks_B: NDArray[np.integer[Any]],
    *,
    canvas: int,
    vocab: int,
    objective: Objective,
) -> Draw:
    """The randomness of one step, for answers of so many canvases each.

    t ~ U(0, 1) ** noise_power per example; a token is replaced with probability t.
    """
    batch = len(blocks_B)
    t_B1 = rng.random((batch, 1)) ** objective.noise_power
    block_B = rng.integers(0, blocks_B)
    replaced_BL = rng.random((batch, canvas)) < t_B1
    noise_BL = rng.integers(0, vocab, (batch, canvas), np.int32)
    conditioned_B = rng.random(batch) < objective.self_conditioning
    copied_BL = None
    if objective.noise_from_answer:
        copied_BL = rng.integers(0, canvas, (batch, canvas))
        copied_BL[rng.random((batch, canvas)) >= objective.noise_from_answer] = -1
    return Draw(
        block_B=block_B,
        replaced_BL=replaced_BL,
        noise_BL=noise_BL,
        copied_BL=copied_BL,
        conditioned_B=conditioned_B,
    )


def loss(
    model: DiffusionGemma, batch: Batch, objective: Objective, *, checkpoint: bool = False
) -> Loss:
    """The loss of one batch, a function of the model's parameters and of nothing else.

    `checkpoint`: keep only what enters each layer, and compute the rest again for the gradient.
    """
    whole = objective.encoder_weight > 0
    context, hidden_BTH = encode(model, batch, whole=whole, checkpoint=checkpoint)
    noisy_BL = mx.array(batch.noisy_BL)
    signal_BLH = _signal(model, noisy_BL, context, np.flatnonzero(batch.conditioned_B))
    hidden_BLH = decode(model, noisy_BL, context, signal_BLH, checkpoint=checkpoint)
    diffusion = cross_entropy(
        model, hidden_BLH.reshape(-1, hidden_BLH.shape[-1]), mx.array(batch.canvas_BL.reshape(-1))
    ).mean()
    encoder = mx.array(0.0)
    if hidden_BTH is not None:
        position_P, target_P, weight_P = next_tokens(batch)
        x_PH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])[mx.array(position_P)]
        encoder = (cross_entropy(model, x_PH, mx.array(target_P)) * mx.array(weight_P)).sum()
    return Loss(diffusion + objective.encoder_weight * encoder, diffusion, encoder)


def gradients(
    model: DiffusionGemma, batch: Batch, objective: Objective, *, checkpoint: bool = False
) -> tuple[Loss, dict[str, Any]]:
    """The loss and its gradient for the model's trainable parameters, not computed yet."""

    def compute() -> Loss:
        return loss(model, batch, objective, checkpoint=checkpoint)

    before = model.trainable_parameters()
    value, gradient = nn.value_and_grad(model, compute)()
    model.update(before)
    return Loss(*value), gradient


def next_tokens(
    batch: Batch,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """(position_P, target_P, weight_P) of the encoder's loss.

    A position is an index into B * T. Weights sum to 1: a mean per example, then over examples.
    A picture's soft tokens stand for no text, so they are no targets.
    """
    ids_BT, real_BT = batch.clean, batch.real
    pair_BT = real_BT[:, :-1] & real_BT[:, 1:] & ~batch.pictures[:, 1:]
    row_P, column_P = np.nonzero(pair_BT)
    weight_B = 1 / (len(ids_BT) * pair_BT.sum(axis=1))
    return (
        row_P * ids_BT.shape[1] + column_P,
        ids_BT[row_P, column_P + 1],
        weight_B[row_P].astype(np.float32),
    )


def cross_entropy(model: DiffusionGemma, x_PH: mx.array, target_P: mx.array) -> mx.array:
    """-log p of the targets (P,) under the model's head, for normed hidden states.

    In runs of positions, whose logits are computed again for the gradient: those of all of them
    would take a megabyte each with the published vocabulary.
    """
    table = model.model.decoder.embed_tokens

    size = max(1, LOGITS_BYTES // (4 * model.config.text.vocab_size))
    positions = range(0, x_PH.shape[0], size)
    parts = []
    for start in positions:

        def step(x_PH: mx.array, target_P: mx.array = target_P[start : start + size]) -> Any:
            logits_PV = model.logits(x_PH)
            chosen_P1 = mx.take_along_axis(logits_PV, target_P[:, None], axis=-1)
            return [mx.logsumexp(logits_PV, axis=-1) - chosen_P1[:, 0]]

        run = recomputed(table, step, len(positions) > 1)
        parts += run(x_PH[start : start + size])
    return mx.concatenate(parts)


def _signal(
    model: DiffusionGemma,
    noisy_BL: mx.array,
    context: Context,
    rows: NDArray[np.int64],
) -> mx.array | None:
    """(B, L, H): what the first pass says, for these rows of the batch; zeros for the others.

    No gradient goes through the first pass, but the embedding that averages has one.
    """
    if not len(rows):
        return None
    index = mx.array(rows)
    hidden = decode(model, noisy_BL[index], context.rows(index))
    logits = mx.stop_gradient(model.logits(hidden))
    return spread(rows.tolist(), model.conditioning_signal(logits), noisy_BL.shape[0])
