"""All conversations on this machine: a folder each. docs/conversations.md has the format."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from dg_mlx.disk import lock, sync
from dg_mlx.errors import StoreError

from . import summary
from .conversation import Conversation
from .folder import LOCK, LOG, MEDIA, PARTIAL, Folder, store_errors
from .journal import Journal
from .jsonl import dump
from .log import Log
from .media import MediaFiles
from .recordings import Recordings
from .summary import Summary
from .tree import Tree

TRASH_DAYS = 30
"""How long a deleted conversation can be restored."""

_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
_TRASH = ".trash"
_DAY_S = 24 * 3600
_AROUND = 40
"""Characters before and after what was found."""


def data_folder() -> Path:
    """`DG_MLX_HOME`, or else the place that the system has for data."""
    own = os.environ.get("DG_MLX_HOME") or platformdirs.user_data_dir("dg-mlx", appauthor=False)
    return Path(own).expanduser()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A message with the text that was looked for."""

    id: str
    """Of the conversation."""
    message: str
    """Its id."""
    excerpt: str
    """Some of its text, in one line."""


class Store:
    """The folder of all conversations."""

    def __init__(self, home: Path | None = None) -> None:
        """`home`: None for `data_folder()`.

        What was deleted more than `TRASH_DAYS` ago goes for good.
        """
        self.path = (data_folder() if home is None else home).absolute() / "conversations"
        with suppress(OSError, StoreError):
            self._tidy(time.time())

    def create(self, *, system: str = "", model: str = "") -> Conversation:
        """A new conversation, which is saved once something is said."""
        journal = Journal(Tree(), MediaFiles(), self._new())
        return Conversation(system=system, model=model, journal=journal)

    def keep(self, conversation: Conversation) -> None:
        """Save one that belongs to no store, now and with every change. Raises `StoreError`."""
        if conversation.id:
            raise StoreError(f"this conversation is saved already, as {conversation.id}.")
        folder = self._new()
        conversation.journal.save_in(folder)
        conversation.recordings.move(folder)

    def load(self, id: str) -> Conversation:
        """Go on with a conversation; close it when done.

        Raises `StoreError`: there is none, it is open elsewhere, or of a newer version. In a folder
        that cannot be written, it goes on in memory: `Conversation.unsaved`.
        """
        folder, log = Folder.open(self._folder(id))
        return _conversation(log, folder.path, folder)

    def read(self, id: str) -> Conversation:
        """A copy in memory, also of one that is open elsewhere. Raises `StoreError`."""
        path = self._folder(id)
        with store_errors(path):
            log = Log.read(path / LOG)
        return _conversation(log, path)

    def list(self) -> Sequence[Summary]:
        """All conversations, what changed last first. Raises `StoreError`."""
        return _summaries(path for path in self._folders(self.path) if _ID.fullmatch(path.name))

    def search(self, text: str) -> Iterator[Hit]:
        """Messages that contain a text, upper or lower case, what changed last first.

        Raises `StoreError`.
        """
        wanted = text.casefold()
        if not wanted.strip():
            return
        for found in self.list():
            path = self.path / found.id / LOG
            with suppress(OSError, StoreError):
                if _may_contain(path, wanted):
                    yield from _hits(found.id, Log.read(path).tree, wanted)

    def rename(self, id: str, title: str) -> None:
        """Give a conversation a name. Raises as `load`."""
        with self.load(id) as conversation:
            conversation.rename(title)

    def delete(self, id: str) -> None:
        """Move a conversation to the trash. Raises `StoreError`, also if it is open anywhere."""
        path = self._folder(id)
        with store_errors(path):
            held = lock(path / LOCK)
            if held is None:
                raise StoreError(f"conversation {id} is open; close it first.")
            with held:
                (self.path / _TRASH).mkdir(exist_ok=True)
                path.rename(self.path / _TRASH / f"{id}.{time.time():.0f}")
            sync(self.path)

    def restore(self, id: str) -> None:
        """Take a conversation out of the trash. Raises `StoreError`."""
        for path in self._folders(self.path / _TRASH):
            if path.stem == id:
                with store_errors(path):
                    path.rename(self.path / id)
                    sync(self.path)
                return
        raise StoreError(f"there is no conversation {id!r:.40} in the trash.")

    def trash(self) -> Sequence[Summary]:
        """What can be restored. Raises `StoreError`."""
        return _summaries(self._folders(self.path / _TRASH))

    def _new(self) -> Folder:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        return Folder(self.path / f"{stamp}-{secrets.token_hex(4)}")

    def _folder(self, id: str) -> Path:
        path = self.path / id
        if not _ID.fullmatch(id) or not path.is_dir():
            raise StoreError(f"there is no conversation {id!r:.40}; list them again.")
        return path

    def _folders(self, path: Path) -> Sequence[Path]:
        """The folders in one; none where it does not exist. Raises `StoreError`."""
        with store_errors(path):
            try:
                return [Path(entry) for entry in os.scandir(path) if entry.is_dir()]
            except FileNotFoundError:
                return []

    def _tidy(self, now_s: float) -> None:
        """Empty the trash of what is old, and take away what a crash left."""
        for path in self._folders(self.path / _TRASH):
            deleted = path.suffix[1:]
            if deleted.isdecimal() and now_s - int(deleted) > TRASH_DAYS * _DAY_S:
                gone = self.path / f".{path.name}{PARTIAL}"
                path.rename(gone)
                shutil.rmtree(gone)
        for path in self.path.glob(f".*{PARTIAL}"):
            if now_s - path.stat().st_mtime > _DAY_S:
                shutil.rmtree(path)


def _conversation(log: Log, path: Path, folder: Folder | None = None) -> Conversation:
    """What a log says. `path`: where it is; `folder`: where it is saved, if it is."""
    return Conversation(
        model=log.tree.model,
        journal=Journal(log.tree, MediaFiles(path / MEDIA), folder),
        damaged=log.damaged,
        recordings=Recordings(path),
    )


def _summaries(folders: Iterable[Path]) -> Sequence[Summary]:
    found = [s for path in folders if (s := summary.read(path, path / LOG)) is not None]
    return sorted(found, key=lambda s: (s.updated, s.id), reverse=True)


def _may_contain(log: Path, wanted: str) -> bool:
    """Whether it is worth reading: the text is in the file, in whatever place."""
    return dump(wanted)[1:-1].decode() in log.read_text("utf-8", "replace").casefold()


def _hits(id: str, tree: Tree, wanted: str) -> Iterator[Hit]:
    for message in tree.messages.values():
        at = message.text.casefold().find(wanted)
        if at >= 0:
            yield Hit(id=id, message=message.id, excerpt=_excerpt(message.text, at, len(wanted)))


def _excerpt(text: str, at: int, length: int) -> str:
    """Some of a text around a place of its casefolded form, which may be longer than it."""
    start = 0
    while at > 0:
        at -= len(text[start].casefold())
        start += 1
    begin, end = max(0, start - _AROUND), start + length + _AROUND
    words = " ".join(text[begin:end].split())
    return f"{'…' if begin else ''}{words}{'…' if end < len(text) else ''}"
