"""What is already known of a prompt: the cache of an earlier one that begins the same way.

A conversation's next prompt repeats what was said. Full-attention layers can forget their last
tokens, but sliding layers hold only their window: to go back to a place, what they held there must
have been kept. That is done at the end of every prompt, where turns meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from .model import Cache, DiffusionGemma, ImagePatches, Media
from .model.cache import Mark
from .prefix_store import Entry, Images, PrefixStore, outlines
from .processor import Prompt

MARKS = 4
"""Places that are kept: the first, which may end a long document, and the last ones."""
WORTH = 512
"""Tokens that must be new, or known, for the disk to be written or read."""

Outline = tuple[Sequence[int], Images]
"""A prompt's ids, and what tells its pictures apart."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rest:
    """What of a prompt is to be read."""

    cached: int
    """Tokens that are known."""
    ids: Sequence[int]
    media: Media | None


class PrefixCache:
    """Keys and values of one line of prompts and answers, for prompts that begin as it does.

    Belongs to one conversation; only the thread that owns MLX may call it.
    """

    def __init__(self, marks: int = MARKS, store: PrefixStore | None = None) -> None:
        """`marks`: places to which it can go back; 0: only a prompt that goes on is known.

        `store`: where long prompts are kept for other days.
        """
        self._most, self._store = marks, store
        self._model: DiffusionGemma | None = None
        self._cache: Cache | None = None
        self._marks: list[Mark] = []
        self._passing = self._claimed = False
        self._ids: list[int] = []
        self._images: tuple[ImagePatches, ...] = ()
        self._unsaved = 0

    @contextmanager
    def claimed(self) -> Iterator[PrefixCache]:
        """This one for a single answer; an answer that comes meanwhile gets an empty one."""
        if self._claimed:
            yield PrefixCache(marks=0)
            return
        self._claimed = True
        try:
            yield self
        except Exception:
            self.forget()  # the cache may be half written
            raise
        finally:
            self._claimed = False

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        cache = 0 if self._cache is None else self._cache.nbytes
        return cache + sum(mark.nbytes for mark in self._marks)

    def open(self, model: DiffusionGemma, prompt: Prompt, reserve: int) -> tuple[Cache, Rest]:
        """A cache that holds as much of the prompt as is known, and the rest.

        `reserve`: tokens of prompt and answer.
        """
        if self._model is not model:
            self.forget()
        images = prompt.media.images if prompt.media is not None else ()
        asked = prompt.ids, outlines(images)
        cache = self._rewound(_common((self._ids, outlines(self._images)), asked))
        cache = self._stored(model, asked, 0 if cache is None else cache.tokens) or cache
        if cache is None:
            self.forget()
            cache = model.new_cache()
        cache.expect(reserve)
        self._model, self._cache = model, cache
        self._ids, self._images = list(prompt.ids), images
        self._passing, self._unsaved = False, len(prompt.ids) - cache.tokens
        new = [replace(i, start=i.start - cache.tokens) for i in images if i.start >= cache.tokens]
        media = Media(images=tuple(new)) if new else None
        return cache, Rest(cached=cache.tokens, ids=prompt.ids[cache.tokens :], media=media)

    def mark(self) -> None:
        """Prompts to come may begin with what was read so far.

        Within a prompt, between chunks, only the last such place stays: where another question on
        the same document parts.
        """
        assert self._cache is not None
        if not self._most or (self._marks and self._marks[-1].tokens == self._cache.tokens):
            return
        within = self._cache.tokens < len(self._ids)
        if self._passing and within:
            self._marks.pop()
        self._passing = within
        self._marks.append(self._cache.mark())
        if len(self._marks) > self._most:
            del self._marks[min(1, self._most - 1)]

    def extend(self, ids: Sequence[int]) -> None:
        """These tokens are about to follow."""
        self._ids += ids

    def save(self) -> None:
        """Keep the prompt on disk, if there is a store and much of it was new."""
        if self._store is None or self._unsaved < WORTH or not self._marks:
            return
        assert self._model is not None
        assert self._cache is not None
        if self._model.identity:
            self._store.save(self._model, self._ids, self._images, self._cache, self._marks[-2:])
            self._unsaved = 0

    def forget(self) -> None:
        """Hold nothing, as after an error in the middle of a step."""
        self._model = self._cache = None
        self._marks, self._ids, self._images = [], [], ()
        self._unsaved = 0

    def _rewound(self, common: int) -> Cache | None:
        """The cache where it holds the most of the first `common` tokens and no others."""
        cache = self._cache
        if cache is None:
            return None
        self._marks = [mark for mark in self._marks if mark.tokens <= common]
        if cache.tokens > common:
            if not self._marks:
                return None
            cache.rewind(self._marks[-1])
        return cache

    def _stored(self, model: DiffusionGemma, asked: Outline, known: int) -> Cache | None:
        """A cache from disk, where it knows much more than `known` tokens."""
        if self._store is None or not model.identity or len(asked[0]) - known < WORTH:
            return None
        places: list[tuple[int, Entry]] = []
        for entry in self._store.entries(model):
            common = _common((entry.ids, entry.images), asked)
            places += [(place, entry) for place in entry.places if known + WORTH <= place <= common]
        if not places:
            return None
        best, entry = max(places, key=lambda found: found[0])
        loaded = self._store.load(model, entry)
        if loaded is None:
            return None
        cache, marks = loaded
        self._marks = [mark for mark in marks if mark.tokens <= best]
        cache.rewind(self._marks[-1])
        return cache


def _common(one: Outline, other: Outline) -> int:
    """How many tokens two prompts begin with alike. Equal ids may stand for different pictures."""
    (ids, images), (others, their_images) = one, other
    length = min(len(ids), len(others))
    different = np.flatnonzero(np.array(ids[:length]) != np.array(others[:length]))
    common = int(different[0]) if len(different) else length
    for mine, theirs in zip(images, their_images, strict=False):
        if mine != theirs:
            common = min(common, mine[0], theirs[0])
            break
    # A picture is never cut: its tokens see each other.
    for start, tokens, _ in their_images:
        if start < common < start + tokens:
            common = start
    return common
