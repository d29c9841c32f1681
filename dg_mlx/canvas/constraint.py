"""What an answer must be: a regular expression, one of some choices, JSON, JSON of a schema.

Legend: Q states, C classes, V vocabulary.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dg_mlx.backends import Classes
from dg_mlx.errors import ConstraintError

from .automaton import DEAD, Bools, ByteAutomaton, Ints, TokenAutomaton
from .expression import escaped
from .lattice import Floats, Lattice
from .pins import BlockPins
from .schema import regex_of_json, regex_of_schema

KEPT = 64
"""Compiled constraints that stay in memory."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A set of texts, as a regular expression of which the whole answer is a match.

    The answer is what is visible: a thought before it is free.
    """

    pattern: str
    """In the syntax of Rust's regex crate."""
    json: bool = False
    """Every text of the set is a JSON document."""

    @staticmethod
    def regex(pattern: str) -> Constraint:
        """Texts of which the whole matches. Raises `ConstraintError` for an empty one."""
        if not pattern:
            raise ConstraintError("the regular expression is empty; give one.")
        return Constraint(pattern)

    @staticmethod
    def choices(texts: Sequence[str]) -> Constraint:
        """One of these texts. Raises `ConstraintError` without any."""
        if not texts or not all(texts):
            raise ConstraintError("a choice is empty; give one or more texts.")
        return Constraint("|".join(map(escaped, texts)))

    @staticmethod
    def any_json() -> Constraint:
        """A JSON object or array, nested a few levels deep (see `schema.regex_of_json`)."""
        return Constraint(regex_of_json(), json=True)

    @staticmethod
    def schema(schema: Any) -> Constraint:
        """JSON that is valid under a JSON Schema. Raises `ConstraintError` naming what is not
        supported."""
        return Constraint(regex_of_schema(schema), json=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What the tokens of a checkpoint spell."""

    pieces: tuple[bytes | None, ...]
    """(V,): bytes of each token; None for control tokens."""
    ends: tuple[int, ...]
    """Tokens that end an answer."""
    opens: int | None
    """Opens a thought; None where the checkpoint has none."""
    closes: int | None
    """Closes it."""


class Guide:
    """A constraint over a vocabulary: the answer, a thought before it, the end behind it.

    The first states are those of the answer's automaton. Then come `thought`, `end`, and the state
    before an answer that may begin with a thought.
    """

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        self.constraint = constraint
        self._bytes = ByteAutomaton.of(constraint.pattern)
        answer = TokenAutomaton.of(self._bytes, vocabulary.pieces)
        states = len(answer.accepts_Q)
        thought, end, before = range(states, states + 3)
        class_V, count = answer.class_V.copy(), answer.next_QC.shape[1]
        # Classes of control tokens, which the answer's automaton never takes.
        control = np.array([piece is None for piece in vocabulary.pieces])
        special = {"other": control}
        special["ends"] = _of(vocabulary.ends, len(control))
        special["opens"], special["closes"] = (
            _of(() if token is None else (token,), len(control))
            for token in (vocabulary.opens, vocabulary.closes)
        )
        for number, tokens in enumerate(special.values()):
            class_V[tokens] = count + number
        next_QC = np.full((states + 3, count + len(special)), DEAD, np.int32)
        next_QC[:states, :count] = answer.next_QC
        ends, opens, closes = (count + list(special).index(n) for n in ("ends", "opens", "closes"))
        next_QC[:states, ends] = np.where(answer.accepts_Q, end, DEAD)
        next_QC[before] = next_QC[0]
        next_QC[before, opens] = next_QC[thought, :count] = thought
        next_QC[thought, closes] = 0
        next_QC[end] = end
        self._thought, self._before = thought, before
        self.accepts_Q: Bools = np.append(answer.accepts_Q, [False, True, answer.accepts_Q[0]])
        used, inverse = np.unique(class_V, return_inverse=True)
        self.next_QC: Ints = next_QC[:, used]
        self.class_V: Ints = inverse.astype(np.int32)
        self.classes = Classes(self.class_V)
        self._ends_C = np.zeros(self.classes.count, np.bool_)
        self._ends_C[self.class_V[list(vocabulary.ends)]] = True
        self.lattice = Lattice(self.next_QC)
        self._distance_Q = TokenAutomaton(
            class_V=self.class_V, next_QC=self.next_QC, accepts_Q=self.accepts_Q
        ).distances()
        if self._distance_Q[0] < 0:
            raise ConstraintError("the checkpoint's tokens cannot spell what is asked for.")

    def start(self, *, thinking: bool, thinking_open: bool) -> int:
        """The state before an answer, to a prompt that asks for a thought, or that opens one."""
        return self._thought if thinking_open else self._before if thinking else 0

    def shortest(self, state: int) -> int:
        """The fewest tokens that complete an answer from here, without an end token."""
        return int(self._distance_Q[state])

    def last(self, left: int) -> Floats:
        """(Q,): 0 where a canvas may end when `left` tokens may follow it, else -inf."""
        fits = (self._distance_Q >= 0) & (self._distance_Q <= left)
        return np.where(fits, 0.0, -np.inf)

    def allowed(self, pins: BlockPins, at: int) -> Bools | None:
        """(C,): the classes that pins leave to a position; None: all."""
        if pins.fixed[at] >= 0:
            own: Bools = np.arange(self.classes.count) == self.class_V[pins.fixed[at]]
            return own
        return ~self._ends_C if pins.unending[at] else None

    def before(self, last_Q: Floats, allowed: Bools | None) -> Floats:
        """(Q,): 0 for states from which an allowed token leads to one of `last_Q`, else -inf."""
        leads = np.append(last_Q == 0, False)[self.next_QC]
        if allowed is not None:
            leads &= allowed
        return np.where(leads.any(axis=1), 0.0, -np.inf)

    def after(self, state: int, ids: Sequence[int]) -> int:
        """The state behind some tokens."""
        for token in ids:
            state = int(self.next_QC[state, self.class_V[token]])
        return state

    def check(self, text: str) -> None:
        """Assert that a complete answer is what the constraint says."""
        assert self._bytes.matches(text.encode()), f"not what was asked for: {text!r}"
        if self.constraint.json:
            json.loads(text)


class Guides:
    """Compiles constraints for one vocabulary, keeping the last few."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._kept: OrderedDict[Constraint, Guide] = OrderedDict()

    def of(self, constraint: Constraint) -> Guide:
        """The constraint over the vocabulary. Raises `ConstraintError`."""
        if constraint not in self._kept:
            self._kept[constraint] = Guide(constraint, self._vocabulary)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(constraint)
        return self._kept[constraint]


def _of(tokens: Sequence[int], size: int) -> Bools:
    found = np.zeros(size, np.bool_)
    found[list(tokens)] = True
    return found
