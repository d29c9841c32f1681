"""NVIDIA GPUs, through MLX's CUDA backend."""

from __future__ import annotations

from importlib.metadata import version

import mlx.core as mx

from .base import Backend, Device


class Cuda(Backend):
    """One NVIDIA GPU."""

    name = "cuda"

    def describe(self) -> Device:
        """GPU, its memory, MLX version."""
        info = mx.device_info()
        return Device(
            name=self.name,
            chip=str(info.get("device_name", "NVIDIA GPU")),
            memory_bytes=int(info.get("memory_size", info.get("total_memory", 0))),
            mlx_version=version("mlx"),
        )

    def prepare(self) -> None:
        """Use the GPU."""
        mx.set_default_device(mx.Device(mx.DeviceType.gpu))
