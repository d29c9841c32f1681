"""What the verbs write: text that cannot harm a terminal, and what an answer cost."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from dg_mlx.canvas.edit import plain
from dg_mlx.events import Draft, Event, Prefilled, Stats
from dg_mlx.signs import harmless


def write(text: str, out: TextIO | None = None) -> None:
    """Write model text at once; made harmless where the reader is a terminal."""
    out = out or sys.stdout
    out.write(harmless(text) if out.isatty() else text)
    out.flush()


def write_bytes(data: bytes) -> None:
    """UTF-8 text to stdout: its very bytes, except on a terminal."""
    if sys.stdout.isatty():
        write(plain(data.decode()))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def note(text: str) -> None:
    """One line about the run, which is not part of the answer."""
    print(f"dg-mlx: {text}", file=sys.stderr, flush=True)


class Progress:
    """One line on stderr that says how far it is; on a terminal only."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._parts = 0

    def __enter__(self) -> Progress:
        self.show("reading")
        return self

    def __exit__(self, *_: Any) -> None:
        self.show("")

    def event(self, event: Event) -> None:
        """Show block and step."""
        match event:
            case Prefilled():
                self._parts += 1
            case Draft(block=block, step=step, max_steps=most):
                part = f"part {self._parts} · " if self._parts > 1 else ""
                self.show(f"{part}block {block + 1} · step {step} of at most {most}")

    def show(self, line: str) -> None:
        """Put this in the place of the line; nothing clears it."""
        if self._on:
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()


def stats_line(stats: Stats, *, brief: bool = False) -> str:
    """What an answer cost, in one line; `brief`: without prompt and memory."""
    steps = f"{stats.steps} step" + ("" if stats.steps == 1 else "s")
    answer = (
        f"{stats.tokens} tokens in {steps} ({stats.tokens_per_step:.1f} tokens/step)",
        f"{stats.denoise_s + stats.commit_s:.2f} s",
        f"{stats.tokens_per_second:.0f} tok/s",
    )
    known = f", {stats.cached_tokens} of them known," if stats.cached_tokens else ""
    rest = (
        f"prompt {stats.prompt_tokens} tokens{known} in {stats.prefill_s:.2f} s",
        f"peak {stats.peak_gb:.2f} GB",
    )
    return " · ".join(answer if brief else answer + rest)


def empty_answer(reason: str, thought: str) -> str:
    """The sentence for an answer without text."""
    if thought:
        why = "all of it was thought; allow more with --max-tokens"
    else:
        why = {
            "end": "it ended before any text; ask differently or try another seed",
            "length": "it has control tokens only; allow more with --max-tokens",
            "cancelled": "it was stopped before the first block was done",
            "tool_call": "its tool call cannot be read; ask again or try another seed",
        }[reason]
    return f"the model returned an empty answer ({why})"
