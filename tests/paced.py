"""An engine whose answers settle at a pace, under control, and are what the prompt asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import fakes
import numpy as np
from scripted import END, NOISE, SCRIPTS, THINK, THOUGHT, Words, settling

from dg_mlx.canvas.control import Control
from dg_mlx.errors import DGError, PinError, PromptError
from dg_mlx.events import Committed, Done, Draft, Event, Prefilled
from dg_mlx.worker import WORKER, Cancelled

CANVAS = 256
CALL = {"type": "function", "id": "call-1", "function": {"name": "weather"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What an answer is."""

    blocks: Sequence[str]
    thought: str = ""
    steps: int = 20
    fails: bool = False
    """In the middle of the first block."""
    calls: Sequence[Mapping[str, Any]] = ()


_BLOCK = "".join(f" word{n}" for n in range(CANVAS - 1)) + "\n"
PLAYED: Mapping[str, Script] = {
    **{name: Script(blocks=texts) for name, texts in SCRIPTS.items()},
    "blocks20": Script(blocks=[_BLOCK] * 20, steps=48),
    "endless": Script(blocks=["".join(f" and {n}" for n in range(100))] * 500, steps=48),
    "fail": Script(blocks=["This will not be said."], fails=True),
    "thought": Script(blocks=["The answer."], thought=" Let me think of it"),
    "tool": Script(blocks=[""], calls=[{**CALL}]),
}


class Spelling(Words):
    """Words that can be pinned."""

    def exact(self, text: str) -> list[int]:
        ids = self.ids(text)
        if "".join(map(self.piece, ids)) != text:
            raise PromptError(f"there are no tokens for {text!r}; write something else.")
        return ids


class PacedEngine(fakes.FakeEngine):
    """As `Engine`, on the same thread and under the same control."""

    def __init__(self, step_s: float, made: Callable[[], None] = lambda: None) -> None:
        """`made` is called when a step has been made."""
        super().__init__()
        self.config = SimpleNamespace(
            canvas_length=CANVAS,
            text=SimpleNamespace(vocab_size=100_000, max_position_embeddings=100_000),
        )
        self.settings = self.settings.replace(max_new_tokens=16_384)
        self.processor = Spelling()
        self._noise = [self.processor.id(word) for word in NOISE]
        self._step_s, self._made = step_s, made
        self.asked: list[dict[str, Any]] = []

    def stream(  # type: ignore[override]
        self, messages: Any, *, control: Control | None = None, **options: Any
    ) -> Iterator[Event]:
        control = control or Control()
        self.asked.append({"messages": [*messages], **options})
        script = self._script(messages[-1])
        return WORKER.stream(
            lambda cancelled: self._events(script, control, cancelled),
            [control.stopped],
            control.gate,
        )

    def _script(self, message: Mapping[str, Any]) -> Script:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        if message["role"] == "tool":
            return Script(blocks=[f"The tool says {text}."])
        if text == "refuse":
            raise PromptError("this prompt is refused; ask differently.")
        seen = "".join(f" One {part['type']}." for part in parts if part["type"] != "text")
        return PLAYED.get(text) or Script(blocks=[f"Answer {len(self.asked)} to “{text}”.{seen}"])

    def _events(self, script: Script, control: Control, cancelled: Cancelled) -> Iterator[Event]:
        yield Prefilled(tokens=7, cached=0, seconds=0.0)
        tokens = steps = 0
        for block, text in enumerate(script.blocks):
            ids = self._ids(script, block)
            fixed: dict[int, int] = {}
            canvas = ids + [END] * (CANVAS - len(ids))
            drafts = settling(canvas, self._noise, block=block, steps=script.steps, seed=block)
            for draft in drafts:
                if cancelled():
                    yield Done(reason="cancelled", stats=fakes.stats(tokens, steps))
                    return
                if script.fails and draft.step > 5:
                    raise RuntimeError("the engine broke")
                time.sleep(self._step_s)
                steps += 1
                self._made()
                yield _pinned(draft, fixed)
                _touch(control, block, fixed)
            pinned = [fixed.get(at, id) for at, id in enumerate(ids)]
            if pinned != ids:
                text = "".join(map(self.processor.piece, pinned)).removesuffix("<end>")
            tokens += len(ids)
            thought = script.thought if block == 0 else ""
            yield Committed(
                block=block, ids=pinned, text=text, thought=thought, trust=fakes.trust(len(ids))
            )
        calls = [
            {**call, "function": {**call["function"], "arguments": {"city": "Zürich"}}}
            for call in script.calls
        ]
        reason = "tool_call" if calls else "end"
        yield Done(reason=reason, stats=fakes.stats(tokens, steps), tool_calls=calls)

    def _ids(self, script: Script, block: int) -> list[int]:
        ids = self.processor.ids(script.blocks[block])
        if script.thought and block == 0:
            ids = [THINK, *self.processor.ids(script.thought), THOUGHT, *ids]
        last = block == len(script.blocks) - 1
        return [*ids[: CANVAS - 1], END] if last else ids[:CANVAS]


def _pinned(draft: Draft, fixed: Mapping[int, int]) -> Draft:
    if not fixed:
        return draft
    at = list(fixed)
    canvas, guess, frozen = draft.canvas.copy(), draft.guess.copy(), draft.frozen.copy()
    canvas[at] = guess[at] = np.array(list(fixed.values()), np.int32)
    frozen[at] = True
    return replace(draft, canvas=canvas, guess=guess, frozen=frozen)


def _touch(control: Control, block: int, fixed: dict[int, int]) -> None:
    for touch in control.take():
        try:
            if touch.block != block or not all(0 <= at < CANVAS for at in touch.positions):
                raise PinError("this is not on the canvas that settles; choose again.")
        except DGError as error:
            control.report(touch, str(error))
            continue
        if touch.what == "pin":
            fixed.update(zip(touch.positions, touch.ids, strict=True))
        else:
            for at in touch.positions:
                fixed.pop(at, None)
        control.report(touch, "")
