"""What only a machine with Metal or CUDA can show: `python -m pytest -m gpu` there."""

from __future__ import annotations

import numpy as np
import pytest

import dg_mlx
from dg_mlx.backends import choose

pytestmark = pytest.mark.gpu
PUZZLE = "A 1.3.\nB .41.\nC ....\nD ..21"


def test_every_special_form_matches_the_plain_one():
    """A form that does not is replaced with a warning, which is an error here."""
    assert choose("auto").name in ("metal", "cuda")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nano_computes_what_the_cpu_does(dtype):
    device, cpu = dg_mlx.load("nano", dtype=dtype), dg_mlx.load("nano", backend="cpu")
    assert device.backend.name != "cpu"
    firsts = [
        next(e for e in engine.stream(PUZZLE, noise=_Same()) if isinstance(e, dg_mlx.Draft))
        for engine in (device, cpu)
    ]
    tolerance = 1e-2 if dtype == "float32" else 0.3
    np.testing.assert_allclose(firsts[0].entropy, firsts[1].entropy, atol=tolerance)


def test_nano_solves_a_puzzle():
    assert dg_mlx.load("nano").generate(PUZZLE).text == "A 1234\nB 3412\nC 2143\nD 4321"


class _Same:
    """Noise without a random generator: the same ids on every device."""

    def initial(self, block):
        import mlx.core as mx

        return (mx.arange(112)[None] * 37 + block) % 384

    def sample(self, block, step, scaled_logits_BLV):
        return scaled_logits_BLV.argmax(axis=-1)

    def renoise(self, block, step):
        return self.initial(block + step)
