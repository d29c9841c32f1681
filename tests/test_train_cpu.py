"""The CPU's forms of what gradients go through, against the plain forms under MLX's autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten
from test_train_loss import a_batch

from dg_mlx.backends import Backend, Frozen, Packed
from dg_mlx.config import ModelConfig, Quantization
from dg_mlx.model import DiffusionGemma
from dg_mlx.model.lora import EXPERTS, TARGETS, LoraSettings, adapt, adapters
from dg_mlx.train import cpu
from dg_mlx.train import loss as loss_module
from dg_mlx.train.backend import training_backend
from dg_mlx.train.batch import Batch
from dg_mlx.train.cpu import CpuTraining
from dg_mlx.train.loss import Objective, gradients
from dg_mlx.weights import load

WORST = 1e-5
"""Largest relative difference: norm of the difference over the norm."""
VANISHING = 0.05
"""A gradient's norm below which rounding decides: a norm follows the last layer's scalar, so its
true gradient is 0. The others' are around 1."""

S, F = tiny.S, tiny.F
NANO = tiny.config(
    vocab_size=384, hidden_size=128, intermediate_size=256, num_hidden_layers=6, head_dim=32,
    global_head_dim=64, layer_types=[S, S, F, S, S, F], sliding_window=128,
    moe_intermediate_size=64, rope_parameters={
        S: {"rope_type": "default", "rope_theta": 100.0},
        F: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e4},
    },
) | {"canvas_length": 112, "vision_config": None}  # fmt: skip
SMALL = tiny.config()

Operation = Callable[..., mx.array]


@pytest.fixture(scope="module")
def ours() -> CpuTraining:
    return CpuTraining()


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)) * scale


def agree(mine: Operation, plain: Operation, inputs: Sequence[mx.array]) -> None:
    """The values and the gradients of a sum with random weights."""

    def found(operation: Operation) -> list[mx.array]:
        y = operation(*inputs)
        dy = normal(*y.shape, seed=99)
        value, gradient = mx.vjp(operation, list(inputs), [dy])
        return [y, *value, *gradient]

    for index, (a, b) in enumerate(zip(found(mine), found(plain), strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype, index
        assert distance(a, b) < WORST, index


def distance(a: mx.array, b: mx.array) -> float:
    first, second = np.array(a, np.float64), np.array(b, np.float64)
    return float(np.linalg.norm(first - second) / max(np.linalg.norm(second), VANISHING))


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("rows", [5, 3000])
def test_matmul(ours: CpuTraining, transpose: bool, rows: int) -> None:
    x, w = normal(2, rows, 96 if transpose else 128, seed=1), normal(128, 96, seed=2)

    def product(backend: Backend) -> Operation:
        return lambda x, w: backend.matmul(x, Packed(w), transpose=transpose)

    def frozen(backend: Backend) -> Operation:
        return lambda x: backend.matmul(x, Frozen(w), transpose=transpose)

    agree(product(ours), product(Backend()), [x, w])
    agree(frozen(ours), frozen(Backend()), [x])


@pytest.mark.parametrize("transpose", [True, False])
def test_matmul_of_a_quantised_weight(ours: CpuTraining, transpose: bool) -> None:
    spec = Quantization(group_size=32, bits=4, mode="affine")
    packed = Packed(*mx.quantize(normal(128, 96, seed=2), group_size=32, bits=4), spec)
    x = normal(40, 96 if transpose else 128, seed=1)

    def run(backend: Backend) -> Operation:
        return lambda x: backend.matmul(x, packed, transpose=transpose)

    agree(run(ours), run(Backend()), [x])


@pytest.mark.parametrize("shape", [(7, 5), (3, 200, 256)])
def test_gated(ours: CpuTraining, shape: tuple[int, ...]) -> None:
    agree(ours.gated, Backend().gated, [normal(*shape, seed=1, scale=2), normal(*shape, seed=2)])


@pytest.mark.parametrize("tokens", [1, 9, 2000])
def test_experts(ours: CpuTraining, tokens: int) -> None:
    """Of which some are chosen by nobody."""
    expert = mx.argsort(normal(tokens, 4, seed=5), axis=-1)[:, :2].astype(mx.uint32)
    inputs = [
        normal(tokens, 48, seed=1), mx.softmax(normal(tokens, 2, seed=2), axis=-1),
        normal(6, 64, 48, seed=3, scale=0.2), normal(6, 48, 32, seed=4, scale=0.2),
    ]  # fmt: skip

    def mixture(backend: Backend) -> Operation:
        return lambda x, weight, gate_up, down: backend.experts(
            x, expert, weight, Packed(gate_up), Packed(down)
        )

    agree(mixture(ours), mixture(Backend()), inputs)


def seen(batch: int, heads: int, queries: int, keys: int) -> mx.array:
    """A random mask, with one key that all see."""
    return (normal(batch, heads, queries, keys, seed=8) > 0) | (mx.arange(keys) == 3)


def window(queries: int, keys: int, size: int) -> mx.array:
    behind = (mx.arange(queries) + keys - queries)[:, None] - mx.arange(keys)
    return ((behind >= 0) & (behind < size))[None, None]


@pytest.mark.parametrize("scores", [1, 1 << 10, cpu.SCORES])
@pytest.mark.parametrize(
    "mask",
    [None, "causal", seen(1, 1, 150, 190), seen(2, 1, 150, 190), seen(2, 4, 150, 190),
     seen(2, 1, 1, 190), window(150, 190, 20)],
    ids=["none", "causal", "shared", "by row", "by head", "padding", "window"],
)  # fmt: skip
def test_attention(
    ours: CpuTraining, mask: cpu.Mask, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "SCORES", scores)
    queries = normal(2, 4, 150, 16, seed=1, scale=0.5)
    keys, values = normal(2, 2, 190, 16, seed=2), normal(2, 2, 190, 24, seed=3)

    def attend(backend: Backend) -> Operation:
        return lambda q, k, v: backend.attention(q, k, v, mask)

    agree(attend(ours), attend(Backend()), [queries, keys, values])


def test_vocabulary(ours: CpuTraining) -> None:
    logits = normal(3, 70, 300, scale=20)
    agree(lambda x: ours.soft_cap(x, 30.0), lambda x: Backend().soft_cap(x, 30.0), [logits])
    agree(ours.probabilities, Backend().probabilities, [logits * 0.1])


def test_other_types_take_the_plain_forms(ours: CpuTraining) -> None:
    x = normal(4, 8).astype(mx.bfloat16)
    q = normal(1, 2, 4, 8).astype(mx.bfloat16)
    w, plain = Packed(normal(8, 8).astype(mx.bfloat16)), Backend()
    pairs = [
        (ours.matmul(x, w), plain.matmul(x, w)),
        (ours.gated(x, x), plain.gated(x, x)),
        (ours.attention(q, q, q, None), plain.attention(q, q, q, None)),
        (ours.soft_cap(x, 2.0), plain.soft_cap(x, 2.0)),
        (ours.probabilities(x), plain.probabilities(x)),
    ]
    for mine, other in pairs:
        assert mine.dtype == other.dtype and mx.array_equal(mine, other)


# The whole loss --------------------------------------------------------------------------------


def nano_batch() -> Batch:
    rng = np.random.default_rng(0)
    context, canvas, noisy = (
        rng.integers(4, 300, (3, length)).astype(np.int32) for length in (150, 112, 112)
    )
    real = np.arange(150) >= np.array([0, 40, 7])[:, None]
    none = np.zeros((3, 0), np.int32)
    return Batch(
        context_BS=context, context_real_BS=real, canvas_BL=canvas, noisy_BL=noisy,
        conditioned_B=np.array([True, False, True]), later_BR=none,
        later_real_BR=none.astype(np.bool_), media=None,
    )  # fmt: skip


def calm(data: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights whose attention is soft: a hard one would blow up rounding differences."""
    arrays = tiny.tensors(data)
    for name in arrays:
        if name.endswith("q_norm.weight"):
            arrays[name] *= np.float32(1 / arrays[name].size ** 0.5)
    return arrays


@pytest.mark.parametrize(("name", "encoder_weight"), [("tiny", 0.0), ("tiny", 1.0), ("nano", 0.0)])
@pytest.mark.parametrize(
    "lora", [None, (*TARGETS,), (*TARGETS, EXPERTS)], ids=["plain", "lora", "lora with experts"]
)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_loss_and_gradients(
    name: str,
    checkpoint: bool,
    lora: tuple[str, ...] | None,
    encoder_weight: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, batch = (SMALL, a_batch()) if name == "tiny" else (NANO, nano_batch())
    folder = tiny.write(tmp_path / "checkpoint", data, calm(data))
    config = ModelConfig.load(folder)
    if checkpoint:
        monkeypatch.setattr(loss_module, "LOGITS_BYTES", 5 * 4 * data["text_config"]["vocab_size"])
    found = []
    for backend in (CpuTraining(), Backend()):
        model = DiffusionGemma(config, backend)
        load(model, config, folder, mx.float32)
        if lora is not None:
            adapt(model, LoraSettings(rank=3, alpha=5, targets=lora))
            for index, (_, module) in enumerate(adapters(model)):
                module.lora_b = normal(*module.lora_b.shape, seed=index, scale=0.05)
        objective = Objective(encoder_weight=encoder_weight)
        value, gradient = gradients(model, batch, objective, checkpoint=checkpoint)
        found.append((value.total.item(), dict(tree_flatten(gradient))))
    (mine, gradient), (plain, expected) = found
    assert mine == pytest.approx(plain, rel=WORST)
    assert gradient.keys() == expected.keys()
    for key, array in expected.items():
        assert distance(gradient[key], array) < WORST, key


def test_the_form_follows_the_device() -> None:
    assert type(training_backend("cpu")) is CpuTraining
    assert type(training_backend("metal")) is type(training_backend("cuda")) is Backend
