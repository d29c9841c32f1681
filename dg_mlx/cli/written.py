"""How committed text is written to a terminal: in whole lines, as Markdown, or not at all."""

from __future__ import annotations

from typing import Protocol

from .terminal import write


class Written(Protocol):
    """Takes an answer as it is committed."""

    rest: str
    """What is not written yet."""

    def feed(self, text: str) -> None:
        """The answer goes on: write what is complete."""

    def finish(self) -> None:
        """The answer is over: write the rest."""


class Lines:
    """As it is, in whole lines."""

    def __init__(self) -> None:
        self.rest = ""

    def feed(self, text: str) -> None:
        """Write the lines that are complete."""
        whole, end, self.rest = (self.rest + text).rpartition("\n")
        write(whole + end)

    def finish(self) -> None:
        """Write the begun line."""
        text, self.rest = self.rest, ""
        write(text)


class Nothing:
    """For an answer that was written before."""

    rest = ""

    def feed(self, text: str) -> None:
        """Nothing is written."""

    def finish(self) -> None:
        """Nothing is written."""
