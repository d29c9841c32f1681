"""Files that come with a message: what they may be, and that they go again."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dg_mlx.errors import MediaError, PromptError
from dg_mlx.units import size

MOST_BYTES = 200_000_000
"""Of any file that is sent."""
MOST_PICTURE = 50_000_000
MOST_TEXT = 1_000_000
MOST_FILES = 16
TEXTS = (".txt", ".md", ".csv", ".json", ".py", ".log")
TYPES = ["image", "video", *TEXTS]
"""What may be chosen, as Gradio takes it."""


def content(text: str, files: Iterable[str]) -> Any:
    """A user's message: pictures and videos first, then texts. Raises `PromptError`, `MediaError`.

    Everything is looked at now: what is wrong is said before the message is sent.
    """
    paths = [Path(file) for file in files]
    if len(paths) > MOST_FILES:
        raise PromptError(f"{len(paths)} files are too many; send {MOST_FILES} at most.")
    media, texts = [], []
    for path in paths:
        if not path.is_file():
            raise MediaError(f"{path.name} is not here any more; attach it again.")
        kind = _kind(path)
        if kind == "text":
            texts.append(f"{path.name}:\n{_text(path)}")
        else:
            media.append({"type": kind, kind: _checked(path, kind)})
    whole = "\n\n".join(filter(None, [*texts, text.strip()]))
    if not whole and not media:
        raise PromptError("the message is empty; write something.")
    return [*media, {"type": "text", "text": whole}] if media else whole


def forget(files: Iterable[str]) -> None:
    """Delete files that were sent, with the folders that were made for them."""
    for file in files:
        with suppress(OSError):
            path = Path(file)
            path.unlink()
            path.parent.rmdir()


def _kind(path: Path) -> str:
    if path.suffix.lower() in TEXTS:
        return "text"
    kind = (mimetypes.guess_type(path.name)[0] or "").partition("/")[0]
    if path.suffix.lower() == ".gif" or kind == "video":
        return "video"
    if kind == "image":
        return "image"
    raise MediaError(
        f"{path.name} is no picture, video or text; send one of those ({', '.join(TEXTS)})."
    )


def _checked(path: Path, kind: str) -> Any:
    """What `Engine.stream` takes: a video's path, a picture's bytes."""
    bytes_ = path.stat().st_size
    most = MOST_PICTURE if kind == "image" else MOST_BYTES
    if bytes_ > most:
        raise MediaError(f"{path.name} has {size(bytes_)}; at most {size(most)} are taken.")
    if kind == "video":
        from dg_mlx.processor.video import read_frames

        try:
            read_frames(path, 1, lambda frame: None)
        except MediaError as error:  # nobody knows the folder
            raise MediaError(str(error).replace(str(path), path.name)) from None
        return str(path)
    from dg_mlx.processor.images import open_image

    data = path.read_bytes()
    open_image(data)
    return data


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_TEXT:
        raise PromptError(f"{path.name} has {size(path.stat().st_size)}; a message takes 1 MB.")
    try:
        return path.read_text(encoding="utf-8").rstrip()
    except UnicodeDecodeError:
        raise PromptError(f"{path.name} is not UTF-8 text; convert it.") from None
