"""What a person types: lines with history, completion, and pastes that stay together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth

from .commands import COMMANDS
from .terminal import note

KEPT = 1000
"""Inputs of the history that are offered again."""


class Keyboard:
    """A terminal: Enter sends, Alt-Enter or a \\ at the end begins a new line."""

    def __init__(
        self, status: Callable[[], str], *, history: Path | None = None, colours: bool = True
    ) -> None:
        """`status`: the line at the bottom of the screen. `history`: a file; None: none is kept."""
        self._session: PromptSession[str] = PromptSession(
            "> ",
            prompt_continuation=". ",
            multiline=True,
            history=InMemoryHistory() if history is None else _Kept(history),
            completer=CommandCompleter(),
            complete_while_typing=True,
            key_bindings=_keys(),
            bottom_toolbar=lambda: ANSI(status()),
            refresh_interval=0.5,
            color_depth=None if colours else ColorDepth.DEPTH_1_BIT,
            enable_open_in_editor=True,
            reserve_space_for_menu=6,
        )

    def read(self, *, default: str = "", ready: Callable[[], Any] | None = None) -> str | None:
        """The next turn; None at the end (Ctrl-D). `default` is there to be edited.

        `ready` is called now and then; what it raises ends the wait.
        """
        try:
            with contextlib.ExitStack() as stack:
                if ready is not None:
                    stack.enter_context(_watched(self._session, ready))
                return self._session.prompt(default=default).strip("\n")
        except EOFError:
            return None
        except KeyboardInterrupt:
            note("/exit or Ctrl-D leaves")
            return ""


class CommandCompleter(Completer):
    """Names of commands, and what may follow them."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Nothing but for a line that begins with a slash."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, blank, rest = text.partition(" ")
        if not blank:
            for command in COMMANDS.values():
                if command.name.startswith(name):
                    yield Completion(
                        command.name, start_position=-len(name), display_meta=command.meaning
                    )
        elif (known := COMMANDS.get(name)) is not None:
            if known.path:
                yield from self._paths.get_completions(Document(rest), event)
            for option in known.options:
                if option.startswith(rest):
                    yield Completion(option, start_position=-len(rest))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None
        elif buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class _Kept(FileHistory):
    """A file that only its owner can read; a disk that cannot be written to is no error."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def load_history_strings(self) -> Iterator[str]:
        try:
            found = list(super().load_history_strings())
        except OSError:
            return
        yield from found[:KEPT]  # the newest come first

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            super().store_string(string)


@contextlib.contextmanager
def _watched(session: PromptSession[str], ready: Callable[[], Any]) -> Iterator[None]:
    """Call `ready` whenever the screen is drawn; an exception of it ends the prompt."""

    def look(app: Any) -> None:
        try:
            ready()
        except Exception as error:
            if app.is_running and not app.is_done:
                app.exit(exception=error)

    session.app.before_render += look
    try:
        yield
    finally:
        session.app.before_render -= look
