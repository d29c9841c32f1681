r"""`dg-mlx infill`: a text with holes, and what belongs into them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from dg_mlx.canvas import edit as spans
from dg_mlx.canvas.edit import Span
from dg_mlx.errors import PromptError, SettingsError
from dg_mlx.events import collect

from .files import STDIN, Source, read
from .generate import stats_json
from .options import (
    HELD,
    add_model,
    add_settings,
    check_held,
    check_length,
    open_engine,
    settings_from,
)
from .terminal import Progress, write_bytes

if TYPE_CHECKING:
    from dg_mlx.infill import Gap
    from dg_mlx.lengths import Lengths

INSTRUCTION = "Fill in what is missing where it says {mark}. Answer with the whole text:"
"""What is asked when nothing else is."""

_EXAMPLES = r"""
In TEXT, \n is a line break, \t a tab and \\ a backslash; a file or stdin is taken as it is.
Lengths of holes are tried out, unless --length gives them.

examples:
  dg-mlx infill "def f(x):\n  <fill>\n  return y"
  dg-mlx infill --file letter.txt --lengths --instruction "Complete this letter:"
  dg-mlx infill --model nano --instruction "" --mark . --length 1 "A 1.34\nB .412\nC 21.3\nD 43.1"
"""

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    where = parser.add_mutually_exclusive_group()
    where.add_argument("text", metavar="TEXT", nargs="?", help="with marks; without it, stdin")
    where.add_argument("--file", metavar="FILE", help="a file with the text (UTF-8)")
    parser.add_argument("--mark", metavar="TEXT", help="what marks a hole (default: <fill>)")
    parser.add_argument(
        "--instruction", metavar="TEXT",
        help='what to do, before the text (default: a line that says so; "": the text alone)',
    )  # fmt: skip
    parser.add_argument(
        "--length", action="append", type=int, metavar="N",
        help="tokens of every hole, or repeated, of each",
    )  # fmt: skip
    parser.add_argument(
        "--draws", type=int, metavar="N", help="noises by which lengths are compared (default: 4)"
    )
    parser.add_argument("--json", action="store_true", help="text, fills and lengths as JSON")
    parser.add_argument(
        "--lengths", action="store_true", help="write what was tried, and its scores, to stderr"
    )
    add_model(parser)
    add_settings(parser, without=HELD)


def run(args: argparse.Namespace) -> int:
    """Fill the holes."""
    check_held(args)
    if args.mark == "":
        raise PromptError("--mark is empty; give the text that marks a hole.")
    from dg_mlx.infill import DRAWS, MARK, plan, split

    mark = MARK if args.mark is None else args.mark
    source = _source(args)
    text = spans.plain(source.text)
    parts = _with_lengths(split(text, mark), args)
    engine = open_engine(args)
    with Progress() as progress:
        asked = plan(
            engine,
            _prompt(text, mark, args.instruction),
            parts,
            settings=settings_from(args, engine.settings),
            seed=args.seed,
            draws=DRAWS if args.draws is None else args.draws,
        )
        events = []
        for event in asked.run(engine, seed=args.seed):
            progress.event(event)
            events.append(event)
    fills = asked.fills(engine, events)
    holes = [Span(*m.span()) for m in re.finditer(re.escape(mark), source.text)]
    filled = spans.put(source.text, holes, fills)
    if args.lengths:
        print(_table(asked.lengths), file=sys.stderr)
    if args.json:
        stats = stats_json(collect(events).stats)
        write_bytes(_json(filled, fills, asked.lengths, stats).encode())
    else:
        ending = "\n" if args.text is not None and not filled.endswith("\n") else ""
        write_bytes(source.bytes_of(filled + ending))
    return 0


def _source(args: argparse.Namespace) -> Source:
    if args.text is None:
        return read(STDIN if args.file is None else args.file)
    text = re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], args.text)
    return Source(name="TEXT", path=None, text=text, marked=False)


def _with_lengths(parts: list[str | Gap], args: argparse.Namespace) -> list[str | Gap]:
    """The parts with lengths as --length gives them. Raises `SettingsError`."""
    given = args.length or []
    for length in given:
        check_length(length)
    if given and args.draws is not None:
        raise SettingsError("--draws finds lengths, and here they are given; drop it.")
    holes = len(parts) // 2
    if len(given) not in (0, 1, holes):
        raise SettingsError(
            f"--length is given {len(given)} times, and the text has {holes} holes; give it once, "
            "or for each."
        )
    left: list[int | None] = [*given] if len(given) == holes else [*given, None][:1] * holes
    return [
        part if isinstance(part, str) else dataclasses.replace(part, length=left.pop(0))
        for part in parts
    ]


def _prompt(text: str, mark: str, instruction: str | None) -> str:
    asked = INSTRUCTION.format(mark=mark) if instruction is None else instruction
    return f"{asked}\n{text}" if asked.strip() else text


def _json(text: str, fills: list[str], lengths: Lengths, stats: dict[str, Any]) -> str:
    found = {
        "text": text,
        "fills": fills,
        "lengths": lengths.chosen,
        "confidence": lengths.confidence,
        "stats": stats,
    }
    return json.dumps(found, ensure_ascii=False) + "\n"


def _table(lengths: Lengths) -> str:
    """Candidate lengths and their scores, by hole."""
    lines = ["hole  tokens    score (nats)"]
    for hole, (chosen, tried) in enumerate(
        zip(lengths.chosen, lengths.confidence, strict=True), start=1
    ):
        if not tried:
            lines.append(f"{hole:4}{chosen:8}  as given")
        for length, score in tried.items():
            best = "  *" if length == chosen else ""
            lines.append(f"{hole:4}{length:8}{score:16.2f}{best}")
    return "\n".join(lines)
