"""What the terminal's canvas costs: bytes a frame and milliseconds, all rows against changed rows.

    python bench/painter.py [--steps 48] [--rounds 20]

256 tokens settle over some steps, from noise of many scripts; every step is a frame of 80x24. Both
ways to paint get the same frames in turn, and the bytes go to a pseudo-terminal that something
reads. Milliseconds are the processor's, of this thread. The share is of a generation with 30 ms a
step, drawn at the canvas's own rate.
"""

from __future__ import annotations

import argparse
import os
import pty
import statistics
import sys
import threading
from pathlib import Path
from time import thread_time

from machine import processor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from scripted import END, NOISE, SCRIPTS, Words, settling

from dg_mlx.cli.canvas.frame import VIEWS, Frames, View
from dg_mlx.cli.canvas.ink import palette
from dg_mlx.cli.canvas.layout import grid, wrap
from dg_mlx.cli.canvas.live import FPS, SPARED
from dg_mlx.cli.canvas.painter import Painter
from dg_mlx.cli.canvas.status import counts, status
from dg_mlx.events import Draft

COLUMNS, LINES, TOKENS, STEP_S = 80, 24, 256, 0.030
TEXT = {
    "English": SCRIPTS["long"][0],
    "Japanese": "東京は日本の首都であり、世界でも有数の大都市です。\n",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    print(f"{processor()}, Python {sys.version.split()[0]}, {TOKENS} tokens, {args.steps} steps")
    print("text      view   painted       bytes/frame  ms/frame  note ms/step  share of the time")
    for name, text in TEXT.items():
        words = Words()
        ids = (words.ids(text) * TOKENS)[:TOKENS]
        noise = [words.id(word) for word in NOISE]
        drafts = [list(settling(ids, noise, steps=args.steps, seed=s)) for s in range(args.rounds)]
        for view in VIEWS:
            measure(name, view, words, drafts)


def measure(name: str, view: View, words: Words, rounds: list[list[Draft]]) -> None:
    """Both ways to paint, one round of each in turn."""
    with Terminal() as terminal:
        made: dict[bool, list[tuple[int, float]]] = {True: [], False: []}
        noted: list[float] = []
        for drafts in rounds:
            for whole in (True, False):
                frames = Frames(words, ends=[END], most=1 << 20)
                painter = Painter(terminal.send, palette("true", "dark"))
                for draft in drafts:
                    started = thread_time()
                    frames.note(draft)
                    noted.append(thread_time() - started)
                    terminal.sent, started = 0, thread_time()
                    paint(frames, view, painter, whole)
                    made[whole].append((terminal.sent, thread_time() - started))
        note = statistics.mean(noted)
        for whole, frames_of in made.items():
            size, seconds = (statistics.mean(column) for column in zip(*frames_of, strict=True))
            share = seconds * FPS + note / STEP_S
            painted = "all rows" if whole else "changed rows"
            print(
                f"{name:9} {view:6} {painted:13} {size:11.0f}  {1e3 * seconds:8.2f}  "
                f"{1e3 * note:12.3f}  {share:17.1%}"
            )


def paint(frames: Frames, view: View, painter: Painter, whole: bool) -> None:
    """A frame, as the live canvas makes it."""
    cells = frames.cells(view)
    rows = grid(cells, COLUMNS) if view == "grid" else wrap(cells, COLUMNS)
    room = LINES - SPARED - 1
    progress = frames.progress()
    assert progress is not None
    rows = [*rows[-room:], status(counts(progress, 1.0), max(len(rows) - room, 0), COLUMNS)]
    painter.paint(rows, COLUMNS, anew=whole)


class Terminal:
    """A pseudo-terminal whose other side is read."""

    def __enter__(self) -> Terminal:
        ours, self._theirs = pty.openpty()
        self.sent = 0

        def read() -> None:
            while not os.read(ours, 1 << 16).endswith(b"\0"):
                pass
            os.close(ours)

        self._reader = threading.Thread(target=read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._theirs, b"\0")
        self._reader.join()
        os.close(self._theirs)

    def send(self, text: str) -> None:
        """Write a frame."""
        data = text.encode()
        self.sent += len(data)
        while data:
            data = data[os.write(self._theirs, data) :]


if __name__ == "__main__":
    main()
