"""Texts of tokens, as they may be shown.

Legend of array names: N tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from dg_mlx.signs import harmless


class Texts:
    """Harmless texts, each looked up once."""

    def __init__(self, piece: Callable[[int], str], bytes_: Mapping[int, int]) -> None:
        """`piece`: text of a token; `bytes_`: tokens of single bytes → the byte."""
        self._piece, self._bytes = piece, bytes_
        self._known: dict[int, str] = {}

    def of(self, token: int) -> str:
        """Text of one token by itself."""
        text = self._known.get(token)
        if text is None:
            text = self._known[token] = harmless(self._piece(token))
        return text

    def said(self, token: int) -> str | int:
        """The same, as a recording has it: the value of a byte in the place of its text."""
        byte = self._bytes.get(token)
        return self.of(token) if byte is None else byte

    def line(self, ids_N: NDArray[np.int32]) -> list[str]:
        """Text of each token in a row; a character of several tokens is the last one's."""
        ids: list[int] = ids_N.tolist()
        if self._bytes.keys().isdisjoint(ids):
            return [self.of(token) for token in ids]
        texts: list[str] = []
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for at, token in enumerate(ids):
            byte = self._bytes.get(token)
            if byte is None:
                texts.append(self.of(token))
                continue
            over = at + 1 == len(ids) or ids[at + 1] not in self._bytes
            texts.append(harmless(decoder.decode(bytes([byte]), over)))
            if over:
                decoder.reset()
        return texts
