"""Who sees whom in prefill and denoise, against the rule written as a plain loop."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dg_mlx.model.masks import denoise_masks, prefill_masks


def seen(mask, queries, keys, batch):
    """A mask as booleans (B, queries, keys), whatever its form."""
    if mask is None:
        return np.ones((batch, queries, keys), bool)
    if isinstance(mask, str):
        assert mask == "causal"
        return np.broadcast_to(
            np.tril(np.ones((queries, keys), bool), keys - queries), (batch, queries, keys)
        )
    return np.broadcast_to(np.array(mask)[:, 0], (batch, queries, keys))


@st.composite
def chunks(draw):
    """(cached tokens, image number per new token, real tokens, window)."""
    batch = draw(st.integers(1, 2))
    start, count = draw(st.integers(0, 12)), draw(st.integers(1, 12))
    runs = st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=1, max_size=5)
    rows = []
    for _ in range(batch):
        row = [
            n if is_image else -1
            for n, (is_image, size) in enumerate(draw(runs))
            for _ in range(size)
        ]
        rows.append((row + [-1] * count)[:count])
    padding = [draw(st.integers(0, start + count - 1)) for _ in range(batch)]
    real = np.arange(start + count)[None] >= np.array(padding)[:, None]
    return start, np.array(rows), real, draw(st.integers(2, 9))


@given(chunks(), st.sampled_from(["sliding", "all", None]), st.booleans())
@settings(deadline=None, max_examples=150)
def test_prefill_masks_are_the_rule(case, vision, padded):
    start, image, real, window = case
    batch, count = image.shape
    total, first = start + count, max(0, start - window + 1)
    masks = prefill_masks(
        start,
        count,
        window=window,
        image_BC=None if vision is None else mx.array(image),
        real_BS=mx.array(real) if padded else None,
        vision=vision or "sliding",
    )
    full = seen(masks.full, count, total, batch)
    sliding = seen(masks.sliding, count, total - first, batch)
    for b in range(batch):
        for q in range(count):
            for k in range(total):
                at = start + q
                together = k >= start and image[b, q] >= 0 and image[b, q] == image[b, k - start]
                causal, near = k <= at, abs(at - k) < window
                want_full, want_sliding = causal, causal and near
                if vision == "sliding":
                    want_sliding = near and (causal or together)
                if vision == "all":
                    want_full, want_sliding = causal or together, (causal and near) or together
                if padded:
                    want_full = (want_full and real[b, k]) or k == at
                    want_sliding = (want_sliding and real[b, k]) or k == at
                assert full[b, q, k] == want_full
                if k >= first:
                    assert sliding[b, q, k - first] == want_sliding
                else:
                    assert not want_sliding


def test_a_plain_prompt_needs_no_array_on_full_layers():
    masks = prefill_masks(100_000, 2048, window=1024)
    assert masks.full == "causal"
    assert masks.sliding.shape == (1, 1, 2048, 1023 + 2048)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(2, 9), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_a_canvas_sees_itself_and_every_real_token(context, canvas, window, padding):
    real = np.arange(context)[None] >= min(padding, context - 1)
    masks = denoise_masks(canvas, window=window, real_BS=mx.array(real))
    kept = min(context, window - 1)
    full = seen(masks.full, canvas, context + canvas, 1)[0]
    sliding = seen(masks.sliding, canvas, kept + canvas, 1)[0]
    assert (full == np.append(real[0], np.ones(canvas, bool))).all()
    assert (sliding == np.append(real[0, context - kept :], np.ones(canvas, bool))).all()


def test_no_padding_needs_no_mask():
    masks = denoise_masks(8, window=4, real_BS=None)
    assert masks.full is None and masks.sliding is None
