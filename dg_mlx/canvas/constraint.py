"""What an answer must be: a regular expression, one of some choices, JSON, JSON of a schema.

Legend: Q states, E edges, C classes, V vocabulary.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from dg_mlx.backends import Classes
from dg_mlx.errors import ConstraintError

from .automaton import Automata, Pieces, TokenAutomaton, numbered
from .compile import Bools
from .expression import escaped
from .lattice import Floats, Lattice
from .pins import BlockPins
from .schema import regex_of_json, regex_of_schema
from .store import Store

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
    packed: Pieces = field(init=False, repr=False, compare=False)
    """Of `pieces`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "packed", Pieces.of(self.pieces))


class Guide:
    """A constraint over a vocabulary: the answer, a thought before it, the end behind it.

    The first states are those of the answer's automaton. Then come `thought`, `end`, and the state
    before an answer that may begin with a thought.
    """

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary, automata: Automata) -> None:
        """`automata`: of the constraint and the vocabulary. Raises `ConstraintError`."""
        self.constraint = constraint
        self._bytes, answer = automata
        states, count = len(answer.accepts_Q), int(answer.class_V.max()) + 1
        thought, end, before = range(states, states + 3)
        # Classes of control tokens, which the answer's automaton never takes.
        other, ends, opens, closes = range(count, count + 4)
        class_V = np.where(vocabulary.packed.length_V < 0, other, answer.class_V)
        class_V[list(vocabulary.ends)] = ends
        for token, number in ((vocabulary.opens, opens), (vocabulary.closes, closes)):
            if token is not None:
                class_V[token] = number
        edges = answer.edges.and_((np.flatnonzero(answer.accepts_Q), ends, end))
        edges = edges.and_(
            (before, *edges.of(0)),
            (before, opens, thought),
            (thought, np.arange(count), thought),
            (thought, closes, 0),
            (end, np.arange(count + 4), end),
        )
        self._thought, self._before = thought, before
        used, self.class_V = numbered(class_V)
        self.edges = edges.only(used)
        self.accepts_Q: Bools = np.append(answer.accepts_Q, [False, True, answer.accepts_Q[0]])
        self.classes = Classes(self.class_V)
        self._ends_C = np.zeros(self.classes.count, np.bool_)
        self._ends_C[self.class_V[list(vocabulary.ends)]] = True
        self.lattice = Lattice(self.edges, len(self.accepts_Q))
        self._distance_Q = TokenAutomaton(
            class_V=self.class_V, edges=self.edges, accepts_Q=self.accepts_Q
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
        leads = last_Q[self.edges.targets_E] == 0
        if allowed is not None:
            leads &= allowed[self.edges.classes_E]
        found = np.full(len(last_Q), -np.inf)
        found[self.edges.sources_E[leads]] = 0.0
        return found

    def after(self, state: int, ids: Sequence[int]) -> int:
        """The state behind some tokens."""
        for token in ids:
            state = self.edges.after(state, int(self.class_V[token]))
        return state

    def check(self, text: str) -> None:
        """Assert that a complete answer is what the constraint says."""
        assert self._bytes.matches(text.encode()), f"not what was asked for: {text!r}"
        if self.constraint.json:
            json.loads(text)


class Guides:
    """Compiles constraints for one vocabulary, keeping the last few, and more on disk."""

    def __init__(self, vocabulary: Vocabulary, folder: Path | None = None) -> None:
        """`folder`: of what was compiled; None is in the user's cache."""
        self._vocabulary = vocabulary
        self._kept: OrderedDict[Constraint, Guide] = OrderedDict()
        folder = folder or user_cache_path("dg-mlx") / "constraints"
        self._store = Store(folder, vocabulary.packed)

    def of(self, constraint: Constraint) -> Guide:
        """The constraint over the vocabulary. Raises `ConstraintError`."""
        if constraint not in self._kept:
            self._kept[constraint] = Guide(
                constraint, self._vocabulary, self._automata(constraint.pattern)
            )
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(constraint)
        return self._kept[constraint]

    def _automata(self, regex: str) -> Automata:
        found = self._store.load(regex)
        if found is None:
            found = Automata.of(regex, self._vocabulary.packed)
            self._store.save(regex, found)
        return found
