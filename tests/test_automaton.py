"""Automata over bytes and tokens, against Python's own regular expressions and plain walks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dg_mlx.canvas.automaton import DEAD, ByteAutomaton, TokenAutomaton
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
    tokens = TokenAutomaton.of(automaton, pieces)
    for state in range(len(automaton.accepts_Q)):
        for token, piece in enumerate(pieces):
            walked = state if piece else DEAD
            for byte in piece or b"":
                walked = DEAD if walked == DEAD else automaton.next_QB[walked, byte]
            assert tokens.next_QC[state, tokens.class_V[token]] == walked


@given(REGEXES)
@settings(deadline=None, max_examples=100)
def test_no_two_states_accept_the_same_texts(regex):
    automaton = ByteAutomaton.of(regex)
    states = len(automaton.accepts_Q)
    different = automaton.accepts_Q[:, None] != automaton.accepts_Q
    for _ in range(states):
        following = np.append(automaton.next_QB, np.full((1, 256), DEAD, np.int32), axis=0)
        padded = np.pad(different, (0, 1), constant_values=True)
        padded[-1, -1] = False
        different = different | padded[following[:-1, None], following[None, :-1]].any(axis=-1)
    assert (different | np.eye(states, dtype=bool)).all()


def test_the_distance_is_the_fewest_tokens():
    automaton = ByteAutomaton.of("(abc)+d")
    tokens = TokenAutomaton.of(automaton, [b"a", b"b", b"c", b"d", b"bc", b"cd"])
    # abcd: a + b + cd, or a + bc + d.
    assert tokens.distances()[0] == 3
    assert TokenAutomaton.of(automaton, [b"a", b"b", b"d"]).distances()[0] == -1


@pytest.mark.parametrize(
    ("regex", "words"),
    [
        ("(a", "cannot be used as a regular expression"),
        ("(?=a)b", "look-around"),
        (r"[^\s\S]", "regular expression"),
        ("a{9000}b{9000}c{9000}", "states, more than"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(regex, words):
    with pytest.raises(ConstraintError, match=re.escape(words)):
        ByteAutomaton.of(regex)
