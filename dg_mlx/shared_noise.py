"""The same randomness for transformers' loop and ours, so that whole answers can be compared.

Legend of array names: B batch, L canvas, V vocab.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


class SharedNoise:
    """Noise that both sides can draw: arrays fixed by (seed, block, step), Gumbel-max sampling.

    It follows the `Noise` protocol, so `engine.stream(noise=…)` takes it as it is. Numbers are made
    from raw bits, whose sequence numpy never changes: golden files depend on it.
    """

    def __init__(self, seed: int, *, length: int, vocab: int, batch: int = 1) -> None:
        self._seed, self._shape, self._vocab = seed, (batch, length), vocab

    def _bits(self, count: int, *key: int) -> NDArray[np.uint64]:
        bits = np.random.PCG64(np.random.SeedSequence((self._seed, *key))).random_raw(count)
        return np.asarray(bits, dtype=np.uint64)

    def canvas(self, block: int, step: int) -> NDArray[np.int64]:
        """Uniform ids; step 0 is the block's first canvas."""
        bits = self._bits(math.prod(self._shape), 0, block, step)
        return ((bits >> 11) % self._vocab).astype(np.int64).reshape(self._shape)

    def gumbel(self, block: int, step: int) -> NDArray[np.float32]:
        """What is added to the scaled logits before the argmax, which makes it a sample."""
        shape = (*self._shape, self._vocab)
        uniform = ((self._bits(math.prod(shape), 1, block, step) >> 11) + 0.5) * 2.0**-53
        gumbel: NDArray[np.float32] = (-np.log(-np.log(uniform))).astype(np.float32)
        return gumbel.reshape(shape)

    def initial(self, block: int) -> mx.array:
        """The block's first canvas."""
        return mx.array(self.canvas(block, 0).astype(np.int32))

    def sample(self, block: int, step: int, scaled_logits_BLV: mx.array) -> mx.array:
        """A sample of softmax(scaled logits) per position."""
        noisy_BLV = scaled_logits_BLV.astype(mx.float32) + mx.array(self.gumbel(block, step))
        return mx.argmax(noisy_BLV, axis=-1).astype(mx.int32)

    def renoise(self, block: int, step: int) -> mx.array:
        """New ids for every position."""
        return mx.array(self.canvas(block, step).astype(np.int32))

    def uniform(self, block: int, step: int) -> NDArray[np.float64]:
        """A number in [0, 1) per position and one more."""
        bits = self._bits(self._shape[1] + 1, 2, block, step)
        uniform: NDArray[np.float64] = (bits >> 11).astype(np.float64) * 2.0**-53
        return uniform


class Clock:
    """Follows transformers' loop, gives it shared noise, and records every guess."""

    def __init__(self, noise: SharedNoise, torch: Any) -> None:
        self._noise, self._torch = noise, torch
        self._block, self._step, self._renoising = -1, 0, False
        self.guesses: list[NDArray[np.int64]] = []
        self.steps: list[int] = []

    def drive(self, sampler: Any) -> Any:
        """Replace the sampler's random canvases; its logic stays its own."""
        renoise = sampler.renoise_canvas

        def initialize_canvas(batch_size: int, device: Any) -> Any:
            if not self._renoising:
                self._block, self._step = self._block + 1, 0
                self.steps.append(0)
            return self._torch.tensor(self._noise.canvas(self._block, self._step))

        def renoise_canvas(accepted_canvas: Any, cur_step: Any) -> Any:
            self._renoising = True
            try:
                return renoise(accepted_canvas, cur_step)
            finally:
                self._renoising = False

        sampler.initialize_canvas = initialize_canvas
        sampler.renoise_canvas = renoise_canvas
        return sampler

    def multinomial(self, probabilities: Any, num_samples: int) -> Any:
        """Stands in for `torch.multinomial`: argmax(log p + Gumbel)."""
        self._step += 1
        self.steps[-1] = self._step
        gumbel = self._torch.tensor(self._noise.gumbel(self._block, self._step))
        noisy = probabilities.log() + gumbel.reshape(probabilities.shape)
        return noisy.argmax(dim=-1, keepdim=True)

    def put(self, value: Any) -> None:
        """Part of the streamer's interface; finished ids are read from the result."""

    def put_draft(self, value: Any) -> None:
        """One step's best guess."""
        self.guesses.append(value[0].numpy().copy())

    def end(self) -> None:
        """Part of the streamer's interface."""
