"""What is decided between: the options of one or several fields, each with its constraint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .canvas.constraint import Constraint
from .errors import ConstraintError

ANSWER = "answer"
"""The field of choices without a schema."""


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
