"""What a constraint adds to a step, at the published vocabulary and canvas, and to compile.

    python bench/constraint.py REFERENCE [--steps 3] [--json FILE]

REFERENCE is a folder with the published config.json and tokenizer. Logits are random. The share
that a constraint adds is against what every step has besides the layers: the products with the
embedding, at the published widths, and the pass over the vocabulary. So it is overstated here.
Compiling and reading what was compiled are in processor time, as they use one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import mlx.core as mx
import numpy as np

from dg_mlx.backends import Packed, choose
from dg_mlx.canvas.constraint import Constraint, Guide, Guides, Vocabulary
from dg_mlx.canvas.hold import Answer, Held
from dg_mlx.canvas.lattice import Lattice
from dg_mlx.config import ModelConfig
from dg_mlx.processor import Processor
from dg_mlx.sampling import SeededNoise
from dg_mlx.settings import GenerationSettings

CASES: dict[str, Any] = {
    "yes or no": Constraint.choices(["yes", "no"]),
    "a date": Constraint.regex(r"\d{4}-\d{2}-\d{2}"),
    "typical schema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "email": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
            "kind": {"enum": ["person", "company", "other"]},
            "active": {"type": "boolean"},
            "address": {
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
                "required": ["street", "city"],
            },
        },
        "required": ["name", "age", "email", "tags", "kind", "active", "address"],
    },
    "any JSON": None,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--canvas", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = ModelConfig.load(options.reference)
    settings = GenerationSettings.load(options.reference)
    backend = choose()
    processor = Processor(options.reference, config)
    started = perf_counter()
    spellings = processor.spellings
    print(f"{len(spellings):,} tokens spelled in {perf_counter() - started:.2f} s")
    vocabulary = Vocabulary(pieces=spellings, ends=settings.eos_token_id, opens=None, closes=None)
    opened_s = _median(lambda: Guides(vocabulary, options.reference), options.steps)
    print(f"a store of compiled constraints is opened in {opened_s * 1e3:.1f} ms")
    shape = (1, options.canvas, config.text.vocab_size)
    logits = mx.random.normal(shape, key=mx.random.key(1)) * 4
    mx.eval(logits)
    floor = _median(lambda: _plain(backend, logits), options.steps)
    head = _median(_head(backend, config, options.canvas), options.steps)
    print(
        f"vocabulary pass and sample {floor * 1e3:.0f} ms; head and self-conditioning of the "
        f"published widths {head * 1e3:.0f} ms"
    )
    found = []
    for name, what in CASES.items():
        row = _measure(name, what, vocabulary, backend, settings, logits, options.steps)
        row["added_share"] = round((row["step_ms"] / 1e3 - floor) / (floor + head), 3)
        found.append(row)
        print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _measure(
    name: str,
    what: Any,
    vocabulary: Vocabulary,
    backend: Any,
    settings: Any,
    logits: Any,
    steps: int,
) -> dict[str, Any]:
    if not isinstance(what, Constraint):
        what = Constraint.any_json() if what is None else Constraint.schema(what)
    with TemporaryDirectory() as empty:
        # Kept in memory and on disk: so one that knows nothing, and one that reads, for every run.
        fresh = [Guides(vocabulary, Path(empty, str(run))) for run in range(steps)]
        again = [Guides(vocabulary, Path(empty, "0")) for _ in range(steps)]
        compile_s = _median(lambda: fresh.pop(0).of(what), steps, process_time)
        from_disk_s = _median(lambda: again.pop().of(what), steps, process_time)
        guide = Guides(vocabulary, Path(empty, "0")).of(what)
    canvas, vocab = logits.shape[1:]
    held = settings.replace(max_new_tokens=canvas, canvas_length=canvas)
    block = Answer(Held(guide=guide), backend, held, canvas).block(0)
    noise = SeededNoise(1, vocab=vocab, canvas=canvas, backend=backend)

    def step() -> None:
        view = block.look(logits, 0.6)
        mx.eval(*view, block.draw(noise, 0, 1, view.scaled_BLV))

    parts = _parts(guide, backend, logits, steps)
    return {
        "constraint": name,
        "states": len(guide.accepts_Q),
        "classes": guide.classes.count,
        "edges": len(guide.edges.sources_E),
        "compile_ms": round(compile_s * 1e3, 1),
        "from_disk_ms": round(from_disk_s * 1e3, 1),
        "step_ms": round(_median(step, steps) * 1e3, 1),
        **{f"{part}_ms": round(seconds * 1e3, 1) for part, seconds in parts.items()},
    }


def _parts(guide: Guide, backend: Any, logits: Any, steps: int) -> dict[str, float]:
    canvas = logits.shape[1]
    _, total = backend.class_scores(logits, guide.classes)
    score = np.array(total[0]).astype(np.float64)
    last, weight = guide.last(0), mx.zeros((1, canvas, guide.classes.count))
    lattice: Lattice = guide.lattice
    path = lattice.likeliest(score, 0, last)
    paths = lattice.paths(score, 0, last)
    return {
        "class_scores": _median(
            lambda: mx.eval(*backend.class_scores(logits, guide.classes)), steps
        ),
        "sums": _median(lambda: lattice.paths(score, 0, last), steps),
        "likeliest": _median(lambda: lattice.likeliest(score, 0, last), steps),
        "draw": _median(
            lambda: lattice.draw(paths.forward, score, last, np.full(canvas + 1, 0.5)), steps
        ),
        "add_classes": _median(
            lambda: mx.eval(backend.add_classes(logits, weight, guide.classes)), steps
        ),
        "within": _median(
            lambda: mx.eval(backend.within(logits, mx.array(path)[None], guide.classes)), steps
        ),
    }


def _plain(backend: Any, logits: Any) -> None:
    view = backend.vocabulary(logits, 0.6)
    mx.eval(*view, backend.sample(view.scaled_BLV, mx.full(logits.shape[:2], 0.5)))


def _head(backend: Any, config: ModelConfig, canvas: int) -> Callable[[], None]:
    """The two products with the embedding that every step has."""
    hidden, vocab = config.text.hidden_size, config.text.vocab_size
    embedding = Packed(mx.random.normal((vocab, hidden), key=mx.random.key(2)))
    x = mx.ones((1, canvas, hidden))
    mx.eval(embedding.weight, x)

    def run() -> None:
        logits = backend.soft_cap(backend.matmul(x, embedding), 30.0)
        mx.eval(backend.matmul(backend.probabilities(logits), embedding, transpose=False))

    return run


def _median(run: Any, steps: int, clock: Callable[[], float] = perf_counter) -> float:
    times = []
    for _ in range(steps):
        started = clock()
        run()
        times.append(clock() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
