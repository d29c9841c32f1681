"""Time of one denoising step on the CPU: dg-mlx, the same on a plain MLX install, and mlx-vlm.

    python bench/step_cpu.py --mlx-vlm ~/vlm/bin/python --json bench/step_cpu.json

`--mlx-vlm` is the Python of an environment with mlx-vlm 0.7.10 (`pip install mlx-vlm==0.7.10`) and
the same MLX; without it those two contenders are left out. Every contender has its own process,
because a BLAS is loaded per process; they hold the same random fp32 weights and take turns, so that
whatever else the machine does hits all of them. A step is a forward pass with self-conditioning,
temperature, best guess, entropy, sample, acceptance, new noise and the stop rule. All contenders'
first logits must agree.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from machine import processor

CANVAS, PROMPT, STEPS = 256, 512, 48
BLAS = "libopenblas.so.0"
S, F = "sliding_attention", "full_attention"
TEXT = {
    "model_type": "diffusion_gemma_text",
    "vocab_size": 32768,
    "hidden_size": 512,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_global_key_value_heads": 2,
    "head_dim": 64,
    "global_head_dim": 128,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": [S, S, S, S, S, F, S, F],
    "sliding_window": 1024,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0,
    "num_experts": 32,
    "top_k_experts": 8,
    "moe_intermediate_size": 128,
    "use_bidirectional_attention": "vision",
    "rope_parameters": {
        S: {"rope_type": "default", "rope_theta": 10000.0},
        F: {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
    },
    "tie_word_embeddings": True,
}
CONFIG = {
    "model_type": "diffusion_gemma",
    "canvas_length": CANVAS,
    "image_token_id": 32000,
    "boi_token_id": 32001,
    "eoi_token_id": 32002,
    "tie_word_embeddings": True,
    "text_config": TEXT,
    "vision_config": None,
}
CONTENDERS = ("dg-mlx", "dg-mlx, plain MLX", "mlx-vlm", "mlx-vlm + OpenBLAS")

Turns = Iterator[dict[str, Any]]


def fill(model: Any) -> None:
    """The same sane random weights for every contender, by tensor name."""
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten

    weights = []
    for name, array in tree_flatten(model.parameters()):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if array.ndim == 1:
            # Small queries: hard attention would blow up rounding differences.
            value = rng.uniform(0.8, 1.2, array.shape) * (0.1 if "q_norm" in name else 1.0)
        else:
            gain = 2.5 if "embed_tokens" in name else 0.3 if "self_cond" in name else 1.0
            value = rng.standard_normal(array.shape, np.float32) * gain / array.shape[-1] ** 0.5
        weights.append((name, mx.array(value.astype(np.float32))))
    model.load_weights(weights)
    mx.eval(model.parameters())


def inputs() -> tuple[Any, Any]:
    """(prompt, first canvas)."""
    import mlx.core as mx
    import numpy as np

    rng = np.random.default_rng(0)
    ids = rng.integers(0, TEXT["vocab_size"], (1, PROMPT + CANVAS)).astype(np.int32)
    return mx.array(ids[:, :PROMPT]), mx.array(ids[:, PROMPT:])


def ours(plain: bool) -> Turns:
    """Our model; `plain`: MLX's own BLAS and plain MLX operations."""
    if not plain:
        import_module("dg_mlx")  # loads the fast BLAS, which must come before MLX
    import mlx.core as mx

    from dg_mlx import blas
    from dg_mlx.backends import Backend, choose
    from dg_mlx.config import ModelConfig
    from dg_mlx.model import DiffusionGemma
    from dg_mlx.sampling import SeededNoise, accept, confident, next_canvas, settled

    assert bool(blas.NOTE) == plain, blas.NOTE
    mx.set_default_device(mx.cpu)
    backend = Backend() if plain else choose("cpu")
    model = DiffusionGemma(ModelConfig.from_dict(CONFIG), backend)
    fill(model)
    noise = SeededNoise(0, vocab=TEXT["vocab_size"], canvas=CANVAS, backend=backend)
    prompt, canvas = inputs()
    cache, conditioning, earlier = model.new_cache(), None, []
    start = time.perf_counter()
    model.prefill(prompt, cache)
    prefill = time.perf_counter() - start
    check = model.denoise(canvas, cache)
    yield {"prefill_ms": prefill * 1e3, "check": check[0, :4, :4].tolist()}
    for step in range(1, 10_000):
        start = time.perf_counter()
        logits = model.denoise(canvas, cache, conditioning)
        scaled, guess, entropy, _ = backend.vocabulary(logits, _temperature(step))
        accepted = accept(entropy, 0.1)
        sampled = noise.sample(0, step, scaled)
        canvas = next_canvas(accepted, sampled, noise.renoise(0, step))
        stop = settled(guess, earlier, 1) & confident(entropy, 0.005)
        conditioning = scaled
        mx.eval(canvas, conditioning, guess, entropy, accepted, stop)
        earlier = [guess]
        yield {"ms": (time.perf_counter() - start) * 1e3}


def mlx_vlm(preload: bool) -> Turns:
    """mlx-vlm's model and its own functions for a step with the checkpoint's sampler."""
    if preload:
        ctypes.CDLL(BLAS, ctypes.RTLD_GLOBAL)
    import mlx.core as mx
    from mlx_vlm.generate import diffusion as d
    from mlx_vlm.models.diffusion_gemma import Model, ModelConfig

    mx.set_default_device(mx.cpu)
    model = Model(ModelConfig.from_dict(CONFIG))
    fill(model)
    prompt, canvas = inputs()
    cache, conditioning, history = model.make_cache(), None, []
    start = time.perf_counter()
    model.diffusion_prefill_cache(prompt, cache=cache)
    mx.eval([c.state for c in cache])
    prefill = time.perf_counter() - start
    masks = model.diffusion_decoder_masks(canvas, cache, None)
    table = model.diffusion_prepare_self_conditioning()
    stop_rule = {"stability_threshold": 1, "confidence_threshold": 0.005}

    def forward(canvas: Any, conditioning: Any) -> Any:
        return model.diffusion_decoder_logits(
            canvas, cache=cache, self_conditioning=conditioning, decoder_attention_mask=masks
        )

    check = forward(canvas, None)
    yield {"prefill_ms": prefill * 1e3, "check": check[0, :4, :4].tolist()}
    for step in range(1, 10_000):
        start = time.perf_counter()
        scaled = forward(canvas, conditioning) / _temperature(step)
        guess = mx.argmax(scaled, axis=-1).astype(mx.int32)
        sampled = d._diffusion_sample_canvas(scaled, mx.int32, 1.0)
        entropy = d._diffusion_token_entropy(scaled)
        conditioning = model.diffusion_self_conditioning(scaled, table)
        accepted = d._diffusion_entropy_transfer_mask(entropy, 0.1)
        fresh = d._diffusion_initialize_canvas(1, CANVAS, TEXT["vocab_size"], mx.int32)
        canvas = mx.where(accepted, sampled, fresh)
        mx.eval(canvas, conditioning, guess, entropy, accepted)
        d._diffusion_stable_and_confident(guess, scaled, history, stop_rule)
        yield {"ms": (time.perf_counter() - start) * 1e3}


def _temperature(step: int) -> float:
    return 0.4 + 0.4 * max(STEPS - step + 1, 1) / STEPS


def child(name: str) -> None:
    """Set up, then one step per line read from stdin."""
    turns: dict[str, Callable[[], Turns]] = {
        "dg-mlx": lambda: ours(plain=False),
        "dg-mlx, plain MLX": lambda: ours(plain=True),
        "mlx-vlm": lambda: mlx_vlm(preload=False),
        "mlx-vlm + OpenBLAS": lambda: mlx_vlm(preload=True),
    }
    turn = turns[name]()
    package = "mlx-vlm" if "vlm" in name else "dg-mlx"
    versions = {"version": _version(package), "mlx": _version("mlx")}
    print(json.dumps(next(turn) | versions), flush=True)
    for _ in sys.stdin:
        print(json.dumps(next(turn)), flush=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


class Contender:
    """A process that does one step when asked."""

    def __init__(self, name: str, python: str) -> None:
        self.name, self.ms = name, []
        command = [python, __file__, "--child", name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.setup = self._answer()

    def step(self, keep: bool) -> None:
        """One step; `keep`: it counts."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        milliseconds = self._answer()["ms"]
        if keep:
            self.ms.append(milliseconds)

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
    parser.add_argument("--mlx-vlm", metavar="PYTHON", help="Python with mlx-vlm installed")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    pythons = {name: args.mlx_vlm if "vlm" in name else sys.executable for name in CONTENDERS}
    contenders = [Contender(name, python) for name, python in pythons.items() if python]
    _check_agreement(contenders)
    for repeat in range(args.repeats + 2):
        for contender in contenders:
            contender.step(keep=repeat >= 2)  # the first two warm up: step 1 has no conditioning
    for contender in contenders:
        contender.close()
    report = _report(contenders)
    _print(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def _check_agreement(contenders: list[Contender]) -> None:
    first = [x for row in contenders[0].setup["check"] for x in row]
    for other in contenders[1:]:
        found = [x for row in other.setup["check"] for x in row]
        worst = max(abs(a - b) for a, b in zip(first, found, strict=True))
        if worst > 1e-2:
            raise SystemExit(f"{other.name} computes something else: logits differ by {worst:.2e}")


def _report(contenders: list[Contender]) -> dict[str, Any]:
    base = statistics.median(contenders[0].ms)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "mlx": contenders[0].setup["mlx"],
        "shape": {
            "hidden": TEXT["hidden_size"], "layers": TEXT["num_hidden_layers"],
            "experts": TEXT["num_experts"], "top_k": TEXT["top_k_experts"],
            "vocabulary": TEXT["vocab_size"], "canvas": CANVAS, "prompt": PROMPT,
            "dtype": "float32",
        },
        "contenders": [
            {
                "name": c.name,
                "version": c.setup["version"],
                "median_ms": round(statistics.median(c.ms), 1),
                "min_ms": round(min(c.ms), 1),
                "max_ms": round(max(c.ms), 1),
                "prefill_ms": round(c.setup["prefill_ms"], 1),
                "times_dg_mlx": round(statistics.median(c.ms) / base, 2),
            }
            for c in contenders
        ],
    }  # fmt: skip


def _print(report: dict[str, Any]) -> None:
    print(
        f"{report['date']}  {report['machine']}  MLX {report['mlx']}  "
        f"load {report['load_average']:.1f}"
    )
    print(", ".join(f"{key} {value}" for key, value in report["shape"].items()))
    print(f"{'':<22}{'version':>9}{'ms/step':>10}{'min':>10}{'max':>10}{'prefill':>10}{'ratio':>8}")
    for row in report["contenders"]:
        print(
            f"{row['name']:<22}{row['version']:>9}{row['median_ms']:>10.1f}{row['min_ms']:>10.1f}"
            f"{row['max_ms']:>10.1f}{row['prefill_ms']:>10.1f}{row['times_dg_mlx']:>8.2f}"
        )


if __name__ == "__main__":
    main()
