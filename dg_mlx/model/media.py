"""Pictures that go with a prompt, and where they go.

Legend of array names: P patches, C values of one patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImagePatches:
    """One picture, or one frame of a video, cut into patches."""

    pixels_PC: NDArray[np.float32]
    """Row by row over the grid, no padding; C = patch_size² pixels x 3 colours, in 0..1."""
    grid: tuple[int, int]
    """Rows and columns, in patches; both divisible by the pooling kernel."""
    start: int
    """Index in the prompt's ids of its first soft token."""
    tokens: int
    """How many soft tokens it takes: rows x columns / pooling kernel²."""
    row: int = 0
    """Which prompt of the batch it belongs to."""
    key: str
    """SHA-256 of the patches: equal pictures have equal keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """All pictures of a prompt, in the order in which they appear."""

    images: tuple[ImagePatches, ...]
