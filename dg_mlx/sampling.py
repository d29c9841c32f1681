"""One denoising step as pure functions of arrays, and the randomness it is given.

Source: transformers' `generation_diffusion_gemma` (EntropyBoundSampler and
StableAndConfidentStoppingCriteria); the entropy bound is arXiv 2505.24857.

Legend: B batch, L canvas, V vocabulary, N earlier steps.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .backends import Backend, Vocabulary


class Noise(Protocol):
    """All randomness of a generation. Blocks count from 0, steps from 1. Ids are int32."""

    def initial(self, block: int) -> mx.array:
        """The canvas a block starts from. Returns ids_BL."""

    def sample(self, block: int, step: int, scaled_logits_BLV: mx.array) -> mx.array:
        """A draw from softmax(scaled_logits). Returns ids_BL."""

    def renoise(self, block: int, step: int) -> mx.array:
        """New ids for all positions, used where nothing was accepted. Returns ids_BL."""

    def uniform(self, block: int, step: int) -> NDArray[np.float64]:
        """A number in [0, 1) per position and one more, for the draw of a whole canvas."""


class SeededNoise:
    """Noise from a seed, with a key of its own per block, step and use.

    So a draw depends on nothing drawn before it, and a run is replayed by its seed on the same
    device.
    """

    _INITIAL, _SAMPLE, _RENOISE = range(3)

    def __init__(self, seed: int, *, vocab: int, canvas: int, backend: Backend) -> None:
        self._seed, self._vocab, self._shape = seed, vocab, (1, canvas)
        self._backend = backend

    def initial(self, block: int) -> mx.array:
        """Uniform over the vocabulary."""
        return self._ids(block, 0, self._INITIAL)

    def sample(self, block: int, step: int, scaled_logits_BLV: mx.array) -> mx.array:
        """One uniform number per position, through the inverse of the distribution."""
        uniform = mx.random.uniform(shape=self._shape, key=self._key(block, step, self._SAMPLE))
        return self._backend.sample(scaled_logits_BLV, uniform)

    def renoise(self, block: int, step: int) -> mx.array:
        """Uniform over the vocabulary."""
        return self._ids(block, step, self._RENOISE)

    def uniform(self, block: int, step: int) -> NDArray[np.float64]:
        """Of the seed and the step."""
        words = [self._seed & 0xFFFFFFFF, self._seed >> 32 & 0xFFFFFFFF, block, step]
        return np.random.default_rng(words).random(self._shape[1] + 1)

    def _ids(self, block: int, step: int, use: int) -> mx.array:
        key = self._key(block, step, use)
        return mx.random.randint(0, self._vocab, self._shape, mx.int32, key=key)

    def _key(self, block: int, step: int, use: int) -> mx.array:
        path = f"{self._seed}/{block}/{step}/{use}".encode()
        return mx.random.key(int.from_bytes(blake2b(path, digest_size=8).digest(), "little"))


def accept(entropy_BL: mx.array, bound: float, free_BL: mx.array | None = None) -> mx.array:
    """Accept lowest-entropy positions while the sum before each stays within `bound` (nats).

    At least one position always is. Only `free_BL` count, where that is given. Returns booleans
    (B, L). Source: arXiv 2505.24857.
    """
    if free_BL is not None:
        accepted = accept(mx.where(free_BL, entropy_BL, mx.inf), bound)
        return accepted & free_BL
    order = mx.argsort(entropy_BL, axis=-1)
    ascending = mx.take_along_axis(entropy_BL, order, axis=-1)
    within = mx.cumsum(ascending, axis=-1) - ascending <= bound
    return mx.take_along_axis(within, mx.argsort(order, axis=-1), axis=-1)


def next_canvas(accepted_BL: mx.array, sampled_BL: mx.array, noise_BL: mx.array) -> mx.array:
    """Accepted positions take the sample, all others new noise."""
    return mx.where(accepted_BL, sampled_BL, noise_BL)


def settled(guess_BL: mx.array, earlier_NBL: list[mx.array], threshold: int) -> mx.array:
    """Whether the best guess equals that of the last `threshold` steps everywhere. Returns (B,)."""
    if len(earlier_NBL) < threshold:
        return mx.zeros(guess_BL.shape[0], mx.bool_)
    same = mx.ones(guess_BL.shape[0], mx.bool_)
    for earlier in earlier_NBL[len(earlier_NBL) - threshold :]:
        same = same & (earlier == guess_BL).all(axis=-1)
    return same


def confident(entropy_BL: mx.array, threshold: float, free_BL: mx.array | None = None) -> mx.array:
    """Whether the mean entropy (nats), of `free_BL` where given, is below `threshold`. (B,)."""
    if free_BL is None:
        return entropy_BL.mean(axis=-1) < threshold
    mean = mx.where(free_BL, entropy_BL, 0).sum(axis=-1) / mx.maximum(free_BL.sum(axis=-1), 1)
    return mean < threshold


def probability(view: Vocabulary) -> mx.array:
    """How likely the best guess is, at each position. Returns (B, L)."""
    score = mx.take_along_axis(view.scaled_BLV, view.guess_BL[..., None], axis=-1)[..., 0]
    return mx.exp(score - view.total_BL)
