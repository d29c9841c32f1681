"""Random constraints on a real loop: is every answer what was asked for?

    python bench/constraint_cases.py --model nano --count 1000
    python bench/constraint_cases.py --random CONFIG_FOLDER --count 1000

A case is a JSON Schema or a regular expression, with a canvas, a limit, now and then pins or a
thought; it is answered in few steps, so by a model that has hardly looked. Its answer must parse,
be valid in the eyes of jsonschema or of Python's `re`, and be no longer than the limit. That a
constraint is refused in one sentence is right, too. CONFIG_FOLDER has the files of a checkpoint
without weights, of which the tokenizer and the special tokens are used; the weights are small and
random. The same --seed gives the same cases. Exit code 1: some answer is not what was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from shutil import copy
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import hypothesis
import schemas
import tiny
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

import dg_mlx
from dg_mlx.errors import ConstraintError, PinError

PINS = st.dictionaries(
    st.integers(0, 12), st.sampled_from(["{", "[", '"', "a", "1", "}", ' "', ": "]), max_size=2
)
CASES = st.fixed_dictionaries(
    {
        "constraint": st.one_of(
            schemas.SCHEMAS.map(lambda schema: {"schema": schema}),
            schemas.SCHEMAS.map(lambda schema: {"schema": schema}),
            schemas.REGEXES.map(lambda regex: {"regex": regex}),
        ),
        "settings": st.fixed_dictionaries(
            {
                "canvas_length": st.sampled_from([8, 16, 24]),
                "max_new_tokens": st.integers(6, 48),
                "max_denoising_steps": st.integers(2, 4),
                "t_max": st.sampled_from([0.8, 0.8, 5.0]),
            }
        ),
        "pins": st.just({}) | st.just({}) | st.just({}) | PINS,
        "thinking": st.sampled_from([False] * 5 + [True]),
        "seed": st.integers(0, 10**6),
    }
)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="a checkpoint")
    which.add_argument("--random", type=Path, metavar="CONFIG_FOLDER")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # compiled constraints
        name = options.model or str(_random(options.random, Path(folder, "model")))
        engine = dg_mlx.load(name)
        found = _run(engine, options.count, options.seed)
    return 1 if found["invalid"] else 0


def _run(engine: Any, count: int, seed: int) -> Counter[str]:
    counts, refusals, started = Counter[str](), Counter[str](), perf_counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(CASES)
    def check(case: dict[str, Any]) -> None:
        outcome, why = _outcome(engine, case)
        counts[outcome] += 1
        if outcome == "invalid":
            print(json.dumps({"why": why, **case}), flush=True)
        elif outcome == "refused":
            refusals[re.sub(r"#\S*|[0-9]+", "…", why)[:100]] += 1
        if counts.total() % 100 == 0:
            print(f"{perf_counter() - started:.0f} s  {dict(counts)}", flush=True)

    check()
    print(f"{perf_counter() - started:.0f} s  {dict(counts)}")
    for why, times in refusals.most_common(12):
        print(f"{times:6}  {why}")
    return counts


def _outcome(engine: Any, case: dict[str, Any]) -> tuple[str, str]:
    """Valid, refused or invalid, and why."""
    ((kind, what),) = case["constraint"].items()
    settings = engine.settings.replace(**case["settings"])
    try:
        constraint = getattr(dg_mlx.Constraint, kind)(what)
        reply = engine.generate(
            "x",
            settings=settings,
            seed=case["seed"],
            constraint=constraint,
            pins=case["pins"],
            thinking=case["thinking"],
        )
        errors = _errors(kind, what, reply.text)
    except (ConstraintError, PinError) as error:
        return ("invalid" if "\n" in str(error) else "refused"), str(error)
    except Exception:
        return "invalid", traceback.format_exc()
    if len(reply.ids) > settings.max_new_tokens:
        errors = [*errors, f"{len(reply.ids)} tokens"]
    return ("invalid", f"{reply.text!r}: {errors}") if errors else ("valid", "")


def _errors(kind: str, what: Any, text: str) -> list[str]:
    if kind == "schema":
        return schemas.errors(what, json.loads(text))
    return [] if re.fullmatch(what, text) else ["no match"]


def _random(config: Path, folder: Path) -> Path:
    """A checkpoint of small random weights with the tokenizer of another."""
    data, real = tiny.config(), json.loads((config / "config.json").read_text())
    for key, value in real.items():
        if key.endswith("_token_id"):
            data[key] = value
    data["text_config"]["vocab_size"] = real["text_config"]["vocab_size"]
    data["canvas_length"] = 32
    tiny.write(folder, data)
    for file in config.iterdir():
        if file.suffix == ".jinja" or file.name.startswith(("tokenizer", "generation_config")):
            copy(file, folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
