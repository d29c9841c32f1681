"""JSON files of a checkpoint, read strictly: every key is read, listed as ignored, or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import CheckpointError

# Written by the Hugging Face base class, by training code or by other tools; no effect on results.
# ruff: noqa: SIM905 - words read better than quoted words
IGNORED = frozenset(
    "_name_or_path architectures attention_dropout bos_token_id chunk_size_feed_forward "
    "default_output_length dtype eos_token_id id2label initializer_range is_encoder_decoder "
    "label2id output_attentions output_hidden_states pad_token_id "
    "problem_type return_dict torch_dtype transformers_version use_cache "
    "vision_soft_tokens_per_image generation_config quantization_config".split()
)


class Keys:
    """A JSON object whose every key must be accounted for."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise CheckpointError(f"{where} is not a JSON object; fetch the checkpoint again.")
        self._left = dict(data)
        self._where = where

    _required = object()

    def take(self, name: str, default: Any = _required) -> Any:
        """The value, which counts as read. Raises when missing and there is no default."""
        value = self._left.pop(name, default)
        if value is self._required:
            raise CheckpointError(f"{self._where} has no {name!r}; fetch the checkpoint again.")
        return value

    def positive(self, name: str) -> int:
        """A whole number of 1 or more."""
        value = self.take(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"{self._where} has {name} = {value!r}; it must be a whole number of 1 or more. "
                "Fetch the checkpoint again."
            )
        return value

    def expect(self, name: str, wanted: Any) -> None:
        """Refuse a checkpoint that asks for something this code does not compute."""
        value = self._left.pop(name, wanted)
        if value != wanted:
            raise CheckpointError(
                f"{self._where} has {name} = {value!r}; dg-mlx computes {wanted!r} only. "
                "Choose another checkpoint."
            )

    def done(self, ignored: set[str] | frozenset[str] = frozenset()) -> None:
        """Raise for keys that nobody read and nobody listed."""
        unknown = sorted(k for k in self._left if k not in IGNORED and k not in ignored)
        if unknown:
            raise CheckpointError(
                f"{self._where} has unknown keys: {', '.join(unknown)}. This checkpoint may need a "
                "newer dg-mlx."
            )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `CheckpointError` naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; give a folder with a DiffusionGemma checkpoint."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object; fetch it again.")
    return data
