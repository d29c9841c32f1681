"""Sudoku on nano with and without control of the canvas: are givens kept, and more puzzles solved?

    python bench/sudoku_control.py [--count 100] [--task sudoku-9x9-35 …] [--json FILE]

Free: as asked. Pins: labels, line breaks and given digits are pinned, the rest is free. Both: and a
regular expression says that the rest are digits. The puzzles and seeds are the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import dg_mlx
from dg_mlx import Constraint
from dg_mlx.tasks import TASKS, evaluation

WAYS = ("free", "pins", "both")


def main() -> None:
    """Solve and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--task", nargs="+", default=["sudoku-6x6", "sudoku-9x9-35"])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine, found = dg_mlx.load(options.model), []
    for task in options.task:
        counts: dict[str, dict[str, float]] = {
            way: {"solved": 0, "kept": 0, "steps": 0} for way in WAYS
        }
        for seed, case in enumerate(evaluation(TASKS[task], options.count)):
            for way in WAYS:
                shown = case.messages[-1]["content"]
                reply = engine.generate(
                    list(case.messages), seed=seed, **_control(way, engine, shown)
                )
                kept = all(
                    given in (".", got) for given, got in zip(shown, reply.text, strict=False)
                ) and len(shown) == len(reply.text)
                counts[way]["solved"] += reply.text == case.answer
                counts[way]["kept"] += kept
                counts[way]["steps"] += reply.stats.steps
        for way, sums in counts.items():
            row = {"task": task, "way": way, "count": options.count}
            row |= {name: round(value / options.count, 3) for name, value in sums.items()}
            found.append(row)
            print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _control(way: str, engine: Any, shown: str) -> dict[str, Any]:
    if way == "free":
        return {}
    end = engine.processor.control.turn_end
    pins = {at: char for at, char in enumerate(shown) if char != "."} | {len(shown): end}
    if way == "pins":
        return {"pins": pins}
    digits = f"[1-{len(shown.splitlines())}]"
    pattern = "".join(digits if char == "." else char for char in shown)
    return {"pins": pins, "constraint": Constraint.regex(pattern)}


if __name__ == "__main__":
    main()
