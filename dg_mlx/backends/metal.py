"""Apple silicon: unified memory, MLX's Metal kernels.

The plain forms of `base` are written for Metal: sorted `gather_mm`/`gather_qmm` for the experts and
the fused attention. What differs is how the process is set up.
"""

from __future__ import annotations

from importlib.metadata import version

import mlx.core as mx

from .base import Backend, Device


class Metal(Backend):
    """The GPU of a Mac."""

    name = "metal"

    def describe(self) -> Device:
        """Chip, the memory that the GPU may use, MLX version."""
        info = mx.device_info()
        return Device(
            name=self.name,
            chip=str(info.get("device_name", info.get("architecture", "Apple GPU"))),
            memory_bytes=int(info["max_recommended_working_set_size"]),
            mlx_version=version("mlx"),
        )

    def prepare(self) -> None:
        """Use the GPU, and wire its memory so that weights are not paged out between steps."""
        mx.set_default_device(mx.Device(mx.DeviceType.gpu))
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
