"""transformers' own DiffusionGemma behind a numpy interface, to measure ours against.

torch is imported only when a `Reference` is made: nothing else in dg_mlx needs it.

Legend of array names: B batch, S prompt, L canvas, V vocab, P patches, C values of a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError, MissingPackageError
from .model import ImagePatches, VisionAttention
from .settings import GenerationSettings
from .shared_noise import Clock, SharedNoise


@dataclass(kw_only=True)
class Generation:
    """What the reference wrote."""

    ids: list[int]
    """Cut after the first end token and at `max_new_tokens`."""
    guesses: list[NDArray[np.int64]] = field(default_factory=list)
    """The best guess after every step of every block."""
    steps_per_block: list[int] = field(default_factory=list)


class Reference:
    """A checkpoint run by transformers, on the CPU, with eager attention.

    Raises `MissingPackageError` without torch, `CheckpointError` when tensors do not fit.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str = "float32",
        vision_attention: VisionAttention = "sliding",
    ) -> None:
        try:
            self._torch: Any = import_module("torch")
        except ImportError:
            raise MissingPackageError(
                'comparing with transformers needs torch; run: pip install "dg-mlx[parity]"'
            ) from None
        transformers: Any = import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        model, info = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(
            folder,
            dtype=getattr(self._torch, dtype),
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
        bad = sorted({*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]})
        if bad:
            raise CheckpointError(
                f"transformers does not find these tensors as it wants them in {folder}: "
                f"{', '.join(bad[:6])}. Compare with the original checkpoint."
            )
        self.model: Any = model.eval()
        self._cache_class: Any = transformers.DynamicCache
        self._vision_attention = vision_attention
        self._image_token: int = self.model.config.image_token_id

    def new_cache(self) -> Any:
        """An empty cache."""
        return self._cache_class(config=self.model.config.get_text_config(decoder=True))

    def prefill(
        self,
        ids_BS: NDArray[Any],
        cache: Any,
        *,
        images: Sequence[ImagePatches] = (),
        mask_BS: NDArray[np.bool_] | None = None,
    ) -> None:
        """Encode ids into the cache; `mask_BS` covers the cached ids too. Also commits a block."""
        torch, encoder = self._torch, self.model.model.encoder
        ids = torch.tensor(np.asarray(ids_BS, dtype=np.int64))
        start = int(cache.get_seq_length())
        positions = torch.arange(start, start + ids.shape[1])[None]
        if mask_BS is None:
            mask_BS = np.ones((ids.shape[0], start + ids.shape[1]), dtype=np.bool_)
        media = self._media(ids, images)
        with torch.no_grad(), self._masks(ids):
            masks = encoder.create_masks_for_generate(
                config=self.model.config,
                inputs_embeds=torch.empty((*ids.shape, 0), dtype=self.model.dtype),
                attention_mask=torch.tensor(mask_BS),
                past_key_values=cache,
                position_ids=positions,
                mm_token_type_ids=media.get("mm_token_type_ids"),
            )
            encoder(
                input_ids=ids,
                attention_mask=masks,
                past_key_values=cache,
                position_ids=positions,
                **media,
            )

    def denoise(
        self,
        canvas_BL: NDArray[Any],
        cache: Any,
        *,
        self_conditioning_BLV: NDArray[np.float32] | None = None,
        mask_BS: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Soft-capped logits of one pass; self-conditioning takes temperature-scaled logits."""
        torch = self._torch
        canvas = torch.tensor(np.asarray(canvas_BL, dtype=np.int64))
        start = int(cache.get_seq_length())
        mask = np.ones((canvas.shape[0], start), dtype=np.bool_) if mask_BS is None else mask_BS
        mask = np.concatenate([mask, np.ones(canvas.shape, dtype=np.bool_)], axis=1)
        earlier = self_conditioning_BLV
        with torch.no_grad():
            masks = self.model.model.decoder.create_diffusion_decoder_attention_mask(
                config=self.model.config,
                inputs_embeds=torch.empty((*canvas.shape, 0), dtype=self.model.dtype),
                past_key_values=cache,
                decoder_attention_mask=torch.tensor(mask),
            )
            logits = self.model(
                decoder_input_ids=canvas,
                self_conditioning_logits=None
                if earlier is None
                else torch.tensor(np.asarray(earlier)).to(self.model.dtype),
                decoder_attention_mask=masks,
                past_key_values=cache,
                decoder_position_ids=torch.arange(start, start + canvas.shape[1])[None],
            ).logits
        return np.asarray(logits.float().numpy(), dtype=np.float32)

    def vision(self, images: Sequence[ImagePatches]) -> NDArray[np.float32]:
        """Features of all pictures, one row per soft token, as they replace the embeddings."""
        pixels, positions = self._pixels(images)
        with self._torch.no_grad():
            features = self.model.model.encoder.get_image_features(
                pixels, positions, return_dict=True
            ).pooler_output
        return np.asarray(features.float().numpy(), dtype=np.float32)

    @contextmanager
    def recorded(self, stack: Literal["encoder", "decoder"]) -> Iterator[list[NDArray[np.float32]]]:
        """Collect what enters the first layer, then what leaves every layer."""
        parts = self.model.model
        layers = (parts.encoder.language_model if stack == "encoder" else parts.decoder).layers
        seen: list[NDArray[np.float32]] = []

        def keep(x: Any) -> None:
            seen.append(x.float().numpy().copy())

        hooks = [layers[0].register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))]
        hooks += [layer.register_forward_hook(lambda _, __, out: keep(out)) for layer in layers]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def generate(
        self,
        ids: Sequence[int],
        *,
        settings: GenerationSettings,
        noise: SharedNoise,
        images: Sequence[ImagePatches] = (),
    ) -> Generation:
        """transformers' own `generate`, with all randomness taken from `noise`."""
        torch = self._torch
        prompt = torch.tensor([list(ids)])
        clock = Clock(noise, torch)
        prepare = type(self.model)._prepare_sampler
        with (
            self._masks(prompt),
            mock.patch.object(torch, "multinomial", clock.multinomial),
            # For CUDA graphs only; here it would import torch's compiler, for seconds.
            mock.patch.object(torch.compiler, "cudagraph_mark_step_begin"),
            mock.patch.object(
                self.model, "_prepare_sampler", lambda c: clock.drive(prepare(self.model, c))
            ),
        ):
            output = self.model.generate(
                prompt,
                generation_config=self._settings(settings),
                streamer=clock,
                **self._media(prompt, images),
            )
        written = [int(i) for i in output.sequences[0, prompt.shape[1] :]]
        written = written[: settings.max_new_tokens]
        ends = [i for i, token in enumerate(written) if token in settings.eos_token_id]
        return Generation(
            ids=written[: ends[0] + 1] if ends else written,
            guesses=clock.guesses,
            steps_per_block=clock.steps,
        )

    def _settings(self, settings: GenerationSettings) -> Any:
        module = import_module("transformers.models.diffusion_gemma.generation_diffusion_gemma")
        return module.DiffusionGemmaGenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            max_denoising_steps=settings.max_denoising_steps,
            sampler_config=module.EntropyBoundSamplerConfig(
                entropy_bound=float(settings.entropy_bound)
            ),
            t_min=settings.t_min,
            t_max=settings.t_max,
            stability_threshold=settings.stability_threshold,
            confidence_threshold=float(settings.confidence_threshold),
            pad_token_id=0,
            # None would fall back to the checkpoint's own; this id is never written.
            eos_token_id=list(settings.eos_token_id) or [self.model.config.text_config.vocab_size],
        )

    def _media(self, ids: Any, images: Sequence[ImagePatches]) -> dict[str, Any]:
        if not images:
            return {}
        pixels, positions = self._pixels(images)
        return {
            "pixel_values": pixels,
            "image_position_ids": positions,
            "mm_token_type_ids": (ids == self._image_token).long(),
        }

    def _pixels(self, images: Sequence[ImagePatches]) -> tuple[Any, Any]:
        """Patches padded to the longest picture, and their (x, y), -1 where padded."""
        longest = max(i.pixels_PC.shape[0] for i in images)
        width = images[0].pixels_PC.shape[1]
        pixels = np.zeros((len(images), longest, width), np.float32)
        positions = np.full((len(images), longest, 2), -1, np.int64)
        for row, image in enumerate(images):
            rows, columns = image.grid
            count = rows * columns
            pixels[row, :count] = np.asarray(image.pixels_PC)
            positions[row, :count, 0] = np.tile(np.arange(columns), rows)
            positions[row, :count, 1] = np.repeat(np.arange(rows), columns)
        return self._torch.tensor(pixels), self._torch.tensor(positions)

    @contextmanager
    def _masks(self, ids: Any) -> Iterator[None]:
        """With "sliding": prefill masks by Google's rule instead of the class's own."""
        encoder = self.model.model.encoder
        own = encoder.create_masks_for_generate

        def create(**kwargs: Any) -> Any:
            empty = kwargs["past_key_values"].get_seq_length() == 0
            if kwargs.get("mm_token_type_ids") is None or not empty:
                return own(**kwargs)
            return self._google_masks(ids.numpy(), kwargs["attention_mask"].numpy())

        if self._vision_attention == "all":
            yield
            return
        with mock.patch.object(encoder, "create_masks_for_generate", create):
            yield

    def _google_masks(self, ids_BS: NDArray[Any], mask_BS: NDArray[np.bool_]) -> dict[str, Any]:
        """window AND (causal OR same picture) on sliding layers, causal on full ones.

        Source: google-deepmind/gemma, gemma/gm/nn: the window is |distance| < window.
        """
        allowed = vision_masks(
            ids_BS == self._image_token, self.model.config.text_config.sliding_window
        )
        least = self._torch.finfo(self.model.dtype).min
        masks = {}
        for kind, allowed_BSS in allowed.items():
            seen = self._torch.tensor(allowed_BSS & mask_BS[:, None, :])[:, None]
            masks[kind] = self._torch.where(seen, 0.0, least).to(self.model.dtype)
        return masks


def vision_masks(image_BS: NDArray[np.bool_], window: int) -> dict[str, NDArray[np.bool_]]:
    """Who sees whom in a whole prefill, by layer type: (B, S query, S key), True = seen."""
    at = np.arange(image_BS.shape[1])
    causal = at[None, :] <= at[:, None]
    near = np.abs(at[None, :] - at[:, None]) < window
    starts_BS = image_BS & ~np.pad(image_BS, ((0, 0), (1, 0)))[:, :-1]
    run_BS = np.where(image_BS, np.cumsum(starts_BS, axis=1), 0)
    same_BSS = (run_BS[:, :, None] == run_BS[:, None, :]) & image_BS[:, :, None]
    return {
        "full_attention": np.broadcast_to(causal, same_BSS.shape),
        "sliding_attention": near & (causal | same_BSS),
    }
