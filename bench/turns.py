"""A long conversation: does a turn's memory or step time grow once the context is full?

    python bench/turns.py [--turns 200] [--context 1024]

Runs on a copy of nano whose context is that short, so that old turns are left out after a few. A
row every 20 turns: bytes of the process and of the conversation's cache, milliseconds a step,
tokens of the prompt and how many of them were known.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import dg_mlx
from dg_mlx.conversation import Store
from dg_mlx.events import Done
from dg_mlx.hub import bundled_folder
from dg_mlx.tasks import TASKS

EVERY = 20


def main() -> None:
    """Talk and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        engine = dg_mlx.load(str(_short(Path(folder) / "nano", options.context)))
        _talk(engine, Store(Path(folder)), options.turns)


def _short(folder: Path, context: int) -> Path:
    shutil.copytree(bundled_folder("nano"), folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = context
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def _talk(engine: dg_mlx.Engine, store: Store, turns: int) -> None:
    rng, stats = np.random.default_rng(0), list[Any]()
    with store.create(model="nano") as conversation:
        for turn in range(1, turns + 1):
            case = TASKS["sudoku-6x6"].make(rng, held_out=False)
            for event in conversation.ask(engine, case.messages[0]["content"], seed=turn):
                if isinstance(event, Done):
                    stats.append(event.stats)
            if turn % EVERY == 0:
                print(json.dumps(_row(turn, conversation, stats[-EVERY:])), flush=True)


def _row(turn: int, conversation: dg_mlx.Conversation, stats: list[Any]) -> dict[str, Any]:
    steps = sum(one.steps for one in stats)
    return {
        "turn": turn,
        "resident_mb": round(_resident() / 1e6, 1),
        "cache_mb": round(conversation.prefix.nbytes / 1e6, 2),
        "ms_a_step": round(1000 * sum(one.denoise_s for one in stats) / max(1, steps), 2),
        "prompt_tokens": round(sum(one.prompt_tokens for one in stats) / len(stats)),
        "known_tokens": round(sum(one.cached_tokens for one in stats) / len(stats)),
    }


def _resident() -> int:
    """Bytes; Linux only."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
