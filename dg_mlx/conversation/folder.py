"""The folder of one conversation, which one process at a time writes.

ID/
  log.jsonl   every change, as it was made
  meta.json   what a list says of it
  media/      pictures and videos
  recordings/ how answers settled
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dg_mlx.disk import lock, sync, write_bytes
from dg_mlx.errors import StoreError

from .log import Log, first_line, lines
from .media import MediaFiles
from .summary import Summary
from .tree import Added, Change, Tree

LOG = "log.jsonl"
MEDIA = "media"
LOCK = ".lock"
PARTIAL = ".partial"
"""What the hidden name of a folder ends with that is not whole."""


class Folder:
    """Where a conversation is saved; made with its first message."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BinaryIO | None = None
        self._file: BinaryIO | None = None
        self._size = self._end = 0
        self.exists = False

    @staticmethod
    def open(path: Path) -> tuple[Folder, Log]:
        """Take a folder that exists, and read it. Raises `StoreError`.

        One that this process may not write is taken all the same; then `append` fails.
        """
        folder = Folder(path)
        with suppress(OSError):
            folder._take(path)
        try:
            with store_errors(path):
                log = Log.read(path / LOG)
        except BaseException:
            folder.close()
            raise
        folder._size, folder._end, folder.exists = log.size, log.end, True
        return folder, log

    def append(self, changes: Iterable[Change], tree: Tree, media: MediaFiles) -> None:
        """Have the disk keep changes, which led to this tree. Raises `StoreError`.

        After an error the log is as it was, and the same changes can be tried again.
        """
        changes = list(changes)
        with store_errors(self.path):
            if not self.exists:
                self._create(changes, media)
            else:
                self._write(changes, media)
        media.stored(_files(changes), self.path / MEDIA)
        Summary.of(self.path.name, tree).write(self.path, self._end)

    def put(self, place: str, name: str, data: bytes) -> None:
        """Write a file into a folder of this one, whole or not at all. Raises `StoreError`."""
        with store_errors(self.path):
            if self._lock is None:
                self._take(self.path)
            (self.path / place).mkdir(exist_ok=True)
            write_bytes(self.path / place / name, data)

    def close(self) -> None:
        """Let others write it."""
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None

    def _create(self, changes: list[Change], media: MediaFiles) -> None:
        """Under a hidden name until it is whole."""
        partial = self.path.with_name(f".{self.path.name}{PARTIAL}")
        partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        try:
            self._take(partial)
            media.store(_files(changes), partial / MEDIA)
            with (partial / LOG).open("wb") as file:
                file.write(b"".join((first_line(), *lines(changes))))
                self._size = self._end = file.tell()
            sync(partial / LOG)
            sync(partial)
            partial.rename(self.path)
        except BaseException:
            self.close()
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self.exists = True
        sync(self.path.parent)

    def _write(self, changes: list[Change], media: MediaFiles) -> None:
        if self._lock is None:
            self._take(self.path)
        if self._file is None:
            self._file = (self.path / LOG).open("r+b", buffering=0)
        found = os.fstat(self._file.fileno())
        if found.st_nlink == 0 or found.st_size != self._size:
            raise StoreError(
                f"{self.path} was changed by another program; load the conversation again."
            )
        media.store(_files(changes), self.path / MEDIA)
        data = b"".join(lines(changes))
        if not self._end:  # a log that a crash left without its first line
            data = first_line() + data
        try:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            _write_all(self._file, data)
            os.fsync(self._file.fileno())
        except BaseException:
            with suppress(OSError):
                self._file.truncate(self._end)
            self._size = os.fstat(self._file.fileno()).st_size
            raise
        self._end += len(data)
        self._size = self._end

    def _take(self, path: Path) -> None:
        self._lock = lock(path / LOCK)
        if self._lock is None:
            raise StoreError(
                f"conversation {self.path.name} is open in another program; close it there."
            )


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """What the system refuses, as `StoreError` with its fix."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fix = "free some space"
        elif error.errno == errno.ENOENT:
            fix = "list the conversations again"
        else:
            fix = "make it writable, or set DG_MLX_HOME to a folder that is"
        reason = error.strerror or str(error)
        raise StoreError(f"{path} cannot be used ({reason}); {fix}.") from error


def _files(changes: Iterable[Change]) -> list[str]:
    added = (change.message for change in changes if isinstance(change, Added))
    return [file.name for message in added for file in message.files]


def _write_all(file: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
