"""All canvases that an automaton accepts, as paths: their total, the likeliest, a draw, marginals.

A path takes one class of tokens per position. Its weight is the product of the classes' weights at
their positions, so what is computed here is exact for the product of the positions' distributions,
under the condition that the whole canvas is accepted. Source: DINGO, arXiv 2505.23061, for the
likeliest path; sums instead of maxima give the rest (forward-backward). All in logarithms, fp64.

Legend: L positions, Q states, C classes, E edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .automaton import Edges
from .compile import Ints

AT_ONCE = 1_500_000
"""Edges that are summed at a time, over positions: 12 MB for each array of them."""

Floats = NDArray[np.float64]

IMPOSSIBLE = -1e30
"""In place of minus infinity, whose differences are not numbers."""


class _Order:
    """Edges sorted by one of their ends: runs of equal ends."""

    def __init__(self, ends: Ints, edges: Edges) -> None:
        order = np.argsort(ends, kind="stable")
        self.sources, self.classes = edges.sources_E[order], edges.classes_E[order]
        self.targets = edges.targets_E[order]
        self.ends, self.starts, run = np.unique(ends[order], return_index=True, return_inverse=True)
        self.run_E = run
        """The number of the run that an edge is in."""

    def sum(self, values: Floats) -> Floats:
        """Log of the sum of exponentials of each run, along the last axis."""
        most = np.maximum.reduceat(values, self.starts, axis=-1)
        values = values - most[..., self.run_E]
        np.exp(values, out=values)
        total = np.log(np.add.reduceat(values, self.starts, axis=-1))
        total += most
        return total

    def largest(self, values: Floats) -> Floats:
        """The largest of each run."""
        return np.maximum.reduceat(values, self.starts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paths:
    """Sums over all accepted canvases."""

    forward: Floats
    """(L + 1, Q): log of the sum over all ways from the first state."""
    weight_LC: Floats
    """Log of how likely a class is at a position beyond what the position itself says: the marginal
    of a token is its own log probability plus this, less `total`."""
    total: float
    """Log of the probability that a canvas drawn position by position is accepted."""


class Lattice:
    """Paths through an automaton."""

    def __init__(self, edges: Edges, states: int) -> None:
        self._states = states
        self._by_source = _Order(edges.sources_E, edges)
        self._by_class = _Order(edges.classes_E, edges)
        self._by_target = _Order(edges.targets_E, edges)

    def paths(self, score_LC: Floats, start: int, last_Q: Floats) -> Paths:
        """Sums over all paths. `score_LC`: log weight of a class at a position; `last_Q`: of ending
        in a state."""
        score_LC, last_Q = _finite(score_LC), _finite(last_Q)
        forward = self._forward(score_LC, start, self._by_target.sum)
        backward = self._backward(score_LC, last_Q)
        order = self._by_class
        weight = np.full(score_LC.shape, IMPOSSIBLE)
        step = max(1, AT_ONCE // len(order.sources))
        for first in range(0, len(score_LC), step):
            rows = slice(first, first + step)
            value = forward[:-1][rows, order.sources] + backward[1:][rows, order.targets]
            weight[rows, order.ends] = order.sum(value)
        return Paths(forward=forward, weight_LC=weight, total=float(backward[0][start]))

    def total(self, score_LC: Floats, start: int, last_Q: Floats) -> float:
        """As `Paths.total`, alone."""
        forward = self._forward(_finite(score_LC), start, self._by_target.sum)
        ends = forward[-1] + _finite(last_Q)
        return float(np.logaddexp.reduce(ends))

    def likeliest(self, score_LC: Floats, start: int, last_Q: Floats) -> Ints:
        """(L,): the classes of the path of largest weight. `score_LC` is that of each class's
        likeliest token."""
        score_LC, last_Q = _finite(score_LC), _finite(last_Q)
        forward = self._forward(score_LC, start, self._by_target.largest)
        return self._back(forward, score_LC, last_Q, lambda _, values: int(values.argmax()))

    def draw(self, forward: Floats, score_LC: Floats, last_Q: Floats, uniform: Floats) -> Ints:
        """(L,): the classes of a path drawn by weight, with L + 1 numbers in [0, 1).

        `forward` is that of `paths`.
        """

        def choose(at: int, values: Floats) -> int:
            ends = np.cumsum(np.exp(values - values.max()))
            return int(min(np.searchsorted(ends, uniform[at] * ends[-1], "right"), len(ends) - 1))

        return self._back(forward, _finite(score_LC), _finite(last_Q), choose)

    def _forward(self, score_LC: Floats, start: int, join: Callable[[Floats], Floats]) -> Floats:
        order = self._by_target
        found = np.full((len(score_LC) + 1, self._states), IMPOSSIBLE)
        found[0, start] = 0
        for at, score_C in enumerate(score_LC):
            value = found[at][order.sources] + score_C[order.classes]
            found[at + 1, order.ends] = join(value)
        return found

    def _backward(self, score_LC: Floats, last_Q: Floats) -> Floats:
        order = self._by_source
        found = np.full((len(score_LC) + 1, self._states), IMPOSSIBLE)
        found[-1] = last_Q
        for at in range(len(score_LC) - 1, -1, -1):
            value = found[at + 1][order.targets] + score_LC[at][order.classes]
            found[at, order.ends] = order.sum(value)
        return found

    def _back(
        self,
        forward: Floats,
        score_LC: Floats,
        last_Q: Floats,
        choose: Callable[[int, Floats], int],
    ) -> Ints:
        """Classes from the last position to the first, one edge chosen among those that lead on."""
        order, length = self._by_target, len(score_LC)
        run_Q = np.full(self._states, -1, np.int32)
        run_Q[order.ends] = np.arange(len(order.ends))
        stops = np.append(order.starts[1:], len(order.sources))
        found = np.empty(length, np.int32)
        state = choose(length, forward[-1] + last_Q)
        for at in range(length - 1, -1, -1):
            run = slice(order.starts[run_Q[state]], stops[run_Q[state]])
            sources, classes = order.sources[run], order.classes[run]
            edge = choose(at, forward[at][sources] + score_LC[at][classes])
            state, found[at] = int(sources[edge]), classes[edge]
        return found


def _finite(values: Floats) -> Floats:
    return np.maximum(values, IMPOSSIBLE)
