"""The loop: prefill the prompt, then denoise, report and commit one canvas after another.

Legend: B batch (1 here), L canvas, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import mlx.core as mx
import numpy as np

from .backends import Backend
from .events import Committed, Done, Draft, Event, Prefilled, Reason, Stats
from .model import DiffusionGemma
from .processor import Prompt, ReplyParser
from .sampling import Noise, accept, confident, next_canvas, settled
from .settings import GenerationSettings
from .worker import Cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to answer, and how."""

    prompt: Prompt
    settings: GenerationSettings
    tokens: int
    """Of the prompt and the longest answer, in whole canvases."""
    noise: Noise
    reply: ReplyParser


class Generation:
    """One answer in the making."""

    def __init__(
        self, model: DiffusionGemma, backend: Backend, request: Request, cancelled: Cancelled
    ) -> None:
        self._model, self._backend = model, backend
        self._request, self._cancelled = request, cancelled
        self._settings = request.settings
        self._tokens = 0
        self._steps: list[int] = []
        self._prefill_s = self._denoise_s = self._commit_s = 0.0

    def events(self) -> Iterator[Event]:
        """Run it. `cancelled` is asked between steps and between chunks of the prompt."""
        self._backend.activate()  # engines on different devices may share the process
        mx.reset_peak_memory()
        self._cache = self._model.new_cache(reserve=self._request.tokens)
        yield from self._prefill()
        for block in count():
            self._guess: list[int] = []
            yield from self._denoise(block)
            if self._cancelled():
                break
            kept, reason = self._cut()
            self._tokens += len(kept)
            yield self._committed(block, kept, last=reason is not None)
            if reason is not None:
                yield self._done(reason)
                return
            start = perf_counter()
            self._model.prefill(mx.array([self._guess]), self._cache)
            self._commit_s += perf_counter() - start
        yield self._done("cancelled")

    def _prefill(self) -> Iterator[Event]:
        prompt = self._request.prompt
        start = perf_counter()
        ids_BS = mx.array([prompt.ids])
        for done in self._model.prefill_chunks(ids_BS, self._cache, media=prompt.media):
            if self._cancelled():
                return
            self._prefill_s = perf_counter() - start
            if done == len(prompt.ids):
                yield Prefilled(tokens=done, cached=0, seconds=self._prefill_s)

    def _denoise(self, block: int) -> Iterator[Event]:
        """Settle one canvas. Leaves the last best guess."""
        settings, noise = self._settings, self._request.noise
        canvas, conditioning = noise.initial(block), None
        earlier: list[mx.array] = []
        for step in range(1, settings.max_denoising_steps + 1):
            if self._cancelled():
                return
            start = perf_counter()
            logits = self._model.denoise(canvas, self._cache, conditioning)
            scaled, guess, entropy = self._backend.vocabulary(logits, settings.temperature(step))
            accepted = accept(entropy, settings.entropy_bound)
            sampled = noise.sample(block, step, scaled)
            canvas = next_canvas(accepted, sampled, noise.renoise(block, step))
            stop = settled(guess, earlier, settings.stability_threshold)
            stop = stop & confident(entropy, settings.confidence_threshold)
            conditioning = scaled.astype(self._model.dtype)
            mx.eval(canvas, conditioning, guess, entropy, accepted, stop)
            self._denoise_s += perf_counter() - start
            self._steps[block:] = [step]
            earlier = [*earlier, guess][-max(settings.stability_threshold, 1) :]
            self._guess = [int(i) for i in np.array(guess[0])]
            yield self._draft(block, step, canvas, guess, accepted, entropy)
            if stop.item():
                return

    def _draft(
        self,
        block: int,
        step: int,
        canvas: mx.array,
        guess: mx.array,
        accepted: mx.array,
        entropy: mx.array,
    ) -> Draft:
        return Draft(
            block=block,
            step=step,
            max_steps=self._settings.max_denoising_steps,
            canvas=np.array(canvas[0], dtype=np.int32),
            guess=np.array(guess[0], dtype=np.int32),
            accepted=np.array(accepted[0]),
            frozen=np.zeros(canvas.shape[1], np.bool_),
            entropy=np.array(entropy[0]),
        )

    def _cut(self) -> tuple[list[int], Reason | None]:
        """The block up to its first end token and the length limit, and why it is the last."""
        left = self._settings.max_new_tokens - self._tokens
        ends = (i for i, token in enumerate(self._guess) if token in self._settings.eos_token_id)
        end = next(ends, None)
        if end is not None and end < left:
            return self._guess[: end + 1], "end"
        kept = self._guess[:left]
        return kept, "length" if len(kept) == left else None

    def _committed(self, block: int, ids: list[int], last: bool) -> Committed:
        delta = self._request.reply.feed(ids)
        text, thought = delta.text, delta.thought
        if last:
            rest = self._request.reply.finish()
            text, thought = text + rest.text, thought + rest.thought
        return Committed(block=block, ids=ids, text=text, thought=thought)

    def _done(self, reason: Reason) -> Done:
        calls = self._request.reply.tool_calls
        return Done(
            reason="tool_call" if reason == "end" and calls else reason,
            tool_calls=calls,
            stats=Stats(
                prompt_tokens=len(self._request.prompt.ids),
                tokens=self._tokens,
                steps_per_block=tuple(self._steps),
                prefill_s=self._prefill_s,
                denoise_s=self._denoise_s,
                commit_s=self._commit_s,
                peak_gb=mx.get_peak_memory() / 1e9,
            ),
        )
