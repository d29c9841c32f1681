"""`dg-mlx verify`: compare a checkpoint with transformers, stage by stage."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dg_mlx.errors import CheckpointError, SettingsError

from .options import add_device, media_part, user_message

if TYPE_CHECKING:
    from dg_mlx.verify import Report

PROMPT = "Why is the sky blue?"

_EXAMPLES = """
examples:
  dg-mlx verify ./my-4bit --against ./diffusiongemma-26B-A4B-it --tolerance 0.3
  dg-mlx verify ./checkpoint --against ./checkpoint --dtype float32 --image cat.png --json

The exit code is 1 when a stage differs by more than the tolerance, which is a share of the
stage's largest value (float32 0.001, float16 0.02, bfloat16 0.1). A quantised model differs more.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="bundled name, folder or hub repo id")
    parser.add_argument(
        "--against", metavar="FOLDER", required=True, help="the original, run by transformers"
    )
    parser.add_argument("--prompt", metavar="TEXT", default=PROMPT, help=f"default: {PROMPT}")
    parser.add_argument("--image", metavar="FILE", action="append", help="a picture; repeatable")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="steps (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--tolerance", type=float, metavar="X", help="share of the largest value")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Load both, compare, print. Returns 1 when they differ."""
    _check(args)
    images = [media_part("image", path) for path in args.image or []]

    from dg_mlx import load
    from dg_mlx.config import ModelConfig
    from dg_mlx.reference import Reference
    from dg_mlx.verify import compare

    other = Path(args.against).expanduser()
    if not other.is_dir():
        raise CheckpointError(f"--against {args.against} is not a folder; give the original's.")
    wanted = ModelConfig.load(other)
    engine = load(args.model, backend=args.backend, dtype=args.dtype, offline=args.offline)
    if (engine.config.text, engine.config.vision) != (wanted.text, wanted.vision):
        raise CheckpointError(
            f"{args.model} and {args.against} have different shapes; give the checkpoint that "
            "MODEL was made from."
        )
    reference = Reference(other, dtype=engine.dtype)
    prompt = engine.processor.encode([user_message(args.prompt, images)])
    report = compare(
        engine, reference, prompt, steps=args.steps, seed=args.seed, tolerance=args.tolerance
    )
    if args.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        _print(report)
    return 0 if report.passed else 1


def _check(args: argparse.Namespace) -> None:
    if args.steps < 1:
        raise SettingsError(f"--steps is {args.steps}; it must be 1 or more.")
    if args.tolerance is not None and not args.tolerance > 0:
        raise SettingsError(f"--tolerance is {args.tolerance}; it must be above 0.")


def _print(report: Report) -> None:
    print(f"{'stage':<26}{'max abs':>12}{'mean abs':>12}{'share':>12}")
    for stage in report.stages:
        mark = "" if stage.share <= report.tolerance else "  <- too far"
        print(f"{stage.name:<26}{stage.worst:>12.2e}{stage.mean:>12.2e}{stage.share:>12.2e}{mark}")
    print(f"\nsame best guess: {report.agreement:.2%} of positions")
    print(f"same tokens with shared noise: the first {report.equal_tokens} of {report.tokens}")
    verdict = "equal" if report.passed else "different"
    print(f"{verdict} within {report.tolerance:g} of the largest value ({report.dtype})")
