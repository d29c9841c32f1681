"""An answer's Markdown on a terminal: each part of it is printed once, when it is complete."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from typing import TextIO

from markdown_it import MarkdownIt
from rich.console import Console
from rich.markdown import Markdown

from dg_mlx.signs import harmless

_THEME = "ansi_dark"  # the terminal's own colours
_PADDING = re.compile(" +(?=\n|$)")


class MarkdownStream:
    """Takes text as it is committed; prints paragraphs, tables and code that nothing can change."""

    def __init__(self, out: TextIO | None = None, width: int | None = None) -> None:
        """`width`: columns; None: the terminal's, whenever something is printed."""
        self._out, self._width = out, width
        # What looks like HTML or names an address is text: nothing of an answer may vanish.
        self._parser = MarkdownIt("commonmark", {"html": False})
        self._parser.enable(["table", "strikethrough"]).disable(["reference", "autolink", "image"])
        self._printed = False
        self.rest = ""
        """What is not printed yet."""

    def feed(self, text: str) -> None:
        """The answer goes on."""
        self.rest += text
        *complete, self.rest = self._blocks()
        for block in complete:
            self._print(block)

    def finish(self) -> None:
        """The answer is over."""
        for block in self._blocks():
            self._print(block)
        self.rest = ""

    def _blocks(self) -> list[str]:
        """What is not printed, by paragraphs, lists, tables and code; the last one may go on."""
        lines = self.rest.splitlines(keepends=True)
        starts = [t.map[0] for t in self._parser.parse(self.rest) if t.level == 0 and t.map]
        places = [0, *starts[1:], len(lines)]
        return ["".join(lines[a:b]) for a, b in pairwise(places)]

    def _print(self, source: str) -> None:
        if not source.strip():
            return
        out = self._out or sys.stdout
        console = Console(file=out, width=self._width, highlight=False)
        shown = Markdown(
            "", hyperlinks=False, code_theme="ansi_dark", inline_code_theme="ansi_dark"
        )
        shown.parsed = self._parser.parse(harmless(source.strip("\n")))
        for token in shown.parsed:  # a line of the answer is a line here
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"
        with console.capture() as captured:
            console.print(shown)
        text = _PADDING.sub("", captured.get()).strip("\n")
        out.write(f"\n{text}\n" if self._printed else f"{text}\n")
        out.flush()
        self._printed = True
