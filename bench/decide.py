"""Many prompts decided one by one and together, in turns: seconds, and how far they agree.

    python bench/decide.py [--model nano] [--prompts 64] [--digits 200] [--draws 4] [--rounds 5]

Prompts are random digits, 20 or more; what is decided is yes or no. Times are medians over rounds,
of the clock and of the processor; the latter counts where others use the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

from machine import processor

import dg_mlx

CHOICES = ["yes", "no"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--digits", type=int, default=200, help="of the longest prompt")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    engine = dg_mlx.load(options.model)
    rng = random.Random(1)
    prompts: list[Any] = [
        "".join(rng.choices("0123456789", k=rng.randint(20, options.digits)))
        for _ in range(options.prompts)
    ]
    how = {"choices": CHOICES, "draws": options.draws}
    engine.decide(prompts[0], **how)  # compiles the choices
    ways: dict[str, Callable[[], list[Any]]] = {
        "alone": lambda: [engine.decide(prompt, **how) for prompt in prompts],
        "together": lambda: list(engine.decide_all(prompts, **how)),
    }
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        found = {}
        for way, run in ways.items():
            clock, processor_s = perf_counter(), process_time()
            found[way] = run()
            taken[way].append((perf_counter() - clock, process_time() - processor_s))
    (alone_s, alone_cpu_s), (together_s, together_cpu_s) = (
        [statistics.median(times) for times in zip(*taken[way], strict=True)] for way in ways
    )
    print(
        json.dumps(
            {
                "machine": processor(),
                **vars(options),
                "alone_s": round(alone_s, 2),
                "together_s": round(together_s, 2),
                "times_as_fast": round(alone_s / together_s, 2),
                "times_as_fast_cpu": round(alone_cpu_s / together_cpu_s, 2),
                "largest_difference": max(
                    abs(_yes(a) - _yes(b))
                    for a, b in zip(found["alone"], found["together"], strict=True)
                ),
            }
        )
    )


def _yes(decision: Any) -> float:
    return float(decision.fields["answer"].probabilities["yes"])


if __name__ == "__main__":
    main()
