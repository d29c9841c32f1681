"""What goes with a turn: pictures, videos, and text files, by their paths."""

from __future__ import annotations

import contextlib
import mimetypes
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dg_mlx.errors import PromptError
from dg_mlx.units import size

from .options import media_part

MOST_FILE = 1_000_000
"""Bytes of a text file that goes into a turn."""


def part(kind: str, path: str) -> dict[str, Any]:
    """A part of a turn: an "image", a "video", or a "file" of text.

    Raises `MediaError` and `PromptError`.
    """
    path = unquoted(path)
    return _text_part(path) if kind == "file" else media_part(kind, path)


def content(text: str, parts: list[dict[str, Any]]) -> Any:
    """What a message of the user holds: files of text come before the text, pictures first."""
    files = [part["text"] for part in parts if part["type"] == "text"]
    media = [part for part in parts if part["type"] != "text"]
    whole = "\n\n".join([*files, text])
    return [*media, {"type": "text", "text": whole}] if media else whole


def dropped(text: str) -> tuple[str, str] | None:
    """(kind, path) of a picture or video whose path is all that was typed."""
    path = unquoted(text.strip())
    kind = (mimetypes.guess_type(path)[0] or "").partition("/")[0]
    return (kind, path) if kind in ("image", "video") and is_file(path) else None


def unquoted(path: str) -> str:
    """A path as terminals write one that is dropped: quoted, escaped, or a file: address."""
    if path.startswith("file://"):
        return unquote(path.removeprefix("file://"))
    if not is_file(path):
        with contextlib.suppress(ValueError):
            parts = shlex.split(path)
            if len(parts) == 1:
                return parts[0]
    return path


def is_file(path: str) -> bool:
    """Whether a text is the path of one; it may be any text."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        return Path(path).expanduser().is_file()
    return False


def _text_part(path: str) -> dict[str, Any]:
    """A text file as a part of a turn. Raises `PromptError`."""
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > MOST_FILE:
            raise PromptError(f"{path} has {size(file.stat().st_size)}; a turn takes 1 MB.")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptError(f"{path} cannot be read ({error.strerror}); check the path.") from None
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not UTF-8 text; /image and /video take others.") from None
    return {"type": "text", "text": f"{file.name}:\n{text.rstrip()}"}
