"""Time of one training step on the CPU: the plain forms, those for the CPU, and torch.

    python bench/train_cpu.py --threads 1 2 --json bench/train_cpu.json

The model is nano's (1.7 million parameters), a batch 16 examples of 192 + 112 tokens, half of them
conditioned on a first pass, without the encoder's loss; a step is the loss and its gradient. Torch
runs the functions of bench/torch_nano.py, and is left out where it is not installed. Every
contender has its own process, on so many cores as it has threads; they hold the same random weights
and take turns, so that whatever else the machine does hits all of them. Their losses must agree.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import processor

BATCH, PROMPT, CANVAS = 16, 192, 112
S, F = "sliding_attention", "full_attention"
TEXT = {
    "model_type": "diffusion_gemma_text",
    "vocab_size": 384,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 32,
    "global_head_dim": 64,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": [S, S, F, S, S, F],
    "sliding_window": 128,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 64,
    "use_bidirectional_attention": "vision",
    "rope_parameters": {
        S: {"rope_type": "default", "rope_theta": 100.0},
        F: {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
    },
    "tie_word_embeddings": True,
}
CONFIG = {
    "model_type": "diffusion_gemma",
    "canvas_length": CANVAS,
    "image_token_id": 380,
    "boi_token_id": 381,
    "eoi_token_id": 382,
    "tie_word_embeddings": True,
    "text_config": TEXT,
    "vision_config": None,
}
PLAIN, OURS, FP32, BF16 = "plain MLX", "CPU forms", "torch fp32", "torch bf16"
CONTENDERS = (PLAIN, OURS, FP32, BF16)

Turns = Iterator[dict[str, Any]]


def value(name: str, shape: tuple[int, ...]) -> Any:
    """The same sane random weights for every contender, by tensor name."""
    import numpy as np

    rng = np.random.default_rng(zlib.crc32(name.removesuffix(".weight").encode()))
    if len(shape) == 1:
        return np.full(shape, 0.65 if "q_norm" in name or "k_norm" in name else 1.0, np.float32)
    gain = 0.3 if "self_conditioning.down" in name else 1.0
    return rng.standard_normal(shape, np.float32) * np.float32(gain / shape[-1] ** 0.5)


def data() -> tuple[Any, Any, Any]:
    """(prompt, answer, noisy canvas) as numpy arrays."""
    import numpy as np

    rng = np.random.default_rng(0)
    prompt, answer, noise = (
        rng.integers(4, 300, (BATCH, length)).astype(np.int32)
        for length in (PROMPT, CANVAS, CANVAS)
    )
    return prompt, answer, np.where(rng.random((BATCH, CANVAS)) < 0.5, noise, answer)


def mlx(ours: bool) -> Turns:
    """Our objective."""
    import_module("dg_mlx")  # loads the fast BLAS, which must come before MLX
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten

    from dg_mlx.backends import Backend
    from dg_mlx.config import ModelConfig
    from dg_mlx.model import DiffusionGemma
    from dg_mlx.train.backend import training_backend
    from dg_mlx.train.batch import Batch
    from dg_mlx.train.loss import Objective, gradients

    mx.set_default_device(mx.Device(mx.DeviceType.cpu))
    backend = training_backend("cpu") if ours else Backend()
    backend.prepare()
    model = DiffusionGemma(ModelConfig.from_dict(CONFIG), backend)
    weights = [(n, mx.array(value(n, a.shape))) for n, a in tree_flatten(model.parameters())]
    model.load_weights(weights)
    prompt, answer, noisy = data()
    batch = Batch(
        context_BS=prompt, context_real_BS=np.ones(prompt.shape, np.bool_), canvas_BL=answer,
        noisy_BL=noisy, conditioned_B=np.arange(BATCH) < BATCH // 2,
        later_BR=np.zeros((BATCH, 0), np.int32), later_real_BR=np.zeros((BATCH, 0), np.bool_),
        media=None,
    )  # fmt: skip
    yield {"version": version("mlx")}
    while True:
        start = time.perf_counter()
        loss, gradient = gradients(model, batch, Objective(encoder_weight=0))
        mx.eval(loss, gradient)
        yield {"ms": (time.perf_counter() - start) * 1e3, "loss": loss.total.item()}


def torch(low: bool, threads: int) -> Turns:
    """nano's functions; `low`: in bf16, with gradients in fp32."""
    import torch
    import torch_nano as model
    from torch.nn import functional

    torch.set_num_threads(threads)
    weights = {
        name: torch.tensor(value(name, shape)).requires_grad_()
        for name, shape in model.shapes().items()
    }
    prompt, answer, noisy = (torch.tensor(array).long() for array in data())
    lengths, half = torch.full((BATCH,), PROMPT), BATCH // 2
    yield {"version": version("torch")}
    while True:
        start = time.perf_counter()
        w = {n: x.bfloat16() for n, x in weights.items()} if low else weights
        cache, _ = model.encode(w, prompt)
        with torch.no_grad():
            past = [(keys[:half], values[:half]) for keys, values in cache]
            zeros = torch.zeros(BATCH, CANVAS, model.HIDDEN, dtype=cache[0][0].dtype)
            logits, _ = model.decode(w, noisy[:half], zeros[:half], lengths[:half], past)
        signal = torch.cat((model.soft_embedding(w, logits), zeros[half:]))
        logits, _ = model.decode(w, noisy, signal, lengths, cache)
        loss = functional.cross_entropy(logits.flatten(0, 1), answer.flatten())
        loss.backward()
        yield {"ms": (time.perf_counter() - start) * 1e3, "loss": loss.item()}
        for weight in weights.values():
            weight.grad = None


def child(name: str, threads: int) -> None:
    """Set up, then one step per line read from stdin."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    turn = mlx(name == OURS) if name in (PLAIN, OURS) else torch(name == BF16, threads)
    print(json.dumps(next(turn)), flush=True)
    for _ in sys.stdin:
        print(json.dumps(next(turn)), flush=True)


class Contender:
    """A process that does one step when asked."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads, self.ms, self.loss = name, threads, [], 0.0
        command = [sys.executable, __file__, "--child", name, "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.version = self._answer()["version"]

    def step(self, keep: bool) -> None:
        """One step; `keep`: it counts."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        found = self._answer()
        self.loss = found["loss"]
        if keep:
            self.ms.append(found["ms"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed; its error is above")
        return json.loads(line)


def main() -> None:
    """Run all contenders and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.threads[0])
        return
    names = CONTENDERS if importlib.util.find_spec("torch") else (PLAIN, OURS)
    contenders = [Contender(name, threads) for threads in args.threads for name in names]
    for repeat in range(args.repeats + 1):
        for contender in contenders:
            contender.step(keep=repeat > 0)
    for contender in contenders:
        contender.close()
        if abs(contender.loss - contenders[0].loss) > (0.05 if contender.name == BF16 else 1e-3):
            raise SystemExit(f"{contender.name}: loss {contender.loss}, not {contenders[0].loss}")
    report = _report(contenders)
    _print(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def _report(contenders: list[Contender]) -> dict[str, Any]:
    base = {c.threads: statistics.median(c.ms) for c in contenders if c.name == OURS}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "shape": {"batch": BATCH, "prompt": PROMPT, "canvas": CANVAS},
        "contenders": [
            {
                "name": c.name,
                "version": c.version,
                "threads": c.threads,
                "median_ms": round(statistics.median(c.ms), 1),
                "min_ms": round(min(c.ms), 1),
                "max_ms": round(max(c.ms), 1),
                "times_cpu_forms": round(statistics.median(c.ms) / base[c.threads], 2),
                "loss": round(c.loss, 5),
            }
            for c in contenders
        ],
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{report['date']}  {report['machine']}  load {report['load_average']:.1f}")
    print(", ".join(f"{key} {value}" for key, value in report["shape"].items()))
    print(f"{'':<12}{'version':>12}{'threads':>9}{'ms/step':>10}{'min':>10}{'max':>10}{'ratio':>8}")
    for row in report["contenders"]:
        print(
            f"{row['name']:<12}{row['version']:>12}{row['threads']:>9}{row['median_ms']:>10.1f}"
            f"{row['min_ms']:>10.1f}{row['max_ms']:>10.1f}{row['times_cpu_forms']:>8.2f}"
        )


if __name__ == "__main__":
    main()
