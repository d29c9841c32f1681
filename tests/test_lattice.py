"""Sums, maxima and draws over all accepted canvases, against listing them."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dg_mlx.canvas.automaton import DEAD, Edges
from dg_mlx.canvas.lattice import Lattice


@st.composite
def problems(draw):
    """A small random automaton, scores, and which states may end it; something is accepted."""
    states, classes = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    length, seed = draw(st.integers(1, 4)), draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    next_QC = rng.integers(DEAD, states, (states, classes)).astype(np.int32)
    next_QC[0, 0] = 0
    score = rng.normal(0, 3, (length, classes))
    score[rng.random(score.shape) < 0.2] = -np.inf
    score[:, 0] = rng.normal(0, 30, length)
    last = np.where(rng.random(states) < 0.5, 0.0, -np.inf)
    last[0] = 0.0
    return next_QC, score, last


def _lattice(next_QC):
    sources, classes = np.nonzero(next_QC != DEAD)
    return Lattice(Edges.joined([(sources, classes, next_QC[sources, classes])]), len(next_QC))


def _accepted(next_QC, score, last):
    """Every accepted canvas with its weight."""
    found = {}
    for canvas in itertools.product(range(next_QC.shape[1]), repeat=len(score)):
        state = 0
        for at in canvas:
            state = DEAD if state == DEAD else next_QC[state, at]
        if state != DEAD and np.isfinite(last[state]):
            weight = sum(score[i, at] for i, at in enumerate(canvas))
            if np.isfinite(weight):
                found[canvas] = weight
    return found


@given(problems())
@settings(deadline=None, max_examples=300)
def test_sums_marginals_and_the_likeliest_equal_those_of_a_list(problem):
    next_QC, score, last = problem
    listed = _accepted(next_QC, score, last)
    lattice = _lattice(next_QC)
    paths = lattice.paths(score, 0, last)
    weights = np.array(list(listed.values()))
    total = weights.max() + np.log(np.exp(weights - weights.max()).sum())
    np.testing.assert_allclose(paths.total, total, atol=1e-9)
    marginal = np.zeros(score.shape)
    for canvas, weight in listed.items():
        marginal[np.arange(len(canvas)), list(canvas)] += np.exp(weight - total)
    with np.errstate(invalid="ignore"):
        ours = np.nan_to_num(np.exp(score + paths.weight_LC - paths.total))
    np.testing.assert_allclose(ours, marginal, atol=1e-9)
    best = tuple(int(at) for at in lattice.likeliest(score, 0, last))
    np.testing.assert_allclose(listed[best], weights.max(), atol=1e-9)


@given(problems())
@settings(deadline=None, max_examples=25)
def test_draws_follow_the_weights(problem):
    next_QC, score, last = problem
    listed = _accepted(next_QC, score, last)
    lattice, rng, draws = _lattice(next_QC), np.random.default_rng(1), 800
    paths = lattice.paths(score, 0, last)
    counts = dict.fromkeys(listed, 0)
    for _ in range(draws):
        drawn = lattice.draw(paths.forward, score, last, rng.random(len(score) + 1))
        counts[tuple(int(at) for at in drawn)] += 1
    for canvas, weight in listed.items():
        p = min(1.0, np.exp(weight - paths.total))
        # Five standard deviations, and a little for the very unlikely.
        assert abs(counts[canvas] / draws - p) <= 5 * np.sqrt(p * (1 - p) / draws) + 3 / draws


def test_sums_are_the_same_however_many_are_made_at_once(monkeypatch):
    rng = np.random.default_rng(2)
    lattice = _lattice(rng.integers(DEAD, 5, (5, 7)).astype(np.int32))
    score, last = rng.normal(0, 3, (9, 7)), np.zeros(5)
    at_once = lattice.paths(score, 0, last).weight_LC
    for few in (1, 50):
        monkeypatch.setattr("dg_mlx.canvas.lattice.AT_ONCE", few)
        assert np.array_equal(lattice.paths(score, 0, last).weight_LC, at_once)
