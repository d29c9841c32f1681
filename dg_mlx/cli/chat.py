"""`dg-mlx chat`: a conversation, in a terminal or through a pipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dg_mlx.errors import SettingsError
from dg_mlx.loading import Loading
from dg_mlx.presets import preset

from .input import PipeInput, prompt_text
from .options import DEFAULT_MODEL, add_model, add_settings, changes_from, open_engine
from .screen import Screen

if TYPE_CHECKING:
    from dg_mlx.conversation import Conversation, Store

    from .session import Session

_EXAMPLES = """
In a terminal, the canvas is drawn while it settles: noise dim, likely tokens underlined, settled
ones plain (bold when new), what is noise again struck, what is held fixed reversed. NO_COLOR leaves
colours out. Through a pipe, a blank line ends a turn and a line that starts with / is a command.

Conversations in a terminal are saved as you go (docs/conversations.md); /load opens them.

examples:
  dg-mlx chat --model nano
  dg-mlx chat --model google/diffusiongemma-26B-A4B-it --think
  dg-mlx chat "summarise" < notes.txt
  dg-mlx chat --model nano < puzzles.txt
"""

_PUZZLE = "A 1.3.\nB .41.\nC ....\nD ..21"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("prompt", nargs="?", help="answer this, with what is piped in, and leave")
    parser.add_argument(
        "--no-canvas", action="store_true", help="plain text per block, even in a terminal"
    )
    parser.add_argument("--no-save", action="store_true", help="keep the conversation in memory")
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="go on with the last conversation"
    )
    parser.add_argument(
        "--cache-dir", metavar="FOLDER", help="keep what long prompts were read as, for other days"
    )
    add_model(parser)
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    preset(args.preset)  # raises
    once = args.prompt is not None
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not once
    text = prompt_text(args.prompt, verb="chat") if once else ""
    # Before the model loads: what is typed meanwhile must not be taken for the terminal's answer.
    screen = Screen(canvas=not args.no_canvas)
    if args.model is None:
        from .choice import choose_model

        args.model = choose_model(input if interactive else None)
    session = _session(args, screen, save=interactive)
    try:
        if once:
            session.say(text)
            return 0
        read = _keyboard(session) if interactive else PipeInput(sys.stdin).read
        if interactive:
            if not _is_here(args.model):
                session.engine  # noqa: B018 - waits
            _greet(args.model)
        while (typed := read()) is not None and session.take(typed):
            pass
        return 0 if interactive else session.failed
    finally:
        session.close()


def _session(args: argparse.Namespace, screen: Screen, *, save: bool) -> Session:
    from dg_mlx.conversation import Conversation, Store

    from .session import Sampling, Session

    def load(name: str) -> Loading:
        named = argparse.Namespace(**{**vars(args), "model": name})
        return Loading(name, lambda: open_engine(named))

    store = None if args.no_save else Store()
    if args.go_on:
        conversation = _last(store)
    elif save and store is not None:
        conversation = store.create(system=args.system or "", model=args.model)
    else:
        conversation = Conversation(system=args.system or "", model=args.model)
    return Session(
        load,
        args.model,
        screen,
        conversation,
        sampling=Sampling(
            preset=args.preset, changes=changes_from(args), seed=args.seed, thinking=args.think
        ),
        store=store,
        cache=None if args.cache_dir is None else Path(args.cache_dir).expanduser(),
    )


def _last(store: Store | None) -> Conversation:
    """The conversation that changed last. Raises `SettingsError` and `StoreError`."""
    if store is None:
        raise SettingsError("--continue needs saved conversations; drop --no-save.")
    found = [summary for summary in store.list() if not summary.problem]
    if not found:
        raise SettingsError("there is no conversation to go on with; drop --continue.")
    return store.load(found[0].id)


def _keyboard(session: Session) -> Callable[[], str | None]:
    """A line editor, which also edits for the session."""
    from dg_mlx.conversation import data_folder

    from .keyboard import Keyboard

    keyboard = Keyboard(
        session.status, history=data_folder() / "history", colours="NO_COLOR" not in os.environ
    )
    session.ask = lambda text: keyboard.read(default=text)
    return lambda: keyboard.read(ready=session.check)


def _is_here(name: str) -> bool:
    """Nothing has to be fetched, with a bar of its own."""
    from dg_mlx.errors import HubError
    from dg_mlx.hub import find

    try:
        find(name)
    except HubError:
        return False
    return True


def _greet(name: str) -> None:
    """Who this is; without waiting for it."""
    from dg_mlx.config import ModelConfig
    from dg_mlx.hub import bundled_folder
    from dg_mlx.plan import parameters

    print("dg-mlx: /help lists commands, Ctrl-D leaves.")
    if name == DEFAULT_MODEL:
        numbers = parameters(ModelConfig.load(bundled_folder(name)))
        print(
            f"This is nano: a toy of {numbers / 1e6:.1f} million parameters, not the 26B. It "
            f"solves Sudoku; paste one, then press Enter:\n\n{_PUZZLE}\n"
        )
