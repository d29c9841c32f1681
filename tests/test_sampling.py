"""Every sampling function against a plain numpy or Python oracle."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from published import PUBLISHED

import dg_mlx
from dg_mlx import sampling
from dg_mlx.backends.base import Backend
from dg_mlx.backends.cpu import Cpu
from dg_mlx.sampling import SeededNoise

BACKENDS = [Backend(), Cpu()]

entropies = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 24)),
    # Multiples of 1/64: their sums are exact in fp32, whatever the order.
    elements=st.integers(0, 640).map(lambda n: n / 64),
)
bounds = st.integers(0, 640).map(lambda n: n / 64)


def accept_oracle(entropy: np.ndarray, bound: float) -> np.ndarray:
    """One position at a time, lowest entropy first, ties by position."""
    accepted = np.zeros(entropy.shape, bool)
    for row, values in enumerate(entropy):
        spent = 0.0
        for position in sorted(range(len(values)), key=lambda i: (values[i], i)):
            if spent > bound:
                break
            accepted[row, position] = True
            spent += float(values[position])
    return accepted


@settings(max_examples=200, deadline=None)
@given(entropy=entropies, bound=bounds)
def test_accept(entropy, bound):
    accepted = np.array(sampling.accept(mx.array(entropy), bound))
    wanted = accept_oracle(entropy, bound)
    assert accepted.dtype == bool and accepted.shape == entropy.shape
    assert accepted.any(axis=1).all(), "at least one position is accepted"
    for row in range(len(entropy)):
        taken, left = entropy[row, accepted[row]], entropy[row, ~accepted[row]]
        assert left.size == 0 or taken.max() <= left.min(), "a prefix of ascending entropies"
        assert taken.sum() - taken.max() <= bound, "the sum before the last one is in bound"
        # Among equal entropies any may be taken; how many is fixed.
        np.testing.assert_array_equal(np.sort(taken), np.sort(entropy[row, wanted[row]]))


@settings(max_examples=50, deadline=None)
@given(entropy=entropies, bounds=st.tuples(bounds, bounds))
def test_a_larger_bound_accepts_no_less(entropy, bounds):
    low, high = sorted(bounds)
    few = np.array(sampling.accept(mx.array(entropy), low)).sum(axis=1)
    many = np.array(sampling.accept(mx.array(entropy), high)).sum(axis=1)
    assert (few <= many).all()


def test_accept_counts_the_sum_before_a_position():
    entropy = mx.array([[0.05, 3.0, 0.05, 0.0, 0.02]])
    assert sampling.accept(entropy, 0.1).tolist() == [[True, False, True, True, True]]
    assert sampling.accept(entropy, 0.125).tolist() == [[True, True, True, True, True]]
    assert sampling.accept(mx.array([[9.0, 8.0]]), 0.1).tolist() == [[False, True]]


@settings(max_examples=50, deadline=None)
@given(data=st.data(), shape=st.tuples(st.integers(1, 3), st.integers(1, 12)))
def test_next_canvas(data, shape):
    ids = hnp.arrays(np.int32, shape, elements=st.integers(0, 99))
    mask, sampled, noise = (
        data.draw(hnp.arrays(np.bool_, shape)),
        data.draw(ids),
        data.draw(ids),
    )
    canvas = sampling.next_canvas(mx.array(mask), mx.array(sampled), mx.array(noise))
    np.testing.assert_array_equal(np.array(canvas), np.where(mask, sampled, noise))


@settings(max_examples=100, deadline=None)
@given(
    guesses=st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=2), min_size=1, max_size=6),
    threshold=st.integers(0, 3),
)
def test_settled(guesses, threshold):
    arrays = [mx.array([g]) for g in guesses]
    earlier = guesses[:-1]
    enough = len(earlier) >= threshold
    wanted = enough and all(g == guesses[-1] for g in earlier[len(earlier) - threshold :])
    assert sampling.settled(arrays[-1], arrays[:-1], threshold).tolist() == [wanted]


def test_settled_is_per_row():
    now = mx.array([[1, 2], [3, 4]])
    assert sampling.settled(now, [mx.array([[1, 2], [3, 5]])], 1).tolist() == [True, False]


def test_confident_is_a_mean_per_row_and_strict():
    entropy = mx.array([[0.0, 0.5], [0.25, 0.25], [0.0, 0.25]])
    assert sampling.confident(entropy, 0.25).tolist() == [False, False, True]


def test_temperature_falls_from_the_maximum_in_equal_steps():
    assert PUBLISHED.temperature(1) == pytest.approx(0.8)
    assert PUBLISHED.temperature(48) == pytest.approx(0.4 + 0.4 / 48)
    steps = [PUBLISHED.temperature(k) for k in range(1, 49)]
    assert np.diff(steps) == pytest.approx(-0.4 / 48)
    assert PUBLISHED.replace(max_denoising_steps=1).temperature(1) == pytest.approx(0.8)


logit_rows = hnp.arrays(
    np.float32,
    st.tuples(st.just(1), st.integers(1, 4), st.integers(2, 1400)),
    elements=st.floats(-30, 30, width=32),
)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@settings(max_examples=30, deadline=None)
@given(logits=logit_rows, temperature=st.floats(0.3, 2.0))
def test_vocabulary(backend, logits, temperature):
    scaled, guess, entropy, _ = backend.vocabulary(mx.array(logits), temperature)
    exact = logits.astype(np.float64) / temperature
    np.testing.assert_allclose(np.array(scaled), exact, rtol=1e-5, atol=1e-5)
    log_p = exact - exact.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    # The difference of two numbers around 13 in fp32, each from sums of 1400 terms.
    np.testing.assert_allclose(
        np.array(entropy), -(np.exp(log_p) * log_p).sum(-1), rtol=1e-4, atol=1e-4
    )
    best = np.take_along_axis(np.array(scaled), np.array(guess)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(best, np.array(scaled).max(-1))
    assert guess.dtype == mx.int32


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@settings(max_examples=40, deadline=None)
@given(
    logits=logit_rows,
    seed=st.integers(0, 2**20),
    level=st.sampled_from([0.0, 0.5, 1 - 2**-24]),
)
def test_a_sample_never_has_probability_zero(backend, logits, seed, level):
    rng = np.random.default_rng(seed)
    hidden = rng.random(logits.shape) < 0.7
    hidden[..., rng.integers(logits.shape[-1])] = False
    logits = np.where(hidden, -np.inf, logits).astype(np.float32)
    for uniform in (np.full(logits.shape[:2], level), rng.random(logits.shape[:2])):
        ids = np.array(backend.sample(mx.array(logits), mx.array(uniform.astype(np.float32))))
        assert (ids >= 0).all() and (ids < logits.shape[-1]).all()
        picked = np.take_along_axis(logits, ids[..., None], -1)
        spread = np.exp(picked - logits.max(-1, keepdims=True))
        assert (spread > 0).all()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("vocab", [2, 7, 512, 700, 1024])
def test_sample_inverts_the_distribution(backend, vocab):
    """The id is the first whose cumulative probability exceeds the uniform number."""
    rng = np.random.default_rng(vocab)
    logits = (rng.standard_normal((1, 64, vocab)) * 3).astype(np.float32)
    uniform = rng.random((1, 64)).astype(np.float32)
    ids = np.array(backend.sample(mx.array(logits), mx.array(uniform)))[0]
    p = np.exp(logits[0].astype(np.float64))
    ends = np.cumsum(p / p.sum(-1, keepdims=True), axis=-1)
    starts = ends - p / p.sum(-1, keepdims=True)
    at = np.arange(64)
    assert (uniform[0] < ends[at, ids] + 1e-5).all()
    assert (uniform[0] >= starts[at, ids] - 1e-5).all()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_seeded_samples_follow_the_distribution(backend):
    """Chi-square over 40,000 draws of 8 ids; 26.0 is the 99.95 % point for 7 degrees."""
    draws, vocab = 40_000, 8
    logits = mx.array([[[0.0, 1.0, 2.0, -1.0, 0.5, -2.0, 1.5, 0.2]]])
    noise = SeededNoise(11, vocab=vocab, canvas=draws, backend=backend)
    ids = np.array(noise.sample(0, 1, mx.broadcast_to(logits, (1, draws, vocab))))
    p = np.exp(np.array(logits)[0, 0])
    wanted = draws * p / p.sum()
    assert ((np.bincount(ids[0], minlength=vocab) - wanted) ** 2 / wanted).sum() < 26.0


@pytest.mark.parametrize("use", ["initial", "renoise"])
def test_seeded_ids_are_uniform(use):
    draws, vocab = 40_000, 8
    noise = SeededNoise(5, vocab=vocab, canvas=draws, backend=Backend())
    ids = np.array(noise.initial(0) if use == "initial" else noise.renoise(0, 1))
    wanted = draws / vocab
    assert ids.shape == (1, draws) and ids.dtype == np.int32
    assert ((np.bincount(ids[0], minlength=vocab) - wanted) ** 2 / wanted).sum() < 26.0


def draws(noise: SeededNoise, block: int, step: int) -> dict[str, list[int]]:
    logits = mx.zeros((1, 64, 1000))
    return {
        f"initial {block}": noise.initial(block).tolist()[0],
        f"sample {block} {step}": noise.sample(block, step, logits).tolist()[0],
        f"renoise {block} {step}": noise.renoise(block, step).tolist()[0],
    }


def seeded(seed: int) -> SeededNoise:
    return SeededNoise(seed, vocab=1000, canvas=64, backend=Backend())


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    block=st.integers(0, 40),
    step=st.integers(1, 64),
    earlier=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=3),
)
def test_a_draw_depends_on_nothing_drawn_before(seed, block, step, earlier):
    used = seeded(seed)
    for other in earlier:
        draws(used, *other)
    mx.random.uniform(shape=(3,))
    assert draws(used, block, step) == draws(seeded(seed), block, step)


def test_every_seed_block_step_and_use_draws_something_else():
    seen: dict[tuple[int, ...], str] = {}
    for seed in (0, 1, 2, 2**31, 2**40):
        for block in range(4):
            for step in range(1, 6):
                for name, ids in draws(seeded(seed), block, step).items():
                    key = f"{seed} {name}"
                    assert seen.setdefault(tuple(ids), key) == key


def test_the_public_noise_is_this_one():
    assert dg_mlx.SeededNoise is SeededNoise
