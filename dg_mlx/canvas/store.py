"""Compiled constraints on disk, so that another process need not compile them again.

A file is named after what it was compiled from, and begins with a checksum of its name and of what
follows. One that is not what it says is not read, and what cannot be written is not: the disk is a
help, and nothing depends on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path

import numpy as np

from .automaton import Automata, ByteAutomaton, Edges, Pieces, TokenAutomaton

VERSION = 1
"""Of what automata are and how they are written."""
FILES = 64
"""Those used longest ago go first."""


class Store:
    """A folder of compiled constraints on one vocabulary. Made when it is first written to."""

    def __init__(self, folder: Path, pieces: Pieces) -> None:
        self._folder = folder
        self._hash = hashlib.sha256(b"%d\0" % VERSION + pieces.length_V.tobytes() + pieces.bytes_)

    def load(self, regex: str) -> Automata | None:
        """What was saved for a regular expression; None if nothing was, or it is damaged."""
        path = self._path(regex)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if content[:32] != _checksum(path, content[32:]):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
            found = ByteAutomaton(
                kind_B=arrays["kind_B"], next_QK=arrays["next_QK"], accepts_Q=arrays["accepts_Q"]
            )
            edges = Edges(arrays["sources_E"], arrays["classes_E"], arrays["targets_E"])
            tokens = TokenAutomaton(
                class_V=arrays["class_V"], edges=edges, accepts_Q=found.accepts_Q
            )
        return Automata(found, tokens)

    def save(self, regex: str, automata: Automata) -> None:
        """Write what was compiled. Nothing happens where that fails."""
        in_memory = io.BytesIO()
        np.savez(
            in_memory,
            kind_B=automata.bytes_.kind_B,
            next_QK=automata.bytes_.next_QK,
            accepts_Q=automata.bytes_.accepts_Q,
            class_V=automata.tokens.class_V,
            sources_E=automata.tokens.edges.sources_E,
            classes_E=automata.tokens.edges.classes_E,
            targets_E=automata.tokens.edges.targets_E,
        )
        path = self._path(regex)
        part = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_bytes(_checksum(path, in_memory.getvalue()) + in_memory.getvalue())
            part.replace(path)
            files = sorted(self._folder.iterdir(), key=lambda file: file.stat().st_mtime)
            for file in files[:-FILES]:
                file.unlink()
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _path(self, regex: str) -> Path:
        known = self._hash.copy()
        known.update(regex.encode(errors="surrogatepass"))
        return self._folder / known.hexdigest()


def _checksum(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + content).digest()
