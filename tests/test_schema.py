"""JSON Schemas as regular expressions: what they match is valid, and what is usual they match."""

import json
import random
import re
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from outlines_core import Index, Vocabulary
from schemas import SCHEMAS, errors

from dg_mlx.canvas.schema import regex_of_json, regex_of_schema
from dg_mlx.canvas.schema.chars import other_than
from dg_mlx.canvas.schema.numbers import Range, integer_regex, number_regex
from dg_mlx.canvas.schema.pattern import read_pattern
from dg_mlx.errors import ConstraintError

END = 512
VOCABULARY = Vocabulary(
    END,
    {bytes([b]): [b] for b in range(256)} | {bytes([0, b]): [256 + b] for b in range(256)},
)


class Automaton:
    """Over bytes. What is before and behind the expression is for the library, see below."""

    def __init__(self, regex):
        # It builds an automaton that may begin anywhere, which can be of any size; that the first
        # state accepts stops this. From there it leaves out what does not accept at once, unless
        # a token leads further. And it follows the first alternative that has come to its end.
        index = Index(rf"(?:\x00(?:{regex})\x01)?", VOCABULARY)
        table = index.get_transitions()
        self.start = index.get_initial_state()
        table[self.start] = {byte - 256: to for byte, to in table[self.start].items() if byte > 255}
        self.accepts = {state for state, to in table.items() if 1 in to}
        self.next = {
            state: {byte: target for byte, target in to.items() if byte < 256 and byte != 1}
            for state, to in table.items()
        }
        self.distance = dict.fromkeys(self.accepts, 0)
        before = {}
        for state, to in self.next.items():
            for target in set(to.values()):
                before.setdefault(target, []).append(state)
        queue = list(self.accepts)
        for state in queue:
            for source in before.get(state, ()):
                if source not in self.distance:
                    self.distance[source] = self.distance[state] + 1
                    queue.append(source)

    def matches(self, text):
        state = self.start
        for byte in text.encode():
            state = self.next.get(state, {}).get(byte)
            if state is None:
                return False
        return state in self.accepts

    def sample(self, rng, budget):
        """A text it matches: any way for some bytes, then the shortest."""
        state, text = self.start, bytearray()
        while True:
            steps = [(b, to) for b, to in self.next[state].items() if to in self.distance]
            if len(text) >= budget:
                steps = [s for s in steps if self.distance[s[1]] < self.distance[state]]
            if state in self.accepts and (not steps or rng.random() < 0.2):
                return text.decode()
            # By where it leads: else nearly all is in long characters.
            to = rng.choice(sorted({to for _, to in steps}))
            byte = rng.choice([b for b, target in steps if target == to])
            text.append(byte)
            state = to


@lru_cache(maxsize=64)
def automaton(regex):
    return Automaton(regex)


def accepts(schema, *documents):
    machine = automaton(regex_of_schema(schema))
    return [machine.matches(d if isinstance(d, str) else json.dumps(d)) for d in documents]


def check_samples(schema, rng, count=4, budget=60):
    machine = automaton(regex_of_schema(schema))
    for _ in range(count):
        text = machine.sample(rng, rng.randrange(budget))
        assert not errors(schema, json.loads(text)), (schema, text)


@given(SCHEMAS, st.integers(0, 10**6))
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_what_matches_is_valid(schema, seed):
    try:
        regex_of_schema(schema)
    except ConstraintError:
        assume(False)
    check_samples(schema, random.Random(seed))


# What is usual matches ---------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
}
SHAPE = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": "circle"}, "r": {"type": "number"}},
            "required": ["kind", "r"],
        },
        {
            "type": "object",
            "properties": {"kind": {"const": "square"}, "side": {"type": "number"}},
            "required": ["kind", "side"],
        },
    ]
}
LINKED = {
    "$defs": {"id": {"type": "string", "pattern": "^[a-z]+$"}, "a/b": {"type": "null"}},
    "type": "object",
    "properties": {"from": {"$ref": "#/$defs/id", "maxLength": 3}, "to": {"$ref": "#/$defs/a~1b"}},
}
MERGED = {
    "allOf": [
        {"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]},
        {"properties": {"a": {"minimum": 3}, "b": {}}, "additionalProperties": False},
    ],
    "type": "object",
    "properties": {"c": {}},
    "maxProperties": 5,
}
NULL = {"type": "null"}
USUAL = [
    (True, ["1", '"a"', "null", '{"a": [1]}', "[[], {}]"], ["", "[[[1]]]", "01", "1 "]),
    ({"title": "t", "x-y": 1}, ["[]", "-0.5"], ["[}"]),
    (NULL, ["null"], ["", "nul", "true", '"null"']),
    ({"type": ["boolean", "null"]}, ["true", "false", "null"], ["1"]),
    ({"type": "integer"}, ["0", "-1", "123456789012345"], ["-0", "01", "1.0", "1e3", "+1"]),
    ({"type": "number"}, ["0", "-1.5", "12.000001", "1"], [".5", "1.", "00.5", "NaN"]),
    (
        {"type": "string"},
        ['""', r'"\"\\\/\n"', '"é世😇"'],
        ['"', '"""', r'"\x"', '"\n"', '"\U0010ffff"'],
    ),
    ({"maxLength": 2}, ['"é世"', r'"\n\""', '"😇😇"', '""'], ['"abc"', r'"\n\n\n"', "1"]),
    ({"minLength": 1, "pattern": "^a?b$"}, ['"b"', '"ab"'], ['"a"', '"bb"']),
    ({"enum": ["a", 1, None, [1, {}]]}, ['"a"', "1", "null", "[1,{}]"], ["a", "[1]", "11"]),
    ({"enum": [1, 12, 123.0]}, ["1", "12", "123.0"], ["123", "2"]),
    ({"enum": [1, "a", 2.5, True], "type": "number"}, ["1", "2.5"], ['"a"', "true"]),
    ({"enum": ["ab", "b", "a"], "pattern": "^a"}, ['"ab"', '"a"'], ['"b"']),
    ({"enum": [1, 2, 3], "const": 2.0}, ["2"], ["1", "2.0"]),
    ({"const": {"a": ["(x)*"]}}, ['{"a": ["(x)*"]}', '{ "a":[ "(x)*" ] }'], ['{"a": ["x"]}']),
    (
        {"type": "array"},
        ["[]", "[1]", "[1, 2]", "[\n  1,\n  2\n]", "[[1]]"],
        ["[1,]", "[,1]", "[ ]", "[1 , 2]"],
    ),
    ({"items": NULL, "minItems": 2}, ["[null, null]", "[null,null,null]"], ["[null]"]),
    ({"items": NULL, "maxItems": 1}, ["[]", "[null]"], ["[null, null]"]),
    ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    ({"type": "array", "items": False}, ["[]"], ["[1]"]),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, ["[]", "[1]"], ["[1, 1]"]),
    (
        {"prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}},
        ["[]", "[1]", "[1, 2]", "[1, 2, 3, 3]"],
        ["[2]", "[1, 3]"],
    ),
    (
        {"prefixItems": [{"const": 1}, {"const": 2}, False], "minItems": 1, "maxItems": 9},
        ["[1]", "[1, 2]"],
        ["[]", "[1, 2, 3]"],
    ),
    ({"prefixItems": [{"const": 1}], "minItems": 3, "maxItems": 3}, ["[1, 2, 3]"], ["[1, 2]"]),
    (
        PERSON,
        ['{"name": "A"}', '{"name":"A","age":3}', '{\n  "name": "A"\n}'],
        ["{}", '{"age": 3, "name": "A"}', '{"name": "A", "x": 1}', '{"name": "A", "age": -1}'],
    ),
    (PERSON | {"required": []}, ["{}", '{"age": 3}', '{"name": "", "age": 3}'], ['{"age": 3,}']),
    (PERSON | {"required": ["age"]}, ['{"age": 3}', '{"name": "", "age": 3}'], ["{}"]),
    (PERSON | {"required": ["x"]}, ['{"x": [1]}', '{"name": "", "x": 1}'], ["{}", '{"name": ""}']),
    (PERSON | {"required": [], "minProperties": 1}, ['{"age": 3}'], ["{}"]),
    (PERSON | {"required": [], "minProperties": 2}, ['{"name": "", "age": 3}'], ['{"age": 3}']),
    (PERSON | {"maxProperties": 1}, ['{"name": ""}'], ['{"name": "", "age": 3}']),
    (
        PERSON | {"additionalProperties": NULL},
        ['{"name": "", "x": null, "names": null}', '{"name": "", "": null, "nam": null}'],
        ['{"name": "", "age": null}', '{"name": "", "x": 1}', '{"x": null}'],
    ),
    (
        PERSON | {"additionalProperties": NULL, "maxProperties": 3},
        ['{"name": "", "x": null}'],
        ['{"name": "", "x": null, "y": null}'],
    ),
    ({"type": "object"}, ["{}", '{"a": 1, "b": [2]}'], ['{"a": [[1]]}', "{1: 2}"]),
    ({"type": "object", "maxProperties": 0}, ["{}"], ['{"a": 1}']),
    ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a": 1}']),
    ({"properties": {"a": False, "b": NULL}}, ["{}", '{"b": null}'], ['{"a": 1}']),
    (
        {"minProperties": 1, "maxProperties": 2},
        ['{"a": 1}', '{"a": 1, "b": 2}'],
        ["{}", '{"a": 1, "b": 2, "c": 3}'],
    ),
    (
        {"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
        ["{}", '{"b": 1}', '{"a": 1, "b": 2}'],
        ['{"c": 1}', '{"a": 1, "a": 1}'],
    ),
    ({"propertyNames": {"maxLength": 1}}, ["{}", '{"b": 1}'], ['{"bb": 1}']),
    ({"propertyNames": False}, ["{}"], ['{"b": 1}']),
    ({"propertyNames": {"pattern": "^x"}, "properties": {"a": {}, "x": {}}}, ['{"x": 1}'], []),
    ({"patternProperties": {"^x": NULL}}, ["{}", '{"x1": null}'], ['{"a": null}', '{"x": 1}']),
    (SHAPE, ['{"kind": "circle", "r": 1}'], ['{"kind": "circle", "side": 1}', "{}"]),
    (LINKED, ['{"from": "abc", "to": null}', "{}"], ['{"from": "abcd"}', '{"to": 1}']),
    (MERGED, ['{"a": 3}', '{"a": 4, "b": []}'], ['{"a": 2}', '{"b": 1}', '{"a": 3, "c": 1}']),
    ({"anyOf": [{"type": "string"}, NULL]}, ['"a"', "null"], ["1"]),
    ({"anyOf": [{"const": 1}, NULL], "type": "integer"}, ["1"], ["null"]),
    ({"anyOf": [{"minimum": 5}, {"maximum": 1}], "type": "integer"}, ["0", "1", "17"], ["3"]),
    ({"oneOf": [{"maxLength": 2}, {"minLength": 4}], "type": "string"}, ['"ab"'], ['"abc"']),
    ({"oneOf": [{"maxItems": 1}, {"minItems": 3}], "type": "array"}, ["[]"], ["[1, 2]"]),
    ({"oneOf": [{"maximum": 1}, {"exclusiveMinimum": 1}], "type": "integer"}, ["1", "2"], []),
    ({"minimum": 3}, ["3", "3.5"], ["2", '"a"']),
]


@pytest.mark.parametrize(("schema", "yes", "no"), USUAL)
def test_usual_documents_match(schema, yes, no):
    assert accepts(schema, *yes) == [True] * len(yes)
    assert accepts(schema, *no) == [False] * len(no)
    validator = Draft202012Validator(schema)
    assert all(validator.is_valid(json.loads(text)) for text in yes)


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_documents_of_usual_printers_match(indent):
    more = {"tags": {"type": "array"}, "more": {"type": "object"}}
    schema = {"type": "object", "properties": PERSON["properties"] | more}
    document = {"name": "A", "age": 3, "tags": ["x", 1, {"a": 2}], "more": {"a": 1, "b": [True]}}
    assert accepts(schema, json.dumps(document, indent=indent, ensure_ascii=False)) == [True]
    assert accepts(schema, json.dumps(document, separators=(",", ":"))) == [True]


FORMATS = {
    "date": (
        ["2024-02-29", "2000-02-29", "1999-12-31"],
        ["2023-02-29", "1900-02-29", "2024-04-31"],
    ),
    "time": (["23:59:59Z", "00:00:00.5+05:30"], ["24:00:00Z", "12:00:00", "12:00Z"]),
    "date-time": (["2024-02-29T01:02:03Z"], ["2024-02-29 01:02:03Z", "2024-02-30T01:02:03Z"]),
    "duration": (["P1Y2M3D", "PT1H", "P2W", "P1DT2M3S"], ["P", "PT", "P1Y1D", "1D"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    "email": (["a@b.de", "a.b+c@d-e.example.com"], ["a", "a@b", "@b.de", "a@b..de", ".a@b.de"]),
    "hostname": (["a", "example.com", "a-b.c"], ["", "-a", "a-", "a..b", "a_b"]),
    "ipv4": (["0.0.0.0", "192.168.1.255"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
    "ipv6": (["1:2:3:4:5:6:7:abcd"], ["1:2", "g:2:3:4:5:6:7:8"]),
    "uri": (["https://a.de/b/c?d=e#f", "http://a:80"], ["a.de", "https://", "https://a b"]),
    "iri-reference": (["https://a.de"], ["https://a b"]),
    "json-pointer": (["", "/a/0"], ["a"]),
    "relative-json-pointer": (["0", "1/a", "2#"], ["/a", "01"]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_enforced(name):
    yes, no = FORMATS[name]
    schema = {"type": "string", "format": name}
    assert accepts(schema, *map(json.dumps, yes)) == [True] * len(yes)
    assert accepts(schema, *map(json.dumps, no)) == [False] * len(no)
    assert accepts(schema | {"format": f"my-{name}"}, *map(json.dumps, no)) == [True] * len(no)


def test_dates_and_times_exist():
    machine = automaton(regex_of_schema({"type": "string", "format": "date-time"}))
    rng = random.Random(1)
    for _ in range(300):
        text = json.loads(machine.sample(rng, 40))
        assert datetime.fromisoformat(text.replace("Z", "+00:00")).tzinfo is not None


@pytest.mark.parametrize(("depth", "states"), [(1, 150), (2, 400), (4, 2000)])
def test_any_json_has_a_greatest_depth(depth, states):
    machine = automaton(regex_of_json(depth))
    assert len(machine.next) < states
    assert machine.matches("[" * depth + '1, "a", null' + "]" * depth)
    assert machine.matches('{"a": ' * depth + "-1.5" + "}" * depth)
    assert not machine.matches("[" * (depth + 1) + "]" * (depth + 1))
    assert not machine.matches("1")
    rng = random.Random(depth)
    for _ in range(30):
        assert isinstance(json.loads(machine.sample(rng, 80)), list | dict)


def test_any_json_is_three_deep_unless_it_is_said():
    assert regex_of_json() == regex_of_json(3)


@pytest.mark.parametrize(
    ("schema", "states"),
    [
        ({"type": "string", "maxLength": 100}, 1000),
        ({"properties": {f"p{i}": {"type": "integer"} for i in range(40)}}, 1200),
        ({"properties": {f"p{i}": {"type": "string"} for i in range(20)}, "minProperties": 1}, 600),
        ({"items": {"properties": {"a": PERSON, "b": {"type": "array", "items": PERSON}}}}, 300),
        ({"type": "array", "maxItems": 20, "items": PERSON}, 1600),
        ({"type": "number", "minimum": -1234.5, "maximum": 98765.25}, 150),
    ],
)
def test_automata_stay_small(schema, states):
    assert len(automaton(regex_of_schema(schema)).next) < states


# Numbers -----------------------------------------------------------------------------------------


def of(low, high, low_open=False, high_open=False, places=None):
    ends = [None if bound is None else Fraction(str(bound)) for bound in (low, high)]
    return Range(low=ends[0], high=ends[1], low_open=low_open, high_open=high_open, places=places)


@given(st.integers(-1100, 1100), st.integers(0, 1500), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_integers_of_a_range_are_exact(low, width, low_open, high_open):
    high = low + width
    least, greatest = low + low_open, high - high_open
    assume(least <= greatest)
    matches = re.compile(integer_regex(of(low, high, low_open, high_open), "#")).fullmatch
    for number in range(low - 30, high + 30):
        assert bool(matches(str(number))) == (least <= number <= greatest)
    assert not any(map(matches, ["-0", "00", "01", "-01", "", "-", f"0{high}", f"{high}.0"]))


@given(st.integers(-(10**20) + 1, 10**19), st.integers(0, 10**19), st.data())
@settings(deadline=None, max_examples=100)
def test_long_integers_of_a_range_are_exact(low, width, data):
    high = low + width
    matches = re.compile(integer_regex(of(low, high), "#")).fullmatch
    for number in (low, high, data.draw(st.integers(low, high))):
        assert matches(str(number))
    for number in (low - 1, high + 1, low - 10**18, -(10**21)):
        assert not matches(str(number))


@pytest.mark.parametrize("bound", [0, 5, -5, 10**14, -(10**14), 10**15, 10**17 + 1, -(10**17)])
def test_integers_with_one_bound_are_long(bound):
    above = re.compile(integer_regex(of(bound, None), "#")).fullmatch
    below = re.compile(integer_regex(of(None, bound), "#")).fullmatch
    far = 10 * abs(bound) + 10**14
    assert above(str(bound)) and above(str(far)) and not above(str(bound - 1))
    assert below(str(bound)) and below(str(-far)) and not below(str(bound + 1))


CENTS = st.integers(-400, 1300).map(lambda n: Decimal(n) / 100)


@given(CENTS, CENTS, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_decimals_of_a_range_are_exact_on_a_grid(low, high, low_open, high_open):
    low, high = min(low, high), max(low, high)
    bounds = of(low, high, low_open, high_open)
    assume(not bounds.empty)
    matches = re.compile(number_regex(bounds, "#")).fullmatch
    grid = [Decimal(n) / 1000 for n in range(-4100, 13100, 11) if n]
    for number in [*grid, low, high, low - Decimal("0.001"), high + Decimal("0.001")]:
        inside = low <= number <= high
        inside &= (number != low or not low_open) and (number != high or not high_open)
        if number:
            spellings = {f"{number:.3f}", f"{number:.6f}", f"{number:.3f}".rstrip("0").rstrip(".")}
            assert {bool(matches(text)) for text in spellings} == {inside}
    assert not any(map(matches, ["", "-", ".5", "1.", "01.5", "1e1", "-0", "-0.0"]))


DOUBLES = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1e3, 1e3)


@given(DOUBLES, DOUBLES, st.sampled_from(["minimum", "exclusiveMinimum"]))
@settings(deadline=None, max_examples=60)
def test_decimals_hold_for_who_reads_them_as_doubles(one, two, low):
    high = low.replace("Min", "Max").replace("min", "max")
    low, high = {low: min(one, two)}, {high: max(one, two)}
    for bounds in (low, high, low | high):
        schema = {"type": "number"} | bounds
        try:
            regex_of_schema(schema)
        except ConstraintError:
            assert bounds == low | high or max(map(abs, bounds.values())) > 1e19
        else:
            check_samples(schema, random.Random(0), count=3, budget=30)


@pytest.mark.parametrize(
    ("bounds", "yes", "no"),
    [
        (of(0, None, low_open=True), ["0.000001", "999999999.999999", "1" * 15], ["0", "0.0"]),
        (of(0, 1, True, True), ["0.5", "0.999999"], ["0", "1", "1.0", "0.0"]),
        (of("0.000000001", "0.00000001"), ["0.000000001", "0.0000000015"], ["0", "0.1"]),
        (of(None, 12345678901), ["12345678901", "12345678900.999", "-0.5"], ["12345678901.001"]),
        (of(None, None, places=2), ["0.5", "12.25", "-3"], ["0.125"]),
        (of(0, "0.5", places=1), ["0", "0.5", "0.4"], ["0.45", "0.6"]),
        (of(1, 3, places=0), ["1", "2", "3"], ["1.0", "0"]),
        (of(10**15, 10**17), [str(10**15), str(10**17)], ["1" * 15, f"{10**15}.5"]),
    ],
)
def test_decimals_of_special_ranges(bounds, yes, no):
    machine = automaton(number_regex(bounds, "#"))
    assert [text for text in yes if not machine.matches(text)] == []
    assert [text for text in no if machine.matches(text)] == []


@given(st.integers(0, 6), st.integers(-1000, 1000), st.integers(0, 1000), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_multiples_of_decimals_are_exact_as_decimals(places, low, width, seed):
    low, high = low / 8, (low + width + 8) / 8
    schema = {
        "type": "number",
        "multipleOf": float(f"1e-{places}"),
        "minimum": low,
        "maximum": high,
    }
    machine = automaton(regex_of_schema(schema))
    for i in range(5):
        number = Decimal(machine.sample(random.Random(seed + i), 20))
        assert number % (Decimal(1) / 10**places) == 0 and low <= number <= high


# Patterns ----------------------------------------------------------------------------------------

PARTS = r"""
a b ab é \. / \/ . [ab] [^a] ["/] [^\d\s] [\w-] \d \D \w \W \s \S " \\ \x41 \u00e9 \t [+-] [*-.]
[a-c\n] [\n]
"""
ATOMS = st.sampled_from(PARTS.split())


def _grown(inner):
    quantifiers = st.sampled_from(["*", "+?", "?", "{2}", "{1,2}", "{0,}"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, quantifiers).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    )


GROUPS = st.recursive(ATOMS, _grown, max_leaves=4)
ANCHORED = st.tuples(st.sampled_from(["", "^"]), GROUPS, st.sampled_from(["", "$"])).map("".join)
TEXTS = st.text('ab"\\/.1-A \n\té世😇', max_size=5)


@given(st.lists(ANCHORED, min_size=1, max_size=2).map("|".join), st.lists(TEXTS, max_size=8))
@settings(deadline=None, max_examples=100)
def test_a_pattern_speaks_of_characters(pattern, texts):
    matches = re.compile(f'"{read_pattern(pattern, "#").regex()}"').fullmatch
    # Python takes "$" before a last line end too, and more characters for digits and letters.
    python = pattern.replace("$", r"\Z")
    for text in texts:
        written = bool(matches(json.dumps(text, ensure_ascii=False)))
        if text.isascii():
            assert (
                written == bool(re.search(python, text, re.ASCII)) == bool(re.search(python, text))
            )
        assert not written or re.search(python, text)


@given(ANCHORED, st.integers(0, 3), st.integers(0, 3), st.lists(TEXTS, max_size=8))
@settings(deadline=None, max_examples=100)
def test_a_pattern_of_a_length(pattern, shortest, more, texts):
    whole = read_pattern(pattern, "#")
    fitted = whole.of_length(shortest, shortest + more)
    assume(fitted is not None)
    everywhere = re.compile(whole.regex()).fullmatch
    matches = re.compile(fitted.regex() if fitted.alternatives else "(?!)").fullmatch
    for text in texts:
        written = json.dumps(text, ensure_ascii=False)[1:-1]
        fits = shortest <= len(text) <= shortest + more
        assert bool(matches(written)) == (fits and bool(everywhere(written)))


@given(st.lists(st.text('ab"/\n', max_size=3), max_size=4), st.text('ab"\nx', max_size=4))
@settings(deadline=None, max_examples=50)
def test_a_name_other_than_some(names, name):
    written = json.dumps(name)[1:-1]
    assert bool(re.fullmatch(other_than(names), written)) == (name not in names)


def test_an_escaped_name_is_no_other_name():
    schema = {"properties": {"a/b": {"const": 1}}, "additionalProperties": {"type": "integer"}}
    assert accepts(schema, '{"a/b": 1}', '{"a/b": 2}', r'{"a\/b": 2}') == [True, False, False]


# What is refused ---------------------------------------------------------------------------------

REFUSED = r"""
false
    no value fits the schema at #, which is false, or whose "type", "enum", "const" and bounds
    exclude each other; loosen it.
3
    the schema at # is 3; it must be an object, true or false.
{"type": "strin"}
    "type" at # is "strin"; use one of null, boolean, string, array, object, integer, number.
{"type": []}
    "type" at # is []; it must be the name of a type or a list of some.
{"enum": []}
    "enum" at # is []; it must be a list of at least one value.
{"foo": 1}
    "foo" at # is no keyword of JSON Schema 2020-12; remove it.
{"if": {}, "then": {}}
    "if" at # is not supported; write the cases with "anyOf".
{"not": {}}
    "not" at # is not supported; say what is allowed, with "enum", "type" or bounds.
{"contains": {}}
    "contains" at # is not supported; use "prefixItems" or "items".
{"unevaluatedProperties": false}
    "unevaluatedProperties" at # is not supported; use "additionalProperties".
{"nullable": true}
    "nullable" at # is not supported; add "null" to "type".
{"dependentRequired": {}}
    "dependentRequired" at # is not supported; write the cases with "anyOf".
{"$dynamicRef": "#a"}
    "$dynamicRef" at # is not supported; use "$ref" to "#/$defs/…".
{"unevaluatedItems": false}
    "unevaluatedItems" at # is not supported; use "items".
{"additionalItems": false}
    "additionalItems" at # is not supported; use "items" behind "prefixItems".
{"properties": {"a": {"$id": "x"}}}
    "$id" at #/properties/a is not supported inside a document; remove it.
{"properties": {"a/b~": {"const": 1, "enum": [2]}}, "required": ["a/b~"]}
    "required" 'a/b~' at # cannot be there, as its schema or "propertyNames" allows nothing; remove
    it from one of both.
{"type": "string", "enum": [1]}
    no value fits the schema at #, which is false, or whose "type", "enum", "const" and bounds
    exclude each other; loosen it.
{"enum": ["ab"], "type": "string", "pattern": "^x"}
    no value of "enum" or "const" at # fits its "pattern" or "format"; remove one of both.
{"enum": [[1]], "minItems": 2}
    "enum" or "const" at # has the array [1] beside keywords for arrays; remove those.
{"enum": [{}], "properties": {"a": {}}}
    "enum" or "const" at # has the object {} beside keywords for objects; remove those.
{"type": "integer", "minimum": 5, "maximum": 3}
    "minimum" and "maximum" at # leave no integer from 5 to 3; widen them.
{"type": "number", "exclusiveMinimum": 0.5, "maximum": 0.5}
    "minimum" and "maximum" at # leave no number above 0.5 to 0.5; widen them.
{"type": "integer", "minimum": 0.2, "maximum": 0.8}
    "minimum" and "maximum" at # leave no integer of at most 20 digits from 0.2 to 0.8; widen them.
{"type": "number", "exclusiveMinimum": 0, "maximum": 1e-20}
    "minimum" and "maximum" at # leave no number of at most 20 digits above 0 to 1e-20; widen them.
{"minimum": "1"}
    "minimum" at # is "1"; it must be a number.
{"minimum": true}
    "minimum" at # is true; it must be a number.
{"type": "integer", "multipleOf": 3}
    "multipleOf" at # is 3, and only 1, 0.1, 0.01 and so on are supported; list the values with
    "enum", or remove it.
{"minLength": -1}
    "minLength" at # is -1; it must be a whole number from 0.
{"maxItems": 1.5}
    "maxItems" at # is 1.5; it must be a whole number from 0.
{"type": "string", "minLength": 3, "maxLength": 2}
    "minLength" 3 at # is above "maxLength" 2; swap them.
{"type": "string", "pattern": "a", "maxLength": 3}
    "pattern" 'a' at # cannot be combined with "minLength" or "maxLength"; write the lengths into
    its quantifiers.
{"type": "string", "pattern": "^a$", "minLength": 3}
    "pattern" '^a$' at # has no text of 3 characters; change the lengths.
{"type": "string", "pattern": "^a", "format": "date"}
    "pattern" and "format" 'date' at # cannot be combined; keep one.
{"type": "string", "format": "regex"}
    "format" at # is "regex", which is not supported; give a "pattern".
{"type": "string", "format": "uuid", "maxLength": 10}
    "format" 'uuid' at # has no text of 0 to 10 characters; change the lengths.
{"type": "string", "format": "email", "maxLength": 10}
    "format" 'email' at # cannot be combined with "minLength" or "maxLength"; remove them, or write
    a "pattern".
{"type": "string", "pattern": 3}
    "pattern" at # is 3; it must be a string.
{"type": "string", "pattern": "(?=a)"}
    "pattern" '(?=a)' at # has "(?=", which is not supported; use groups only to repeat and to
    choose.
{"type": "string", "pattern": "(a)\\1"}
    "pattern" '(a)\\1' at # has "\1", which is not supported; a back reference of this kind has to
    be written out.
{"type": "string", "pattern": "\\bx"}
    "pattern" '\\bx' at # has "\b", which is not supported; look-around of this kind has to be
    written out.
{"type": "string", "pattern": "\\p{L}"}
    "pattern" '\\p{L}' at # has "\p", which is not supported; a class of this kind has to be written
    out.
{"type": "string", "pattern": "a(^b)"}
    "pattern" 'a(^b)' at # has "^" inside, which is not supported; put anchors at its ends, not in
    groups.
{"type": "string", "pattern": "a$b"}
    "pattern" 'a$b' at # has "$" inside, which is not supported; put anchors at its ends, not in
    groups.
{"type": "string", "pattern": "(a"}
    "pattern" '(a' at # has an open group, which is not supported; close it with ")".
{"type": "string", "pattern": "a)"}
    "pattern" 'a)' at # has an unmatched ")", which is not supported; write "\)".
{"type": "string", "pattern": "*a"}
    "pattern" '*a' at # has "*" without what it belongs to, which is not supported; write "\*".
{"type": "string", "pattern": "a**"}
    "pattern" 'a**' at # has two quantifiers in a row, which is not supported; group the first.
{"type": "string", "pattern": "a{2"}
    "pattern" 'a{2' at # has a "{" that is no quantifier, which is not supported; write "\{".
{"type": "string", "pattern": "a{3,2}"}
    "pattern" 'a{3,2}' at # has a quantifier from 3 to 2, which is not supported; swap them.
{"type": "string", "pattern": "[]"}
    "pattern" '[]' at # has an empty class, which is not supported; write "\]" for a bracket.
{"type": "string", "pattern": "[b-a]"}
    "pattern" '[b-a]' at # has a range from high to low, which is not supported; swap its ends.
{"type": "string", "pattern": "[\\d-x]"}
    "pattern" '[\\d-x]' at # has a range between classes, which is not supported; write "\-" for a
    hyphen.
{"type": "string", "pattern": "\\x1"}
    "pattern" '\\x1' at # has a broken "\x", which is not supported; write "\xHH", "\uHHHH" or
    "\u{H}".
{"type": "string", "pattern": "\\x01"}
    "pattern" '\\x01' at # has a class of nothing but control characters or surrogates, which is not
    supported; leave it out.
{"type": "string", "pattern": "\\"}
    "pattern" '\\' at # has no end, which is not supported; complete it.
{"type": "array", "minItems": 3, "maxItems": 2}
    "minItems" 3 at # is above "maxItems" 2; swap them.
{"type": "array", "uniqueItems": true}
    "uniqueItems" at # is not supported for more than one item, as a regular expression cannot
    compare them; remove it, or name the items as properties of an object.
{"type": "array", "items": [{}]}
    "items" at # is a list; call it "prefixItems".
{"type": "array", "items": false, "minItems": 1}
    "minItems" 1 at # is more than the 0 items that can be; lower it.
{"prefixItems": []}
    "prefixItems" at # is []; it must be a list of at least one schema.
{"properties": []}
    "properties" at # is []; it must be an object.
{"required": "a"}
    "required" at # is "a"; it must be a list of names.
{"properties": {"a": false}, "required": ["a"]}
    "required" 'a' at # cannot be there, as its schema or "propertyNames" allows nothing; remove it
    from one of both.
{"propertyNames": {"maxLength": 1}, "required": ["ab"], "type": "object"}
    "required" 'ab' at # cannot be there, as its schema or "propertyNames" allows nothing; remove it
    from one of both.
{"type": "object", "minProperties": 2}
    "minProperties" 2 at # cannot be counted over optional properties or repeated names; require
    some.
{"type": "object", "minProperties": 2, "maxProperties": 1}
    "minProperties" 2 at # is above "maxProperties" 1; swap them.
{"properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2}
    "minProperties" 2 at # cannot be counted over optional properties or repeated names; require
    some.
{"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2}
    "maxProperties" 2 at # cannot be counted over 3 properties; require more or remove it.
{"properties": {"a": {}, "b": {}}, "required": ["a", "b"], "maxProperties": 1}
    "maxProperties" 1 at # is below the 2 that are required; raise it.
{"properties": {"a": {}}, "minProperties": 2}
    "minProperties" 2 at # is more than the 1 that can be; lower it.
{"patternProperties": {"a": {}, "b": {}}}
    "patternProperties" at # is supported only with one pattern, and without "properties",
    "propertyNames" and "required"; use "properties".
{"patternProperties": {"a": {}}, "properties": {}}
    "patternProperties" at # is supported only with one pattern, and without "properties",
    "propertyNames" and "required"; use "properties".
{"allOf": [{"patternProperties": {"a": {}}}, {"required": ["a"]}]}
    "patternProperties" at # cannot be combined with other keywords of objects; use "properties".
{"anyOf": []}
    "anyOf" at # is []; it must be a list of at least one schema.
{"oneOf": [{"type": "integer"}, {"type": "number"}]}
    "oneOf" at # has branches that could both hold; use "anyOf", or give them different types or a
    required property of different "const".
{"allOf": [{"type": "string"}, {"type": "null"}]}
    no value fits the schema at #, which is false, or whose "type", "enum", "const" and bounds
    exclude each other; loosen it.
{"allOf": [{"pattern": "a"}, {"pattern": "b"}]}
    "pattern" at # is both 'a' and 'b', which cannot be combined; write one that says both.
{"allOf": [{"format": "date"}, {"format": "time"}]}
    "format" at # is both 'date' and 'time', which cannot be combined; write one that says both.
{"$ref": "#"}
    "$ref" '#' at # leads back to itself, and a recursive schema has no greatest depth; write it out
    for as many levels as are needed.
{"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"next": {"$ref": "#/$defs/a"}}}}}
    "$ref" '#/$defs/a' at #/$defs/a/properties/next leads back to itself, and a recursive schema has
    no greatest depth; write it out for as many levels as are needed.
{"$ref": "#/$defs/b"}
    "$ref" '#/$defs/b' at # leads nowhere; correct it.
{"$ref": "http://x/y"}
    "$ref" 'http://x/y' at # is not in this document; put it into "$defs" and refer to "#/$defs/…".
{"$ref": 3}
    "$ref" at # is 3; it must be a string.
{"anyOf": [{"minLength": 2, "maxLength": 1}, {"type": "null"}]}
    "minLength" 2 at #/anyOf/0 is above "maxLength" 1; swap them.
{"properties": {"a/b": {"items": {"pattern": "^^"}}}}
    "pattern" '^^' at #/properties/a~1b/items has "^" inside, which is not supported; put anchors at
    its ends, not in groups.
"""


@pytest.mark.parametrize("case", re.split(r"\n(?=\S)", REFUSED.strip()))
def test_what_is_not_supported_is_refused(case):
    schema, *sentence = case.split("\n    ")
    with pytest.raises(ConstraintError) as error:
        regex_of_schema(json.loads(schema))
    assert str(error.value) == " ".join(sentence)


NO_JSON = r"the schema is not JSON in UTF-8 \(.*\); correct it\."
CASES = 'the schema at # has 300 cases, more than 256; nest fewer "anyOf" and "oneOf"\\.'
STATES = "the constraint needs about 240002 states, more than 25000; lower .* and the depth\\."


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"const": "\ud800"}, NO_JSON),
        ({"enum": [float("nan")]}, NO_JSON),
        ({"a": {1}}, NO_JSON),
        ({"anyOf": [{"type": "null"}] * 300}, CASES),
        ({"type": "string", "maxLength": 20000}, STATES),
    ],
)
def test_what_is_no_json_or_too_large_is_refused(schema, sentence):
    with pytest.raises(ConstraintError, match=f"^{sentence}$"):
        regex_of_schema(schema)


def test_what_grows_without_end_is_refused_soon():
    deep = {}
    for _ in range(3000):
        deep = {"items": deep}
    with pytest.raises(ConstraintError, match="the schema is nested too deep; flatten it"):
        regex_of_schema(deep)
    pairs = {f"d{i}": {"prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    with pytest.raises(ConstraintError, match=r"has more than 10000 parts .*; refer less often"):
        regex_of_schema({"$ref": "#/$defs/d0", "$defs": pairs | {"d40": {}}})
    wide = {"type": "string"}
    for level in range(3):
        wide = {"properties": {f"p{level}{i}": wide for i in range(12)}}
    with pytest.raises(ConstraintError, match=r"states, more than 25000; lower"):
        regex_of_schema(wide)
    with pytest.raises(ConstraintError, match=r"states, more than 25000; lower"):
        regex_of_json(30)
    with pytest.raises(ConstraintError, match=r"^depth is 0; it must be at least 1\.$"):
        regex_of_json(0)
