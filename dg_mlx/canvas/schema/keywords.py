"""The keywords of JSON Schema (draft 2020-12): each is read, changes nothing, or is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NoReturn
from urllib.parse import unquote

from dg_mlx.errors import ConstraintError

from .node import ALL, TYPES, Array, Choice, Node, Object
from .numbers import Range, exactly
from .pattern import read_pattern
from .text import FORMATS, Text

_ANNOTATIONS = """
title description default example examples deprecated readOnly writeOnly $schema $id $anchor
$comment $defs definitions contentEncoding contentMediaType contentSchema discriminator
"""
"""They change nothing, and neither do keywords that begin with "x-"."""
_READ = """
type enum const $ref allOf anyOf oneOf minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
minLength maxLength pattern format items prefixItems minItems maxItems uniqueItems properties
required additionalProperties patternProperties propertyNames minProperties maxProperties
"""
_KNOWN = frozenset([*_ANNOTATIONS.split(), *_READ.split()])
_CASES = 'write the cases with "anyOf"'
_REFUSED = {
    "not": 'say what is allowed, with "enum", "type" or bounds',
    **dict.fromkeys(("if", "then", "else"), _CASES),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies"), _CASES),
    **dict.fromkeys(("contains", "minContains", "maxContains"), 'use "prefixItems" or "items"'),
    "unevaluatedProperties": 'use "additionalProperties"',
    "unevaluatedItems": 'use "items"',
    "additionalItems": 'use "items" behind "prefixItems"',
    **dict.fromkeys(
        ("$dynamicRef", "$dynamicAnchor", "$recursiveRef"), 'use "$ref" to "#/$defs/…"'
    ),
    "nullable": 'add "null" to "type"',
}
_MOST_NODES = 10_000


def read_schema(schema: Any) -> Node:
    """Read a schema, with what it refers to.

    Raises `ConstraintError` for what is no schema, what is not supported, and for recursion.
    """
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise ConstraintError(f"the schema is not JSON in UTF-8 ({error}); correct it.") from None
    plain = json.loads(text)
    return _Reader(plain).node(plain, "#", ())


def show(value: Any) -> str:
    """A JSON value in a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


class _Reader:
    def __init__(self, root: Any) -> None:
        self._root, self._count = root, 0

    def node(self, schema: Any, where: str, refs: tuple[str, ...]) -> Node:
        """One schema. `refs` are the references that led here."""
        self._count += 1
        if self._count > _MOST_NODES:
            raise ConstraintError(
                f"the schema has more than {_MOST_NODES} parts when its references are written "
                "out; refer less often."
            )
        if isinstance(schema, bool):
            return Node(where=where, kinds=ALL if schema else frozenset())
        if not isinstance(schema, dict):
            raise ConstraintError(
                f"the schema at {where} is {show(schema)}; it must be an object, true or false."
            )
        keywords = _Keywords(schema, where)
        keywords.check()

        def read(inner: Any, path: str) -> Node:
            return self.node(inner, f"{where}/{path}", refs)

        node = Node(
            where=where,
            kinds=keywords.kinds(),
            values=keywords.values(),
            numbers=keywords.numbers(),
            text=keywords.text(),
            array=keywords.array(read),
            object=keywords.object(read),
            choices=keywords.choices(read),
        )
        for i, part in enumerate(keywords.schemas("allOf")):
            node = node.both(read(part, f"allOf/{i}"))
        if "$ref" in schema:
            node = self._referred(keywords.string("$ref"), where, refs).both(node)
        return node

    def _referred(self, ref: str, where: str, refs: tuple[str, ...]) -> Node:
        if ref in refs:
            raise ConstraintError(
                f'"$ref" {ref!r} at {where} leads back to itself, and a recursive schema has no '
                "greatest depth; write it out for as many levels as are needed."
            )
        if ref != "#" and not ref.startswith("#/"):
            raise ConstraintError(
                f'"$ref" {ref!r} at {where} is not in this document; put it into "$defs" and refer '
                'to "#/$defs/…".'
            )
        found = self._root
        for step in unquote(ref[1:]).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            else:
                raise ConstraintError(f'"$ref" {ref!r} at {where} leads nowhere; correct it.')
        return self.node(found, ref, (*refs, ref))


_Read = Callable[[Any, str], Node]


class _Keywords:
    """One schema's keywords by what they speak of. Raises `ConstraintError` for wrong values."""

    def __init__(self, schema: dict[str, Any], where: str) -> None:
        self._schema, self._where = schema, where

    def check(self) -> None:
        """Every keyword is known."""
        for keyword in self._schema:
            if keyword in _REFUSED:
                self._refuse(keyword, "is not supported", _REFUSED[keyword])
            if keyword == "$id" and self._where != "#":
                self._refuse(keyword, "is not supported inside a document", "remove it")
            if keyword not in _KNOWN and not keyword.startswith("x-"):
                self._refuse(keyword, "is no keyword of JSON Schema 2020-12", "remove it")

    def _refuse(self, keyword: str, why: str, fix: str) -> NoReturn:
        raise ConstraintError(f'"{keyword}" at {self._where} {why}; {fix}.')

    def kinds(self) -> frozenset[str]:
        names = self._schema.get("type", list(TYPES))
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names:
            self._wrong("type", "the name of a type or a list of some")
        for name in names:
            if not isinstance(name, str) or name not in TYPES:
                self._refuse("type", f"is {show(name)}", f"use one of {', '.join(TYPES)}")
        return frozenset[str]().union(*(TYPES[name] for name in names))

    def values(self) -> tuple[Any, ...] | None:
        const = (self._schema["const"],) if "const" in self._schema else None
        if "enum" not in self._schema:
            return const
        values = self._schema["enum"]
        if not isinstance(values, list) or not values:
            self._wrong("enum", "a list of at least one value")
        enum = Node(where=self._where, values=tuple(values))
        return enum.both(Node(where=self._where, values=const)).values

    def _wrong(self, keyword: str, wanted: str) -> NoReturn:
        self._refuse(keyword, f"is {show(self._schema[keyword])}", f"it must be {wanted}")

    def string(self, keyword: str) -> str:
        value = self._schema[keyword]
        if not isinstance(value, str):
            self._wrong(keyword, "a string")
        return value

    def schemas(self, keyword: str) -> Sequence[Any]:
        """A list of schemas; empty without the keyword."""
        value = self._schema.get(keyword, [])
        if keyword in self._schema and (not isinstance(value, list) or not value):
            self._wrong(keyword, "a list of at least one schema")
        return list(value)

    def _count(self, keyword: str) -> int | None:
        value = self._schema.get(keyword)
        if keyword not in self._schema:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            self._wrong(keyword, "a whole number from 0")
        return value

    def _number(self, keyword: str) -> Fraction | None:
        value = self._schema.get(keyword)
        if keyword not in self._schema:
            return None
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            self._wrong(keyword, "a number")
        return exactly(value)

    def numbers(self) -> Range:
        step = self._number("multipleOf")
        places = 0
        while step is not None and places < 15 and step * 10**places < 1:
            places += 1
        if step is not None and step * 10**places != 1:
            self._refuse(
                "multipleOf",
                f"is {show(self._schema['multipleOf'])}, and only 1, 0.1, 0.01 and so on are "
                "supported",
                'list the values with "enum", or remove it',
            )
        closed = Range(low=self._number("minimum"), high=self._number("maximum"))
        low, high = self._number("exclusiveMinimum"), self._number("exclusiveMaximum")
        opened = Range(
            low=low,
            high=high,
            low_open=low is not None,
            high_open=high is not None,
            places=None if step is None else places,
        )
        return closed.both(opened)

    def text(self) -> Text:
        pattern = self.string("pattern") if "pattern" in self._schema else None
        if pattern is not None:
            read_pattern(pattern, self._where)
        form = self.string("format") if "format" in self._schema else None
        if form == "regex":
            self._refuse("format", 'is "regex", which is not supported', 'give a "pattern"')
        return Text(
            shortest=self._count("minLength") or 0,
            longest=self._count("maxLength"),
            pattern=pattern,
            format=form if form in FORMATS else None,
        )

    def array(self, read: _Read) -> Array:
        most = self._count("maxItems")
        prefix = self.schemas("prefixItems")
        items = self._schema.get("items")
        if isinstance(items, list):
            self._refuse("items", "is a list", 'call it "prefixItems"')
        unique = self._schema.get("uniqueItems", False)
        if not isinstance(unique, bool):
            self._wrong("uniqueItems", "true or false")
        if unique and (most is None or most > 1):
            self._refuse(
                "uniqueItems",
                "is not supported for more than one item, as a regular expression cannot compare "
                "them",
                "remove it, or name the items as properties of an object",
            )
        return Array(
            prefix=tuple(read(item, f"prefixItems/{i}") for i, item in enumerate(prefix)),
            items=read(items, "items") if "items" in self._schema else None,
            fewest=self._count("minItems") or 0,
            most=most,
        )

    def object(self, read: _Read) -> Object:
        properties = self._schema.get("properties", {})
        if not isinstance(properties, dict):
            self._wrong("properties", "an object")
        required = self._schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(n, str) for n in required):
            self._wrong("required", "a list of names")
        additional, names = (
            read(self._schema[keyword], keyword) if keyword in self._schema else None
            for keyword in ("additionalProperties", "propertyNames")
        )
        return Object(
            properties={
                name: read(inner, f"properties/{_pointer(name)}")
                for name, inner in properties.items()
            },
            required=tuple(required),
            additional=additional,
            matching=self._matching(read) if "patternProperties" in self._schema else None,
            names=names,
            fewest=self._count("minProperties") or 0,
            most=self._count("maxProperties"),
        )

    def _matching(self, read: _Read) -> tuple[str, Node]:
        patterns = self._schema["patternProperties"]
        if not isinstance(patterns, dict):
            self._wrong("patternProperties", "an object")
        if len(patterns) != 1 or {"properties", "propertyNames", "required"} & set(self._schema):
            self._refuse(
                "patternProperties",
                'is supported only with one pattern, and without "properties", "propertyNames" '
                'and "required"',
                'use "properties"',
            )
        [(pattern, schema)] = patterns.items()
        read_pattern(pattern, self._where)
        return pattern, read(schema, f"patternProperties/{_pointer(pattern)}")

    def choices(self, read: _Read) -> tuple[Choice, ...]:
        found = []
        for keyword in ("anyOf", "oneOf"):
            branches = self.schemas(keyword)
            if branches:
                nodes = tuple(read(branch, f"{keyword}/{i}") for i, branch in enumerate(branches))
                found.append(Choice(exactly_one=keyword == "oneOf", branches=nodes))
        return tuple(found)


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
