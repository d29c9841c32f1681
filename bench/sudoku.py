"""How many fresh held-out Sudoku nano solves, through the engine, with the checkpoint's sampler.

    python bench/sudoku.py --json bench/sudoku.json

A puzzle counts when the answer is right to the last character. Puzzles come from the generator in
examples/nano (it needs a C compiler); those it holds out were never trained on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import dg_mlx

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "nano"))
sudoku: Any = import_module("sudoku")

ROWS = ((4, 6), (4, 8), (6, 18), (6, 24), (9, 36), (9, 45), (9, 55))


def solve(engine: dg_mlx.Engine, size: int, givens: int, count: int) -> dict[str, Any]:
    """Rate, steps and time of `count` puzzles, each with its own seed."""
    right = early = steps = 0
    start = time.perf_counter()
    for number in range(count):
        puzzle = sudoku.make(size, givens, held_out=True)
        reply = engine.generate(puzzle.question(), seed=number)
        good = reply.text == puzzle.answer
        right += good
        early += not good and reply.stats.steps < engine.settings.max_denoising_steps
        steps += reply.stats.steps
    seconds = time.perf_counter() - start
    return {
        "size": size,
        "givens": givens,
        "puzzles": count,
        "solved": right / count,
        "wrong but stopped early": early / count,
        "mean steps": steps / count,
        "ms per step": seconds / steps * 1e3,
    }


def main() -> None:
    """Print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sudoku.seed(options.seed)
    engine = dg_mlx.load(options.model)
    device = engine.backend.describe()
    print(f"{device.chip} ({device.name}), MLX {device.mlx_version}, {options.count} puzzles a row")
    print("| grid | given | solved | stopped early but wrong | mean steps | ms/step |")
    print("|---|---|---|---|---|---|")
    rows = []
    for size, givens in ROWS:
        row = solve(engine, size, givens, options.count)
        rows.append(row)
        print(
            f"| {size}x{size} | {givens} of {size * size} | {row['solved']:.1%} "
            f"| {row['wrong but stopped early']:.1%} | {row['mean steps']:.1f} "
            f"| {row['ms per step']:.0f} |",
            flush=True,
        )
    if options.json:
        head = {"date": datetime.date.today().isoformat(), "chip": device.chip}
        head |= {"mlx": device.mlx_version, "seed": options.seed}
        options.json.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
