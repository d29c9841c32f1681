"""DiffusionGemma: prefill writes the cache, denoise reads it and predicts a whole canvas.

Module names are the checkpoint's tensor names. Source of the computation: transformers'
`models/diffusion_gemma`.

Legend: B batch, S prompt, C chunk, L canvas, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from dg_mlx.backends import Backend
from dg_mlx.config import ModelConfig
from dg_mlx.plan import CHUNK

from .cache import Cache
from .features import Features
from .masks import Masks, VisionAttention, denoise_masks, prefill_masks
from .media import ImagePatches, Media
from .text import Decoder
from .vision import VisionEmbedder, VisionTower

PATCHES = 4096
"""Most patches of pictures that run together; a picture of more runs alone."""


class EncoderLayer(nn.Module):
    """What the encoder does not share with the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_scalar = mx.ones(1)


class EncoderText(nn.Module):
    """Stored as `model.encoder.language_model`."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = [EncoderLayer() for _ in range(layers)]


class Encoder(nn.Module):
    """Stored as `model.encoder`."""

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        super().__init__()
        self.language_model = EncoderText(config.text.num_hidden_layers)
        if config.vision is not None:
            self.vision_tower = VisionTower(config.vision, backend)
            self.embed_vision = VisionEmbedder(config.vision, config.text.hidden_size, backend)


class Body(nn.Module):
    """Stored as `model`."""

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        super().__init__()
        self.decoder = Decoder(config.text, backend)
        self.encoder = Encoder(config, backend)


class DiffusionGemma(nn.Module):
    """The whole model. `vision_attention`: see `masks.VisionAttention`."""

    def __init__(
        self, config: ModelConfig, backend: Backend, vision_attention: VisionAttention = "sliding"
    ) -> None:
        super().__init__()
        self.model = Body(config, backend)
        self.config = config
        self.vision_attention = vision_attention
        self.identity = ""
        """Which weights these are, for what is kept on disk; empty: nothing is kept."""
        self.features: Features | None = None
        """Set: what was said of a picture is kept. Not while the tower learns."""
        self._backend = backend

    @property
    def dtype(self) -> mx.Dtype:
        """The type of activations."""
        return self.model.decoder.norm.weight.dtype

    def new_cache(self, reserve: int = 0) -> Cache:
        """An empty cache; `reserve` tokens are allocated at once when the first arrives."""
        cache = Cache(self.config.text)
        cache.expect(reserve)
        return cache

    def prefill(
        self,
        ids_BS: mx.array,
        cache: Cache,
        media: Media | None = None,
        mask_BS: mx.array | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """Write prompt tokens, or a finished block, into the cache.

        `mask_BS` marks the real tokens of left-padded prompts. The cache is computed on return.
        """
        for _ in self.prefill_chunks(ids_BS, cache, media=media, mask_BS=mask_BS, chunk=chunk):
            pass

    def prefill_chunks(
        self,
        ids_BS: mx.array,
        cache: Cache,
        *,
        media: Media | None = None,
        mask_BS: mx.array | None = None,
        chunk: int = CHUNK,
    ) -> Iterator[int]:
        """As `prefill`, yielding the number of tokens done after each chunk."""
        length = ids_BS.shape[1]
        images = media.images if media is not None else ()
        for start, end in _chunks(length, chunk, images):
            self._prefill_chunk(
                ids_BS[:, start:end],
                cache,
                [(i, i.start - start) for i in images if start <= i.start < end],
                None if mask_BS is None else mask_BS[:, start:end],
            )
            mx.eval(cache.arrays)  # bounds the graph: a chunk's activations are freed here
            yield end

    def _prefill_chunk(
        self,
        ids_BC: mx.array,
        cache: Cache,
        images: Sequence[tuple[ImagePatches, int]],
        mask_BC: mx.array | None,
    ) -> None:
        batch, count = ids_BC.shape
        x = self.embed_prompt(ids_BC, images)
        before = cache.tokens
        cache.extend(count, mask_BC, batch)
        masks = self.prompt_masks(ids_BC.shape, images, before=before, real_BS=cache.real_BS)
        self.model.decoder.encode(x, cache, masks, self.encoder_scalars, before)

    def embed_prompt(
        self, ids_BC: mx.array, images: Sequence[tuple[ImagePatches, int]] = ()
    ) -> mx.array:
        """(B, C, H): what the encoder starts from.

        `images` are the pictures, each with the index of its first soft token in `ids_BC`.
        """
        x = self._embed(ids_BC)
        if not images:
            return x
        features = self._features([image for image, _ in images])
        index_BC, rows, count = np.arange(ids_BC.size).reshape(ids_BC.shape), [], ids_BC.size
        for image, at in images:
            rows.append(features[image.key].astype(x.dtype))
            index_BC[image.row, at : at + image.tokens] = count + np.arange(image.tokens)
            count += image.tokens
        # One gather: a slice assignment per picture would copy all the others.
        return mx.concatenate([x.reshape(-1, x.shape[-1]), *rows])[mx.array(index_BC)]

    def _features(self, images: Sequence[ImagePatches]) -> dict[str, mx.array]:
        """Soft tokens of each picture, by its key: a picture is looked at once."""
        known = self.features
        found = {i.key: f for i in images if known and (f := known.get(i.key)) is not None}
        for run in _runs([i for i in {i.key: i for i in images}.values() if i.key not in found]):
            parts = mx.split(self.image_features(run), len(run))
            found |= {image.key: part for image, part in zip(run, parts, strict=True)}
            if known is not None:
                mx.eval(parts)  # what is kept must not keep the pictures
                for image, part in zip(run, parts, strict=True):
                    known.put(image.key, part)
        return found

    def prompt_masks(
        self,
        shape: tuple[int, ...],
        images: Sequence[tuple[ImagePatches, int]] = (),
        *,
        before: int = 0,
        real_BS: mx.array | None = None,
    ) -> Masks:
        """Masks of the encoder for (B, C) new tokens behind `before` cached ones.

        `real_BS` marks the real tokens of both; `images` as in `embed_prompt`.
        """
        both_ways = bool(images) and self.config.text.vision_bidirectional
        image_BC = np.full(shape, -1, np.int32)
        for number, (image, at) in enumerate(images):
            image_BC[image.row, at : at + image.tokens] = number
        return prefill_masks(
            before,
            shape[1],
            window=self.config.text.sliding_window,
            image_BC=mx.array(image_BC) if both_ways else None,
            real_BS=real_BS,
            vision=self.vision_attention,
        )

    @property
    def encoder_scalars(self) -> list[mx.array]:
        """The encoder's own scalar of each layer."""
        return [layer.layer_scalar for layer in self.model.encoder.language_model.layers]

    def image_features(self, images: Sequence[ImagePatches]) -> mx.array:
        """(soft tokens, H): pictures of one grid in the text layers' space, one after another."""
        encoder = self.model.encoder
        pixels_NPC = mx.array(np.stack([image.pixels_PC for image in images]))
        features = encoder.embed_vision(encoder.vision_tower(pixels_NPC, images[0].grid))
        return features.reshape(-1, features.shape[-1])

    def denoise(
        self,
        canvas_BL: mx.array,
        cache: Cache,
        self_conditioning_BLV: mx.array | None = None,
        mask_BS: mx.array | None = None,
    ) -> mx.array:
        """Logits (B, L, V) of a canvas behind the cache, fp32, soft-capped.

        `self_conditioning_BLV` is the previous step's temperature-scaled logits; None at a block's
        first step. `mask_BS` marks the real tokens of the whole cache, when it differs from what
        prefill was told. The cache stays as it is.
        """
        signal = None
        if self_conditioning_BLV is not None:
            signal = self.conditioning_signal(self_conditioning_BLV)
        x = self.embed_canvas(canvas_BL, signal)
        masks = denoise_masks(
            canvas_BL.shape[1],
            window=self.config.text.sliding_window,
            real_BS=cache.real_BS if mask_BS is None else mask_BS.astype(mx.bool_),
        )
        return self.logits(self.model.decoder.decode(x, cache, masks))

    def conditioning_signal(self, scaled_BLV: mx.array) -> mx.array:
        """(B, L, H): what a step that ended in these logits tells the next one."""
        p = self._backend.probabilities(scaled_BLV).astype(self.dtype)
        return self.model.decoder.embed_tokens.average(p) * self._embed_scale

    def embed_canvas(self, canvas_BL: mx.array, signal_BLH: mx.array | None = None) -> mx.array:
        """(B, L, H): what the decoder starts from. A signal of zeros is the same as none."""
        return self.model.decoder.self_conditioning(self._embed(canvas_BL), signal_BLH)

    def logits(self, x_BLH: mx.array) -> mx.array:
        """Soft-capped scores (B, L, V) of normed hidden states, fp32."""
        scores = self.model.decoder.embed_tokens.head(x_BLH)
        return self._backend.soft_cap(scores, self.config.text.final_logit_softcapping)

    @property
    def _embed_scale(self) -> mx.array:
        """sqrt(H), rounded to the type of activations as the reference does."""
        return mx.array(self.config.text.hidden_size**0.5, self.dtype)

    def _embed(self, ids: mx.array) -> mx.array:
        return self.model.decoder.embed_tokens(ids, self.dtype) * self._embed_scale


def _chunks(length: int, chunk: int, images: Sequence[ImagePatches]) -> Iterator[tuple[int, int]]:
    """Cut a prompt into (start, end) of at most `chunk` tokens, never within an image.

    An image longer than a chunk makes its chunk longer.
    """
    spans = _spans(images)
    start = 0
    while start < length:
        end = min(start + max(chunk, 1), length)
        for first, last in spans:
            if first < end < last:
                end = first if first > start else last
                break
        yield start, end
        start = end


def _runs(images: Sequence[ImagePatches]) -> Iterator[list[ImagePatches]]:
    """Pictures of one grid, so many at a time that their patches stay few."""
    grids: dict[tuple[int, int], list[ImagePatches]] = {}
    for image in images:
        grids.setdefault(image.grid, []).append(image)
    for (rows, columns), same in grids.items():
        size = max(1, PATCHES // (rows * columns))
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _spans(images: Sequence[ImagePatches]) -> list[tuple[int, int]]:
    """Where images lie, as (first, last) without overlaps: rows of a batch are merged."""
    spans: list[tuple[int, int]] = []
    for first, last in sorted((i.start, i.start + i.tokens) for i in images):
        if spans and first < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], last))
        else:
            spans.append((first, last))
    return spans
