"""A scripted engine: its answers settle step by step, slowly enough to watch.

    python tests/scripted.py STEP_S [dg-mlx chat's own options]

is `dg-mlx chat` with it. A turn is the name of a script below.
"""

from __future__ import annotations

import random
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import fakes
import numpy as np

from dg_mlx.cli import chat
from dg_mlx.events import Committed, Done, Draft, Event, Prefilled, Trust
from dg_mlx.processor.reply import ControlTokens

END, THINK, THOUGHT, FIRST = 1, 2, 3, 4
BYTE = 100_000
"""Plus its value: the token of a byte."""
CONTROL = ControlTokens(
    opens={THINK: "thought"},
    closes={THINK: THOUGHT},
    ends=frozenset([END]),
    quote=None,
    special=frozenset([END, THINK, THOUGHT]),
    bytes={BYTE + value: value for value in range(256)},
    thought=(THINK, THOUGHT),
    turn_end=END,
)
NOISE = [
    "ฟัน",
    "的",
    "été",
    "ing\n",
    "Zürich",
    "\u0301",
    "void",
    "東京",
    "привет",
    "ñandú",
    "🦊",
    "π",
]
NOISE += ["\u200d", "بيت", "olé\t", "데이", "👩\u200d👩\u200d👧", "]]", "of", "the"]
SCRIPTS = {
    "short": ["All is well."],
    "lines": ["".join(f"This is line {n} of the answer.\n" for n in range(60)) + "The end."],
    "blocks": [
        "The first block ends in the middle of a sen",
        "tence, and the second ends with a line.\n",
        "The third is the last: it has 漢字 and 🦊.",
    ],
    "wide": [
        "東京は日本の首都です。" * 12
        + "\nfamily 👩‍👩‍👧 flag 🇩🇪 heart ❤️ e\u0301 한국어\n"
        + "🦊" * 50
    ],
    "long": [
        "Apple Silicon has one pool of memory that the CPU and the GPU share, so a model of "
        "eighteen gigabytes needs no copy at all. A block diffusion model reads the whole prompt "
        "once, keeps the keys and values, and then paints a canvas of two hundred and fifty six "
        "tokens.\n\nEach step looks at every position at once, in both directions. The positions "
        "it is sure of are kept; the others are thrown back to noise and drawn again.\n\n"
        "```python\ndef step(canvas):\n    logits = model(canvas)\n    return accept(logits)\n```\n"
    ],
    "harm": ["red \x1b[31m up \x1b[5A\r bell \x07 bidi \u202e end \x9b2J."],
}


class Words:
    """A processor whose tokens are the words that it is given."""

    control = CONTROL

    def __init__(self) -> None:
        self.texts = ["<pad>", "<end>", "<think>", "<thought>"]

    def piece(self, token: int) -> str:
        return "\ufffd" if token >= BYTE else self.texts[token]

    def ids(self, text: str) -> list[int]:
        """A token for each word with the space before it, and for each ideograph."""
        return [self.id(word) for word in re.findall(r"[⺀-鿿]| ?[^\s⺀-鿿]+|\s", text)]

    def id(self, text: str) -> int:
        if text not in self.texts[FIRST:]:
            self.texts.append(text)
        return self.texts.index(text, FIRST)


def draft(step: int, guess: Sequence[int], **given: Any) -> Draft:
    """A step of block 0 where nothing is accepted, unless it is given otherwise."""
    count = len(guess)
    ids = np.array(guess, np.int32)
    trust = Trust(
        probability=np.zeros(count, np.float32),
        entropy=np.ones(count, np.float32),
        settled=np.full(count, step - 1, np.int32),
        changes=np.zeros(count, np.int32),
    )
    plain = {
        "block": 0,
        "max_steps": 48,
        "canvas": ids,
        "accepted": np.zeros(count, np.bool_),
        "frozen": np.zeros(count, np.bool_),
        "entropy": np.ones(count, np.float32),
        "trust": trust,
    }
    return Draft(step=step, guess=ids, **{**plain, **given})


def settling(
    target: Sequence[int], noise: Sequence[int], *, block: int = 0, steps: int = 20, seed: int = 0
) -> Iterator[Draft]:
    """From noise to the target; a token that has settled is noise again now and then."""
    chance, length = random.Random(seed), len(target)
    ids = np.array(target, np.int32)
    due_L = np.array([chance.gauss(0.2 + 0.5 * i / length, 0.12) * steps for i in range(length)])
    due_L = np.clip(due_L, 1, steps - 2)
    settled_L = np.zeros(length, np.int32)
    for step in range(1, steps + 1):
        again_L = np.array([chance.random() < 0.02 for _ in target]) & (step < steps - 2)
        accepted_L = (due_L <= step) & ~again_L
        known_L = accepted_L | (due_L <= step + 3) & ~again_L
        noise_L = np.array([chance.choice(noise) for _ in target], np.int32)
        settled_L = np.where(known_L, settled_L + 1, 0).astype(np.int32)
        sure_L = np.where(known_L, 0.97, 0.1).astype(np.float32)
        yield draft(
            step,
            np.where(known_L, ids, noise_L).tolist(),
            block=block,
            max_steps=steps + 8,
            canvas=np.where(accepted_L, ids, noise_L).astype(np.int32),
            accepted=accepted_L,
            entropy=(4 * (1 - sure_L)).astype(np.float32),
            trust=Trust(
                probability=sure_L,
                entropy=1 - sure_L,
                settled=np.maximum(settled_L - 1, 0),
                changes=settled_L,
            ),
        )


class ScriptedEngine(fakes.FakeEngine):
    """Answers with a script, at a pace."""

    def __init__(self, step_s: float, canvas: int = 256, steps: int = 20) -> None:
        super().__init__()
        self.settings = self.settings.replace(max_new_tokens=4096)
        self.config.text.vocab_size = 10_000
        self.processor = Words()
        self._noise = [self.processor.id(word) for word in NOISE]
        self._step_s, self._canvas, self._steps = step_s, canvas, steps

    def stream(
        self, messages: Any, *, cancel: threading.Event | None = None, **_: Any
    ) -> Iterator[Event]:
        texts = SCRIPTS[messages[-1]["content"]]
        yield Prefilled(tokens=7, cached=0, seconds=0.1)
        tokens = 0
        for block, text in enumerate(texts):
            ids = self.processor.ids(text) + ([END] if block == len(texts) - 1 else [])
            canvas = ids + [END] * max(self._canvas - len(ids), 0)
            for step in settling(canvas, self._noise, block=block, steps=self._steps):
                if cancel is not None and cancel.is_set():
                    yield Done(reason="cancelled", stats=fakes.stats(tokens))
                    return
                time.sleep(self._step_s)
                yield step
            tokens += len(ids)
            yield Committed(block=block, ids=ids, text=text, trust=fakes.trust(len(ids)))
        yield Done(reason="end", stats=fakes.stats(tokens))


def main(step_s: str, *options: str) -> int:
    from dg_mlx.cli import main as command

    chat.open_engine = lambda args: ScriptedEngine(float(step_s))  # type: ignore[assignment]
    return command(["chat", *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
