"""`dg-mlx ui`: the page in a browser."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import sys
import threading
import webbrowser
from importlib import import_module
from typing import Any

from dg_mlx.errors import DGError

from .options import DEFAULT_MODEL, add_model, open_engine
from .terminal import note

_EXAMPLES = """
examples:
  dg-mlx ui
  dg-mlx ui --model mlx-community/diffusiongemma-26B-A4B-it-4bit
  dg-mlx ui --host 0.0.0.0 --password
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add options."""
    parser.epilog = _EXAMPLES
    add_model(parser)
    group = parser.add_argument_group("page")
    group.add_argument("--port", type=int, default=7860, help="(default: 7860; 0: any)")
    group.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default: this machine alone)"
    )
    group.add_argument(
        "--password",
        nargs="?",
        const="",
        help="ask everyone for it; without a value it is read from the terminal",
    )
    group.add_argument("--no-open", action="store_true", help="do not open a browser")
    group.add_argument("--no-save", action="store_true", help="keep conversations in memory")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    server = import_module("dg_mlx.app.server")
    password = getpass.getpass("password: ") if args.password == "" else args.password
    address = server.Address(host=args.host, port=args.port, password=password or None)
    address.check()
    if not address.local:
        note(
            f"anyone who can reach {address.host} and knows the password can read your "
            "conversations; what they send is not encrypted."
        )
    from dg_mlx import hub

    hub.resolve(args.model or DEFAULT_MODEL, offline=args.offline, revision=args.revision)
    with server.listening(address) as listener, server.temporary_files():
        desk = _desk(args)
        threading.Thread(target=_load, args=(desk,), name="dg-mlx first model", daemon=True).start()
        try:
            app = server.build(desk, address)
            _ready(server.url(listener), args)
            server.serve(app, listener)
        finally:
            desk.close()
    return 0


def _desk(args: argparse.Namespace) -> Any:
    from dg_mlx.conversation import Store
    from dg_mlx.serve.models import Models

    def load(name: str) -> Any:
        options = vars(args) | {"model": name}
        if name != named:  # a revision or an adapter is the named model's own
            options |= {"revision": None, "adapter": None}
        return open_engine(argparse.Namespace(**options))

    models = Models(load, args.model or DEFAULT_MODEL)
    named = models.default
    return import_module("dg_mlx.app.desk").Desk(models, None if args.no_save else Store())


def _load(desk: Any) -> None:
    """While the user looks around; what goes wrong is said where an answer is asked for."""
    with contextlib.suppress(DGError):
        desk.models.engine()


def _ready(url: str, args: argparse.Namespace) -> None:
    print(f"dg-mlx is at {url} (Ctrl-C ends it)", flush=True)
    if not args.no_open and sys.stdout.isatty() and "SSH_CONNECTION" not in os.environ:
        webbrowser.open(url)
