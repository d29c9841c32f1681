"""The smallest automaton that accepts the same texts.

Legend: Q states, K kinds of what is read.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from .compile import DEAD, Bools, Ints


def smallest(next_QK: Ints, accepts_Q: Bools) -> tuple[Ints, Bools]:
    """States that no text tells apart become one, and those that lead to no accepting state `DEAD`.

    The first state stays the first. Without any state if nothing is accepted.
    """
    alive_Q = _alive(next_QK, accepts_Q)
    if not alive_Q[0]:
        return next_QK[:0], accepts_Q[:0]
    # The entry behind the last is for DEAD.
    next_QK = np.where(np.append(alive_Q, False)[next_QK], next_QK, DEAD)
    group_Q = _groups(next_QK, accepts_Q)
    _, one = np.unique(group_Q, return_index=True)
    table = np.append(group_Q, DEAD)[next_QK[one]]
    # Only what the first state reaches.
    number = {DEAD: DEAD, int(group_Q[0]): 0}
    order = [int(group_Q[0])]
    for group in order:
        for to in table[group].tolist():
            if to not in number:
                number[to] = len(order)
                order.append(to)
    rename = np.full(len(one) + 1, DEAD, np.int32)
    rename[order] = np.arange(len(order))
    return rename[table[order]], accepts_Q[one][order]


@dataclass(frozen=True, slots=True)
class _Incoming:
    """Transitions by where they lead: those to a state are from `starts[state]` on."""

    sources: list[int]
    kinds: list[int]
    starts: list[int]

    @staticmethod
    def of(next_QK: Ints) -> _Incoming:
        sources, kinds = np.nonzero(next_QK != DEAD)
        targets = next_QK[sources, kinds]
        order = np.argsort(targets, kind="stable")
        starts = np.searchsorted(targets[order], np.arange(len(next_QK) + 1))
        return _Incoming(sources[order].tolist(), kinds[order].tolist(), starts.tolist())


def _alive(next_QK: Ints, accepts_Q: Bools) -> Bools:
    """The states from which an accepting one can be reached."""
    edges, alive_Q = _Incoming.of(next_QK), accepts_Q.copy()
    states = np.flatnonzero(accepts_Q).tolist()
    for state in states:
        for source in edges.sources[edges.starts[state] : edges.starts[state + 1]]:
            if not alive_Q[source]:
                alive_Q[source] = True
                states.append(source)
    return alive_Q


def _groups(next_QK: Ints, accepts_Q: Bools) -> Ints:
    """(Q,): states of one number accept the same texts. Every state must lead to an accepting one.

    Source: Hopcroft, "An n log n algorithm for minimizing states in a finite automaton" (1971).
    """
    edges = _Incoming.of(next_QK)
    # What can be read tells states apart from the start, so that `DEAD` needs no group.
    known = np.packbits(np.column_stack([accepts_Q, next_QK != DEAD]), axis=1)
    group_Q = np.unique(known, axis=0, return_inverse=True)[1].reshape(-1).tolist()
    members: list[set[int]] = [set() for _ in range(max(group_Q) + 1)]
    for state, group in enumerate(group_Q):
        members[group].add(state)
    todo = list(range(len(members)))
    while todo:
        sources_by_kind = defaultdict(list)
        for state in members[todo.pop()]:
            for edge in range(edges.starts[state], edges.starts[state + 1]):
                sources_by_kind[edges.kinds[edge]].append(edges.sources[edge])
        for sources in sources_by_kind.values():
            leading = defaultdict(set)
            for source in sources:
                leading[group_Q[source]].add(source)
            for group, inside in leading.items():
                if len(inside) == len(members[group]):
                    continue
                members[group] -= inside
                if len(inside) > len(members[group]):
                    inside, members[group] = members[group], inside
                for state in inside:  # the smaller part, so that each state moves rarely
                    group_Q[state] = len(members)
                todo.append(len(members))
                members.append(inside)
    return np.array(group_Q, np.int32)
