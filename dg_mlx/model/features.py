"""What the vision tower said of pictures, kept by what the pictures are."""

from __future__ import annotations

from collections import OrderedDict

import mlx.core as mx

LIMIT = 1 << 28
"""Bytes that are kept; a picture of the default size takes 1.6 MB of the published checkpoint."""


class Features:
    """Soft tokens (T, H) by picture; those used longest ago go first."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, mx.array] = OrderedDict()

    def get(self, key: str) -> mx.array | None:
        """Those of a picture (`ImagePatches.key`), if they are kept."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: str, features_TH: mx.array) -> None:
        """Keep them."""
        self._kept[key] = features_TH
        while self.nbytes > self._limit and len(self._kept) > 1:
            self._kept.popitem(last=False)

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(array.nbytes for array in self._kept.values())
