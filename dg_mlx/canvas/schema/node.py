"""A schema as it was read: what a value of each type must be, and combinations of such."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from dg_mlx.errors import ConstraintError

from .numbers import Range
from .text import Text

TYPES = {
    **{name: frozenset({name}) for name in ("null", "boolean", "string", "array", "object")},
    "integer": frozenset({"integer"}),
    "number": frozenset({"integer", "fraction"}),
}
"""The kinds of values of each "type". A fraction is a number that is no integer."""
ALL = frozenset().union(*TYPES.values())
_NUMBERS = TYPES["number"]
_MOST_CASES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """What arrays must be."""

    prefix: tuple[Node, ...] = ()
    items: Node | None = None
    """What is behind the prefix; None is anything."""
    fewest: int = 0
    most: int | None = None

    def at(self, index: int) -> Node | None:
        """The schema of one item; None is anything."""
        return self.prefix[index] if index < len(self.prefix) else self.items

    def both(self, other: Array, where: str) -> Array:
        """The arrays that are in both."""
        longest = range(max(len(self.prefix), len(other.prefix)))
        most = [array.most for array in (self, other) if array.most is not None]
        return Array(
            prefix=tuple(
                _both(self.at(i), other.at(i), where) or Node(where=where) for i in longest
            ),
            items=_both(self.items, other.items, where),
            fewest=max(self.fewest, other.fewest),
            most=min(most, default=None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """What objects must be."""

    properties: Mapping[str, Node] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    additional: Node | None = None
    """Properties that are not declared; None is anything."""
    matching: tuple[str, Node] | None = None
    """A pattern, and properties whose names match it; the others are additional."""
    names: Node | None = None
    """All names; None is anything."""
    fewest: int = 0
    most: int | None = None

    def at(self, name: str) -> Node | None:
        """The schema of one property; None is anything, also where a pattern may speak of it."""
        return self.properties.get(name, None if self.matching else self.additional)

    def both(self, other: Object, where: str) -> Object:
        """The objects that are in both. Raises `ConstraintError` for patterns beside others."""
        for one, another in ((self, other), (other, self)):
            if one.matching is not None and another != Object():
                raise ConstraintError(
                    f'"patternProperties" at {where} cannot be combined with other keywords of '
                    'objects; use "properties".'
                )
        declared = dict.fromkeys([*self.properties, *other.properties])
        most = [o.most for o in (self, other) if o.most is not None]
        return Object(
            properties={
                name: _both(self.at(name), other.at(name), where) or Node(where=where)
                for name in declared
            },
            required=tuple(dict.fromkeys(self.required + other.required)),
            additional=_both(self.additional, other.additional, where),
            matching=self.matching or other.matching,
            names=_both(self.names, other.names, where),
            fewest=max(self.fewest, other.fewest),
            most=min(most, default=None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """At least one of some schemas, or exactly one."""

    exactly_one: bool
    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A schema without references: a value is of one of the kinds, and fits what that asks."""

    where: str
    """JSON pointer of the schema."""
    kinds: frozenset[str] = ALL
    values: tuple[Any, ...] | None = None
    """The only values, where they are listed."""
    numbers: Range = field(default_factory=Range)
    text: Text = field(default_factory=Text)
    array: Array = field(default_factory=Array)
    object: Object = field(default_factory=Object)
    choices: tuple[Choice, ...] = ()
    """All of these must hold too."""

    @property
    def free(self) -> bool:
        """Whether every value fits."""
        return self == Node(where=self.where)

    @property
    def asked(self) -> frozenset[str]:
        """The kinds of which something is asked, or all."""
        default = Node(where=self.where)
        kinds = _NUMBERS if self.numbers != default.numbers else frozenset[str]()
        for kind, asks, default_asks in (
            ("string", self.text, default.text),
            ("array", self.array, default.array),
            ("object", self.object, default.object),
        ):
            kinds |= {kind} if asks != default_asks else set()
        return kinds or ALL

    def both(self, other: Node) -> Node:
        """The values that fit both schemas. Raises `ConstraintError` where this cannot be said."""
        where = self.where
        values = self.values
        if values is None:
            values = other.values
        elif other.values is not None:
            kept = set(map(canonical, other.values))
            values = tuple(value for value in values if canonical(value) in kept)
        return Node(
            where=where,
            kinds=self.kinds & other.kinds,
            values=values,
            numbers=self.numbers.both(other.numbers),
            text=self.text.both(other.text, where),
            array=self.array.both(other.array, where),
            object=self.object.both(other.object, where),
            choices=self.choices + other.choices,
        )

    def cases(self) -> list[Node]:
        """Schemas without choices, one of which a value fits exactly if it fits this one.

        Cases that no value fits by their kinds and listed values alone are left out. Raises
        `ConstraintError` for "oneOf" of branches that could both hold.
        """
        if not self.choices:
            return [kept] if (kept := self._narrowed()).kinds and kept.values != () else []
        first, *rest = self.choices
        base = replace(self, choices=tuple(rest))
        branches = [
            replace(base, where=branch.where).both(branch).cases() for branch in first.branches
        ]
        if first.exactly_one:
            self._check_apart(branches)
        cases = [case for branch in branches for case in branch]
        if len(cases) > _MOST_CASES:
            raise ConstraintError(
                f"the schema at {self.where} has {len(cases)} cases, more than {_MOST_CASES}; "
                'nest fewer "anyOf" and "oneOf".'
            )
        return cases

    def _check_apart(self, branches: Iterable[list[Node]]) -> None:
        for one, other in combinations(branches, 2):
            if not all(apart(a, b) for a in one for b in other):
                raise ConstraintError(
                    f'"oneOf" at {self.where} has branches that could both hold; use "anyOf", or '
                    'give them different types or a required property of different "const".'
                )

    def _narrowed(self) -> Node:
        """Only the listed values that may fit."""
        if self.values is None:
            return self
        return replace(self, values=tuple(value for value in self.values if self.may_fit(value)))

    def may_fit(self, value: Any) -> bool:
        """Whether a value is of a right kind and in its bounds, whatever else is asked of it."""
        kind = kind_of(value)
        if kind not in self.kinds:
            return False
        if kind in _NUMBERS:
            return self.numbers.holds(value)
        return kind != "string" or self.text.in_length(value)


def kind_of(value: Any) -> str:
    """The kind of a JSON value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "fraction"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def canonical(value: Any) -> str:
    """The same text exactly for values that JSON Schema takes as equal."""
    return json.dumps(_normal(value), sort_keys=True)


def _normal(value: Any) -> Any:
    match value:
        case float():
            return int(value) if value.is_integer() else value
        case list():
            return [_normal(item) for item in value]
        case dict():
            return {key: _normal(item) for key, item in value.items()}
    return value


def apart(one: Node, other: Node) -> bool:
    """Whether surely no value fits both. Both are cases, see `Node.cases`."""
    for a, b in ((one, other), (other, one)):
        if a.values is not None:
            listed = None if b.values is None else set(map(canonical, b.values))
            return not any(
                b.may_fit(value) and (listed is None or canonical(value) in listed)
                for value in a.values
            )
    return all(_apart_as(kind, one, other) for kind in one.kinds & other.kinds)


def _apart_as(kind: str, one: Node, other: Node) -> bool:
    if kind in _NUMBERS:
        return one.numbers.apart(other.numbers)
    if kind == "string":
        both = one.text.shortest, other.text.shortest, one.text.longest, other.text.longest
        return _no_length(*both)
    if kind == "array":
        a, b = one.array, other.array
        return _no_length(a.fewest, b.fewest, a.most, b.most)
    if kind == "object":
        required = {*one.object.required, *other.object.required}
        return any(_apart_at(name, one.object, other.object) for name in required)
    return False


def _no_length(one: int, other: int, most: int | None, most_other: int | None) -> bool:
    return any(m is not None and max(one, other) > m for m in (most, most_other))


def _apart_at(name: str, one: Object, other: Object) -> bool:
    """Whether a property, which one of both requires, cannot fit both."""
    a, b = one.at(name), other.at(name)
    if a is None or b is None:
        return False
    return all(apart(case, other_case) for case in a.cases() for other_case in b.cases())


def _both(one: Node | None, other: Node | None, where: str) -> Node | None:
    if one is None or other is None:
        return one or other
    return one.both(other)
