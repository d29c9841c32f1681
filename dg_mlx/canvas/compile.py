"""A regular expression as an automaton over bytes, made within bounds.

The library (outlines-core) knows the syntax, and which characters are in a class, but makes an
automaton of any size: `.*a.{25}` takes 2 ** 26 states. So it compiles single characters only, and
which of them follow each other is worked out here, until there are too many states.

Legend: Q states, K kinds of bytes (those that no character tells apart are one).
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dg_mlx.errors import ConstraintError

from .syntax import Character, Choice, Part, Repeat, Row, read

DEAD = -1
"""No state: nothing that follows can be accepted."""
MOST_STATES = 25_000
"""An automaton of more is refused."""
MOST_LOOKS = 20_000_000
"""So is one for which more places of the expression are looked at, over and over: some seconds."""

TOO_LARGE = (
    "lower its lengths and repetitions (one costs most behind a part whose end is unclear, as in "
    ".*a.{25})."
)
"""What to do about it."""

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
Places = frozenset[int]
Moves = list[tuple[list[int], Places]]
"""Kinds of bytes, and where each of them leads."""


def compiled(regex: str) -> tuple[Ints, Ints, Bools]:
    """(256,) the kind of each byte; (Q, K) the state behind a kind, or `DEAD`; (Q,) which accept.

    For the texts of which the whole matches, in the syntax of Rust's regex crate. The first state
    is 0; states may be equal, or lead nowhere. Raises `ConstraintError` for what is no regular
    expression, and for what is too large.
    """
    try:
        # Repeated no times: only the syntax is looked at.
        _transitions(f"(?:{regex}){{0}}x")
        places = _Places(read(regex))
        next_QK, accepts_Q = _states(places)
    except _TooLargeError:
        raise ConstraintError(
            f"the constraint takes more than {MOST_STATES} states; {TOO_LARGE}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConstraintError(
            f"{short(regex)} cannot be used as a regular expression ({short(str(error))}); "
            "correct it (look-around and back references are not regular)."
        ) from None
    return places.kind_B, next_QK, accepts_Q


def short(text: str) -> str:
    """The text, or its beginning."""
    return text if len(text) <= 60 else f"{text[:57]}…"


class _TooLargeError(Exception):
    """There are too many states, or it takes too long to find them."""


def _transitions(regex: str) -> tuple[dict[int, dict[int, int]], int, set[int]]:
    """By state and byte; the first state; those that accept. Raises `ValueError`."""
    # Not at the top: most answers have no constraint.
    from outlines_core import Index, Vocabulary

    end = 256
    index = Index(regex, Vocabulary(end, {bytes([byte]): [byte] for byte in range(end)}))
    found = {
        state: {byte: to for byte, to in byte_to.items() if byte != end}
        for state, byte_to in index.get_transitions().items()
    }
    return found, index.get_initial_state(), set(index.get_final_states())


@lru_cache(maxsize=1024)
def _table(character: str) -> Ints:
    """(Q, 256) of what stands for one character: the last state accepts, and leads nowhere."""
    if len(character) == 1 and character != ".":
        spelled = character.encode()
        table = np.full((len(spelled) + 1, 256), DEAD, np.int32)
        table[range(len(spelled)), list(spelled)] = np.arange(len(spelled)) + 1
        return table
    try:
        found, first, accepting = _transitions(character)
    except ValueError:
        raise ValueError(f"{character} is no character in UTF-8") from None
    names = [first, *({*found} - accepting - {first})]
    number = {name: i for i, name in enumerate(names)} | dict.fromkeys(accepting, len(names))
    table = np.full((len(names) + 1, 256), DEAD, np.int32)
    for name in names:
        for byte, to in found[name].items():
            table[number[name], byte] = number[to]
    return table


class _Places:
    """Where one may be in an expression: at a character, in a state of its automaton.

    A node is a character or a choice of nodes; node 0 is the end. A place is a number, too.
    """

    def __init__(self, part: Part) -> None:
        self._left = MOST_LOOKS
        self._tables: dict[str, Ints] = {}
        self._character: list[tuple[str, int]] = [("", 0)]
        """What stands for it, and the node behind it; "" for a choice."""
        self._choice: list[list[int]] = [[]]
        head = self._build(part, 0)
        rows = np.concatenate([*self._tables.values(), np.zeros((1, 256), np.int32)])
        _, byte_K, kind_B = np.unique(rows, axis=1, return_index=True, return_inverse=True)
        self.kind_B: Ints = kind_B.reshape(-1).astype(np.int32)
        self.kinds = len(byte_K)
        self._steps = {c: _steps(table[:, byte_K]) for c, table in self._tables.items()}
        self._stride = max(map(len, self._tables.values()), default=1)
        self._at: dict[int, Places] = {}
        self._moves: dict[int, Moves] = {}
        self.first = self.at(head)

    def spend(self, looks: int) -> None:
        """Count what was looked at."""
        self._left -= looks
        if self._left < 0:
            raise _TooLargeError

    def at(self, node: int) -> Places:
        """The places before a node."""
        if node not in self._at:
            seen, nodes = {node}, [node]
            for each in nodes:
                fresh = [n for n in self._choice[each] if n not in seen]
                seen.update(fresh)
                nodes += fresh
            self.spend(8 * len(nodes))  # each takes as long as some eight others
            self._at[node] = frozenset(
                n * self._stride for n in nodes if n == 0 or not self._choice[n]
            )
        return self._at[node]

    def moves(self, place: int) -> Moves:
        """What may follow a place."""
        if place not in self._moves:
            node, state = divmod(place, self._stride)
            character, after = self._character[node]
            steps = self._steps[character][state] if character else {}
            end = len(self._tables[character]) - 1 if character else 0
            self._moves[place] = [
                (kinds, self.at(after) if to == end else frozenset({place - state + to}))
                for to, kinds in steps.items()
            ]
        return self._moves[place]

    def _build(self, part: Part, after: int) -> int:
        """The node where a part begins that a node follows."""
        match part:
            case Character(regex):
                self._tables.setdefault(regex, _table(regex))
                return self._node([], (regex, after))
            case Row(parts):
                for inner in reversed(parts):
                    after = self._build(inner, after)
                return after
            case Choice(parts):
                return self._node([self._build(inner, after) for inner in parts])
            case Repeat(inner, least, most):
                return self._repeat(inner, least, most, after)

    def _repeat(self, part: Part, least: int, most: int | None, after: int) -> int:
        head = after
        if most is None:
            head = self._node([after])
            again = self._build(part, head)
            self._choice[head].append(again)
            if least:  # the first time of the others is one of those asked for
                head, least = again, least - 1
        else:
            for _ in range(most - least):
                head = self._node([self._build(part, head), after])
        for _ in range(least):
            behind, head = head, self._build(part, head)
            if head == behind:  # an empty part, however often
                break
        return head

    def _node(self, choice: list[int], character: tuple[str, int] = ("", 0)) -> int:
        self._choice.append(choice)
        self._character.append(character)
        if len(self._choice) > 4 * MOST_STATES:
            raise _TooLargeError
        return len(self._choice) - 1


def _steps(table_QK: Ints) -> list[dict[int, list[int]]]:
    """By state: the kinds that lead to each state."""
    found = []
    for row in table_QK.tolist():
        kinds_to = defaultdict(list)
        for kind, to in enumerate(row):
            if to != DEAD:
                kinds_to[to].append(kind)
        found.append(dict(kinds_to))
    return found


def _states(places: _Places) -> tuple[Ints, Bools]:
    """States are sets of places: (Q, K), (Q,)."""
    states, number = [places.first], {places.first: 0}
    joined: dict[tuple[Places, ...], Places] = {}
    rows = []
    for state in states:
        if len(states) > MOST_STATES:
            raise _TooLargeError
        row = [DEAD] * places.kinds
        for kinds, to in _together(places, state, joined):
            if to not in number:
                number[to] = len(states)
                states.append(to)
            for kind in kinds:
                row[kind] = number[to]
        rows.append(row)
    return np.array(rows, np.int32), np.array([0 in state for state in states])


def _together(places: _Places, state: Places, joined: dict[tuple[Places, ...], Places]) -> Moves:
    """What may follow one of some places. `joined` keeps what was put together."""
    if len(state) == 1:
        return places.moves(next(iter(state)))
    targets_by_kind = defaultdict(list)
    for place in state:
        for kinds, targets in places.moves(place):
            for kind in kinds:
                targets_by_kind[kind].append(targets)
    places.spend(sum(map(len, targets_by_kind.values())))
    kinds_by_targets = defaultdict(list)
    for kind, found in targets_by_kind.items():
        kinds_by_targets[tuple(found)].append(kind)
    moves = []
    for key, kinds in kinds_by_targets.items():
        if key not in joined:
            places.spend(sum(map(len, key)))
            joined[key] = frozenset().union(*key)
        moves.append((kinds, joined[key]))
    return moves
