"""Messages to a prompt: token ids, and pictures with the places where they go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dg_mlx.config import ModelConfig
from dg_mlx.errors import CheckpointError, MediaError, PromptError
from dg_mlx.model.media import ImagePatches, Media

from .images import ImageProcessor, open_image, shorten
from .messages import MediaPart, check_tools, map_strings, normalise
from .reply import ControlTokens, ReplyParser
from .video import read_frames, timestamp

Messages = str | Sequence[Mapping[str, Any]] | Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model reads before it answers."""

    ids: list[int]
    media: Media | None
    """None: text only."""
    thinking_open: bool = False
    """The ids end inside a thought, so the answer begins inside it."""

    def sharing(self, pixels: dict[str, NDArray[np.float32]]) -> Prompt:
        """The same, with equal pictures in memory once. `pixels`: those by key so far, to which
        new ones are added."""
        if self.media is None:
            return self
        images = [
            replace(image, pixels_PC=pixels.setdefault(image.key, image.pixels_PC))
            for image in self.media.images
        ]
        return replace(self, media=Media(images=tuple(images)))


class Processor:
    """A checkpoint's tokenizer, its own chat template and its picture settings."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        """Load from a checkpoint's folder; nothing is fetched. Raises `CheckpointError`."""
        # Not at the top: transformers takes seconds to import.
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # a broken file raises whatever its reader does
            raise CheckpointError(
                f"the tokenizer in {folder} cannot be loaded ({shorten(str(error))}); fetch the "
                "checkpoint again."
            ) from error
        self.chat_template: str | None = self.tokenizer.chat_template
        self._folder, self._config = folder, config
        self._control = ControlTokens.of(self.tokenizer)
        self._pieces: dict[int, str] = {}

    def encode(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        image_tokens: int | None = None,
    ) -> Prompt:
        """Turn messages (or a user's text, or token ids as they are) into a prompt.

        `tools`: declarations in OpenAI's form. `image_tokens`: at most so many soft tokens per
        picture (70, 140, 280, 560 or 1120; None: the checkpoint's default).
        Raises `PromptError`, `MediaError` and `SettingsError`.
        """
        if _are_ids(messages):
            if tools or thinking:
                raise PromptError("tools and thinking have no effect on token ids; leave them out.")
            ids = self._checked_ids(messages)
            return Prompt(ids=ids, media=None, thinking_open=self._control.ends_in_thought(ids))
        turns, sources = normalise(messages)  # type: ignore[arg-type]
        if sources and self._config.vision is None:
            raise MediaError(
                f"this checkpoint reads text only; leave out the {sources[0].kind} or choose a "
                "checkpoint with a vision tower."
            )
        texts = self._render(turns, check_tools(tools), thinking)
        if len(texts) != len(sources) + 1:
            raise PromptError(
                f"the chat template took {len(texts) - 1} of {len(sources)} pictures and videos; "
                "put them into user messages."
            )
        media = [self._read(part, image_tokens) for part in sources]
        ids, images = self._assemble(texts, media)
        return Prompt(
            ids=ids,
            media=Media(images=tuple(images)) if images else None,
            thinking_open=self._control.ends_in_thought(ids),
        )

    def reply(self, *, thinking_open: bool = False) -> ReplyParser:
        """A parser for one answer; `thinking_open`: the prompt ended inside a thought."""
        return ReplyParser(self.tokenizer, self._control, thinking_open=thinking_open)

    def piece(self, token_id: int) -> str:
        """Text of one token, for drawing: special tokens by name, unfinished UTF-8 as U+FFFD."""
        text = self._pieces.get(token_id)
        if text is None:
            if token_id in self._control.special:
                text = self.tokenizer.convert_ids_to_tokens(token_id)
            else:
                text = self.decode([token_id])
            text = self._pieces[token_id] = text or "\ufffd"
        return text

    @property
    def control(self) -> ControlTokens:
        """The checkpoint's control tokens."""
        return self._control

    @cached_property
    def spellings(self) -> tuple[bytes | None, ...]:
        """(V,): the bytes that each id adds to a text; None for control tokens."""
        vocab = self._config.text.vocab_size
        texts = self.tokenizer.batch_decode(
            [[i] for i in range(len(self.tokenizer))],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        spelled: list[bytes | None] = [text.encode() for text in texts][:vocab]
        spelled += [None] * (vocab - len(spelled))
        for token, value in self._control.bytes.items():
            spelled[token] = bytes([value])
        for token in self._control.special:
            spelled[token] = None
        return tuple(spelled)

    def exact(self, text: str) -> list[int]:
        """Ids that decode to just this text. Raises `PromptError` where there are none."""
        try:
            ids = self.tokenise(text)
        except TypeError:  # half a character
            ids = []
        if self.decode(ids) != text or set(ids) & self._control.special:
            raise PromptError(
                f"the checkpoint's tokens cannot spell {shorten(repr(text))} exactly; leave out "
                "control tokens and characters that it does not know."
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Plain text; special tokens are left out."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    @cached_property
    def _images(self) -> ImageProcessor:
        assert self._config.vision is not None
        return ImageProcessor(self._folder, self._config.vision)

    def _checked_ids(self, ids: Sequence[Any]) -> list[int]:
        size = self._config.text.vocab_size
        for i, token in enumerate(ids):
            if isinstance(token, bool) or not isinstance(token, Integral):
                raise PromptError(f"token {i} is {shorten(repr(token))}; give whole numbers only.")
            if not 0 <= int(token) < size:
                raise PromptError(f"token {i} is {token}; this checkpoint knows 0..{size - 1}.")
        return [int(token) for token in ids]

    def _render(
        self, turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None, thinking: bool
    ) -> list[str]:
        """The template's text, split where pictures go; a typed image token does not split it."""
        template = self._checked_template(bool(tools), thinking)
        image = self.tokenizer.convert_ids_to_tokens(self._config.image_token_id)
        mark = _unused_character([turns, tools])
        # Typed image tokens are hidden from the split and stay what they are: ordinary tokens.
        turns, tools = map_strings([turns, tools], lambda text: text.replace(image, mark))
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
                enable_thinking=thinking,
            )
        except Exception as error:  # templates raise their own errors and Python's
            raise PromptError(
                f"the checkpoint's chat template refuses these messages ({shorten(str(error), 200)}"
                "); check the tools and the tool calls."
            ) from error
        return [piece.replace(mark, image) for piece in text.split(image)]

    def _checked_template(self, tools: bool, thinking: bool) -> str:
        if not self.chat_template:
            raise CheckpointError(
                f"{self._folder} has no chat template; copy chat_template.jinja from the original "
                "checkpoint, or give token ids."
            )
        for wanted, name, word in (
            (tools, "tools", "tools"),
            (thinking, "thinking", "enable_thinking"),
        ):
            if wanted and word not in self.chat_template:
                raise PromptError(f"this checkpoint's chat template has no {name}; leave it out.")
        return self.chat_template

    def _read(self, part: MediaPart, image_tokens: int | None) -> list[str | ImagePatches]:
        """A picture, or a video's frames with their times before them."""
        if part.kind == "image":
            return [self._images.patches(open_image(part.source), image_tokens)]

        def cut(frame: Image.Image) -> ImagePatches:
            return self._images.patches(frame, self._images.frame_tokens)

        pieces: list[str | ImagePatches] = []
        for seconds, patches in read_frames(part.source, self._images.frames, cut):
            pieces += [f"{' ' if pieces else ''}{timestamp(seconds)} ", patches]
        return pieces

    def _assemble(
        self, texts: list[str], media: list[list[str | ImagePatches]]
    ) -> tuple[list[int], list[ImagePatches]]:
        """Ids with soft tokens in place, and the pictures with their starts."""
        config, ids, images = self._config, list[int](), list[ImagePatches]()
        text = texts[0]
        for pieces, after in zip(media, texts[1:], strict=True):
            for piece in pieces:
                if isinstance(piece, str):
                    text += piece
                    continue
                ids += [*self.tokenise(text), config.boi_token_id]
                images.append(replace(piece, start=len(ids)))
                ids += [config.image_token_id] * piece.tokens + [config.eoi_token_id]
                text = ""
            text += after
        return ids + self.tokenise(text), images

    def tokenise(self, text: str) -> list[int]:
        """Ids of a text, as part of a prompt or an answer."""
        # The template writes the beginning-of-text token itself.
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids


def _are_ids(messages: Any) -> bool:
    if isinstance(messages, (str, Mapping)) or not hasattr(messages, "__len__"):
        return False
    return len(messages) > 0 and isinstance(messages[0], Integral)


def _unused_character(values: Any) -> str:
    """A private-use character that none of the strings contains. Raises `PromptError`."""
    seen: set[str] = set()

    def note(text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PromptError(
                f"{shorten(ascii(text))} has half a character (a lone surrogate); remove it."
            ) from None
        seen.update(text)
        return text

    map_strings(values, note)
    return next(chr(code) for code in range(0xF0000, 0x110000) if chr(code) not in seen)
