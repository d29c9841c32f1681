"""The operations in forms that gradients go through.

Devices' own forms may have no gradient (numpy's have none), so a model is trained with the plain
ones, and on a CPU with numpy's that bring their gradients.
"""

from __future__ import annotations

from dg_mlx.backends import Backend


def training_backend(name: str) -> Backend:
    """The form to train with where `name` is the device's backend ("cpu", "metal", "cuda")."""
    if name != "cpu":
        return Backend()
    from .cpu import CpuTraining

    return CpuTraining()
