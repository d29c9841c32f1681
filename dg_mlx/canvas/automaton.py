"""A regular expression as the smallest automaton over bytes, and over the tokens of a vocabulary.

Tokens that no state tells apart are one class: of 262,144 tokens a JSON schema leaves some hundred
classes, so what is computed over a vocabulary is computed over classes. A token's effect is a
function from states to states; a class is one such function.

Legend: Q states, E edges, K kinds of bytes, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dg_mlx.errors import ConstraintError

from .compile import DEAD, TOO_LARGE, Bools, Ints, compiled, short
from .smallest import smallest

MOST_STEPS = 3_000_000
"""From a state with a class of tokens to a state: an automaton of more is refused."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ByteAutomaton:
    """Reads UTF-8. The first state is 0, and every state leads to one that accepts."""

    kind_B: Ints
    """(256,): bytes of one kind are read alike."""
    next_QK: Ints
    """(Q, K): the state behind a byte of a kind, or `DEAD`."""
    accepts_Q: Bools

    @staticmethod
    def of(regex: str) -> ByteAutomaton:
        """The smallest automaton of a whole-text match, in the syntax of Rust's regex crate.

        Raises `ConstraintError` for what is no regex, matches nothing, or is too large.
        """
        kind_B, next_QK, accepts_Q = compiled(regex)
        next_QK, accepts_Q = smallest(next_QK, accepts_Q)
        if not len(accepts_Q):
            raise ConstraintError(f"no text matches {short(regex)}; loosen the constraint.")
        return ByteAutomaton(kind_B=kind_B, next_QK=next_QK, accepts_Q=accepts_Q)

    def matches(self, text: bytes) -> bool:
        """Whether the whole text is accepted."""
        state = 0
        for byte in text:
            state = int(self.next_QK[state, self.kind_B[byte]])
            if state == DEAD:
                return False
        return bool(self.accepts_Q[state])


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """What the tokens of a vocabulary spell, one behind the other."""

    bytes_: bytes
    length_V: NDArray[np.int64]
    """Bytes of each token; -1: it spells nothing and never fits."""

    @staticmethod
    def of(pieces: Sequence[bytes | None]) -> Pieces:
        """Packed."""
        lengths = (-1 if piece is None else len(piece) for piece in pieces)
        length_V = np.fromiter(lengths, np.int64, len(pieces))
        return Pieces(b"".join(piece or b"" for piece in pieces), length_V)


Step = tuple[ArrayLike, ArrayLike, ArrayLike]
"""States, classes and next states; each may be one for all."""


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """All steps of an automaton that lead somewhere, by state and then by class."""

    sources_E: Ints
    classes_E: Ints
    targets_E: Ints

    @staticmethod
    def joined(steps: Iterable[Step]) -> Edges:
        """All of these."""
        parts = [np.broadcast_arrays(*step) for step in steps]
        sources, classes, targets = (
            np.concatenate([part[i].ravel() for part in parts]).astype(np.int32) for i in range(3)
        )
        order = np.lexsort((classes, sources))
        return Edges(sources[order], classes[order], targets[order])

    def and_(self, *steps: Step) -> Edges:
        """With more."""
        return Edges.joined([(self.sources_E, self.classes_E, self.targets_E), *steps])

    def only(self, classes: NDArray[np.int64]) -> Edges:
        """Of some classes, rising, which are numbered anew."""
        kept = np.isin(self.classes_E, classes)
        numbers = np.searchsorted(classes, self.classes_E[kept]).astype(np.int32)
        return Edges(self.sources_E[kept], numbers, self.targets_E[kept])

    def of(self, state: int) -> tuple[Ints, Ints]:
        """The classes that lead on from a state, and where."""
        first, stop = np.searchsorted(self.sources_E, (state, state + 1))
        return self.classes_E[first:stop], self.targets_E[first:stop]

    def after(self, state: int, number: int) -> int:
        """The state behind a token of a class, or `DEAD`."""
        classes, targets = self.of(state)
        found = targets[classes == number]
        return int(found[0]) if len(found) else DEAD


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenAutomaton:
    """Reads tokens. The first state is 0."""

    class_V: Ints
    """The class of each token."""
    edges: Edges
    accepts_Q: Bools

    @staticmethod
    def of(automaton: ByteAutomaton, pieces: Pieces) -> TokenAutomaton:
        """Over the tokens that spell `pieces`. Raises `ConstraintError` for what is too large."""
        effects = _Effects(automaton.next_QK)
        effect_V = effects.of_tokens(pieces, automaton.kind_B)
        used, class_V = numbered(effect_V)
        found = [effects.found[effect] for effect in used.tolist()]
        return TokenAutomaton(
            class_V=class_V,
            edges=Edges.joined((s, c, targets) for c, (s, targets) in enumerate(found)),
            accepts_Q=automaton.accepts_Q,
        )

    def distances(self) -> Ints:
        """(Q,): the fewest tokens to an accepting state; -1 where none can be reached."""
        states, edges = len(self.accepts_Q), self.edges
        found = np.where(self.accepts_Q, 0, -1).astype(np.int32)
        for distance in range(1, states + 1):
            reached = np.zeros(states, np.bool_)
            reached[edges.sources_E[found[edges.targets_E] == distance - 1]] = True
            reached &= found == -1
            if not reached.any():
                break
            found[reached] = distance
        return found


class Automata(NamedTuple):
    """Of one regular expression."""

    bytes_: ByteAutomaton
    tokens: TokenAutomaton

    @staticmethod
    def of(regex: str, pieces: Pieces) -> Automata:
        """Compiled. Raises `ConstraintError` for what cannot be, or is too large."""
        automaton = ByteAutomaton.of(regex)
        return Automata(automaton, TokenAutomaton.of(automaton, pieces))


def numbered(values_V: Ints) -> tuple[NDArray[np.int64], Ints]:
    """Which numbers there are, rising, and the place of each value among them."""
    used = np.flatnonzero(np.bincount(values_V))
    place = np.zeros(used[-1] + 1, np.int32)
    place[used] = np.arange(len(used))
    return used, place[values_V]


_DEADLY, _IDENTITY = 0, 1


class _Effects:
    """What runs of bytes do to states, each effect made once: (states, where they lead)."""

    def __init__(self, next_QK: Ints) -> None:
        all_ = np.arange(len(next_QK), dtype=np.int32)
        self.found = [(all_[:0], all_[:0]), (all_, all_)]
        self._number = {_key(effect): i for i, effect in enumerate(self.found)}
        self._steps = 0
        self._next_KQ = np.ascontiguousarray(next_QK.T)
        self._next = np.full((2, len(self._next_KQ)), -1, np.int32)
        self._next[_DEADLY] = _DEADLY

    def of_tokens(self, pieces: Pieces, kind_B: Ints) -> Ints:
        """(V,): the effect of each token."""
        length = np.maximum(pieces.length_V, 0)
        starts = np.cumsum(length) - length
        kinds = kind_B[np.frombuffer(pieces.bytes_, np.uint8)]
        # A token without bytes would be read for ever: it never fits either.
        effect = np.where(length > 0, _IDENTITY, _DEADLY).astype(np.int32)
        active = np.flatnonzero(length)
        for at in range(int(length.max(initial=0))):
            active = active[length[active] > at]
            effect[active] = self._after(effect[active], kinds[starts[active] + at])
            active = active[effect[active] != _DEADLY]
        return effect

    def _after(self, effect: Ints, kind: Ints) -> Ints:
        after = self._next[effect, kind]
        fresh = after < 0
        if fresh.any():
            asked = np.zeros(self._next.shape, np.bool_)
            asked[effect[fresh], kind[fresh]] = True
            for pair in np.argwhere(asked).tolist():
                self._make(*pair)
            after = self._next[effect, kind]
        return after

    def _make(self, effect: int, kind: int) -> None:
        sources, targets = self.found[effect]
        targets = self._next_KQ[kind, targets]
        lead = targets != DEAD
        made = sources[lead], targets[lead]
        number = self._number.setdefault(_key(made), len(self.found))
        if number == len(self.found):
            self._steps += len(made[0])
            if self._steps > MOST_STEPS:
                raise ConstraintError(
                    f"the constraint takes more than {MOST_STEPS} steps over tokens; {TOO_LARGE}"
                )
            self.found.append(made)
            if number == len(self._next):
                self._next = np.concatenate([self._next, np.full_like(self._next, -1)])
        self._next[effect, kind] = number


def _key(effect: tuple[Ints, Ints]) -> bytes:
    return b"".join(part.tobytes() for part in effect)
