"""How far our model is from transformers' on one prompt, stage by stage.

Legend of array names: B batch (1 here), S prompt, L canvas, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .engine import Engine
from .processor import Prompt
from .reference import Reference
from .shared_noise import SharedNoise
from .worker import WORKER

TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference allowed, as a share of the stage's largest value, by compute type."""

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Absolute differences of one intermediate result."""

    name: str
    worst: float
    mean: float
    largest: float
    """Largest magnitude of the reference's values."""

    @property
    def share(self) -> float:
        """The worst difference as a share of the largest value."""
        return self.worst / max(self.largest, 1e-12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was compared."""

    dtype: str
    tolerance: float
    stages: tuple[Stage, ...]
    agreement: float
    """Share of canvas positions where both have the same best guess, over all steps."""
    tokens: int
    """Length of the answer that the reference wrote with shared noise."""
    equal_tokens: int
    """How many tokens both answers share from the start."""

    @property
    def passed(self) -> bool:
        """No stage is further off than the tolerance. NaN never passes."""
        return all(stage.share <= self.tolerance for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        stages = [asdict(stage) | {"share": stage.share} for stage in self.stages]
        return asdict(self) | {"stages": stages, "passed": self.passed}


def compare(
    engine: Engine,
    reference: Reference,
    prompt: Prompt,
    *,
    steps: int = 4,
    seed: int = 0,
    tolerance: float | None = None,
) -> Report:
    """Run one prompt through both, then one block's generation with shared noise.

    Vision features, embeddings, every layer of encoder and decoder, the logits of the first
    `steps` steps (each self-conditioned on its own side's previous one), tokens.
    """
    config = engine.config
    noise = SharedNoise(seed, length=config.canvas_length, vocab=config.text.vocab_size)
    stages, agreement = WORKER.call(lambda: _stages(engine, reference, prompt, steps, noise))
    ours, theirs = _answers(engine, reference, prompt, noise)
    differing = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    return Report(
        dtype=engine.dtype,
        tolerance=TOLERANCE[engine.dtype] if tolerance is None else tolerance,
        stages=tuple(stages),
        agreement=agreement,
        tokens=len(theirs),
        equal_tokens=next(differing, min(len(ours), len(theirs))),
    )


def _stages(
    engine: Engine, reference: Reference, prompt: Prompt, steps: int, noise: SharedNoise
) -> tuple[list[Stage], float]:
    model, decoder = engine.model, engine.model.model.decoder
    images = prompt.media.images if prompt.media is not None else ()
    stages: list[Stage] = []
    if images:
        features = mx.concatenate([model.image_features([image]) for image in images])
        stages.append(_stage("vision features", _plain(features), reference.vision(images)))

    cache, cache_ref = model.new_cache(), reference.new_cache()
    with _recorded(decoder) as ours, reference.recorded("encoder") as theirs:
        model.prefill(mx.array([prompt.ids]), cache, media=prompt.media)
        reference.prefill(np.array([prompt.ids]), cache_ref, images=images)
    # Nobody reads the output of the encoder's last layer, so ours does not compute it.
    stages += _layers("encoder", ours, theirs[:-1])

    scaled, scaled_ref, equal = None, None, []
    for step in range(1, steps + 1):
        canvas_BL = noise.canvas(0, step)
        with _recorded(decoder) as ours, reference.recorded("decoder") as theirs:
            logits = model.denoise(mx.array(canvas_BL), cache, scaled)
            logits_ref = reference.denoise(canvas_BL, cache_ref, self_conditioning_BLV=scaled_ref)
        if step == 1:
            stages += _layers("decoder", ours, theirs)
        elif step == 2:
            stages.append(_stage("self-conditioned canvas", _joined(ours[0]), theirs[0]))
        stages.append(_stage(f"logits, step {step}", _plain(logits), logits_ref))
        equal.append(_plain(logits).argmax(-1) == logits_ref.argmax(-1))
        temperature = engine.settings.temperature(min(step, engine.settings.max_denoising_steps))
        scaled = (logits / temperature).astype(model.dtype)
        scaled_ref = logits_ref / np.float32(temperature)
    return stages, float(np.mean(equal))


def _answers(
    engine: Engine, reference: Reference, prompt: Prompt, noise: SharedNoise
) -> tuple[list[int], list[int]]:
    """One block, written by both."""
    settings = engine.settings.replace(max_new_tokens=engine.config.canvas_length)
    images = prompt.media.images if prompt.media is not None else ()
    theirs = reference.generate(prompt.ids, settings=settings, noise=noise, images=images)
    return engine.generate(prompt, settings=settings, noise=noise).ids, theirs.ids


class _Probe:
    """Stands in for a layer and remembers what passes through."""

    def __init__(
        self, layer: Any, entering: list[mx.array] | None, leaving: list[mx.array]
    ) -> None:
        self._layer, self._entering, self._leaving = layer, entering, leaving

    def __call__(self, x_BLH: mx.array, *rest: Any) -> mx.array:
        if self._entering is not None:
            self._entering.append(x_BLH)
        y_BLH: mx.array = self._layer(x_BLH, *rest)
        self._leaving.append(y_BLH)
        return y_BLH

    def write(self, *inputs: Any) -> None:
        """A layer that only keeps keys and values."""
        self._layer.write(*inputs)


@contextmanager
def _recorded(decoder: Any) -> Iterator[list[list[mx.array]]]:
    """Collect what enters the first layer, then what leaves each, chunk by chunk."""
    layers = decoder.layers
    seen: list[list[mx.array]] = [[] for _ in range(len(layers) + 1)]
    decoder.layers = [
        _Probe(layer, seen[0] if i == 0 else None, seen[i + 1]) for i, layer in enumerate(layers)
    ]
    try:
        yield seen
    finally:
        decoder.layers = layers


def _layers(stack: str, ours: list[list[mx.array]], theirs: list[Array]) -> list[Stage]:
    names = [f"{stack} input", *(f"{stack} layer {i}" for i in range(len(theirs) - 1))]
    return [_stage(name, _joined(a), b) for name, a, b in zip(names, ours, theirs, strict=False)]


def _stage(name: str, ours: Array, theirs: Array) -> Stage:
    difference = np.abs(ours - theirs)
    return Stage(
        name=name,
        worst=float(difference.max()),
        mean=float(difference.mean()),
        largest=float(np.abs(theirs).max()),
    )


def _joined(chunks: list[mx.array]) -> Array:
    return np.concatenate([_plain(chunk) for chunk in chunks], axis=1)


def _plain(x: mx.array) -> Array:
    return np.array(x.astype(mx.float32))
