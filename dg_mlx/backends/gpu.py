"""What Metal and CUDA have in common: MLX's own kernels, and elementwise chains worth fusing."""

from __future__ import annotations

from importlib.metadata import version

import mlx.core as mx

from .base import Backend, Device


class Gpu(Backend):
    """A GPU that MLX drives. The plain forms of `base` are written for it."""

    chip = "GPU"
    memory_key = "memory_size"
    """The entry of MLX's device info that says how much memory a model may use."""

    def __init__(self) -> None:
        self._fused = mx.compile(super().gated, shapeless=True)

    def describe(self) -> Device:
        """Chip, the memory that the GPU may use, MLX version."""
        info = mx.device_info()
        return Device(
            name=self.name,
            chip=str(info.get("device_name", self.chip)),
            memory_bytes=int(info.get(self.memory_key, 0)),
            mlx_version=version("mlx"),
        )

    def activate(self) -> None:
        """Make the GPU the default device."""
        mx.set_default_device(mx.Device(mx.DeviceType.gpu))

    def gated(self, gate: mx.array, up: mx.array) -> mx.array:
        """One kernel instead of seven."""
        y: mx.array = self._fused(gate, up)
        return y
