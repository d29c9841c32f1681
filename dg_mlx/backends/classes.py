"""The vocabulary in classes of tokens.

Legend: V vocabulary, C classes.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


class Classes:
    """The vocabulary in classes, none of them empty, and how to sum over each.

    Classes are cut into runs of `RUN` tokens, and their sums again, so that every device can do it
    with gathers of one shape.
    """

    RUN = 64

    def __init__(self, class_V: NDArray[np.int32]) -> None:
        self.count = int(class_V.max()) + 1
        self.order = np.argsort(class_V, kind="stable")
        """(V,): tokens by class."""
        sizes = np.bincount(class_V, minlength=self.count)
        assert sizes.all()
        self.starts = np.cumsum(sizes) - sizes
        """(C,): where each class begins in `order`."""
        self.class_V = mx.array(class_V)
        self.levels: list[tuple[mx.array, mx.array]] = []
        """(index (runs, RUN) into what is below, which of them are real)."""
        below = self.order
        while self.levels == [] or len(below) > self.count:
            runs = -(-sizes // self.RUN)
            first = np.repeat(np.cumsum(sizes) - sizes, runs)
            number = np.arange(runs.sum()) - np.repeat(np.cumsum(runs) - runs, runs)
            at = (first + number * self.RUN)[:, None] + np.arange(self.RUN)
            real = at < np.repeat(np.cumsum(sizes), runs)[:, None]
            index = below[np.where(real, at, at[:, :1])]
            self.levels.append((mx.array(index.astype(np.int32)), mx.array(real)))
            below, sizes = np.arange(len(at)), runs

    def members(self, number: int) -> NDArray[np.int64]:
        """The tokens of a class."""
        stop = self.starts[number + 1] if number + 1 < self.count else len(self.order)
        return self.order[self.starts[number] : stop]
