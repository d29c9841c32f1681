"""The page, with an engine whose answers settle at a pace and are what the prompt asks for.

    python tests/browser/serving.py [--step SECONDS] [--port N] [--home FOLDER] [--log FILE]

A prompt is the name of one of the scripts in tests/paced.py, or is quoted in the answer. Each line
of the log is when a step was made, in seconds since 1970.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from paced import PacedEngine

from dg_mlx.conversation import Store
from dg_mlx.serve.models import Models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=float, default=1 / 30)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--most", type=int, help="bytes of a picture; ten times that of any file")
    args = parser.parse_args()
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        home = args.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context(args.log.open("a")) if args.log else None
        serve(args, home, log)


def serve(args: argparse.Namespace, home: Path, log: Any) -> None:
    from dg_mlx.app import server, uploads
    from dg_mlx.app.desk import Desk

    if args.most:
        uploads.MOST_PICTURE, uploads.MOST_BYTES = args.most, 10 * args.most

    def made() -> None:
        if log is not None:
            print(time.time(), file=log, flush=True)

    engine: Any = PacedEngine(args.step, made)
    address = server.Address(port=args.port)
    with server.listening(address) as listener, server.temporary_files():
        desk = Desk(Models(lambda name: engine, "nano"), Store(home))
        try:
            app = server.build(desk, address)
            print(f"dg-mlx is at {server.url(listener)} ", flush=True)
            server.serve(app, listener)
        finally:
            desk.close()


if __name__ == "__main__":
    main()
