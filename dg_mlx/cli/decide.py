"""`dg-mlx decide`: a question whose answer is one of a few, with probabilities."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dg_mlx.canvas.edit import read_text
from dg_mlx.errors import PromptError

from .files import STDIN, read, stdin
from .options import add_model, choices_of, json_file, media_part, open_engine, user_message
from .terminal import Progress, note, write

if TYPE_CHECKING:
    from dg_mlx.decide import Decision, Field

_EXAMPLES = r"""
One pass over a small canvas, from several draws of noise: ± is the standard error over them. The
question may come from stdin, or both: stdin then follows it as its context. Each property of a
schema must have a few values only: an enum, a const or the type boolean.

With --each every line of a file follows the question, as a prompt of its own; many run together. A
row per line says what is likeliest.

examples:
  dg-mlx decide "Is this spam? 'You won!'" --choices yes,no
  dg-mlx decide "Is this spam?" --choices yes,no --draws 16 < letter.txt
  dg-mlx decide "Is this spam?" --choices yes,no --each subjects.txt
  dg-mlx decide "Sort this letter:" --schema fields.json --json < letter.txt
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("question", nargs="?", help="the question; without it, stdin")
    between = parser.add_mutually_exclusive_group(required=True)
    between.add_argument("--choices", metavar="A,B,…", help=r"the answers; \, is a comma in one")
    between.add_argument("--schema", metavar="FILE", help="a JSON Schema: a decision per property")
    parser.add_argument(
        "--each", metavar="FILE", help="ask about each line of a text file (UTF-8); - is stdin"
    )
    for kind, meaning in (("image", "a picture; repeatable"), ("video", "a video; repeatable")):
        parser.add_argument(f"--{kind}", action="append", default=[], metavar="PATH", help=meaning)
    parser.add_argument("--json", action="store_true", help="as JSON; with --each, a line for each")
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
    lines = None if args.each is None else _lines(args.each)
    question = _question(args, needed=not media and lines is None)
    from dg_mlx.ballot import Ballot

    ballot = Ballot.of(
        None if args.choices is None else choices_of(args.choices),
        None if args.schema is None else json_file(args.schema),
    )
    names = ("draws", "passes")
    how = {name: value for name in names if (value := getattr(args, name)) is not None}
    how |= {"ballot": ballot, "seed": args.seed}
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    engine = open_engine(args)
    if lines is None:
        decision = engine.decide([*system, user_message(question, media)], **how)
        write(_json(decision) if args.json else _shown(decision))
    else:
        prompts = [[*system, user_message(_joined(question, line), media)] for line in lines]
        _write_each(lines, engine.decide_all(prompts, **how), as_json=args.json)
    return 0


def _write_each(lines: list[str], decisions: Iterator[Decision], *, as_json: bool) -> None:
    """A row for each line, as they are decided."""
    done, count = 0, len(lines)
    with Progress() as progress:
        try:
            for line, decision in zip(lines, decisions, strict=True):
                done += 1
                progress.show("")
                write(_json(decision, line=done, text=line) if as_json else _row(decision, line))
                progress.show(f"{done} of {count} lines")
        except KeyboardInterrupt:
            progress.show("")
            note(f"stopped after {done} of {count} lines")
            raise


def _lines(name: str) -> list[str]:
    """The lines of a file, without empty ones at its end. Raises `EditError` and `PromptError`."""
    source = read(name)
    lines = [line.removesuffix("\r") for line in source.text.rstrip("\r\n").split("\n")]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            what = f"line {number} of {source.name} is" if len(lines) > 1 else f"{source.name} is"
            raise PromptError(f"{what} empty; write one text per line.")
    return lines


def _question(args: argparse.Namespace, *, needed: bool) -> str:
    """The argument, what is piped in, or both. Raises `PromptError` without either."""
    watched = args.each == STDIN or sys.stdin is None or sys.stdin.isatty()
    piped = "" if watched else read_text(stdin(), "stdin")
    question = _joined(args.question or "", piped.rstrip("\n"))
    if needed and not question:
        raise PromptError('there is no question; write one: dg-mlx decide "…", or pipe it in.')
    return question


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part.strip())


def _json(decision: Decision, **about: Any) -> str:
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
    found = {**about, "fields": fields, "seconds": decision.seconds}
    return json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n"


def _shown(decision: Decision) -> str:
    """A table per field; the only field of plain choices needs no name."""
    from dg_mlx.ballot import ANSWER

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
        rows.append(f"{labels[option]:{width}}  {_chance(field, option)}")
    return [*rows, f"entropy {field.entropy:.2f} nats"]


def _row(decision: Decision, text: str) -> str:
    """The likeliest option of each field, and the text; on a terminal as much of it as fits."""
    from dg_mlx.ballot import ANSWER

    parts = []
    for name, field in decision.fields.items():
        width = max(map(len, map(_one_line, field.probabilities)))
        label = "" if name == ANSWER and len(decision.fields) == 1 else f"{_one_line(name)} "
        parts.append(f"{label}{_one_line(field.best):{width}}  {_chance(field, field.best)}")
    row = "  ".join([*parts, text])
    if sys.stdout.isatty():
        most = shutil.get_terminal_size().columns
        row = row if len(row) <= most else row[: most - 1] + "…"
    return row + "\n"


def _chance(field: Field, option: str) -> str:
    """Probability and standard error."""
    error = field.errors[option]
    return f"{field.probabilities[option]:.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}")


def _one_line(text: str) -> str:
    return text.replace("\n", r"\n")
