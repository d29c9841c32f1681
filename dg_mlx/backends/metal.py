"""Apple silicon: unified memory, MLX's Metal kernels."""

from __future__ import annotations

import mlx.core as mx

from .gpu import Gpu


class Metal(Gpu):
    """The GPU of a Mac."""

    name = "metal"
    chip = "Apple GPU"
    memory_key = "max_recommended_working_set_size"

    def prepare(self) -> None:
        """Use the GPU, and wire its memory so that weights are not paged out between steps."""
        super().prepare()
        mx.set_wired_limit(int(mx.device_info()[self.memory_key]))
