"""Decisions with probabilities: one or a few passes over a small canvas, from several noises.

The answer's probability is that of all its spellings under the positions' distributions, against
all answers allowed. It depends on the noise that the canvas starts from, so it is averaged over
draws of it, and the spread says how sure the average is.

Legend: B draws, L canvas, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np

from .backends import Backend
from .canvas.constraint import Constraint, Guide, Guides
from .canvas.hold import Answer, Block, Held
from .errors import ConstraintError, SettingsError
from .model import DiffusionGemma
from .processor import Prompt
from .sampling import SeededNoise, accept, next_canvas
from .settings import GenerationSettings

ANSWER = "answer"
"""The field of choices without a schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One decision."""

    probabilities: Mapping[str, float]
    """By option; they add up to 1."""
    errors: Mapping[str, float]
    """Standard error of each over the draws of noise; NaN for a single draw."""
    entropy: float
    """Of the probabilities, in nats."""

    @property
    def best(self) -> str:
        """The likeliest option."""
        return max(self.probabilities, key=lambda option: self.probabilities[option])


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided, by field. Choices without a schema are the field `ANSWER`."""

    fields: Mapping[str, Field]
    seconds: float
    """Prefill and passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A decision to make: each option with the constraint that stands for it."""

    name: str
    options: Mapping[str, Constraint]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """Decisions that are made on one canvas."""

    choices: tuple[Choice, ...]
    whole: Constraint
    """All answers."""
    values: Mapping[str, Sequence[Any]]
    """What each choice is between."""
    document: bool
    """An answer is a JSON object of all choices; else it is the value of the only one."""

    def longest(self, encode: Callable[[str], list[int]]) -> str:
        """The answer of most tokens."""
        spelled = _spelled if self.document else str

        def tokens(value: Any) -> int:
            return len(encode(spelled(value)))

        found = {name: max(values, key=tokens) for name, values in self.values.items()}
        return _spelled(found) if self.document else str(found[ANSWER])

    @staticmethod
    def of(choices: Sequence[str] | None, schema: Any) -> Ballot:
        """From choices, or from a JSON schema whose properties each have a few values. Raises
        `ConstraintError`."""
        if (choices is None) == (schema is None):
            raise ConstraintError(
                "decide between choices, or fields of a schema; give one of the two."
            )
        if choices is None:
            return _of_schema(schema)
        if len(set(choices)) != len(choices) or len(choices) < 2:
            raise ConstraintError("to decide takes two or more different choices; give more.")
        options = {text: Constraint.choices([text]) for text in choices}
        return Ballot(
            choices=(Choice(name=ANSWER, options=options),),
            whole=Constraint.choices(choices),
            values={ANSWER: choices},
            document=False,
        )


def _of_schema(schema: Any) -> Ballot:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping) or not properties:
        raise ConstraintError("a schema to decide by needs properties; give each an enum.")
    values = {name: _values(name, part) for name, part in properties.items()}
    base = {**schema, "type": "object", "required": list(properties)}
    choices = []
    for name, options in values.items():
        by_option = {}
        for label, value in zip(_labels(options), options, strict=True):
            narrowed = {**properties, name: {"const": value}}
            by_option[label] = Constraint.schema({**base, "properties": narrowed})
        choices.append(Choice(name=name, options=by_option))
    return Ballot(
        choices=tuple(choices), whole=Constraint.schema(base), values=values, document=True
    )


def _values(name: str, part: Any) -> list[Any]:
    """The values that a property may have."""
    if isinstance(part, Mapping):
        if isinstance(part.get("enum"), list) and part["enum"]:
            return list(part["enum"])
        if "const" in part:
            return [part["const"]]
        if part.get("type") == "boolean":
            return [True, False]
    raise ConstraintError(
        f"property {name!r} can have any number of values; to decide, give it an enum, a const or "
        "the type boolean."
    )


def _labels(values: Sequence[Any]) -> list[str]:
    """Names of values: as JSON, but texts as they are, unless 1 and "1" are both among them."""
    labels = [value if isinstance(value, str) else _spelled(value) for value in values]
    return labels if len(set(labels)) == len(labels) else [_spelled(value) for value in values]


def _spelled(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """How to decide."""

    prompt: Prompt
    choices: Mapping[str, Mapping[str, Guide]]
    """By field and option."""
    whole: Guide
    settings: GenerationSettings
    """With the canvas to use."""
    draws: int
    passes: int
    seed: int


def prepare(
    ballot: Ballot,
    prompt: Prompt,
    encode: Callable[[str], list[int]],
    guides: Guides,
    settings: GenerationSettings,
    *,
    draws: int,
    passes: int,
    seed: int,
) -> Vote:
    """Compile the options, and choose the canvas. Raises `ConstraintError`, `SettingsError`."""
    for name, value in (("draws", draws), ("passes", passes)):
        if value < 1:
            raise SettingsError(f"{name} is {value}; it must be 1 or more.")
    tokens = len(encode(ballot.longest(encode))) + 1
    return Vote(
        prompt=prompt,
        choices={
            choice.name: {option: guides.of(c) for option, c in choice.options.items()}
            for choice in ballot.choices
        },
        whole=guides.of(ballot.whole),
        settings=settings.replace(canvas_length=tokens, max_new_tokens=tokens),
        draws=draws,
        passes=passes,
        seed=seed,
    )


def vote(model: DiffusionGemma, backend: Backend, asked: Vote) -> Decision:
    """Decide. Runs on the thread that owns MLX."""
    started = perf_counter()
    backend.activate()
    cache = model.new_cache()
    model.prefill(mx.array([asked.prompt.ids]), cache, media=asked.prompt.media)
    logits_BLV = _look(model, backend, asked, cache.repeated(asked.draws))
    fields = {}
    for name, guides in asked.choices.items():
        totals = np.stack([_totals(backend, logits_BLV, guide) for guide in guides.values()])
        shares = np.exp(totals - np.logaddexp.reduce(totals, axis=0))
        fields[name] = _field(list(guides), shares)
    return Decision(fields=fields, seconds=perf_counter() - started)


def _look(model: DiffusionGemma, backend: Backend, asked: Vote, cache: Any) -> mx.array:
    """The last pass's logits (B, L, V), before any temperature."""
    longest, settings = model.config.canvas_length, asked.settings
    noises = [
        SeededNoise(
            asked.seed + draw,
            vocab=model.config.text.vocab_size,
            canvas=settings.canvas(longest),
            backend=backend,
        )
        for draw in range(asked.draws)
    ]
    held = Held(guide=asked.whole)
    blocks = [Answer(held, backend, settings, longest).block(0) for _ in noises]
    canvas_BL = mx.concatenate([noise.initial(0) for noise in noises])
    logits_BLV = model.denoise(canvas_BL, cache)
    for step in range(1, asked.passes):
        rows = [
            _step(block, noise, logits_BLV[row : row + 1], step, settings)
            for row, (block, noise) in enumerate(zip(blocks, noises, strict=True))
        ]
        canvas_BL, conditioning_BLV = (
            mx.concatenate(list(part)) for part in zip(*rows, strict=True)
        )
        logits_BLV = model.denoise(canvas_BL, cache, conditioning_BLV.astype(model.dtype))
    mx.eval(logits_BLV)
    return logits_BLV


def _step(
    block: Block, noise: SeededNoise, logits_BLV: mx.array, step: int, settings: GenerationSettings
) -> tuple[mx.array, mx.array]:
    """The next canvas of one draw, and what conditions it."""
    view = block.look(logits_BLV, settings.temperature(step))
    accepted = accept(view.entropy_BL, settings.entropy_bound)
    sampled = block.draw(noise, 0, step, view.scaled_BLV)
    return next_canvas(accepted, sampled, noise.renoise(0, step)), view.scaled_BLV


def _totals(backend: Backend, logits_BLV: mx.array, guide: Guide) -> Any:
    """(B,): log of the probability of all canvases that a guide accepts, up to a constant."""
    _, scores = backend.class_scores(logits_BLV, guide.classes)
    last = guide.last(0)
    return np.array(
        [
            guide.lattice.total(row, 0, last)
            for row in np.array(scores.astype(mx.float32)).astype(np.float64)
        ]
    )


def _field(options: Sequence[str], shares: Any) -> Field:
    """From the shares (options, draws)."""
    mean, draws = shares.mean(axis=1), shares.shape[1]
    error = shares.std(axis=1, ddof=1) / math.sqrt(draws) if draws > 1 else mean * math.nan
    return Field(
        probabilities=dict(zip(options, map(float, mean), strict=True)),
        errors=dict(zip(options, map(float, error), strict=True)),
        entropy=float(-sum(p * math.log(p) for p in mean if p > 0)),
    )
