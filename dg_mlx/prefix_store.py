"""Prompts that were read, on disk: a long document opens at once the next day.

A prompt is two files of one name in the folder: NAME.safetensors holds the keys and values, and
NAME.json says what they are of:

    {"version": 1, "model": …, "ids": […], "images": [[start, tokens, key], …],
     "places": [tokens, …], "sha256": …}

The JSON is written last, so a prompt without one is not there. A file that is not what its checksum
says is deleted. What cannot be written is not: the disk is a help, and nothing depends on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from .disk import digest, sync, write_text
from .model import Cache, DiffusionGemma, ImagePatches
from .model.cache import Mark

VERSION = 1
LIMIT = 20_000_000_000
"""Bytes of all files; those used longest ago go first."""

Images = tuple[tuple[int, int, str], ...]
"""(start, tokens, key) of each picture."""


def outlines(images: Sequence[ImagePatches]) -> Images:
    """What tells pictures apart."""
    return tuple((image.start, image.tokens, image.key) for image in images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A prompt on disk."""

    path: Path
    """Its JSON."""
    ids: list[int]
    images: Images
    places: tuple[int, ...]
    """Tokens at each place to which the cache can go back, rising."""
    sha256: str

    @property
    def arrays(self) -> Path:
        """Its keys and values."""
        return self.path.with_suffix(".safetensors")


class PrefixStore:
    """A folder of prompts that were read. Made when it is first written to."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        """`limit`: bytes of all prompts together."""
        self.folder, self._limit = folder, limit

    def entries(self, model: DiffusionGemma) -> Iterator[Entry]:
        """The prompts that this model has read. What cannot be read is passed over."""
        with contextlib.suppress(OSError):
            for path in sorted(self.folder.glob("*.json")):
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                    found = json.loads(path.read_text(encoding="utf-8"))
                    if (found["version"], found["model"]) == (VERSION, model.identity):
                        yield Entry(
                            path=path,
                            ids=[int(i) for i in found["ids"]],
                            images=tuple((int(s), int(t), str(k)) for s, t, k in found["images"]),
                            places=tuple(int(n) for n in found["places"]),
                            sha256=found["sha256"],
                        )

    def load(self, model: DiffusionGemma, entry: Entry) -> tuple[Cache, list[Mark]] | None:
        """The cache at the end of a prompt, and its places; None if the file is damaged."""
        try:
            if digest(entry.arrays) != entry.sha256:
                raise ValueError("damaged")
            arrays = mx.load(str(entry.arrays))
            assert isinstance(arrays, dict)
            cache = model.new_cache()
            cache.fill({int(n[5:]): a for n, a in arrays.items() if n.startswith("full.")})
            marks = [
                Mark(tokens, tuple(arrays[f"sliding.{tokens}.{i}"] for i in range(cache.slots)))
                for tokens in entry.places
            ]
            mx.eval(arrays)
        except (OSError, ValueError, KeyError, RuntimeError):
            self._delete(entry.path)
            return None
        with contextlib.suppress(OSError):
            os.utime(entry.path)  # used now
        return cache, marks

    def save(
        self,
        model: DiffusionGemma,
        ids: Sequence[int],
        images: Sequence[ImagePatches],
        cache: Cache,
        marks: Sequence[Mark],
    ) -> None:
        """Write the prompt that ends at the last mark. Nothing happens where that fails."""
        last = marks[-1].tokens
        arrays = {f"full.{i}": array for i, array in cache.full(last).items()}
        for mark in marks:
            for slot, array in enumerate(mark.sliding):
                if array is not None:
                    arrays[f"sliding.{mark.tokens}.{slot}"] = array
        if sum(array.nbytes for array in arrays.values()) > self._limit:
            return
        about = {
            "version": VERSION,
            "model": model.identity,
            "ids": list(ids[:last]),
            "images": [i for i in outlines(images) if i[0] < last],
            "places": [mark.tokens for mark in marks],
        }
        name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
        path = self.folder / f"{name}.json"
        part = self.folder / f".{name}.part.safetensors"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mx.save_safetensors(str(part), arrays)
            sync(part)
            about["sha256"] = digest(part)
            part.replace(path.with_suffix(".safetensors"))
            write_text(path, json.dumps(about))
            self._trim()
        except (OSError, RuntimeError):  # MLX raises the latter for a full disk
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _trim(self) -> None:
        """Delete what was used longest ago until the rest is within the limit."""
        found = sorted(self.folder.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        total = 0
        for path in found:
            arrays = path.with_suffix(".safetensors")
            total += arrays.stat().st_size if arrays.exists() else 0
            if total > self._limit:
                self._delete(path)

    @staticmethod
    def _delete(path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.with_suffix(".safetensors").unlink(missing_ok=True)
