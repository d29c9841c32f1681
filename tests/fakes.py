"""An engine that answers from a script, with the events of a real one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from dg_mlx.events import Committed, Done, Draft, Event, Prefilled, Stats, Trust
from dg_mlx.processor.reply import ControlTokens
from dg_mlx.settings import GenerationSettings

CANVAS = 4
END = 1
CONTROL = ControlTokens(
    opens={},
    closes={},
    ends=frozenset([END]),
    quote=None,
    special=frozenset([END]),
    bytes={},
    thought=None,
    turn_end=END,
)


def stats(tokens: int, steps: int = 2) -> Stats:
    return Stats(
        prompt_tokens=7,
        tokens=tokens,
        steps_per_block=(steps,),
        prefill_s=0.5,
        denoise_s=1.0,
        commit_s=0.0,
        peak_gb=0.25,
    )


def trust(count: int) -> Trust:
    certain, none = np.ones(count, np.float32), np.zeros(count, np.int32)
    return Trust(probability=certain, entropy=0 * certain, settled=none, changes=none)


class FakeEngine:
    """Gives its answers one after another, each as blocks of text."""

    processor: Any = SimpleNamespace(control=CONTROL, piece=lambda token: f"<{token}>")

    def __init__(self, *answers: list[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.on_step: Callable[[int], None] = lambda step: None
        self.settings = GenerationSettings(
            max_new_tokens=8,
            max_denoising_steps=3,
            entropy_bound=0.1,
            t_max=0.8,
            t_min=0.4,
            stability_threshold=1,
            confidence_threshold=0.005,
            eos_token_id=(END,),
        )
        text = SimpleNamespace(vocab_size=384, max_position_embeddings=1024)
        self.config = SimpleNamespace(text=text, canvas_length=CANVAS)
        self.dtype = "float32"
        self.backend = SimpleNamespace(
            describe=lambda: SimpleNamespace(
                chip="a chip", name="cpu", notes=("do this",), memory_bytes=8_000_000_000
            )
        )

    def stream(
        self,
        messages: Any,
        *,
        settings: GenerationSettings,
        seed: int = 0,
        cancel: threading.Event | None = None,
        tools: Any = None,
        thinking: bool = False,
        constraint: Any = None,
        prefix: Any = None,
    ) -> Iterator[Event]:
        asked = {"messages": [*messages], "tools": tools, "thinking": thinking}
        asked |= {"constraint": constraint, "prefix": prefix}
        self.asked.append(asked | {"settings": settings, "seed": seed})
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        yield Prefilled(tokens=7, cached=0, seconds=0.5)
        tokens = 0
        for block, text in enumerate(answer):
            for step in (1, 2):
                self.on_step(step)
                if cancel is not None and cancel.is_set():
                    yield Done(reason="cancelled", stats=stats(tokens))
                    return
                yield self._draft(block, step, settings)
            ids = [ord(char) for char in text]
            last = block == len(answer) - 1
            ids += [END] if last else []
            tokens += len(ids)
            shown = "".join(c for c in text if not c.isupper())
            thought = "".join(c for c in text if c.isupper())
            yield Committed(
                block=block, ids=ids, text=shown, thought=thought, trust=trust(len(ids))
            )
        yield Done(reason="end", stats=stats(tokens))

    @staticmethod
    def _draft(block: int, step: int, settings: GenerationSettings) -> Draft:
        return Draft(
            block=block,
            step=step,
            max_steps=settings.max_denoising_steps,
            canvas=np.arange(CANVAS, dtype=np.int32),
            guess=np.arange(CANVAS, dtype=np.int32),
            accepted=np.array([True] * step + [False] * (CANVAS - step)),
            frozen=np.zeros(CANVAS, np.bool_),
            entropy=np.linspace(0, 1, CANVAS, dtype=np.float32),
            trust=trust(CANVAS),
        )
