"""A tree whose changes are saved, as long as that works."""

from __future__ import annotations

import threading

from dg_mlx.errors import ConversationError, StoreError

from .folder import Folder
from .media import MediaFiles
from .tree import Change, Tree


class Journal:
    """Makes changes, first in memory and then in a folder, if there is one.

    What cannot be saved waits, and is tried again with the next change.
    """

    def __init__(self, tree: Tree, media: MediaFiles, folder: Folder | None = None) -> None:
        self.tree, self.media, self.folder = tree, media, folder
        self.unsaved: StoreError | None = None
        self._told = False
        self._waiting: list[Change] = []
        self._lock = threading.Lock()
        self._closed = False

    def make(self, change: Change) -> None:
        """Make a change and try to save it. Raises `ConversationError` for an impossible one."""
        with self._lock:
            self.require_open()
            self.tree.apply(change)
            if self.folder is not None:
                self._waiting.append(change)
                self._save(self.folder)

    def news(self) -> StoreError | None:
        """Why changes are not saved, once for each time that it begins."""
        news = None if self._told else self.unsaved
        self._told = self.unsaved is not None
        return news

    def save_in(self, folder: Folder) -> None:
        """Save all that was said there, and what will be. Raises `StoreError`."""
        with self._lock:
            self.require_open()
            self._waiting = [*self.tree.changes()]
            self._save(folder)
            if self.unsaved is not None:
                error, self.unsaved = self.unsaved, None
                raise error
            self.folder = folder

    def require_open(self) -> None:
        """Raises `ConversationError` once it is closed."""
        if self._closed:
            raise ConversationError("this conversation is closed; load it again.")

    def close(self) -> None:
        """Let others write the folder."""
        with self._lock:
            self._closed = True
            if self.folder is not None:
                self.folder.close()

    def _save(self, folder: Folder) -> None:
        if not self.tree.messages and not folder.exists:
            return  # nothing was said yet
        try:
            folder.append(self._waiting, self.tree, self.media)
        except StoreError as error:
            self.unsaved = error
        else:
            self.unsaved = None
            self._waiting = []
