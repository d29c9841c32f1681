"""NVIDIA GPUs, through MLX's CUDA backend."""

from __future__ import annotations

from .gpu import Gpu


class Cuda(Gpu):
    """One NVIDIA GPU."""

    name = "cuda"
    chip = "NVIDIA GPU"
    memory_key = "total_memory"
