"""Pictures and videos of a conversation, by the SHA-256 of their bytes."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dg_mlx.disk import digest, sync
from dg_mlx.errors import MediaError, PromptError

from .jsonl import dump, load
from .message import Content, File, Text

if TYPE_CHECKING:
    from dg_mlx.processor.messages import MediaPart

_VIDEOS = (
    *("3gp", "apng", "avi", "flv", "gif", "m4v", "mkv", "mov"),
    *("mp4", "mpeg", "mpg", "ogv", "ts", "webm", "webp"),
)
_ENDING = re.compile("[a-z0-9]{1,8}")


class MediaFiles:
    """What a conversation shows: in memory at first, then in its folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held: dict[str, bytes | Path] = {}
        """Those that are not in the folder: bytes of a picture, the original of a video."""

    def content(self, role: str, content: Any) -> Content:
        """A message's content as it is kept. Takes what `Engine.stream` takes.

        Raises `PromptError` and `MediaError`.
        """
        if isinstance(content, str) and (content or role != "user"):
            return content
        if isinstance(content, dict) and role == "tool":
            return _plain(content)
        from dg_mlx.processor.messages import normalise

        # A tool's parts are a user's, without the call that they answer.
        speaker = "assistant" if role == "assistant" else "user"
        (turn,), found = normalise([{"role": speaker, "content": content}])
        return self.parts(turn["content"], iter(found))

    def parts(self, content: Any, found: Iterable[MediaPart]) -> Content:
        """Content from `normalise`, with the pictures and videos that it took out."""
        if not isinstance(content, list):
            return content  # type: ignore[no-any-return]
        files = (File(kind=part.kind, name=self.add(part)) for part in found)
        return tuple(
            Text(text=part["text"]) if part["type"] == "text" else next(files) for part in content
        )

    def add(self, part: MediaPart) -> str:
        """Take a picture or a video. Returns its name. Raises `MediaError`."""
        if part.kind == "video":
            path = _video(part.source)
            return self.hold(f"{_digest(path)}.{_ending(path)}", path)
        data = _picture(part.source)
        return self.hold(f"{hashlib.sha256(data).hexdigest()}.{_format(data, part.source)}", data)

    def hold(self, name: str, data: bytes | Path) -> str:
        """Take bytes, or a file, under the name that is theirs."""
        self._held[name] = data
        return name

    def source(self, name: str) -> str | bytes:
        """What `Engine.stream` takes: a path, or the bytes of a picture that is in no folder."""
        data = self._where(name)
        return data if isinstance(data, bytes) else str(data)

    def read(self, name: str) -> bytes | None:
        """The bytes; None: they are lost, or never were here."""
        data = self._where(name)
        try:
            return data if isinstance(data, bytes) else data.read_bytes()
        except OSError:
            return None

    def store(self, names: Iterable[str], folder: Path) -> None:
        """Write these into a folder, but for those that are lost. Raises `OSError`."""
        for name in names:
            data = self._where(name)
            if not (folder / name).is_file() and (isinstance(data, bytes) or data.is_file()):
                _write(folder / name, data)

    def stored(self, names: Iterable[str], folder: Path) -> None:
        """This folder has them."""
        self._folder = folder
        for name in names:
            self._held.pop(name, None)

    def _where(self, name: str) -> bytes | Path:
        data = self._held.get(name)
        return (self._folder or Path("media")) / name if data is None else data


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = load(dump(value))
    except (TypeError, ValueError) as error:
        raise PromptError(
            f"a tool's result cannot be written as JSON ({error}); make it text."
        ) from None
    return plain


def _picture(source: Any) -> bytes:
    from PIL import Image

    from dg_mlx.processor.images import data_uri, is_file, local_path, open_image

    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return data_uri(source)
    if isinstance(source, (str, os.PathLike)) and os.fspath(source):
        path = local_path(os.fsdecode(source), "picture")
        if is_file(path):
            return _bytes(path)
    image = open_image(source)  # raises, unless it is a PIL.Image
    assert isinstance(source, Image.Image)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _format(data: bytes, source: Any) -> str:
    """The usual ending of such a picture's name. Raises `MediaError`."""
    from PIL import Image

    from dg_mlx.processor.images import open_image

    try:
        with Image.open(io.BytesIO(data)) as image:
            name = (image.format or "").lower()
    except Exception:  # decoders raise all sorts on broken files
        open_image(source)  # says what is wrong
        raise
    return {"jpeg": "jpg"}.get(name, name if _ENDING.fullmatch(name) else "bin")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}); check the file.") from error


def _video(source: Any) -> Path:
    from dg_mlx.processor.images import is_file, local_path, shorten

    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise MediaError(f"a video is {shorten(repr(source))}; give the path of a file.")
    path = local_path(os.fsdecode(source), "video")
    if not is_file(path):
        raise MediaError(f"{shorten(str(path))} is not a file; check the video's path.")
    return path.absolute()


def _digest(path: Path) -> str:
    try:
        return digest(path)
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}); check the file.") from error


def _ending(path: Path) -> str:
    ending = path.suffix[1:].lower()
    return ending if ending in _VIDEOS else "bin"


def _write(path: Path, data: bytes | Path) -> None:
    """Write a file that is whole or absent; absent too if it is no longer what its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        if isinstance(data, bytes):
            part.write_bytes(data)
        else:
            shutil.copyfile(data, part)
        if digest(part) == path.stem:
            sync(part)
            part.replace(path)
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
