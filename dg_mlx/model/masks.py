"""Which key each query sees. One boolean array per chunk and layer type, or none where a rule does.

Legend: B batch, C chunk (queries), S keys, L canvas. All masks have shape (B or 1, 1, C or 1, S).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from dg_mlx.backends.base import Mask

VisionAttention = Literal["sliding", "all"]
"""Where tokens of one image see each other both ways during prefill.

"sliding": on sliding layers, within the window. Source: google-deepmind/gemma and vLLM, and
transformers' Gemma 4. "all": on every layer, past the window too, as transformers 5.23 does in its
DiffusionGemma class; for comparisons with it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """One mask per layer type."""

    full: Mask
    sliding: Mask


def prefill_masks(
    start: int,
    chunk: int,
    *,
    window: int,
    image_BC: mx.array | None = None,
    real_BS: mx.array | None = None,
    vision: VisionAttention = "sliding",
) -> Masks:
    """Masks for `chunk` new tokens behind `start` cached ones.

    `image_BC` numbers the image that each new token belongs to, -1 for text; an image lies within
    one chunk. `real_BS` marks the real tokens of context and chunk. Causal; on sliding layers only
    the last `window` tokens, the query's own among them.
    """
    first = max(0, start - window + 1)
    query = mx.arange(start, start + chunk)[:, None]
    same = None if image_BC is None else _same_image(image_BC)
    full: Mask = "causal"
    if same is not None and vision == "all":
        full = _overlay(query >= mx.arange(start + chunk), same, start)
    sliding: Mask = "causal"
    if start + chunk > window or same is not None:
        key = mx.arange(first, start + chunk)
        near = key > query - window
        causal = (key <= query) & near
        if same is not None and vision == "sliding":
            same = same & (mx.abs(query - mx.arange(start, start + chunk)) < window)
        sliding = causal[None, None] if same is None else _overlay(causal, same, start - first)
    return Masks(full=_real(full, real_BS, query, 0), sliding=_real(sliding, real_BS, query, first))


def denoise_masks(canvas: int, *, window: int, real_BS: mx.array | None) -> Masks:
    """Masks for a canvas: it sees itself whole and all real tokens of the cache."""
    if real_BS is None:
        return Masks(full=None, sliding=None)
    ones = mx.ones((real_BS.shape[0], canvas), mx.bool_)
    kept = real_BS[:, max(0, real_BS.shape[1] - window + 1) :]
    full, sliding = (
        mx.concatenate([part, ones], axis=1)[:, None, None, :] for part in (real_BS, kept)
    )
    return Masks(full=full, sliding=sliding)


def _same_image(image_BC: mx.array) -> mx.array:
    """(B, 1, C, C): both tokens belong to the same image."""
    query, key = image_BC[:, None, :, None], image_BC[:, None, None, :]
    return (query == key) & (query >= 0)


def _overlay(causal_CS: mx.array, same_B1CC: mx.array, cached: int) -> mx.array:
    """Causal or same image; `cached` keys lie before the chunk."""
    batch, _, chunk, _ = same_B1CC.shape
    before = mx.zeros((batch, 1, chunk, cached), mx.bool_)
    return causal_CS[None, None] | mx.concatenate([before, same_B1CC], axis=-1)


def _real(mask: Mask, real_BS: mx.array | None, query: mx.array, first: int) -> Mask:
    """Hide padding. A padding token sees itself, so that no row is empty."""
    if real_BS is None:
        return mask
    key = mx.arange(first, real_BS.shape[1])
    seen = (key <= query)[None, None] if isinstance(mask, str) else mask
    assert seen is not None
    return (seen & real_BS[:, None, None, first:]) | (key == query)
