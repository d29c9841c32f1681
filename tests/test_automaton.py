"""Automata over bytes and tokens, against Python's own regular expressions and plain walks."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dg_mlx.canvas.automaton import DEAD, ByteAutomaton, Pieces, TokenAutomaton
from dg_mlx.canvas.schema import regex_of_schema
from dg_mlx.errors import ConstraintError

ATOMS = st.sampled_from(["a", "b", "é", "世", "[ab]", "[^a]", "ab", r"\d"])


def _grown(inner):
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        inner.map(lambda one: f"(?:{one})*"),
        inner.map(lambda one: f"(?:{one})?"),
        inner.map(lambda one: f"(?:{one}){{1,3}}"),
    )


REGEXES = st.recursive(ATOMS, _grown, max_leaves=6)
TEXTS = st.text("ab1é世\n", max_size=6)


@given(REGEXES, TEXTS)
@settings(deadline=None, max_examples=300)
def test_it_matches_what_the_regular_expression_matches(regex, text):

    assert ByteAutomaton.of(regex).matches(text.encode()) == bool(re.fullmatch(regex, text))


@given(REGEXES, st.lists(st.text("ab1é世", min_size=1, max_size=3), min_size=1, max_size=8))
@settings(deadline=None, max_examples=200)
def test_a_token_does_what_its_bytes_do(regex, texts):
    automaton = ByteAutomaton.of(regex)
    pieces = [None, b"", *[text.encode() for text in texts], bytes([0xE4]), bytes([0xB8, 0x96])]
    tokens = TokenAutomaton.of(automaton, Pieces.of(pieces))
    for state in range(len(automaton.accepts_Q)):
        for token, piece in enumerate(pieces):
            walked = state if piece else DEAD
            for kind in automaton.kind_B[list(piece or b"")]:
                walked = DEAD if walked == DEAD else automaton.next_QK[walked, kind]
            assert tokens.edges.after(state, tokens.class_V[token]) == walked


@given(REGEXES)
@settings(deadline=None, max_examples=100)
def test_no_two_states_accept_the_same_texts(regex):
    automaton = ByteAutomaton.of(regex)
    states = len(automaton.accepts_Q)
    different = automaton.accepts_Q[:, None] != automaton.accepts_Q
    for _ in range(states):
        following = np.append(automaton.next_QK, np.full_like(automaton.next_QK[:1], DEAD), axis=0)
        padded = np.pad(different, (0, 1), constant_values=True)
        padded[-1, -1] = False
        different = different | padded[following[:-1, None], following[None, :-1]].any(axis=-1)
    assert (different | np.eye(states, dtype=bool)).all()


def test_the_distance_is_the_fewest_tokens():
    automaton = ByteAutomaton.of("(abc)+d")
    tokens = TokenAutomaton.of(automaton, Pieces.of([b"a", b"b", b"c", b"d", b"bc", b"cd"]))
    # abcd: a + b + cd, or a + bc + d.
    assert tokens.distances()[0] == 3
    without_c = TokenAutomaton.of(automaton, Pieces.of([b"a", b"b", b"d"]))
    assert without_c.distances()[0] == -1


# Rust's own syntax, where `re` has another or none ------------------------------------------------

SYNTAX = [
    (r"\pL\x41\x{e9}\u0041\U0001F607", ["éAéA😇"], ["1AéA😇", "éAéA"]),
    (r"\p{Greek}+|\P{L}", ["ελ", "1"], ["a", "εa"]),
    ("[]a]+", ["]", "]a"], ["b", ""]),
    ("[^]a]", ["b"], ["]", "a"]),
    ("[-]]", ["-]"], ["]", "-"]),
    (r"[a[bc]\]]+", ["abc]"], ["d"]),
    ("[a-z&&[^b]]+", ["ac"], ["b"]),
    ("[[:alpha:]b]{2}", ["xb"], ["1b", "x"]),
    ("(?i)k(?-i)a|B", ["ka", "Ka", "\u212aa", "B"], ["kA", "b"]),
    ("(?i:a)b", ["Ab"], ["AB"]),
    ("a(?:(?i)b|c)d", ["aBd", "aCd"], ["aBD", "Abd"]),
    ("(?:(?s).)(.)", ["\nx", "xx"], ["x\n"]),
    ("(?P<one>a)(?<two>b)()", ["ab"], ["a"]),
    ("a**b+?c{ 1 , 2 }", ["bc", "aabbcc"], ["b", "bccc"]),
    ("(?:a{2}){2}{0,}", ["", "aaaa"], ["aa"]),
    ("(?:){99999999}a", ["a"], [""]),
    ("(?:|a)(?:b|)", ["", "a", "b", "ab"], ["ba"]),
    ("(?:[^a]a){0}|\U0010ffff", ["", "\U0010ffff"], ["ba"]),
    ("}]:,", ["}]:,"], ["}"]),
    ("(" * 120 + "a|b" + ")+" * 120, ["ab"], [""]),
]


@pytest.mark.parametrize(("regex", "right", "wrong"), SYNTAX)
def test_the_syntax_is_that_of_rust(regex, right, wrong):
    automaton = ByteAutomaton.of(regex)
    assert [text for text in right + wrong if automaton.matches(text.encode())] == right


@pytest.mark.parametrize(
    ("regex", "words"),
    [
        ("(a", "cannot be used as a regular expression"),
        ("a)(b", 'an unmatched ")" at 1; write "\\)"'),
        ("(?=a)b", "look-around"),
        (r"^a$", 'has "^", and look-around is not supported; leave it out'),
        (r"a\b", r'has "\b", and look-around is not supported; leave it out'),
        ("(?x) a", 'the flag "x", which is not supported'),
        (r"[^\s\S]", r"regular expression ([^\s\S] is no character in UTF-8)"),
        ("\ud800", "regular expression"),
        ("a{99999999999}", "regular expression"),
        ("(" * 260 + "a" + ")" * 260, "regular expression"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(regex, words):
    with pytest.raises(ConstraintError, match=re.escape(words)) as error:
        ByteAutomaton.of(regex)
    assert "\n" not in str(error.value)


# What grows without end --------------------------------------------------------------------------

LOOKS_ALIKE = st.sampled_from(
    [(".", "a"), ("[ab]", "a"), ("(?:a|b)", "b"), (r"\w", "x"), ("[^z]", "y"), ("(?:a|ba|bb)", "a")]
)


@given(LOOKS_ALIKE, st.integers(18, 3000), st.sampled_from(["*", "+", "{0,40}", "{3,}", "{20,90}"]))
@settings(deadline=None, max_examples=15)
def test_what_depends_on_all_that_was_read_is_refused(parts, count, before):
    some, one = parts
    with pytest.raises(ConstraintError, match=r"takes more than 25000 states; lower its"):
        ByteAutomaton.of(f"{some}{before}{one}{some}{{{count}}}")


@pytest.mark.parametrize(
    "regex",
    [
        "a{9000}b{9000}c{9000}",
        "((a{1000}){1000}){1000}",
        "((a?){0,300}){0,300}",
        "(?:a?){5000}",
        "(?:a*b*c*d*){400}",
        "|".join(f"(?:a{{{prime}}})*" for prime in (2, 3, 5, 7, 11, 13, 17)),
        "|".join(f".{{{i}}}a.{{{25 - i}}}b" for i in range(25)),
        r"(?:\w|\d|\s)*a(?:\w|\d){200}",
        "(?:.{0,40}a){3}.{30}",
        r"\w{500}",
    ],
)
def test_what_is_too_large_is_refused(regex):
    with pytest.raises(ConstraintError, match=r"takes more than 25000 states; lower its"):
        ByteAutomaton.of(regex)


def test_a_pattern_in_a_schema_is_bounded_too():
    grows = {"type": "object", "properties": {"id": {"pattern": "a.{30}$"}}, "required": ["id"]}
    with pytest.raises(ConstraintError, match=r"takes more than 25000 states; lower its"):
        ByteAutomaton.of(regex_of_schema(grows))


def test_what_takes_too_many_steps_over_tokens_is_refused():
    # Every token leads from nearly every state to one of its own.
    pieces = Pieces.of([bytes(part) for part in itertools.product(b"ab", repeat=9)])
    automaton = ByteAutomaton.of("[ab]*a[ab]{12}")
    with pytest.raises(ConstraintError, match=r"takes more than 3000000 steps over tokens; lower"):
        TokenAutomaton.of(automaton, pieces)


@pytest.mark.parametrize(
    ("regex", "states"), [("a{24000}", 24001), ("(a|b)*a(a|b){13}", 2**14), ("[^x]{0,2000}", 16001)]
)
def test_what_is_large_and_not_too_large_is_not_refused(regex, states):
    assert len(ByteAutomaton.of(regex).accepts_Q) == states


def test_many_choices_take_little_memory():
    words = [f"{first}{second} {first}" for first in "abcdefghij" for second in range(150)]
    pieces = Pieces.of([word[:n].encode() for word in words for n in range(1, len(word) + 1)])
    tokens = TokenAutomaton.of(ByteAutomaton.of("|".join(words)), pieces)
    # As a table of states and classes it would have a thousand times as many entries.
    assert len(tokens.edges.sources_E) < 20 * len(tokens.accepts_Q)
