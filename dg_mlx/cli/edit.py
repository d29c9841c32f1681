"""`dg-mlx edit`: rewrite spans of a file; every byte outside them stays as it is."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from dg_mlx.canvas import edit as spans
from dg_mlx.canvas.edit import Span
from dg_mlx.disk import sync
from dg_mlx.errors import EditError, PromptError, SettingsError
from dg_mlx.events import Draft, Event, Prefilled

from .options import add_model, add_settings, open_engine, settings_from
from .terminal import note, write

BOM = "\ufeff"
STDIN = "-"

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

# Options of `add_settings` that change nothing where a text is held → why.
_NO_EFFECT = {
    "max_new_tokens": ("--max-tokens", "the text around them says how long the answer is"),
    "think": ("--think", "the answer is the text itself"),
    "system": ("--system", "say it in --instruction"),
}


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
    add_held_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Edit."""
    check_held_settings(args)
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
        show("".join(_diff(source, new)).encode())
    else:
        show(after)
    return 0


# What is read ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A text, and where it is from."""

    name: str
    path: Path | None
    """None: stdin."""
    text: str
    """Without a byte order mark."""
    marked: bool
    """The bytes begin with a byte order mark."""

    def bytes_of(self, text: str) -> bytes:
        """The bytes that the file has with this text in it."""
        return ((BOM if self.marked else "") + text).encode()

    def require_writable(self) -> None:
        """Raise `EditError` where the file cannot be replaced."""
        if self.path is None:
            raise EditError("--write needs a file, and - is stdin; name one, or drop --write.")
        if not self.path.is_file():
            raise EditError(f"{self.name} is not a regular file; drop --write.")
        if not os.access(self.path, os.W_OK) or not os.access(self.path.parent, os.W_OK):
            raise EditError(
                f"{self.name} or its folder may not be written; change that, or drop --write."
            )


def read(name: str) -> Source:
    """The text of a file, or of stdin for "-". Raises `EditError`."""
    if name == STDIN:
        return _source("stdin", None, stdin())
    # A link stays one: what it leads to is read and written.
    path = Path(os.path.realpath(os.path.expanduser(name)))
    try:
        return _source(name, path, path.read_bytes())
    except FileNotFoundError:
        raise EditError(f"there is no file {name!r}; check the path.") from None
    except IsADirectoryError:
        raise EditError(f"{name} is a folder; name a file in it.") from None
    except OSError as error:
        raise EditError(f"{name} cannot be read ({error.strerror}); change that.") from None


def stdin() -> bytes:
    """What is piped in."""
    try:
        return b"" if sys.stdin is None else sys.stdin.buffer.read()
    except OSError:
        return b""  # closed


def _source(name: str, path: Path | None, data: bytes) -> Source:
    text = spans.read_text(data, name)
    return Source(name=name, path=path, text=text.removeprefix(BOM), marked=text.startswith(BOM))


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


def check_length(length: int | None) -> None:
    """Raise `SettingsError` for what no text can have."""
    if length is not None and length < 1:
        raise SettingsError(f"--length is {length}; it must be 1 or more.")


# What the model does -----------------------------------------------------------------------------


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


def add_held_settings(parser: argparse.ArgumentParser) -> None:
    """Those of `add_settings` that matter where everything but holes is held."""
    add_settings(parser)
    for action in parser._actions:
        if action.dest in _NO_EFFECT:
            action.help = argparse.SUPPRESS


def check_held_settings(args: argparse.Namespace) -> None:
    """Raise `SettingsError` for the others."""
    for name, (option, why) in _NO_EFFECT.items():
        if getattr(args, name) not in (None, False):
            raise SettingsError(f"{option} does not change how holes are filled ({why}); drop it.")


class Progress:
    """One line on stderr that says how far the canvas is; on a terminal only."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._parts = 0

    def __enter__(self) -> Progress:
        self._show("reading")
        return self

    def __exit__(self, *_: Any) -> None:
        self._show("")

    def event(self, event: Event) -> None:
        """Block and step."""
        match event:
            case Prefilled():
                self._parts += 1
            case Draft(block=block, step=step, max_steps=most):
                part = f"part {self._parts} · " if self._parts > 1 else ""
                self._show(f"{part}block {block + 1} · step {step} of at most {most}")

    def _show(self, line: str) -> None:
        if self._on:
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()


# What is written ---------------------------------------------------------------------------------


def show(data: bytes) -> None:
    """Text to stdout: its very bytes, except on a terminal."""
    if sys.stdout.isatty():
        write(spans.plain(data.decode()))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def _diff(source: Source, new: str) -> Iterator[str]:
    """A unified diff, as `patch` takes it."""
    mark = BOM if source.marked else ""
    # Only line feeds end its lines.
    before, after = (list(io.StringIO(mark + text, newline="\n")) for text in (source.text, new))
    for line in difflib.unified_diff(before, after, source.name, source.name):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def replace(source: Source, before: bytes, after: bytes) -> Path:
    """Write the file, whole or not at all. Returns where the old bytes are. Raises `EditError`."""
    path = source.path
    assert path is not None
    try:
        if path.read_bytes() != before:
            raise EditError(
                f"{source.name} was changed by another program meanwhile; run it again."
            )
        backup = _backup(path, before)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with _created(part, after, like=path):
            part.replace(path)
        sync(path.parent)
    except OSError as error:
        raise EditError(
            f"{source.name} cannot be written ({error.strerror}), and is as it was; change that."
        ) from None
    return backup


def _backup(path: Path, data: bytes) -> Path:
    """FILE.bak, or FILE.bak.1 and so on: the first that is free, or has these bytes already."""
    for number in count():
        backup = path.with_name(f"{path.name}.bak" + (f".{number}" if number else ""))
        try:
            with _created(backup, data, like=path):
                return backup
        except FileExistsError:
            if backup.is_file() and backup.read_bytes() == data:
                return backup
    raise AssertionError("numbers do not end")


@contextmanager
def _created(path: Path, data: bytes, *, like: Path) -> Iterator[None]:
    """A new file on the disk, with the mode and the owner of another; gone if anything fails."""
    # Nobody else reads it before it has its mode.
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        try:
            file.write(data)
            file.flush()
            with suppress(OSError):  # only root gives files away
                os.fchown(file.fileno(), like.stat().st_uid, like.stat().st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(like.stat().st_mode))
            sync(path)
            yield
        except BaseException:
            path.unlink(missing_ok=True)
            raise
