"""`dg-mlx eval`: how often a model answers right, and in how many steps."""

from __future__ import annotations

import argparse
import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TextIO

from dg_mlx.errors import CheckpointError, SettingsError

from .options import add_model, add_settings, open_engine, settings_from
from .terminal import note

if TYPE_CHECKING:
    from dg_mlx.evaluate import Outcome, Question

COUNT = 100
"""Questions of each task of a suite."""

_EXAMPLES = """
examples:
  dg-mlx eval --suite sudoku --model nano --count 100
  dg-mlx eval --suite nano --task add --task sort --canvas 24
  dg-mlx eval --suite held-out.jsonl --model ./my-checkpoint --steps 12 --out answers.jsonl

Suites: nano (every task of the bundled model) and sudoku, made fresh by generators and held out of
training; tasks with pictures need a model that reads them. Or a file, a chat to a line, whose last
message is the right answer, as for training:
  {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]}
It may have "tools", "thinking", and a "task" by which answers are counted. Seeds count up from
--seed, so two runs with other settings answer the same questions with the same noise.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--suite", metavar="NAME|FILE.jsonl", required=True, help="nano, sudoku, or your own file"
    )
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="questions per task (default: 100; of a file, all)",
    )
    parser.add_argument(
        "--task", action="append", default=[], metavar="NAME",
        help="of a suite, only this task; repeatable",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="write every answer as a line of JSON")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    add_model(parser)
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, count, print. An interrupt prints what there is."""
    if args.count is not None and args.count < 1:
        raise SettingsError(f"--count is {args.count}; it must be 1 or more.")
    from tqdm import tqdm

    from dg_mlx.evaluate import evaluate, rows

    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        out = None if args.out is None else stack.enter_context(_opened(args.out))
        engine = open_engine(args)
        folder = Path(stack.enter_context(TemporaryDirectory()))
        questions = _questions(args, folder, pictures=engine.config.vision is not None)
        settings = settings_from(args, engine.settings)
        asked = evaluate(engine, questions, settings=settings, seed=args.seed)
        try:
            for outcome in tqdm(asked, total=len(questions), unit="answer", disable=None):
                outcomes.append(outcome)
                if out is not None:
                    out.write(json.dumps(dataclasses.asdict(outcome), ensure_ascii=False) + "\n")
        except KeyboardInterrupt:
            note(f"stopped after {len(outcomes)} of {len(questions)} questions")
            if not outcomes:
                raise
    found = [dataclasses.asdict(row) for row in rows(outcomes)]
    if args.json:
        print(json.dumps({"settings": dataclasses.asdict(settings), "tasks": found}, indent=1))
    else:
        _print(found)
    return 0


def _questions(args: argparse.Namespace, folder: Path, *, pictures: bool) -> list[Question]:
    """What --suite names."""
    from dg_mlx.evaluate import read_questions, suite_questions

    if args.suite.endswith(".jsonl"):
        return read_questions(Path(args.suite).expanduser())[: args.count]
    count = COUNT if args.count is None else args.count
    return suite_questions(
        args.suite, count, folder, seed=args.seed, pictures=pictures, only=args.task
    )


def _opened(path: str) -> TextIO:
    try:
        return Path(path).expanduser().open("w", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"--out {path} cannot be written ({error.strerror}); name another file."
        ) from None


def _print(rows: list[dict[str, Any]]) -> None:
    head = f"{'task':<24}{'answers':>8}{'right':>9}{'+-':>7}"
    print(f"{head}{'steps/block':>13}{'tokens/step':>13}{'seconds':>9}{'sure, wrong':>13}")
    for row in rows:
        print(
            f"{row['task']:<24}{row['count']:>8}{row['solved']:>9.1%}{row['error']:>7.1%}"
            f"{row['steps_per_block']:>13.1f}{row['tokens_per_step']:>13.1f}"
            f"{row['seconds']:>9.2f}{row['sure_and_wrong']:>13.1%}"
        )
