"""The row that says how far an answer is."""

from __future__ import annotations

from dg_mlx.replay import Progress

from .ink import Ink
from .layout import Row, clip


def counts(progress: Progress, seconds: float) -> list[str]:
    """A draft's numbers, the most telling first; `seconds` since the prompt was read."""
    parts = [
        f"block {progress.block + 1}",
        f"step {progress.step}/≤{progress.max_steps}",
        f"settled {progress.settled}/{progress.positions}",
        f"entropy {progress.entropy:.2f}",
    ]
    if seconds > 0:
        parts.append(f"{progress.tokens / seconds:.0f} tok/s")
        parts.append(f"{progress.steps / seconds:.1f} steps/s")
    return parts


def status(parts: list[str], above: int, columns: int) -> Row:
    """As many of the parts as fit. `above`: rows of text that do not."""
    if above:
        parts = [f"↑{above}", *parts]
    for between in (" · ", " "):
        text = between.join(parts)
        if len(text) <= columns:
            break
    while len(text) > columns and len(parts) > 1:
        parts = parts[:-1]
        text = " ".join(parts)
    return clip(text, Ink.STATUS, columns)
