"""`dg-mlx doctor`: the machine, what fits on it, and what to install."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
from pathlib import Path
from typing import Any

from dg_mlx import __version__, hub
from dg_mlx.errors import SettingsError
from dg_mlx.fits import (
    Candidate,
    Machine,
    candidate,
    candidates,
    context_limit,
    fit,
    loaded_bytes,
    machine,
    package_version,
)
from dg_mlx.plan import MemoryPlan, plan
from dg_mlx.units import size

CONTEXTS = (4_096, 16_384, 65_536, 131_072, 262_144)

_PACKAGES = ("mlx", "transformers", "huggingface_hub", "safetensors", "numpy", "av")

_EXAMPLES = """
examples:
  dg-mlx doctor
  dg-mlx doctor --model ./my-checkpoint --context 100000
  dg-mlx doctor --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--backend", default="auto", help="auto, metal, cuda or cpu")
    parser.add_argument("--context", type=int, metavar="N", help="plan this many tokens only")
    parser.add_argument(
        "--model", metavar="NAME", help="plan this bundled name, folder or config.json only"
    )
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Look around and report."""
    if args.context is not None and args.context < 1:
        raise SettingsError(f"--context is {args.context}; it must be 1 or more.")
    here = machine(args.backend)
    chosen = [_chosen(args.model)] if args.model else candidates()
    contexts = CONTEXTS if args.context is None else (args.context,)
    report = {
        "machine": _machine_report(here),
        "versions": {"dg-mlx": __version__, "python": platform.python_version()}
        | {name: package_version(name) for name in _PACKAGES},
        "models": [_model_report(found, contexts, here) for found in chosen],
    }
    if args.json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print(report)
    return 0


def _chosen(name: str) -> Candidate:
    path = Path(name).expanduser()
    return candidate(name, path if path.is_file() else hub.find(name))


def _machine_report(here: Machine) -> dict[str, Any]:
    disk = shutil.disk_usage(Path.home())
    return {
        **dataclasses.asdict(here),
        "usable_bytes": here.usable_bytes,
        "disk_free_bytes": disk.free,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _model_report(found: Candidate, contexts: tuple[int, ...], here: Machine) -> dict[str, Any]:
    weights = loaded_bytes(found, here.itemsize)
    limit = found.config.text.max_position_embeddings
    return {
        "name": found.name,
        "stored_bytes": found.stored_bytes,
        "largest_context": context_limit(found, here),
        "plans": [
            _plan_report(
                plan(
                    found.config,
                    context=n,
                    weights_bytes=weights,
                    itemsize=here.itemsize,
                    unpacks=found.packed and here.unpacks,
                ),
                n,
                here,
                beyond=n > limit,
            )
            for n in contexts
        ],
    }


def _plan_report(made: MemoryPlan, context: int, here: Machine, *, beyond: bool) -> dict[str, Any]:
    return {
        "context": context,
        **dataclasses.asdict(made),
        "total": made.total,
        "fits": made.total <= here.usable_bytes and not beyond,
        "beyond_the_checkpoints_context": beyond,
    }


def _print(report: dict[str, Any]) -> None:
    found = report["machine"]
    print(f"device    {found['chip']} ({found['backend']})")
    print(f"memory    {size(found['memory_bytes'])}, of which a model may plan with "
          f"{size(found['usable_bytes'])}")  # fmt: skip
    print(f"disk      {size(found['disk_free_bytes'])} free")
    print(f"system    {found['system']}")
    versions = (f"{name} {number or 'missing'}" for name, number in report["versions"].items())
    print(f"versions  {', '.join(versions)}")
    for text in found["notes"]:
        print(f"to do     {text}")
    print()
    for model in report["models"]:
        _print_model(model)


def _print_model(model: dict[str, Any]) -> None:
    stored = size(model["stored_bytes"])
    print(f"{model['name']}  ({stored} stored): {fit(model['largest_context'])}")
    columns = ("context", "weights", "cache", "step", "prefill", "vision", "total")
    print("  " + "".join(f"{name:>16}" for name in columns) + "  fits")
    for row in model["plans"]:
        fits = "yes" if row["fits"] else "no"
        if row["beyond_the_checkpoints_context"]:
            fits = "no (longer than the checkpoint's context)"
        print("  " + "".join(f"{row[name]:>16,}" for name in columns) + f"  {fits}")
    print()
