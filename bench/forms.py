"""Each operation that a device does its own way, against the plain MLX form, on this machine.

    python bench/forms.py --backend auto

Shapes are those of bench/step_cpu.py: hidden 512, canvas 256 behind 512 tokens, 32 experts top 8,
vocabulary 32768. Prints milliseconds and the ratio; both forms take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from dg_mlx.backends import NAMES, Backend, Packed, choose  # before MLX: it loads the fast BLAS
from dg_mlx.config import Quantization

import mlx.core as mx  # isort: skip

HIDDEN, CANVAS, CONTEXT, VOCAB = 512, 256, 512, 32768
EXPERTS, CHOSEN, WIDTH = 32, 8, 128

Case = Callable[[Backend], Any]


def cases(dtype: mx.Dtype) -> dict[str, Case]:
    """One call per operation, on random inputs."""

    def normal(*shape: int, scale: float = 1.0) -> mx.array:
        return (mx.random.normal(shape) * scale).astype(dtype)

    x, logits = normal(CANVAS, HIDDEN), mx.random.normal((1, CANVAS, VOCAB)) * 4
    embedding, gate = normal(VOCAB, HIDDEN, scale=0.05), normal(CANVAS, 4 * HIDDEN)
    gate_up = normal(EXPERTS, 2 * WIDTH, HIDDEN, scale=0.05)
    down = normal(EXPERTS, HIDDEN, WIDTH, scale=0.05)
    expert = mx.argsort(mx.random.normal((CANVAS, EXPERTS)), axis=-1)[:, :CHOSEN]
    weight = mx.softmax(mx.random.normal((CANVAS, CHOSEN)), axis=-1)
    q = normal(1, 8, CANVAS, 64, scale=0.2)
    k, v = (normal(1, 4, CANVAS + CONTEXT, 64) for _ in range(2))
    uniform = mx.random.uniform(shape=(1, CANVAS))
    spec = Quantization(group_size=64, bits=4, mode="affine")
    packed = Packed(*mx.quantize(normal(4 * HIDDEN, HIDDEN), group_size=64, bits=4), spec)
    mx.eval(
        x, logits, embedding, gate, gate_up, down, expert, weight, q, k, v, uniform, *packed[:3]
    )
    return {
        "matmul, head": lambda b: b.matmul(x, Packed(embedding)),
        "matmul, 4 bits": lambda b: b.matmul(x, packed),
        "experts": lambda b: b.experts(x, expert, weight, Packed(gate_up), Packed(down)),
        "gated": lambda b: b.gated(gate, gate),
        "attention": lambda b: b.attention(q, k, v, None),
        "soft_cap": lambda b: b.soft_cap(logits, 30.0),
        "probabilities": lambda b: b.probabilities(logits),
        "vocabulary": lambda b: list(b.vocabulary(logits, 0.6)),
        "sample": lambda b: b.sample(logits, uniform),
    }


def milliseconds(case: Case, backend: Backend) -> float:
    """One call, evaluated."""
    start = time.perf_counter()
    mx.eval(case(backend))
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", choices=NAMES)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    backend, plain = choose(options.backend), Backend()
    device = backend.describe()
    print(f"{device.chip} ({device.name}), MLX {device.mlx_version}")
    print("| operation | plain, ms | here, ms | ratio |")
    print("|---|---|---|---|")
    for name, case in cases(backend.dtype(mx.bfloat16)).items():
        times: dict[Backend, list[float]] = {plain: [], backend: []}
        for _ in range(options.repeats + 1):  # the first warms up
            for form in (plain, backend):
                times[form].append(milliseconds(case, form))
        slow, fast = (statistics.median(times[form][1:]) for form in (plain, backend))
        print(f"| {name} | {slow:.1f} | {fast:.1f} | {slow / fast:.1f} |", flush=True)


if __name__ == "__main__":
    main()
