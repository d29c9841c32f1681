"""JSON Schemas as regular expressions, of which every match is valid under its schema.

Not every valid document matches. Properties come in the order in which they are declared, those
that are not declared are left out (unless the schema says what they are), and white space is what
usual printers write. The syntax is what Rust's regex crate and Python's `re` share.

Source: https://json-schema.org/draft/2020-12
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from dg_mlx.canvas.compile import MOST_STATES
from dg_mlx.canvas.expression import COLON, SPACE, bracketed, either, escaped, repeat, size
from dg_mlx.errors import ConstraintError

from .chars import other_than
from .keywords import read_schema, show
from .members import Members
from .node import ALL, Array, Node, Object, canonical, kind_of
from .numbers import ANY_NUMBER, integer_regex, number_regex
from .text import ANY_STRING, Text

_ANYTHING = 2
"""How deep containers are nested in a value of which the schema says nothing."""


def regex_of_schema(schema: Any) -> str:
    """The regular expression of JSON documents, all of which are valid under a schema.

    What the schema leaves open is limited, as an automaton is finite: values of which it says
    nothing nest two containers, numbers have 15 digits before the point and 6 behind it. Raises
    `ConstraintError` for keywords that are not supported, and for what no document satisfies.
    """
    try:
        return _checked(_value(read_schema(schema)))
    except RecursionError:
        raise ConstraintError("the schema is nested too deep; flatten it.") from None


def regex_of_json(depth: int = 3) -> str:
    """The regular expression of JSON objects and arrays, with at most `depth` containers nested.

    An automaton is finite, so it cannot follow brackets to any depth; its states double with each
    level. Raises `ConstraintError` when there would be too many.
    """
    if depth < 1:
        raise ConstraintError(f"depth is {depth}; it must be at least 1.")
    return _checked(either(_containers(depth)))


def _checked(regex: str) -> str:
    few = len(regex) < 10 * MOST_STATES
    states = size(regex) if few else len(regex) // 5
    if states > MOST_STATES:
        raise ConstraintError(
            f"the constraint needs about {states} states, more than {MOST_STATES}; lower "
            '"maxLength", "maxItems" and the depth.'
        )
    return regex


def _anything(depth: int) -> str:
    containers = _containers(depth) if depth else []
    return either([ANY_STRING, ANY_NUMBER, "true", "false", "null", *containers])


def _containers(depth: int) -> list[str]:
    inner = _anything(depth - 1)
    members = Members((), f"{ANY_STRING}{COLON}{inner}")
    return [_items(inner, 0, None), _checked(members.regex())]


def _value(node: Node) -> str:
    cases = node.cases()
    if not cases:
        raise ConstraintError(
            f'no value fits the schema at {node.where}, which is false, or whose "type", "enum", '
            '"const" and bounds exclude each other; loosen it.'
        )
    return either(map(_case, cases))


def _case(node: Node) -> str:
    if node.values is not None:
        return _listed(node)
    # Who declares properties and no type means objects.
    kinds = node.asked if node.kinds == ALL else node.kinds
    if kinds == ALL:
        return _anything(_ANYTHING)
    parts = []
    if "null" in kinds:
        parts.append("null")
    if "boolean" in kinds:
        parts += ["true", "false"]
    if "fraction" in kinds:
        parts.append(number_regex(node.numbers, node.where))
    elif "integer" in kinds:
        parts.append(integer_regex(node.numbers, node.where))
    if "string" in kinds:
        parts.append(node.text.regex(node.where))
    if "array" in kinds:
        parts.append(_array(node.array, node.where))
    if "object" in kinds:
        parts.append(_object(node.object, node.where))
    return either(parts)


def _inner(node: Node | None) -> str:
    return _anything(_ANYTHING - 1) if node is None or node.free else _value(node)


def _possible(node: Node | None) -> bool:
    return node is None or bool(node.cases())


def _listed(node: Node) -> str:
    """The listed values that fit, the longest first (see `numbers`)."""
    found = []
    for value in node.values or ():
        kind = kind_of(value)
        if (kind == "array" and node.array != Array()) or (
            kind == "object" and node.object != Object()
        ):
            raise ConstraintError(
                f'"enum" or "const" at {node.where} has the {kind} {show(value)} beside keywords '
                f"for {kind}s; remove those."
            )
        if kind != "string" or node.text.holds(value, node.where):
            found.append(_spelled(value))
    if not found:
        raise ConstraintError(
            f'no value of "enum" or "const" at {node.where} fits its "pattern" or "format"; '
            "remove one of both."
        )
    return either(sorted(found, key=len, reverse=True))


def _spelled(value: Any) -> str:
    """The spellings of one value, which differ in white space."""
    if isinstance(value, dict) and value:
        members = [f"{_key(name)}{COLON}{_spelled(inner)}" for name, inner in value.items()]
        return bracketed(f",{SPACE}".join(members), "{}", empty=False)
    if isinstance(value, list) and value:
        return bracketed(f",{SPACE}".join(map(_spelled, value)), "[]", empty=False)
    return escaped(json.dumps(value, ensure_ascii=False))


def _key(name: str) -> str:
    return escaped(json.dumps(name, ensure_ascii=False))


def _array(array: Array, where: str) -> str:
    fewest, most = array.fewest, array.most
    if most is not None and fewest > most:
        raise ConstraintError(
            f'"minItems" {fewest} at {where} is above "maxItems" {most}; swap them.'
        )
    # Behind an item that is false there is nothing.
    room = next((i for i, item in enumerate(array.prefix) if not _possible(item)), None)
    if room is None and not _possible(array.items):
        room = len(array.prefix)
    if room is not None:
        most = room if most is None else min(most, room)
        if fewest > most:
            raise ConstraintError(
                f'"minItems" {fewest} at {where} is more than the {most} items that can be; lower '
                "it."
            )
    prefix = [_inner(item) for item in array.prefix[:most]]
    left = None if most is None else most - len(prefix)
    if not prefix:
        return r"\[\]" if left == 0 else _items(_inner(array.items), fewest, left)
    rest = ""
    if left != 0:
        more = repeat(max(fewest - len(prefix), 0), left)
        rest = f"(?:,{SPACE}{_inner(array.items)}){more}"
    for i in reversed(range(1, len(prefix))):
        rest = f",{SPACE}{prefix[i]}{rest}" if i < fewest else f"(?:,{SPACE}{prefix[i]}{rest})?"
    return bracketed(f"{prefix[0]}{rest}", "[]", empty=fewest == 0)


def _items(item: str, fewest: int, most: int | None) -> str:
    # An item with a comma and one without begin alike: an automaton reads both in the same states.
    last = None if most is None else most - 1
    before = "" if last == 0 else f"(?:{item},{SPACE}){repeat(max(fewest - 1, 0), last)}"
    return bracketed(f"{before}{item}", "[]", empty=fewest == 0)


def _object(declared: Object, where: str) -> str:
    members = _Properties(declared, where).members()
    # Checked at every level: what holds it may copy it.
    return _checked(members.counted(declared.fewest, declared.most, where).regex())


class _Properties:
    """Which members an object can have."""

    def __init__(self, declared: Object, where: str) -> None:
        self._object, self._where = declared, where
        self._names = None if declared.names is None else declared.names.cases()

    def members(self) -> Members:
        return Members(self._listed(), self._extra())

    def _declared(self) -> list[str]:
        names = [*self._object.properties, *self._object.required]
        for case in self._names or []:
            names += [name for name in case.values or () if isinstance(name, str)]
        return list(dict.fromkeys(names))

    def _listed(self) -> tuple[tuple[str, bool], ...]:
        listed = []
        for name in self._declared():
            node, required = self._object.at(name), name in self._object.required
            if self._fits(name) and _possible(node):
                listed.append((f"{_key(name)}{COLON}{_inner(node)}", required))
            elif required:
                raise ConstraintError(
                    f'"required" {name!r} at {self._where} cannot be there, as its schema or '
                    '"propertyNames" allows nothing; remove it from one of both.'
                )
        return tuple(listed)

    def _fits(self, name: str) -> bool:
        """Whether "propertyNames" allows a name, as far as patterns are written here."""
        return self._names is None or any(
            case.may_fit(name)
            and (case.values is None or canonical(name) in map(canonical, case.values))
            and case.text.holds(name, case.where)
            for case in self._names
        )

    def _extra(self) -> str | None:
        """A property of another name than those listed; None where there is none."""
        if self._object.matching is not None:
            pattern, node = self._object.matching
            if not _possible(node):
                return None
            return f"{Text(pattern=pattern).regex(self._where)}{COLON}{_inner(node)}"
        additional, declared = self._object.additional, self._declared()
        if not _possible(additional):
            return None
        if self._names is None:
            key = f'"{other_than(declared)}"' if declared else ANY_STRING
            # Where nothing is said of them, undeclared properties are left out.
            if declared and (additional is None or additional.free):
                return None
            return f"{key}{COLON}{_inner(additional)}"
        texts = [case for case in self._names if "string" in case.kinds and case.values is None]
        if declared or not texts:
            return None
        key = either(_case(replace(case, kinds=frozenset({"string"}))) for case in texts)
        return f"{key}{COLON}{_inner(additional)}"
