"""The objective's parts: what is drawn, how a batch is laid out, and that options change nothing.

Values and gradients are compared with transformers' class in tests/parity/test_train.py.
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from dg_mlx.backends import Backend
from dg_mlx.config import ModelConfig
from dg_mlx.errors import SettingsError
from dg_mlx.model import DiffusionGemma, ImagePatches, Media
from dg_mlx.train import loss as loss_module
from dg_mlx.train.batch import Batch, Draw, Example, collate
from dg_mlx.train.loss import Objective, draw, gradients, loss, next_tokens
from dg_mlx.weights import load

CANVAS, VOCAB = tiny.CANVAS, tiny.VOCAB


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemma:
    folder = tiny.write(tmp_path_factory.mktemp("checkpoint"))
    config = ModelConfig.load(folder)
    model = DiffusionGemma(config, Backend())
    load(model, config, folder, mx.float32)
    return model


def drawn(seed: int, batch: int = 4, objective: Objective | None = None, canvas: int = CANVAS):
    rng = np.random.default_rng(seed)
    blocks = np.full(batch, 3)
    return draw(rng, blocks, canvas=canvas, vocab=VOCAB, objective=objective or Objective())


def examples(*sizes: tuple[int, int], seed: int = 0) -> list[Example]:
    """Prompts of so many tokens, answers of so many canvases."""
    rng = np.random.default_rng(seed)
    return [
        Example(
            ids=rng.integers(4, 100, length).tolist(),
            answer=rng.integers(4, 100, blocks * CANVAS).tolist(),
            canvases=blocks,
        )
        for length, blocks in sizes
    ]


def a_batch(seed: int = 0) -> Batch:
    given = examples((5, 1), (11, 3), (2, 2))
    noise = drawn(seed, batch=3)
    return collate(
        given,
        Draw(
            block_B=np.array([0, 1, 1]),
            replaced_BL=noise.replaced_BL,
            noise_BL=noise.noise_BL,
            conditioned_B=np.array([True, False, True]),
        ),
    )


def same(a: Draw, b: Draw) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Draw.__slots__)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_a_seed_fixes_the_draw(seed: int) -> None:
    assert same(drawn(seed), drawn(seed))
    assert not same(drawn(seed), drawn(seed + 1))


def test_noise_levels_are_uniform_and_tokens_independent() -> None:
    noise = drawn(0, batch=4000, canvas=64)
    rate = noise.replaced_BL.mean(axis=1)
    # Uniform t: the rates' quantiles are t's, but for the spread of 64 coins.
    np.testing.assert_allclose(np.quantile(rate, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    assert noise.replaced_BL.mean(axis=0).std() < 0.02
    counts = np.bincount(noise.noise_BL.reshape(-1), minlength=VOCAB)
    assert counts.min() > 0.8 * counts.mean() and counts.max() < 1.2 * counts.mean()
    assert abs(noise.conditioned_B.mean() - 0.5) < 0.03
    assert set(noise.block_B) == {0, 1, 2}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_self_conditioning_of_none_or_all(share: float) -> None:
    noise = drawn(1, batch=50, objective=Objective(self_conditioning=share))
    assert noise.conditioned_B.all() == bool(share) and noise.conditioned_B.any() == bool(share)


def test_noise_can_be_more_and_from_the_answer() -> None:
    objective = Objective(noise_power=0.5, noise_from_answer=0.25)
    noise = drawn(2, batch=4000, objective=objective)
    assert noise.replaced_BL.mean() == pytest.approx(2 / 3, abs=0.01)  # the mean of u ** 0.5
    assert noise.copied_BL is not None
    assert (noise.copied_BL >= 0).mean() == pytest.approx(0.25, abs=0.01)
    (example,) = examples((3, 1))
    all_copied = Draw(
        block_B=np.array([0]),
        replaced_BL=np.ones((1, CANVAS), np.bool_),
        noise_BL=np.zeros((1, CANVAS), np.int32),
        conditioned_B=np.array([False]),
        copied_BL=np.arange(CANVAS)[None, ::-1],
    )
    batch = collate([example], all_copied)
    np.testing.assert_array_equal(batch.noisy_BL[0], example.answer[::-1])


def test_tokens_that_are_held_stay_as_they_are() -> None:
    (example,) = examples((3, 2))
    held = [i % 3 == 0 for i in range(2 * CANVAS)]
    noise = Draw(
        block_B=np.array([1]),
        replaced_BL=np.ones((1, CANVAS), np.bool_),
        noise_BL=np.zeros((1, CANVAS), np.int32),
        conditioned_B=np.array([False]),
    )
    noisy = collate([replace(example, held=held)], noise).noisy_BL[0]
    answer = np.array(example.answer[CANVAS:])
    np.testing.assert_array_equal(noisy, np.where(held[CANVAS:], answer, 0))


def test_only_the_chosen_canvas_is_corrupted() -> None:
    given = examples((5, 1), (11, 3), (2, 2))
    batch = a_batch()
    for row, (example, block) in enumerate(zip(given, [0, 1, 1], strict=True)):
        start = block * CANVAS
        context = [*example.ids, *example.answer[:start]]
        np.testing.assert_array_equal(batch.context_BS[row][batch.context_real_BS[row]], context)
        assert not batch.context_real_BS[row][: -len(context)].any()
        np.testing.assert_array_equal(batch.canvas_BL[row], example.answer[start : start + CANVAS])
        np.testing.assert_array_equal(
            batch.later_BR[row][batch.later_real_BR[row]], example.answer[start + CANVAS :]
        )
        everything = [*example.ids, *example.answer]
        np.testing.assert_array_equal(batch.clean[row][batch.real[row]], everything)
    assert (batch.noisy_BL != batch.canvas_BL).any()


def test_pictures_move_with_the_padding() -> None:
    short, long = examples((6, 1), (10, 1))
    image = ImagePatches(
        pixels_PC=np.zeros((9, 48), np.float32), grid=(3, 3), start=2, tokens=1, key="k"
    )
    shown = Example(ids=short.ids, answer=short.answer, media=Media(images=(image,)))
    batch = collate([long, shown], drawn(0, batch=2, objective=None))
    assert batch.media is not None
    (moved,) = batch.media.images
    added = batch.context_BS.shape[1] - int(batch.context_real_BS[1].sum())
    assert (moved.row, moved.start) == (1, 2 + added)
    assert batch.pictures.sum() == 1 and batch.pictures[1, moved.start]


def test_next_tokens_are_all_clean_pairs() -> None:
    batch = a_batch()
    position, target, weight = next_tokens(batch)
    width = batch.clean.shape[1]
    assert len(position) == (batch.real.sum(axis=1) - 1).sum()
    np.testing.assert_array_equal(batch.clean.reshape(-1)[position + 1], target)
    assert batch.real.reshape(-1)[position].all() and batch.real.reshape(-1)[position + 1].all()
    for row in range(3):  # every example weighs the same
        assert weight[position // width == row].sum() == pytest.approx(1 / 3)


def test_the_parts_add_up(model: DiffusionGemma) -> None:
    batch = a_batch()
    both = loss(model, batch, Objective(encoder_weight=0.25))
    assert both.total.item() == pytest.approx(both.diffusion.item() + 0.25 * both.encoder.item())
    alone = loss(model, batch, Objective(encoder_weight=0))
    assert alone.encoder.item() == 0
    assert alone.total.item() == pytest.approx(both.diffusion.item(), abs=1e-5)
    assert 3 < alone.total.item() < 15 and 3 < both.encoder.item() < 15


def test_padding_and_company_change_nothing(model: DiffusionGemma) -> None:
    given, noise = examples((5, 1), (20, 2)), drawn(3, batch=2)
    noise = Draw(
        block_B=np.array([0, 1]), replaced_BL=noise.replaced_BL, noise_BL=noise.noise_BL,
        conditioned_B=np.array([True, False]),
    )  # fmt: skip
    together = loss(model, collate(given, noise), Objective())
    alone = [
        loss(model, collate([given[i]], Draw(**{n: getattr(noise, n)[i : i + 1]
             for n in Draw.__slots__ if n != "copied_BL"})), Objective()).total.item()
        for i in range(2)
    ]  # fmt: skip
    assert together.total.item() == pytest.approx(sum(alone) / 2, abs=1e-5)


def test_prefill_and_denoise_say_the_same(model: DiffusionGemma) -> None:
    """The loss is that of the logits which a generation would see."""
    (example,), noise = examples((9, 2)), drawn(5, batch=1)
    noise = Draw(
        block_B=np.array([1]), replaced_BL=noise.replaced_BL, noise_BL=noise.noise_BL,
        conditioned_B=np.array([True]),
    )  # fmt: skip
    batch, cache = collate([example], noise), model.new_cache()
    model.prefill(mx.array([example.ids]), cache)
    model.prefill(mx.array([example.answer[:CANVAS]]), cache)
    noisy = mx.array(batch.noisy_BL)
    logits = model.denoise(noisy, cache, model.denoise(noisy, cache))
    log_p = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[0]
    expected = -log_p[np.arange(CANVAS), batch.canvas_BL[0]].mean()
    assert loss(model, batch, Objective()).diffusion.item() == pytest.approx(expected, abs=1e-5)


def test_computing_again_gives_the_same_gradients(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(tree_flatten(model.parameters()))
    value, plain = gradients(model, a_batch(), Objective())
    monkeypatch.setattr(loss_module, "LOGITS_BYTES", 5 * 4 * VOCAB)
    value_again, again = gradients(model, a_batch(), Objective(), checkpoint=True)
    assert value_again.total.item() == pytest.approx(value.total.item(), abs=1e-5)
    again = dict(tree_flatten(again))
    for name, array in tree_flatten(plain):
        scale = float(mx.abs(array).max()) + 1e-3
        assert float(mx.abs(array - again[name]).max()) < 1e-4 * scale, name
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys() and all(before[n] is after[n] for n in before)


def test_computing_again_spares_memory() -> None:
    """Whose peak hardly grows with the layers then."""
    peaks = {}
    for layers in (4, 16):
        kinds = [tiny.S] * (layers - 1) + [tiny.F]
        data = tiny.config(layer_types=kinds, num_hidden_layers=layers)
        model = DiffusionGemma(ModelConfig.from_dict(data), Backend())
        mx.eval(model.parameters())
        for checkpoint in (False, True):
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            mx.eval(gradients(model, a_batch(), Objective(), checkpoint=checkpoint))
            peaks[layers, checkpoint] = mx.get_peak_memory() - before
    grown = {c: peaks[16, c] - peaks[4, c] for c in (False, True)}
    assert grown[True] < 0.4 * grown[False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder_weight": -1}, "encoder_weight is -1; give 0 or more."),
        ({"self_conditioning": 1.5}, "it is a probability: give 0 to 1."),
    ],
)
def test_settings_out_of_range(change: dict[str, float], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Objective(**change)
