"""Text files that verbs read, and replace without losing a byte."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from dg_mlx.canvas.edit import read_text
from dg_mlx.disk import sync
from dg_mlx.errors import EditError

BOM = "\ufeff"
STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A text, and where it is from."""

    name: str
    path: Path | None
    """None: stdin."""
    text: str
    """Without a byte order mark."""
    marked: bool
    """The bytes begin with a byte order mark."""

    def bytes_of(self, text: str) -> bytes:
        """The bytes that the file has with this text in it."""
        return ((BOM if self.marked else "") + text).encode()

    def require_writable(self) -> None:
        """Raise `EditError` where the file cannot be replaced."""
        if self.path is None:
            raise EditError("--write needs a file, and - is stdin; name one, or drop --write.")
        if not self.path.is_file():
            raise EditError(f"{self.name} is not a regular file; drop --write.")
        if not os.access(self.path, os.W_OK) or not os.access(self.path.parent, os.W_OK):
            raise EditError(
                f"{self.name} or its folder may not be written; change that, or drop --write."
            )


def read(name: str) -> Source:
    """The text of a file, or of stdin for "-". Raises `EditError`."""
    if name == STDIN:
        return _source("stdin", None, stdin())
    # A link stays one: what it leads to is read and written.
    path = Path(os.path.realpath(os.path.expanduser(name)))
    try:
        return _source(name, path, path.read_bytes())
    except FileNotFoundError:
        raise EditError(f"there is no file {name!r}; check the path.") from None
    except IsADirectoryError:
        raise EditError(f"{name} is a folder; name a file in it.") from None
    except OSError as error:
        raise EditError(f"{name} cannot be read ({error.strerror}); change that.") from None


def stdin() -> bytes:
    """What is piped in."""
    try:
        return b"" if sys.stdin is None else sys.stdin.buffer.read()
    except OSError:
        return b""  # closed


def _source(name: str, path: Path | None, data: bytes) -> Source:
    text = read_text(data, name)
    return Source(name=name, path=path, text=text.removeprefix(BOM), marked=text.startswith(BOM))


def replace(source: Source, before: bytes, after: bytes) -> Path:
    """Write the file, whole or not at all. Returns where the old bytes are. Raises `EditError`."""
    path = source.path
    assert path is not None
    try:
        if path.read_bytes() != before:
            raise EditError(
                f"{source.name} was changed by another program meanwhile; run it again."
            )
        backup = _backup(path, before)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with _created(part, after, like=path):
            part.replace(path)
        sync(path.parent)
    except OSError as error:
        raise EditError(
            f"{source.name} cannot be written ({error.strerror}), and is as it was; change that."
        ) from None
    return backup


def _backup(path: Path, data: bytes) -> Path:
    """FILE.bak, or FILE.bak.1 and so on: the first that is free, or has these bytes already."""
    for number in count():
        backup = path.with_name(f"{path.name}.bak" + (f".{number}" if number else ""))
        try:
            with _created(backup, data, like=path):
                return backup
        except FileExistsError:
            if backup.is_file() and backup.read_bytes() == data:
                return backup
    raise AssertionError("numbers do not end")


@contextmanager
def _created(path: Path, data: bytes, *, like: Path) -> Iterator[None]:
    """A new file on the disk, with the mode and the owner of another; gone if anything fails."""
    # Nobody else reads it before it has its mode.
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        try:
            file.write(data)
            file.flush()
            with suppress(OSError):  # only root gives files away
                os.fchown(file.fileno(), like.stat().st_uid, like.stat().st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(like.stat().st_mode))
            sync(path)
            yield
        except BaseException:
            path.unlink(missing_ok=True)
            raise
