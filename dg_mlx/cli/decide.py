"""`dg-mlx decide`: a question whose answer is one of a few, with probabilities."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import TYPE_CHECKING, Any

from dg_mlx.canvas.edit import read_text
from dg_mlx.errors import PromptError

from .edit import stdin
from .options import add_model, choices_of, json_file, media_part, open_engine, user_message
from .terminal import write

if TYPE_CHECKING:
    from dg_mlx.decide import Decision, Field

_EXAMPLES = r"""
One pass over a small canvas, from several draws of noise: ± is the standard error over them. The
question may come from stdin, or both: stdin then follows it as its context. Each property of a
schema must have a few values only: an enum, a const or the type boolean.

examples:
  dg-mlx decide "Is this spam? 'You won!'" --choices yes,no
  dg-mlx decide "Is this spam?" --choices yes,no --draws 16 < letter.txt
  dg-mlx decide "Sort this letter:" --schema fields.json --json < letter.txt
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("question", nargs="?", help="the question; without it, stdin")
    between = parser.add_mutually_exclusive_group(required=True)
    between.add_argument("--choices", metavar="A,B,…", help=r"the answers; \, is a comma in one")
    between.add_argument("--schema", metavar="FILE", help="a JSON Schema: a decision per property")
    for kind, meaning in (("image", "a picture; repeatable"), ("video", "a video; repeatable")):
        parser.add_argument(f"--{kind}", action="append", default=[], metavar="PATH", help=meaning)
    parser.add_argument("--json", action="store_true", help="the decisions as one JSON object")
    add_model(parser)
    group = parser.add_argument_group("sampling")
    group.add_argument("--system", metavar="TEXT", help="system message")
    group.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    for option, meaning in (
        ("--draws", "canvases to average over (default: 4)"),
        ("--passes", "denoising passes over each canvas (default: 1)"),
    ):
        group.add_argument(option, type=int, metavar="N", help=meaning)


def run(args: argparse.Namespace) -> int:
    """Decide."""
    media = [media_part(kind, path) for kind in ("image", "video") for path in getattr(args, kind)]
    messages = [{"role": "system", "content": args.system}] if args.system is not None else []
    messages.append(user_message(_question(args.question, bool(media)), media))
    asked: dict[str, Any] = {
        "choices": None if args.choices is None else choices_of(args.choices),
        "schema": None if args.schema is None else json_file(args.schema),
    }
    from dg_mlx.decide import Ballot

    Ballot.of(**asked)  # what is wrong with them is said before a model is loaded
    names = ("draws", "passes")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    engine = open_engine(args)
    decision = engine.decide(messages, seed=args.seed, **asked, **given)
    write(_json(decision) if args.json else _shown(decision))
    return 0


def _question(given: str | None, has_media: bool) -> str:
    """The argument, what is piped in, or both. Raises `PromptError` without either."""
    watched = sys.stdin is None or sys.stdin.isatty()
    piped = "" if watched else read_text(stdin(), "stdin")
    parts = [part for part in (given or "", piped.rstrip("\n")) if part.strip()]
    if not parts and not has_media:
        raise PromptError('there is no question; write one: dg-mlx decide "…", or pipe it in.')
    return "\n\n".join(parts)


def _json(decision: Decision) -> str:
    """NaN is no JSON: the error of a single draw is null."""

    def plain(field: Field) -> dict[str, Any]:
        errors = {o: None if math.isnan(e) else e for o, e in field.errors.items()}
        return {
            "best": field.best,
            "probabilities": dict(field.probabilities),
            "errors": errors,
            "entropy": field.entropy,
        }

    fields = {name: plain(field) for name, field in decision.fields.items()}
    found = {"fields": fields, "seconds": decision.seconds}
    return json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n"


def _shown(decision: Decision) -> str:
    """A table per field; the only field of plain choices needs no name."""
    from dg_mlx.decide import ANSWER

    fields = decision.fields
    if list(fields) == [ANSWER]:
        return "".join(f"{line}\n" for line in _rows(fields[ANSWER]))
    return "".join(
        f"{_one_line(name)}\n" + "".join(f"  {line}\n" for line in _rows(field))
        for name, field in fields.items()
    )


def _rows(field: Field) -> list[str]:
    """Options from the likeliest to the least likely, then the entropy."""
    order = sorted(field.probabilities, key=lambda option: -field.probabilities[option])
    labels = {option: _one_line(option) for option in order}
    width = max(map(len, labels.values()))
    rows = []
    for option in order:
        error = field.errors[option]
        spread = "" if math.isnan(error) else f" ± {error:.2f}"
        rows.append(f"{labels[option]:{width}}  {field.probabilities[option]:.2f}{spread}")
    return [*rows, f"entropy {field.entropy:.2f} nats"]


def _one_line(text: str) -> str:
    return text.replace("\n", r"\n")
