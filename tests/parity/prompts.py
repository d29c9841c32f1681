"""Prompts for both sides: ids, and pictures as random patches."""

from __future__ import annotations

import hashlib

import numpy as np

from dg_mlx.model.media import ImagePatches, Media
from dg_mlx.processor.prompt import Prompt

from .checkpoints import Shape

Grid = tuple[int, int]
"""Rows and columns of patches; both multiples of 3."""


def text(shape: Shape, count: int, seed: int = 0) -> list[int]:
    """Random ids, none of them a picture's."""
    return np.random.default_rng(seed).integers(0, shape.image_token, count).tolist()


def prompt(shape: Shape, parts: list[int | Grid], seed: int = 0) -> Prompt:
    """Text of so many ids, or a picture of this grid, one after the other."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    images = []
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(0, shape.image_token, part).tolist()
            continue
        rows, columns = part
        tokens = rows * columns // 9
        # Whole numbers of 1/255, as pixels are; golden files compress better with them.
        pixels = rng.integers(0, 256, (rows * columns, 3 * shape.patch**2)) / np.float32(255)
        ids.append(shape.begin_image)
        images.append(
            ImagePatches(
                pixels_PC=pixels.astype(np.float32),
                grid=part,
                start=len(ids),
                tokens=tokens,
                row=0,
                key=hashlib.sha256(pixels.tobytes()).hexdigest(),
            )
        )
        ids += [shape.image_token] * tokens + [shape.end_image]
    return Prompt(ids=ids, media=Media(images=tuple(images)) if images else None)
