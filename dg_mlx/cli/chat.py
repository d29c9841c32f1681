"""`dg-mlx chat`: a conversation in plain text, in a terminal or through a pipe."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dg_mlx.errors import DGError, SettingsError
from dg_mlx.events import Committed, Done, Draft, Prefilled, Stats
from dg_mlx.settings import GenerationSettings

from .input import LineInput, PipeInput
from .options import add_model, add_settings, media_part, open_engine, settings_from, user_message
from .terminal import empty_answer, harmless, note, stats_line, write

if TYPE_CHECKING:
    from dg_mlx.engine import Engine

_EXAMPLES = """
Through a pipe, a blank line ends a turn and a line that starts with / is a command.

examples:
  dg-mlx chat --model nano
  dg-mlx chat --model google/diffusiongemma-26B-A4B-it --think
  dg-mlx chat --model nano < puzzles.txt
"""

_HELP = """\
/reset         forget the conversation
/seed N        seed of the noise, for the turns that follow
/steps N       most denoising steps per block
/image PATH    a picture for the next turn
/think on|off  let the model think first
/stats         what the last answer cost
/help  /exit
A line ending in \\ goes on on the next one; pasted lines stay together. Ctrl-C stops an answer,
Ctrl-D leaves."""

_PUZZLE = "A 1.3.\nB .41.\nC ....\nD ..21"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    add_model(parser)
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    engine = open_engine(args)
    chat = Chat(engine, settings=settings_from(args, engine.settings), seed=args.seed)
    chat.thinking, chat.system = args.think, args.system
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    source: LineInput | PipeInput = LineInput() if interactive else PipeInput(sys.stdin)
    if interactive:
        _greet(engine)
    while (text := source.read()) is not None and chat.take(text):
        pass
    return 0 if interactive else chat.failed


def _greet(engine: Engine) -> None:
    device = engine.backend.describe()
    print(f"dg-mlx on {device.chip} ({device.name}). /help lists commands, Ctrl-D leaves.")
    for line in device.notes:
        note(line)
    if engine.config.text.vocab_size < 1000:  # nano's: too small for anything but its puzzles
        from mlx.utils import tree_flatten

        numbers = sum(array.size for _, array in tree_flatten(engine.model.parameters()))
        print(
            f"This is nano: a toy of {numbers / 1e6:.1f} million parameters, not the 26B. It "
            f"solves Sudoku; paste one, then press Enter:\n\n{_PUZZLE}\n"
        )


class Chat:
    """The conversation so far, and what the commands change."""

    def __init__(self, engine: Engine, *, settings: GenerationSettings, seed: int = 0) -> None:
        self.engine, self.settings, self.seed = engine, settings, seed
        self.messages: list[dict[str, Any]] = []
        self.system: str | None = None
        self.thinking = False
        self.failed = 0
        """1 once a turn or a command failed: the exit code when nobody is watching."""
        self._images: list[dict[str, Any]] = []
        self._stats: Stats | None = None

    def take(self, text: str) -> bool:
        """Handle one input: a command, or a turn. False: leave."""
        try:
            if text.startswith("/"):
                name, _, value = text.strip().partition(" ")
                return self._command(name, value.strip())
            if text.strip():
                self._turn(text)
        except DGError as error:
            self.failed = 1
            note(" ".join(str(error).split()))
        return True

    def _command(self, name: str, value: str) -> bool:
        match name:
            case "/exit" | "/quit":
                return False
            case "/help":
                print(_HELP)
            case "/reset":
                self.messages, self._images = [], []
                print("(the conversation is forgotten)")
            case "/seed":
                self.seed = _number(name, value)
            case "/steps":
                self.settings = self.settings.replace(max_denoising_steps=_number(name, value))
            case "/image":
                self._images.append(media_part("image", value))
                print("(the picture goes with your next turn)")
            case "/think":
                if value not in ("on", "off"):
                    raise SettingsError(f"/think is {value!r}; say /think on or /think off.")
                self.thinking = value == "on"
            case "/stats":
                print(stats_line(self._stats) if self._stats else "(no answer yet)")
            case _:
                raise SettingsError(f"there is no command {name}; /help lists them.")
        return True

    def _turn(self, text: str) -> None:
        """Ask and print the answer; both stay in the conversation if there is one."""
        message = user_message(text, self._images)
        self._images = []
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        answer, reason = self._answer([*head, *self.messages, message])
        if answer.strip():
            self.messages += [message, {"role": "assistant", "content": answer}]
        if reason == "cancelled":
            note("stopped" if answer else "stopped; the turn is forgotten")

    def _answer(self, messages: list[dict[str, Any]]) -> tuple[str, str]:
        """Stream one answer. Returns its text and why it ended."""
        cancel = threading.Event()
        progress = _Progress()
        text = thought = ""
        with _ctrl_c_sets(cancel):
            for event in self.engine.stream(
                messages,
                settings=self.settings,
                seed=self.seed,
                cancel=cancel,
                thinking=self.thinking,
            ):
                match event:
                    case Prefilled():
                        progress.show("prompt read")
                    case Draft():
                        progress.draft(event)
                    case Committed():
                        progress.clear()
                        if event.thought:
                            write(event.thought, sys.stderr)
                        write(event.text)
                        text, thought = text + event.text, thought + event.thought
                    case Done(reason=reason, stats=stats):
                        progress.clear()
                        self._stats = stats
        if text and not text.endswith("\n"):
            write("\n")
        if not text.strip() and reason != "cancelled":
            note(empty_answer(reason, thought))
        return text, reason


def _number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise SettingsError(f"{name} is {value!r}; it must be a whole number: {name} 7.")
    return int(value)


@contextlib.contextmanager
def _ctrl_c_sets(cancel: threading.Event) -> Iterator[None]:
    """Ctrl-C asks the answer to stop; a second one, while it does, interrupts the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Progress:
    """One line that says how far the canvas is; on a terminal only."""

    def __init__(self) -> None:
        self._on = sys.stdout.isatty()
        self._shown = False

    def draft(self, event: Draft) -> None:
        """Block, step, and how many positions settled in it."""
        settled = int(event.accepted.sum())
        self.show(
            f"block {event.block + 1} · step {event.step}/{event.max_steps} · "
            f"settled {settled}/{len(event.accepted)}"
        )

    def show(self, line: str) -> None:
        """Replace the line."""
        if self._on:
            sys.stdout.write(f"\r\x1b[2K{harmless(line)}")
            sys.stdout.flush()
            self._shown = True

    def clear(self) -> None:
        """Take it away."""
        if self._shown:
            sys.stdout.write("\r\x1b[2K")
            sys.stdout.flush()
            self._shown = False
