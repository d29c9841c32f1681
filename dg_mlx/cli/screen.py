"""How answers are shown: the live canvas, Markdown, or plain text, as the terminal allows."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dg_mlx.errors import SettingsError
from dg_mlx.events import Event
from dg_mlx.signs import harmless

from .plain import Plain
from .written import Nothing, Written

if TYPE_CHECKING:
    from dg_mlx.engine import Engine
    from dg_mlx.settings import GenerationSettings

    from .canvas.frame import View
    from .canvas.ink import Ink
    from .canvas.live import Live

Show = Callable[[Event], None]


class Screen:
    """What a chat writes to."""

    def __init__(self, *, canvas: bool = True) -> None:
        """Asks a terminal for its colours: before anything is typed. `canvas`: draw it."""
        self.terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._palette: dict[Ink, str] | None = None
        self._view: View | None = None
        if self.terminal:
            self._palette = _palette(ask=canvas)
            self._view = "guess" if canvas else None

    def choose(self, value: str) -> None:
        """Draw the canvas in a way, or not. Raises `SettingsError`."""
        from .canvas.frame import VIEWS

        if self._palette is None:
            raise SettingsError("the canvas needs a terminal that can move its cursor.")
        views: dict[str, View | None] = {"on": self._view or "guess", "off": None}
        views |= {view: view for view in VIEWS}
        if value not in views:
            raise SettingsError(f"/canvas is {value!r}; say one of {', '.join(views)}.")
        self._view = views[value]

    @contextmanager
    def answer(self, engine: Engine, settings: GenerationSettings) -> Iterator[Show]:
        """Give every event of an answer to what this yields."""
        if self._view is None:
            with Plain() as plain:
                yield plain.show
            plain.finish()
            return
        from .markdown import MarkdownStream

        with self._live(engine, settings, MarkdownStream()) as live:
            yield live.show
        if live.failed:
            self._view = None

    @contextmanager
    def replay(self, engine: Engine, settings: GenerationSettings) -> Iterator[Show]:
        """As `answer`, for one that was shown: only its canvas is drawn."""
        if self._view is None:
            raise SettingsError("there is no canvas to draw on; say /canvas on, in a terminal.")
        with self._live(engine, settings, Nothing()) as live:
            yield live.show

    def aside(self, text: str) -> None:
        """A line beside the answer, for people only."""
        if self.terminal:
            dim, off = ("\x1b[2m", "\x1b[0m") if "NO_COLOR" not in os.environ else ("", "")
            print(f"{dim}{harmless(text)}{off}", flush=True)

    def _live(self, engine: Engine, settings: GenerationSettings, text: Written) -> Live:
        from .canvas.frame import Frames
        from .canvas.live import Live

        assert self._view is not None
        assert self._palette is not None
        frames = Frames(engine.processor, ends=settings.eos_token_id, most=settings.max_new_tokens)
        return Live(frames, self._view, self._palette, text=text)


def _palette(*, ask: bool) -> dict[Ink, str]:
    """Colours that the terminal has, for its background; `ask`: it may be asked for that."""
    from .canvas.background import background
    from .canvas.ink import depth, palette

    colours = depth(os.environ)
    return palette(colours, background(os.environ, ask=ask and colours != "none"))
