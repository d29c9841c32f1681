"""`dg-mlx replay`: how an answer settled, from a recording."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from dg_mlx.disk import write_text
from dg_mlx.errors import MissingPackageError, SettingsError, StoreError
from dg_mlx.events import Event, Prefilled
from dg_mlx.signs import harmless

from .terminal import note, write

if TYPE_CHECKING:
    from dg_mlx.replay import Recording

    from .canvas.frame import View
    from .canvas.ink import Ink

_EXAMPLES = """
In a terminal, the canvas is drawn as it was, then the text stays; Ctrl-C goes to the end at once.
Through a pipe, it is the text only. A conversation plays its last answer that was recorded.

examples:
  dg-mlx replay answer.json.gz
  dg-mlx replay answer.json.gz --speed 0.25 --view raw
  dg-mlx replay answer.json.gz --html answer.html
  dg-mlx replay 20261121-205025-a3f95c01
"""

_TITLE = 60
"""Most characters of a page's title."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("file", metavar="FILE", help="a recording, or a conversation's id")
    parser.add_argument("--speed", type=float, metavar="X", help="1 is as it was (default)")
    parser.add_argument(
        "--view",
        choices=("guess", "raw", "grid"),
        help="the best guess (default), the canvas with its noise, or a field for each token",
    )
    parser.add_argument(
        "--html", metavar="OUT.html", help="write a page that plays it in a browser instead"
    )


def run(args: argparse.Namespace) -> int:
    """Draw it, print it, or write it as a page."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    _check(args, terminal=terminal)
    recording = _recording(args.file)
    if args.html is not None:
        _write_page(recording, Path(args.html).expanduser())
        return 0
    if terminal:
        _draw(recording, args.view or "guess", args.speed or 1.0)
    if not terminal or recording.edits:
        text = harmless(recording.text)
        write(text if not text or text.endswith("\n") else text + "\n")
    if recording.error is not None:
        note(f"this run failed: {harmless(recording.error)}")
    elif not recording.text.strip():
        note("this run left no text")
    return 0


def _check(args: argparse.Namespace, *, terminal: bool) -> None:
    if args.speed is not None and not (args.speed > 0 and isfinite(args.speed)):
        raise SettingsError(f"--speed is {args.speed}; it must be above 0.")
    for name in ("speed", "view"):
        if getattr(args, name) is None:
            continue
        if args.html is not None:
            raise SettingsError(f"--{name} is for terminals; drop it, or --html.")
        if not terminal:
            raise SettingsError(f"--{name} needs a terminal that can move its cursor; drop it.")


def _recording(name: str) -> Recording:
    """From a file, or the last one of a conversation. Raises `StoreError`."""
    from dg_mlx.replay import Recording

    path = Path(name).expanduser()
    if path.exists() or path.name != name or path.suffix in (".json", ".gz"):
        return Recording.read(path)
    from dg_mlx.conversation import Store

    conversation = Store().read(name)
    recorded = conversation.recorded
    for message in reversed(conversation.line):
        if message.id in recorded and (found := conversation.recording(message.id)) is not None:
            return found
    raise StoreError(f"no answer of conversation {name} was recorded; choose another one.")


def _draw(recording: Recording, view: View, speed: float) -> None:
    """Every answer in turn, at its pace; without waiting once Ctrl-C is pressed."""
    from .canvas.frame import Drawing
    from .canvas.live import Live
    from .markdown import MarkdownStream
    from .session import ctrl_c_sets
    from .written import Nothing

    stop, now = threading.Event(), _Now()
    reader, looks = recording.reader(), _looks()
    with ctrl_c_sets(stop):
        for answer in _answers(recording.events()):
            text = Nothing() if recording.edits else MarkdownStream()
            with Live(Drawing(reader), view, looks, text=text, clock=now) as live:
                for at, event in answer:
                    stop.wait(max(at - now.at, 0) / speed)
                    now.at = at
                    live.show(event)


class _Now:
    """The second of the run that is shown: rates are told as they were, at any speed."""

    at = 0.0

    def __call__(self) -> float:
        return self.at


def _looks() -> dict[Ink, str]:
    """Colours that the terminal has, for its background."""
    from .canvas.background import background
    from .canvas.ink import depth, palette

    colours = depth(os.environ)
    return palette(colours, background(os.environ, ask=colours != "none"))


def _answers(
    events: Iterable[tuple[float, Event]],
) -> Iterator[list[tuple[float, Event]]]:
    """Each with all its events."""
    answer: list[tuple[float, Event]] = []
    for at, event in events:
        if isinstance(event, Prefilled) and answer:
            yield answer
            answer = []
        answer.append((at, event))
    if answer:
        yield answer


def _write_page(recording: Recording, path: Path) -> None:
    """The page that plays it. Raises `StoreError`."""
    try:
        export = import_module("dg_mlx.app.export")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"--html needs {error.name}, which is missing; run `pip install --upgrade dg-mlx`."
        ) from error
    begin = recording.frames[0]
    title = " ".join(begin["prompt"].split())[:_TITLE] or begin["model"]
    page: str = export.to_html(recording.document, title=title)
    try:
        write_text(path, page.encode("utf-8", "replace").decode())
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); name another.") from error
    note(f"wrote {path}")
