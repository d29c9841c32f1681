"""A regular expression as the smallest automaton over bytes, and over the tokens of a vocabulary.

Tokens that no state tells apart are one class: of 262,144 tokens a JSON schema leaves some hundred
classes, so what is computed over a vocabulary is computed over classes. A token's effect is a
function from states to states; a class is one such function.

Legend: Q states, C classes, V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dg_mlx.errors import ConstraintError

from .expression import size, without

DEAD = -1
"""No state: nothing that follows can be accepted."""
_BEGIN, _END = "\U0010fffe", "\U0010ffff"
MOST_STATES = 25_000
"""An automaton of more is not attempted. It is an estimate: see `expression.size`."""

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ByteAutomaton:
    """Reads UTF-8. The first state is 0, and every state leads to one that accepts."""

    next_QB: Ints
    """(Q, 256): the state behind a byte, or `DEAD`."""
    accepts_Q: Bools

    @staticmethod
    def of(regex: str) -> ByteAutomaton:
        """The smallest automaton of a whole-text match, in the syntax of Rust's regex crate.

        Raises `ConstraintError` for what is no regex, matches nothing, or is too large.
        """
        states = size(regex)
        if states > MOST_STATES:
            raise ConstraintError(
                f"the constraint takes about {states} states, more than {MOST_STATES}; lower its "
                "lengths and repetitions."
            )
        next_QB, accepts = _compile(regex)
        alive = _leads_to(next_QB, accepts)
        if not alive[0]:
            raise ConstraintError(f"no text matches {_short(regex)}; loosen the constraint.")
        next_QB = np.where(alive[next_QB] & (next_QB != DEAD), next_QB, DEAD)
        return _smallest(next_QB, accepts)

    def matches(self, text: bytes) -> bool:
        """Whether the whole text is accepted."""
        state = 0
        for byte in text:
            state = int(self.next_QB[state, byte])
            if state == DEAD:
                return False
        return bool(self.accepts_Q[state])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenAutomaton:
    """Reads tokens. The first state is 0."""

    class_V: Ints
    """The class of each token."""
    next_QC: Ints
    """(Q, C): the state behind a token of a class, or `DEAD`."""
    accepts_Q: Bools

    @staticmethod
    def of(automaton: ByteAutomaton, pieces: Sequence[bytes | None]) -> TokenAutomaton:
        """Over tokens that spell `pieces`; None is a token that spells nothing and never fits."""
        states = len(automaton.accepts_Q)
        effects = _Effects(automaton.next_QB)
        effect_V = effects.of_tokens(pieces)
        used, class_V = np.unique(effect_V, return_inverse=True)
        next_QC = effects.table()[used].T[:states]
        next_QC = np.where(next_QC == states, DEAD, next_QC).astype(np.int32)
        return TokenAutomaton(
            class_V=class_V.astype(np.int32), next_QC=next_QC, accepts_Q=automaton.accepts_Q
        )

    def distances(self) -> Ints:
        """(Q,): the fewest tokens to an accepting state; -1 where none can be reached."""
        states = len(self.accepts_Q)
        found = np.where(self.accepts_Q, 0, -1).astype(np.int32)
        sources, _, targets = edges(self.next_QC)
        for distance in range(1, states + 1):
            reached = np.zeros(states, np.bool_)
            reached[sources[found[targets] == distance - 1]] = True
            reached &= found == -1
            if not reached.any():
                break
            found[reached] = distance
        return found


def edges(next_QC: Ints) -> tuple[Ints, Ints, Ints]:
    """All (state, class, next state) that are not dead, by state."""
    sources, classes = np.nonzero(next_QC != DEAD)
    return sources.astype(np.int32), classes.astype(np.int32), next_QC[sources, classes]


_DEADLY, _IDENTITY = 0, 1


class _Effects:
    """What runs of bytes do to states, each effect made once: `DEAD` is written as Q."""

    def __init__(self, next_QB: Ints) -> None:
        states = len(next_QB)
        dead = np.full((1, 256), states, np.int32)
        next_QB = np.concatenate([np.where(next_QB == DEAD, states, next_QB), dead])
        columns, self._kind_B = np.unique(next_QB, axis=1, return_inverse=True)
        self._kind_B = self._kind_B.reshape(-1)
        self._columns = columns.astype(np.int32)
        nothing = np.full(states + 1, states, np.int32)
        self._found = [nothing, np.arange(states + 1, dtype=np.int32)]
        self._number = {effect.tobytes(): i for i, effect in enumerate(self._found)}
        self._next = np.full((2, columns.shape[1]), -1, np.int32)
        self._next[_DEADLY] = _DEADLY

    def table(self) -> Ints:
        """(effects, Q + 1)."""
        return np.stack(self._found)

    def of_tokens(self, pieces: Sequence[bytes | None]) -> Ints:
        """(V,): the effect of each token."""
        length = np.array([len(piece or b"") for piece in pieces], np.int64)
        starts = np.cumsum(length) - length
        kinds = self._kind_B[np.frombuffer(b"".join(p or b"" for p in pieces), np.uint8)]
        # A token without bytes would be read for ever: it never fits either.
        effect = np.where(length > 0, _IDENTITY, _DEADLY).astype(np.int32)
        active = np.flatnonzero(length)
        for at in range(int(length.max(initial=0))):
            active = active[length[active] > at]
            effect[active] = self._after(effect[active], kinds[starts[active] + at])
            active = active[effect[active] != _DEADLY]
        return effect

    def _after(self, effect: Ints, kind: NDArray[np.int64]) -> Ints:
        after = self._next[effect, kind]
        if (after < 0).any():
            width = self._next.shape[1]
            for pair in np.unique(effect[after < 0].astype(np.int64) * width + kind[after < 0]):
                self._make(int(pair) // width, int(pair) % width)
            after = self._next[effect, kind]
        return after

    def _make(self, effect: int, kind: int) -> None:
        made = self._columns[self._found[effect], kind]
        number = self._number.setdefault(made.tobytes(), len(self._found))
        if number == len(self._found):
            self._found.append(made)
            if number == len(self._next):
                self._next = np.concatenate([self._next, np.full_like(self._next, -1)])
        self._next[effect, kind] = number


def _compile(regex: str) -> tuple[Ints, Bools]:
    """(Q, 256) transitions and accepting states, the first state first."""
    # Not at the top: most answers have no constraint.
    from outlines_core import Index, Vocabulary

    end = 256
    try:
        # The library (0.2.14) also looks for matches that begin later, which can take minutes, and
        # from a state that accepts it leaves out what does not accept at once. So the text lies
        # between two marks that it does not contain, code points that are no characters.
        index = Index(
            f"{_BEGIN}(?:{without(regex, _BEGIN + _END)}){_END}",
            Vocabulary(end, {bytes([byte]): [byte] for byte in range(256)}),
        )
    except Exception as error:  # the library raises ValueError and its own kinds
        raise ConstraintError(
            f"{_short(regex)} cannot be used as a regular expression ({_short(str(error))}); "
            "correct it (look-around and back references are not regular)."
        ) from None
    found = index.get_transitions()
    names = sorted({*found, *index.get_final_states()})
    number = {name: i for i, name in enumerate(names)}
    next_QB = np.full((len(names) + 1, 256), DEAD, np.int32)  # the last row is for DEAD
    for name, byte_to in found.items():
        for byte, to in byte_to.items():
            if byte != end:
                next_QB[number[name], byte] = number[to]
    start, behind = number[index.get_initial_state()], np.arange(len(names))
    for byte in _BEGIN.encode():
        start = int(next_QB[start, byte])
    for byte in _END.encode():
        behind = next_QB[behind, byte]
    accepts = np.isin(behind, [number[name] for name in index.get_final_states()])
    order = np.roll(np.arange(len(names)), -start)
    rename = np.append(np.argsort(order), DEAD).astype(np.int32)
    return rename[next_QB[order]], accepts[order]


def _leads_to(next_QB: Ints, accepts: Bools) -> Bools:
    """The states from which an accepting one can be reached."""
    alive = accepts.copy()
    while True:
        # The entry behind the last is for DEAD.
        more = alive | np.append(alive, False)[next_QB].any(axis=1)
        if (more == alive).all():
            return alive
        alive = more


def _smallest(next_QB: Ints, accepts: Bools) -> ByteAutomaton:
    """States that no text tells apart become one, by refinement (Moore)."""
    kinds = np.unique(next_QB, axis=1)  # bytes that no state tells apart are looked at once
    group, count = accepts.astype(np.int32), 1
    while True:
        behind = np.append(group, -1)[kinds]
        rows = np.ascontiguousarray(np.column_stack([group, behind]).astype(np.int32))
        keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).reshape(-1)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        group = inverse.astype(np.int32)
        if len(first) == count:
            break
        count = len(first)
    # Only what the first state reaches, and that state first.
    order, seen = [int(group[0])], {int(group[0])}
    table = np.append(group, DEAD)[next_QB[first]]
    for state in order:
        fresh = [int(s) for s in np.unique(table[state]) if s != DEAD and int(s) not in seen]
        order += fresh
        seen.update(fresh)
    rename = np.full(len(first) + 1, DEAD, np.int32)
    rename[order] = np.arange(len(order))
    return ByteAutomaton(next_QB=rename[table[order]], accepts_Q=accepts[first][order])


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
