"""Chats in a JSONL file to examples.

A line is `{"messages": […], "tools": […], "thinking": false, "task": …}`, the last message the
assistant's.
Prompt and answer are what the checkpoint's own chat template writes. An answer ends with the token
that the template ends it with, and the rest of its last canvas is filled. Source of the fill:
google-deepmind/gemma, `gemma/diffusion/hackable_diffusion_adapter/data/data.py` (`CanvasChunker`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dg_mlx.config import ModelConfig
from dg_mlx.errors import DGError, PromptError, SettingsError
from dg_mlx.processor import Processor
from dg_mlx.processor.messages import check_tools, normalise
from dg_mlx.settings import GenerationSettings

from .batch import Example

_KEYS = ("messages", "tools", "thinking", "task")
"""What a line may hold; evaluation counts answers by `task`, training reads the other three."""


class DataError(DGError):
    """A file of training examples cannot be used; the message names file and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What an example may be."""

    max_prompt: int = 4096
    """Most tokens of a prompt, its pictures among them."""
    max_canvases: int = 4
    """Most canvases of an answer."""
    fill: str | None = None
    """The token behind an answer's end; None: the tokenizer's end-of-sequence token, as Google's
    recipe has it. The bundled nano was trained with "<turn|>"."""

    def __post_init__(self) -> None:
        for name in ("max_prompt", "max_canvases"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingsError(f"{name} is {value!r}; it must be a whole number of 1 or more.")


class Examples(Sequence[Example]):
    """The examples of one file, all of them checked; pictures are read again when asked for."""

    def __init__(
        self,
        path: Path,
        processor: Processor,
        config: ModelConfig,
        generation: GenerationSettings,
        settings: DataSettings,
    ) -> None:
        """`generation` says which tokens end an answer. Raises `DataError` for the first line
        that cannot be used.
        """
        self._path, self._processor, self._config = path, processor, config
        self._settings, self._ends = settings, frozenset(generation.eos_token_id)
        self._fill = self._fill_id()
        self._lines: list[tuple[int, str]] = []
        self._kept: list[Example | None] = []
        self.lengths: list[int] = []
        """Tokens of every example, prompt and answer."""
        self.blocks: list[int] = []
        """Canvases of every answer."""
        for number, line in _lines(path):
            self._lines.append((number, line))
            example = self._read(number, line)
            self._kept.append(example if example.media is None else None)
            self.lengths.append(len(example.ids) + len(example.answer))
            self.blocks.append(len(example.answer) // config.canvas_length)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._kept[index] or self._read(*self._lines[index])

    def _read(self, number: int, line: str) -> Example:
        try:
            chat = _parsed(line, self._path.parent)
            return self._example(chat)
        except DGError as error:
            raise DataError(f"{self._path}:{number}: {error}") from None

    def _example(self, chat: Mapping[str, Any]) -> Example:
        *before, last = chat["messages"]
        tools, thinking = chat.get("tools"), bool(chat.get("thinking", False))
        prompt = self._processor.encode(before, tools=tools, thinking=thinking)
        answer = self._answer(self._written(before, last, check_tools(tools), thinking))
        self._check(len(prompt.ids), len(answer))
        length = self._config.canvas_length
        answer += [self._fill] * (-len(answer) % length)
        return Example(
            ids=prompt.ids, answer=answer, media=prompt.media, canvases=len(answer) // length
        )

    def _written(
        self,
        before: Sequence[Mapping[str, Any]],
        last: Mapping[str, Any],
        tools: Any,
        thinking: bool,
    ) -> str:
        """What the template writes for the answer, behind the prompt."""
        # A call in the answer is answered by nothing, which is an error elsewhere.
        closing = [{"role": "tool", "content": "-"}] if last.get("tool_calls") else []
        turns, _ = normalise([*before, last, *closing])
        turns = turns[: len(turns) - len(closing)]

        def render(turns: Sequence[Any], *, prompt: bool) -> str:
            text: str = self._processor.tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=self._processor.chat_template,
                add_generation_prompt=prompt,
                tokenize=False,
                enable_thinking=thinking,
            )
            return text

        start, whole = render(turns[:-1], prompt=True), render(turns, prompt=False)
        question = [{"role": "user", "content": "-"}]
        header = render(question, prompt=True).removeprefix(render(question, prompt=False))
        # The published template begins a new turn for an answer that follows a tool's, where a
        # generation goes on with the open one: the answer is what a generation would write.
        answer = whole[len(start) :].removeprefix(header)
        if not whole.startswith(start) or not answer.strip():
            raise PromptError(
                "the checkpoint's chat template writes no answer behind the prompt; check that the "
                "last message has content and that roles take turns."
            )
        return answer

    def _answer(self, text: str) -> list[int]:
        """Ids up to the first token that ends an answer; the fill where the template has none."""
        ids: list[int] = self._processor.tokenizer.encode(
            text, add_special_tokens=False, verbose=False
        )
        end = next((i for i, token in enumerate(ids) if token in self._ends), None)
        return [*ids, self._fill] if end is None else ids[: end + 1]

    def _check(self, prompt: int, answer: int) -> None:
        length, context = self._config.canvas_length, self._config.text.max_position_embeddings
        canvases, settings = -(-answer // length), self._settings
        if prompt > settings.max_prompt:
            raise PromptError(
                f"the prompt has {prompt} tokens; max_prompt is {settings.max_prompt}. Shorten it "
                "or raise max_prompt."
            )
        if canvases > settings.max_canvases:
            raise PromptError(
                f"the answer has {answer} tokens, {canvases} canvases of {length}; max_canvases is "
                f"{settings.max_canvases}. Shorten it or raise max_canvases."
            )
        if prompt + canvases * length > context:
            raise PromptError(
                f"prompt and answer take {prompt + canvases * length} tokens; this checkpoint's "
                f"context is {context}. Shorten them."
            )

    def _fill_id(self) -> int:
        tokenizer, fill = self._processor.tokenizer, self._settings.fill
        found = tokenizer.eos_token_id if fill is None else tokenizer.get_vocab().get(fill)
        if found is None:
            raise SettingsError(
                f"the tokenizer has no token {fill or 'that ends a sequence'}; name the one that "
                "fills a canvas with fill."
            )
        return int(found)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with something on them, and their numbers. Raises `DataError`."""
    found = False
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found = True
                    yield number, line
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; name a file with a chat per line.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); save it as UTF-8 text.") from None
    if not found:
        raise DataError(f"{path} is empty; write a chat per line.")


def _parsed(line: str, folder: Path) -> dict[str, Any]:
    """The chat of a line, with pictures found beside the file. Raises `PromptError`."""
    try:
        chat = json.loads(line)
    except ValueError as error:
        raise PromptError(f"this is no JSON ({error}); write one object per line.") from None
    if not isinstance(chat, dict) or not isinstance(chat.get("messages"), list):
        raise PromptError('there are no messages; write {"messages": [{"role": …}, …]}.')
    unknown = sorted(chat.keys() - set(_KEYS))
    if unknown:
        raise PromptError(
            f"{unknown[0]!r} has no effect; leave it out ({', '.join(_KEYS)} are read)."
        )
    messages = chat["messages"]
    if len(messages) < 2 or not all(isinstance(m, dict) for m in messages):
        raise PromptError("a chat needs a message of the user and the assistant's answer.")
    if messages[-1].get("role") != "assistant":
        raise PromptError(
            f"the last message is by {messages[-1].get('role')!r}; end with the assistant's answer."
        )
    return chat | {"messages": [_beside(message, folder) for message in messages]}


def _beside(message: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A message whose relative paths of pictures and videos start at the file's folder."""
    content = message.get("content")
    if not isinstance(content, list):
        return message

    def part(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        source = value.get(kind) if kind in ("image", "video") else None
        if not isinstance(source, str) or len(source) > 4096 or not (folder / source).is_file():
            return value
        return value | {kind: str(folder / source)}

    return message | {"content": [part(value) for value in content]}
