"""`dg-mlx edit`: rewrite spans of a file; every byte outside them stays as it is."""

from __future__ import annotations

import argparse
import difflib
import io
from collections.abc import Iterator

from dg_mlx.canvas import edit as spans
from dg_mlx.canvas.edit import Span
from dg_mlx.errors import PromptError, SettingsError

from .files import BOM, Source, read, replace
from .options import (
    HELD,
    add_model,
    add_settings,
    check_held,
    check_length,
    open_engine,
    settings_from,
)
from .terminal import Progress, note, write_bytes

_EXAMPLES = r"""
Spans may be combined: all of them are rewritten, nothing else is. Without --diff, --write or
--check the new text goes to stdout. --write keeps the old bytes in FILE.bak; --check exits 1 if the
file would change.

examples:
  dg-mlx edit notes.txt --lines 10-20 --instruction "Make this shorter:" --diff
  dg-mlx edit main.py --pattern 'def (\w+)' --instruction "Give it better names:" --write
  dg-mlx edit notes.txt --range 120:184 --strength 0.4 --instruction "Correct the spelling:"
  printf 'A 1234\nB 3412\nC 2141\nD 4321\n' |
    dg-mlx edit - --model nano --lines 3 --instruction "Solve:"
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("file", metavar="FILE", help="a text file (UTF-8); - is stdin")
    where = parser.add_argument_group("spans (one or more, each repeatable)")
    for option, metavar, meaning in (
        ("--lines", "A-B", "lines, counted from 1"),
        ("--range", "START:END", "bytes, counted from 0, END not included"),
        ("--pattern", "REGEX", "what matches, or its first group; Python's syntax"),
    ):
        where.add_argument(option, action="append", default=[], metavar=metavar, help=meaning)
    parser.add_argument("--instruction", metavar="TEXT", help="what to do")
    parser.add_argument(
        "--strength", type=float, metavar="X",
        help="share of noise to start from: 1 is all (default); below, the text keeps its length",
    )  # fmt: skip
    parser.add_argument("--length", type=int, metavar="N", help="tokens of each span's new text")
    parser.add_argument(
        "--draws", type=int, metavar="N", help="noises by which lengths are compared (default: 4)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--diff", action="store_true", help="what would change, as a unified diff")
    form.add_argument("--write", action="store_true", help="write the file, and keep a backup")
    form.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if it would change"
    )
    add_model(parser)
    add_settings(parser, without=HELD)


def run(args: argparse.Namespace) -> int:
    """Edit."""
    check_held(args)
    _check(args)
    source = read(args.file)
    if args.write:
        source.require_writable()
    chosen = _spans(args, source)
    new = _new_text(args, source, chosen)
    before, after = source.bytes_of(source.text), source.bytes_of(new)
    _assert_kept(source, chosen, before, after)
    if args.check:
        note(f"{source.name} would {'change' if before != after else 'not change'}")
        return int(before != after)
    if args.write:
        if before == after:
            note(f"nothing changed; {source.name} is as it was")
        else:
            backup = replace(source, before, after)
            note(f"wrote {source.name}; its old text is in {backup}")
    elif args.diff:
        write_bytes("".join(_diff(source, new)).encode())
    else:
        write_bytes(after)
    return 0


def _spans(args: argparse.Namespace, source: Source) -> list[Span]:
    """What the options choose. Raises `EditError`."""
    text = source.text
    found = [spans.of_lines(text, lines) for lines in args.lines]
    for given in args.range:
        # A file's bytes count its byte order mark, which no edit reaches.
        mark = int(source.marked)
        span = spans.of_bytes(BOM * mark + text, given)
        found.append(Span(max(0, span.start - mark), max(0, span.end - mark)))
    for pattern in args.pattern:
        found += spans.of_pattern(text, pattern)
    return spans.in_order(found)


def _check(args: argparse.Namespace) -> None:
    """Raise what is wrong with the options by themselves."""
    if not (args.instruction or "").strip():
        raise PromptError('there is no instruction; say what to do: --instruction "Shorten this:".')
    strength = 1.0 if args.strength is None else args.strength
    if not 0 < strength <= 1:
        raise SettingsError(f"--strength is {strength}; it must be above 0 and at most 1.")
    if strength < 1 and args.length is not None:
        raise SettingsError("--strength below 1 keeps the length of a text; drop --length.")
    check_length(args.length)
    if args.draws is not None and (strength < 1 or args.length is not None):
        raise SettingsError("--draws finds lengths, and here they are given; drop it.")


def _new_text(args: argparse.Namespace, source: Source, chosen: list[Span]) -> str:
    from dg_mlx.edit import Change, Edited, edit

    engine = open_engine(args)
    names = ("strength", "length", "draws")
    change = Change(
        instruction=args.instruction,
        settings=settings_from(args, engine.settings),
        seed=args.seed,
        **{name: value for name in names if (value := getattr(args, name)) is not None},
    )
    with Progress() as progress:
        for event in edit(engine, source.text, chosen, change):
            if isinstance(event, Edited):
                return event.text
            progress.event(event)
    raise AssertionError("an edit ends with its text")


def _assert_kept(source: Source, chosen: list[Span], before: bytes, after: bytes) -> None:
    """Our own bug otherwise: bytes outside the spans are others now."""
    first, *between, last = map(str.encode, spans.outside(source.text, chosen))
    first = source.bytes_of("") + first
    at, end = len(first), len(after) - len(last)
    for whole in (before, after):
        assert whole.startswith(first)
        assert whole.endswith(last)
    for piece in between:
        at = after.find(piece, at, end) + len(piece)
        assert at >= len(piece)
    assert at <= end


def _diff(source: Source, new: str) -> Iterator[str]:
    """A unified diff, as `patch` takes it."""
    mark = BOM if source.marked else ""
    # Only line feeds end its lines.
    before, after = (list(io.StringIO(mark + text, newline="\n")) for text in (source.text, new))
    for line in difflib.unified_diff(before, after, source.name, source.name):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
