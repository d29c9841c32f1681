"""A loaded checkpoint that answers, and how to load one."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from . import adapter as adapters
from .backends import Backend, choose
from .ballot import Ballot
from .canvas.constraint import Constraint, Guides, Vocabulary
from .canvas.control import Control
from .canvas.hold import Answer, Held
from .canvas.passage import Passage
from .canvas.pins import Pin, Pins
from .config import ModelConfig
from .decide import Decision, Voting, prepare
from .errors import BackendError, ConstraintError, MediaError, PromptError, SettingsError
from .events import Event, Reply, collect
from .generation import Generation, Request
from .hub import require_memory, resolve
from .lengths import Lengths, Search, find
from .model import DiffusionGemma, VisionAttention, lora
from .model.features import Features
from .prefix import PrefixCache
from .processor import Messages, Processor, Prompt
from .sampling import Noise, SeededNoise
from .settings import GenerationSettings
from .weights import load as load_weights
from .weights import loaded_bytes, shapes, stored_dtype
from .worker import WORKER

T = TypeVar("T")

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


class Engine:
    """A loaded checkpoint that answers. Made by `load`."""

    def __init__(
        self,
        *,
        model: DiffusionGemma,
        processor: Processor,
        settings: GenerationSettings,
        backend: Backend,
    ) -> None:
        self.model = model
        self.processor = processor
        self.settings = settings
        """The checkpoint's own; change a copy per request with `settings.replace`."""
        self.backend = backend
        self._compiled: dict[tuple[int, ...], Guides] = {}

    @property
    def config(self) -> ModelConfig:
        """The checkpoint's shape."""
        return self.model.config

    @property
    def dtype(self) -> str:
        """What is computed in: "float32", "bfloat16" or "float16"."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.model.dtype)

    def stream(
        self,
        messages: Messages | Prompt,
        *,
        settings: GenerationSettings | None = None,
        seed: int = 0,
        noise: Noise | None = None,
        cancel: threading.Event | None = None,
        pins: Pins | Mapping[int, Pin] | None = None,
        constraint: Constraint | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        prefix: PrefixCache | None = None,
        control: Control | None = None,
    ) -> Iterator[Event]:
        """Answer, reporting every step: `Prefilled`, per block `Draft`s and a `Committed`, `Done`.

        `messages` is a prompt, role/content dicts, token ids or a `Prompt`. `noise` replaces the
        randomness that `seed` stands for. `cancel` is looked at between steps. `pins` are tokens
        held fixed, by position in the answer (ids, or texts that begin there); `constraint` is what
        its visible text must be. `prefix` keeps what was read, for later prompts that begin alike:
        give all turns of a conversation the same one. `control` holds the answer between steps and
        changes its canvas. Runs on the worker's thread; closing the
        iterator stops it. Raises `PromptError`, `MediaError`, `SettingsError`, `PinError` and
        `ConstraintError` at once, before anything runs.
        """
        if tools and constraint is not None:
            raise ConstraintError(
                "no tool can be called under a constraint; leave out one of them."
            )
        prompt = self.prompt(messages, tools=tools, thinking=thinking)
        settings, control = settings or self.settings, control or Control()
        canvas = settings.canvas(self.config.canvas_length)
        held = self._held(pins, constraint, settings, prompt, thinking)
        request = Request(
            prompt=prompt,
            settings=settings,
            tokens=self._room(prompt, settings, canvas),
            noise=noise or self._noise(seed, canvas),
            reply=self.processor.reply(thinking_open=prompt.thinking_open),
            answer=Answer(held, self.backend, settings, self.config.canvas_length),
            prefix=PrefixCache(marks=0) if prefix is None else prefix,
            control=control,
        )
        cancels = [control.stopped] if cancel is None else [control.stopped, cancel]
        return WORKER.stream(
            lambda cancelled: self._here(
                Generation(self.model, self.backend, request, cancelled).events()
            ),
            cancels,
            control.gate,
        )

    def generate(self, messages: Messages | Prompt, **options: Any) -> Reply:
        """Answer in one piece. Options and errors as in `stream`."""
        return collect(self.stream(messages, **options))

    def decide(self, messages: Messages | Prompt, **options: Any) -> Decision:
        """Decide for one prompt. Options and errors as in `decide_all`."""
        (decision,) = self.decide_all([messages], **options)
        return decision

    def decide_all(
        self,
        prompts: Iterable[Messages | Prompt],
        *,
        choices: Sequence[str] | None = None,
        schema: Any = None,
        ballot: Ballot | None = None,
        draws: int = 4,
        passes: int = 1,
        settings: GenerationSettings | None = None,
        seed: int = 0,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[Decision]:
        """Probabilities of `choices`, or of the values of each property of a JSON schema.

        Yields a decision per prompt, in their order, as they are found; it is not `decide` with a
        list, since a list may be one prompt. `ballot` stands for choices or schema: `Ballot.of`
        makes it. `draws` canvases, which start from different noise (the same for all prompts), are
        each denoised `passes` times. Prompts run together as memory allows; a decision is the one
        that its prompt gets alone, up to rounding. Closing the iterator stops it. Raises
        `ConstraintError`, `SettingsError`, `PromptError` and `MediaError` at once, before anything
        runs; the last two name the prompt.
        """
        if isinstance(prompts, str):
            raise PromptError("prompts are one text; give a list of them, or call decide.")
        if ballot is None:
            ballot = Ballot.of(choices, schema)
        elif choices is not None or schema is not None:
            raise ConstraintError("a ballot has its choices or schema already; leave them out.")
        settings = settings or self.settings
        asked = prepare(
            ballot,
            self.processor.exact,
            self._guides(settings.eos_token_id),
            settings,
            draws=draws,
            passes=passes,
            seed=seed,
        )
        canvas = settings.canvas(self.config.canvas_length)
        if asked.tokens > canvas:
            raise ConstraintError(
                f"the longest answer takes {asked.tokens} tokens and the canvas has {canvas}; "
                "shorten it."
            )
        read = self._read(list(prompts), asked.settings, tools)
        voting = Voting(self.model, self.backend, asked)
        return WORKER.stream(lambda cancelled: self._here(voting.decisions(read, cancelled)))

    def check(self, constraint: Constraint) -> None:
        """Raise `ConstraintError` where answers cannot be held to it; else it is compiled now."""
        self._guides(self.settings.eos_token_id).of(constraint)

    def lengths(
        self,
        prompt: Prompt,
        passage: Passage,
        *,
        settings: GenerationSettings | None = None,
        draws: int = 4,
        seed: int = 0,
        cancel: threading.Event | None = None,
    ) -> Lengths:
        """How many tokens each hole of a passage takes, where it does not say.

        Raises `PinError` if the passage does not fit the context, `SettingsError`, and
        `StoppedError` once `cancel` is set.
        """
        settings = settings or self.settings
        search = Search.of(
            prompt,
            passage,
            settings,
            canvas=settings.canvas(self.config.canvas_length),
            context=self.config.text.max_position_embeddings,
            draws=draws,
            seed=seed,
        )
        return WORKER.ask(
            lambda stopped: find(self.model, self.backend, search, stopped),
            [] if cancel is None else [cancel],
        )

    def prompt(
        self,
        messages: Messages | Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
    ) -> Prompt:
        """Messages as ids and media; a `Prompt` stays as it is. Raises as `stream` does."""
        if not isinstance(messages, Prompt):
            return self.processor.encode(messages, tools=tools, thinking=thinking)
        if tools or thinking:
            raise PromptError("a Prompt is already encoded; pass tools and thinking to encode.")
        return messages

    def _here(self, items: Iterator[T]) -> Iterator[T]:
        """Items of a job, made on this device: other jobs have their turns between them."""
        while True:
            self.backend.activate()
            try:
                item = next(items)
            except StopIteration:
                return
            yield item

    def _read(
        self,
        prompts: Sequence[Messages | Prompt],
        settings: GenerationSettings,
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> list[Prompt]:
        """Prompts that leave room for their answers. Raises `PromptError` and `MediaError`, saying
        which of several it is."""
        found, pixels = [], dict[str, Any]()
        for number, messages in enumerate(prompts, start=1):
            try:
                prompt = self.prompt(messages, tools=tools)
                self._room(prompt, settings, settings.max_new_tokens)
            except (PromptError, MediaError) as error:
                if len(prompts) == 1:
                    raise
                raise type(error)(f"prompt {number} of {len(prompts)}: {error}") from None
            found.append(prompt.sharing(pixels))
        return found

    def _held(
        self,
        pins: Pins | Mapping[int, Pin] | None,
        constraint: Constraint | None,
        settings: GenerationSettings,
        prompt: Prompt,
        thinking: bool,
    ) -> Held:
        """What the answer is held to. Raises `PinError` and `ConstraintError`."""
        if not isinstance(pins, Pins):
            pins = Pins.of(pins or {}, self.processor.exact)
        vocab = self.config.text.vocab_size
        pins.check(tokens=settings.max_new_tokens, vocab=vocab, ends=settings.eos_token_id)
        if constraint is None:
            return Held(pins=pins)
        guide = self._guides(settings.eos_token_id).of(constraint)
        start = guide.start(thinking=thinking, thinking_open=prompt.thinking_open)
        return Held(pins=pins, guide=guide, start=start)

    def _guides(self, ends: tuple[int, ...]) -> Guides:
        if ends not in self._compiled:
            opens, closes = self.processor.control.thought or (None, None)
            vocabulary = Vocabulary(
                pieces=self.processor.spellings, ends=ends, opens=opens, closes=closes
            )
            self._compiled = {ends: Guides(vocabulary)}
        return self._compiled[ends]

    def _noise(self, seed: int, canvas: int) -> SeededNoise:
        vocab = self.config.text.vocab_size
        return SeededNoise(seed, vocab=vocab, canvas=canvas, backend=self.backend)

    def _room(self, prompt: Prompt, settings: GenerationSettings, canvas: int) -> int:
        """Tokens of prompt and longest answer, in whole canvases. Raises what cannot be run."""
        if not prompt.ids:
            raise PromptError("the prompt is empty; write something.")
        context = self.config.text.max_position_embeddings
        answer = -(-settings.max_new_tokens // canvas) * canvas
        if len(prompt.ids) + answer > context:
            raise PromptError(
                f"the prompt has {len(prompt.ids)} tokens and the answer may take {answer}; this "
                f"checkpoint's context is {context}. Shorten the prompt or lower max_new_tokens."
            )
        outside = [i for i in settings.eos_token_id if not 0 <= i < self.config.text.vocab_size]
        if outside:
            raise SettingsError(f"eos_token_id {outside} is not in the vocabulary; correct it.")
        return len(prompt.ids) + answer


def load(
    name: str,
    *,
    backend: str = "auto",
    dtype: str | None = None,
    vision_attention: VisionAttention = "sliding",
    offline: bool = False,
    revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Engine:
    """Load a checkpoint: a bundled name ("nano"), a hub repo id, or a folder.

    `dtype` ("float32", "bfloat16", "float16") is chosen by the backend when None. `adapter` is the
    folder of a LoRA adapter: it is added to weights that are not packed, and computed beside those
    that are. Raises `HubError`, `CheckpointError`, `BackendError` and `MemoryLimitError`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise BackendError(f"there is no dtype {dtype!r}; choose from {', '.join(DTYPES)}.")
    device = WORKER.call(lambda: choose(backend))
    memory = device.describe().memory_bytes
    folder = resolve(name, offline=offline, revision=revision, memory_bytes=memory)
    config, settings = ModelConfig.load(folder), GenerationSettings.load(folder)
    stored = shapes(folder)
    wanted = DTYPES[dtype] if dtype else device.dtype(stored_dtype(stored))
    require_memory(name, loaded_bytes(stored, wanted), memory)
    processor = Processor(folder, config)

    def build() -> DiffusionGemma:
        model = DiffusionGemma(config, device, vision_attention)
        load_weights(model, config, folder, wanted)
        if adapter is not None:
            adapters.load(model, Path(adapter).expanduser())
            lora.merge(model)
        model.features = Features()
        model.identity = _identity(folder, adapter, wanted, vision_attention)
        return model

    model = WORKER.call(build)
    return Engine(model=model, processor=processor, settings=settings, backend=device)


def _identity(folder: Path, adapter: str | os.PathLike[str] | None, *how: object) -> str:
    """Another text for other weights: files by name, size and time, and how they are loaded."""
    folders = [folder] if adapter is None else [folder, Path(adapter).expanduser()]
    files = [
        (path.name, stat.st_size, stat.st_mtime_ns)
        for place in folders
        for path in sorted(place.glob("*.safetensors"))
        for stat in [path.stat()]
    ]
    config = (folder / "config.json").read_bytes()
    return hashlib.sha256(repr((files, config, how)).encode()).hexdigest()
