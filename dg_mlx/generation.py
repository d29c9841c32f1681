"""The loop: prefill the prompt, then denoise, report and commit one canvas after another.

Legend: B batch (1 here), L canvas, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter

import mlx.core as mx
import numpy as np

from .backends import Backend
from .canvas.control import Control
from .canvas.hold import Answer
from .canvas.trust import Tracker
from .errors import DGError, PinError
from .events import Committed, Done, Draft, Event, Prefilled, Reason, Stats
from .model import DiffusionGemma
from .prefix import PrefixCache
from .processor import Prompt, ReplyParser
from .sampling import Noise, accept, confident, next_canvas, probability, settled
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
    answer: Answer
    """What it is held to."""
    prefix: PrefixCache
    """What is known of the prompt, and what will be."""
    control: Control = field(default_factory=Control)
    """Who may change it while it settles."""


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
        self._cached = 0
        self._prefill_s = self._denoise_s = self._commit_s = 0.0
        self._answer = request.answer

    def events(self) -> Iterator[Event]:
        """Run it. `cancelled` is asked between steps and between chunks of the prompt."""
        mx.reset_peak_memory()
        with self._request.prefix.claimed() as self._prefix:
            yield from self._run()

    def _run(self) -> Iterator[Event]:
        yield from self._prefill()
        ended: Reason = "cancelled"
        for block in count():
            self._guess: list[int] = []
            yield from self._denoise(block)
            if self._cancelled():
                break
            kept, reason = self._cut()
            self._tokens += len(kept)
            yield self._committed(block, kept, last=reason is not None)
            if reason is not None:
                ended = reason
                break
            start = perf_counter()
            self._prefix.extend(self._guess)
            self._model.prefill(mx.array([self._guess]), self._cache)
            self._commit_s += perf_counter() - start
            self._answer.commit(self._guess)
        self._prefix.save()
        yield self._done(ended)

    def _prefill(self) -> Iterator[Event]:
        request, start = self._request, perf_counter()
        self._cache, rest = self._prefix.open(self._model, request.prompt, request.tokens)
        if rest.ids:
            ids_BS = mx.array([rest.ids])
            for _ in self._model.prefill_chunks(ids_BS, self._cache, media=rest.media):
                self._prefix.mark()
                if self._cancelled():
                    return
        self._prefix.mark()
        self._cached, self._prefill_s = rest.cached, perf_counter() - start
        yield Prefilled(tokens=self._cache.tokens, cached=rest.cached, seconds=self._prefill_s)

    def _denoise(self, number: int) -> Iterator[Event]:
        """Settle one canvas. Leaves the last best guess."""
        settings, noise = self._settings, self._request.noise
        block = self._answer.block(number)
        self._trust = Tracker()
        if block.settled is not None:
            self._guess = block.settled
            self._trust.pinned(self._guess)
            self._steps.append(0)
            return
        canvas, conditioning = block.start(noise.initial(number)), None
        earlier: list[mx.array] = []
        step, most = 0, settings.max_denoising_steps
        while step < most:
            if self._cancelled():
                return
            step += 1
            start = perf_counter()
            logits = self._model.denoise(canvas, self._cache, conditioning)
            view = block.look(logits, settings.temperature(min(step, settings.max_denoising_steps)))
            scaled, guess, entropy, _ = view
            accepted = accept(entropy, settings.entropy_bound, block.free_BL)
            sampled = block.draw(noise, number, step, scaled)
            canvas = block.hold(next_canvas(accepted, sampled, noise.renoise(number, step)))
            stop = settled(guess, earlier, settings.stability_threshold)
            stop = stop & confident(entropy, settings.confidence_threshold, block.free_BL)
            conditioning = scaled.astype(self._model.dtype)
            chance = probability(view)
            mx.eval(canvas, conditioning, guess, entropy, accepted, stop, chance)
            self._denoise_s += perf_counter() - start
            self._steps[number:] = [step]
            earlier = [*earlier, guess][-max(settings.stability_threshold, 1) :]
            best, nats = np.array(guess[0], dtype=np.int32), np.array(entropy[0])
            self._guess = best.tolist()
            self._trust.note(best, np.array(chance[0]), nats)
            yield Draft(
                block=number,
                step=step,
                max_steps=most,
                canvas=np.array(canvas[0], dtype=np.int32),
                guess=best,
                accepted=np.array(accepted[0]),
                frozen=block.frozen,
                entropy=nats,
                trust=self._trust.now,
            )
            touched = self._touched(number, canvas.shape)
            if touched is None:
                if stop.item():
                    return
                continue
            block = self._answer.block(number)
            if block.settled is not None:
                self._guess = block.settled
                return
            changed_BL, noise_BL = touched
            canvas = block.hold(mx.where(noise_BL, noise.renoise(number, step), canvas))
            conditioning = mx.where(changed_BL[..., None], 0.0, conditioning)  # thought of anew
            most = step + settings.max_denoising_steps

    def _touched(self, block: int, shape: tuple[int, ...]) -> tuple[mx.array, mx.array] | None:
        """Where somebody changed the canvas, and where to noise; None: nowhere."""
        control = self._request.control
        changed_BL, noise_BL = (np.zeros(shape, np.bool_) for _ in range(2))
        for touch in control.take():
            try:
                if touch.block != block:
                    raise PinError(
                        f"block {touch.block + 1} is not the one that settles; change block "
                        f"{block + 1}."
                    )
                self._answer.change(touch, self._model.config.text.vocab_size)
            except DGError as error:
                control.report(touch, " ".join(str(error).split()))
                continue
            control.report(touch, "")
            changed_BL[0, list(touch.positions)] = True
            if touch.what == "noise":
                noise_BL[0, list(touch.positions)] = True
        return (mx.array(changed_BL), mx.array(noise_BL)) if changed_BL.any() else None

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
            self._answer.check(self._request.reply.text)
        trust = self._trust.now.first(len(ids))
        return Committed(block=block, ids=ids, text=text, thought=thought, trust=trust)

    def _done(self, reason: Reason) -> Done:
        calls = self._request.reply.tool_calls
        return Done(
            reason="tool_call" if reason == "end" and calls else reason,
            tool_calls=calls,
            stats=Stats(
                prompt_tokens=len(self._request.prompt.ids),
                cached_tokens=self._cached,
                tokens=self._tokens,
                steps_per_block=tuple(self._steps),
                prefill_s=self._prefill_s,
                denoise_s=self._denoise_s,
                commit_s=self._commit_s,
                peak_gb=mx.get_peak_memory() / 1e9,
            ),
        )
