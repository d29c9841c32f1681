"""Random JSON Schemas and regular expressions, and what a document of a schema must be."""

from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

CHECKED_FORMATS = FormatChecker(formats=["date", "email", "ipv4", "ipv6", "uuid"])


def errors(schema, document):
    """What jsonschema says against a document."""
    found = Draft202012Validator(schema, format_checker=CHECKED_FORMATS).iter_errors(document)
    return [error.message for error in found]


NAMES = st.sampled_from(["a", "ab", "b", "kind", 'q"', "é/", ""])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-30, 30),
    st.sampled_from([0.5, -1.25, 2.0, 1e20, "", "a", "ab", 'x"\\/\n', "é世😇"]),
)
DOCUMENTS = st.recursive(
    VALUES, lambda v: st.lists(v, max_size=2) | st.dictionaries(NAMES, v, max_size=2), max_leaves=4
)
BOUNDS = st.one_of(
    st.integers(-130, 130),
    st.integers(-2000, 2000).map(lambda n: n / 100),
    st.integers(-(10**17), 10**17),
)
PATTERNS = st.sampled_from(
    ["^[a-z]{2,4}$", "a|b", "^x", "[^a]$", r"^\d+(\.\d{2})?$", '"', r"^\S+$", r"^(ab|\n)*$", "^.?$"]
)


def some(**strategies):
    """Some of these keywords, each in half of the schemas."""
    return st.fixed_dictionaries({}, optional=strategies)


def of_type(kind, *keywords):
    return st.builds(lambda rest: {"type": kind} | rest, st.one_of(*keywords))


NUMBERS = st.one_of(
    *(
        of_type(
            kind,
            some(minimum=BOUNDS, multipleOf=st.just(1)),
            some(exclusiveMinimum=BOUNDS),
            st.builds(
                lambda a, b, low, high: {low: min(a, b), high: max(a, b)},
                *(BOUNDS, BOUNDS),
                st.sampled_from(["minimum", "exclusiveMinimum"]),
                st.sampled_from(["maximum", "exclusiveMaximum"]),
            ),
        )
        for kind in ("integer", "number", ["number", "null"])
    )
)
STRINGS = of_type(
    "string",
    some(minLength=st.integers(0, 3), maxLength=st.integers(3, 6)),
    some(pattern=PATTERNS),
    some(pattern=st.sampled_from(["^[a-z]+$", "^x", "y$"]), maxLength=st.integers(1, 5)),
    some(format=st.sampled_from(["date", "email", "ipv4", "ipv6", "uuid", "color"])),
)
LEAVES = st.one_of(
    st.sampled_from(
        [True, {}, {"type": "null"}, {"type": ["boolean", "string"]}, {"type": "array"}]
    ),
    NUMBERS,
    STRINGS,
    DOCUMENTS.map(lambda value: {"const": value}),
    st.lists(DOCUMENTS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.lists(VALUES, min_size=2, max_size=4).map(
        lambda v: {"enum": [*v, 1.0, "b"], "type": "number"}
    ),
)


def arrays(inner):
    return of_type(
        "array",
        some(
            items=inner | st.just(False),
            prefixItems=st.lists(inner, min_size=1, max_size=3),
            minItems=st.integers(0, 1),
            maxItems=st.integers(1, 4),
        ),
        st.fixed_dictionaries({"items": inner, "minItems": st.integers(0, 3)}),
    )


def objects(inner):
    return of_type(
        "object",
        st.fixed_dictionaries(
            {"properties": st.dictionaries(NAMES, inner, max_size=4)},
            optional={
                "required": st.lists(NAMES, max_size=2, unique=True),
                "additionalProperties": st.just(True) | inner,
                "minProperties": st.integers(0, 1),
                "maxProperties": st.integers(4, 6),
            },
        ),
        some(
            additionalProperties=inner,
            propertyNames=st.sampled_from(
                [{"enum": ["a", "b"]}, {"pattern": "^[a-c]+$"}, {"maxLength": 2}, True]
            ),
            required=st.just(["a"]),
            minProperties=st.integers(0, 1),
            maxProperties=st.integers(1, 3),
        ),
        st.builds(lambda p, i: {"patternProperties": {p: i}}, PATTERNS, inner),
    )


def tagged(inner):
    """Objects told apart by the value of one property."""
    branch = st.dictionaries(NAMES, inner, max_size=2)
    return st.builds(
        lambda one, two, shared: {
            "type": "object",
            "properties": shared | {"kind": {"enum": ["x", "y", "z"]}},
            "oneOf": [
                {"properties": one | {"kind": {"const": "x"}}, "required": ["kind"]},
                {"properties": two | {"kind": {"const": "y"}}, "required": ["kind"]},
            ],
        },
        *(branch, branch, branch),
    )


def combined(inner):
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
        st.builds(lambda a, b: {"oneOf": [a, b]}, inner, STRINGS),
        st.builds(lambda a, b: {"oneOf": [a, b]}, arrays(inner), objects(inner)),
        st.builds(lambda a, b: {"allOf": [a], "anyOf": [b, True]}, objects(inner), objects(inner)),
        st.builds(lambda a, b: {"allOf": [a, b]}, arrays(inner), arrays(inner)),
        tagged(inner),
    )


def referring(schema, other):
    """With a definition that is used twice, once beside other keywords."""
    used = {"$ref": "#/$defs/n"}
    return {
        "$defs": {"n": other},
        "type": "object",
        "properties": {"a": used, "b": {"anyOf": [used | {"type": ["null", "object"]}, schema]}},
    }


SCHEMAS = st.recursive(
    LEAVES, lambda inner: arrays(inner) | objects(inner) | combined(inner), max_leaves=6
)
SCHEMAS = SCHEMAS | st.builds(referring, SCHEMAS, SCHEMAS)


# Of the syntax that Rust's regex crate and `re` share, with the same meaning.
ATOMS = st.sampled_from(
    [
        *("a", "b", "ab", "é", "世", "😇", "ά", " ", "\n", '"', "(?:)", r"\.", r"\[", r"\\"),
        *(".", "[ab]", "[^a]", "[^\n]", "[0-9]", "[a-zà-ÿ]", "[一-龥]"),
    ]
)


def _grown(inner):
    return st.one_of(
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=4).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.builds(
            lambda one, times: f"(?:{one}){times}",
            inner,
            st.sampled_from(["*", "+", "?", "{2}", "{0,3}", "{1,9}", "{2,}"]),
        ),
    )


REGEXES = st.recursive(ATOMS, _grown, max_leaves=6)
