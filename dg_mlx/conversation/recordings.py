"""How the answers of a conversation settled: its recordings, by their messages.

Nothing else depends on them. One that cannot be written stays in memory, and is tried again with
the next one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

from dg_mlx.errors import StoreError
from dg_mlx.replay import Recording

from .folder import Folder

RECORDINGS = "recordings"
"""Their place in a conversation's folder."""
MOST = 200
"""Recordings of one conversation; the oldest go first."""
MOST_BYTES = 64_000_000
"""All of them together, gzipped."""

_ENDING = ".json.gz"
_PLAIN = re.compile("[0-9a-z_-]{1,64}")


class Recordings:
    """Of one conversation: in memory at first, then in its folder."""

    def __init__(self, source: Path | None = None) -> None:
        """`source`: a conversation's folder that has some already."""
        self._source = source
        self._held: dict[str, bytes] = {}
        """Those that are in no folder, by the names of their files, oldest first."""
        self._lock = threading.Lock()

    def get(self, message: str) -> Recording | None:
        """That of a message; None: there is none. Raises `StoreError` for a damaged one."""
        name = _name(message)
        with self._lock:
            data = self._held.get(name)
        if data is not None:
            return Recording.of(data)
        if self._source is None or not (path := self._source / RECORDINGS / name).is_file():
            return None
        return Recording.read(path)

    def of(self, messages: Iterable[str]) -> frozenset[str]:
        """Those of the messages that have one."""
        with self._lock:
            names = {*self._held, *(path.name for path in self._files())}
        return frozenset(message for message in messages if _name(message) in names)

    def put(self, message: str, recording: Recording, folder: Folder | None) -> None:
        """Keep one in the place of the message's last. `folder`: the conversation's.

        One that is larger than all together may be is not kept.
        """
        name, data = _name(message), recording.data(gz=True)
        if len(data) > MOST_BYTES:
            return
        with self._lock:
            self._held.pop(name, None)
            self._held[name] = data
            if folder is not None and self._save(folder):
                self._trim_files()
            self._trim_held()

    def move(self, folder: Folder) -> None:
        """Keep all in this folder from now on, copies of those that are in another one."""
        with self._lock:
            copies: dict[str, bytes] = {}
            for path in self._files():
                with suppress(OSError):
                    copies[path.name] = path.read_bytes()
            self._held = copies | self._held
            self._source = None
            self._save(folder)

    def _save(self, folder: Folder) -> bool:
        """Write what is held. False: there is some left, since the folder cannot be written."""
        with suppress(StoreError):
            for name, data in list(self._held.items()):
                folder.put(RECORDINGS, name, data)
                self._source = folder.path
                del self._held[name]
        return not self._held

    def _trim_held(self) -> None:
        names = [*reversed(self._held)]
        for name in names[_fitting([len(self._held[name]) for name in names]) :]:
            del self._held[name]

    def _trim_files(self) -> None:
        with suppress(OSError):
            paths = [*reversed(self._files())]
            for path in paths[_fitting([path.stat().st_size for path in paths]) :]:
                path.unlink()

    def _files(self) -> list[Path]:
        """Oldest first."""
        if self._source is None:
            return []
        found: list[tuple[int, Path]] = []
        with suppress(OSError):
            for path in (self._source / RECORDINGS).iterdir():
                if path.name.endswith(_ENDING) and not path.name.startswith("."):
                    found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]


def _fitting(sizes: Iterable[int]) -> int:
    """How many of these, in bytes and newest first, a conversation may have."""
    totals = list(accumulate(sizes))[:MOST]
    return sum(total <= MOST_BYTES for total in totals)


def _name(message: str) -> str:
    """A file's name, whatever the message's id is."""
    if _PLAIN.fullmatch(message):
        return message + _ENDING
    return f"id.{sha256(message.encode('utf-8', 'surrogatepass')).hexdigest()}{_ENDING}"
