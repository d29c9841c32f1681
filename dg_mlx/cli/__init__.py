"""The command line: finds the verb, imports its module only, and turns errors into one line.

A verb's module has `configure(parser)` and `run(args) -> int`, and imports MLX inside functions
only: `--help` stays fast.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from dg_mlx import __version__
from dg_mlx.errors import DGError

VERBS = {
    "generate": "answer one prompt",
    "ui": "open the page: chat, edits and comparisons beside a live canvas",
    "chat": "talk to a model in the terminal",
    "edit": "rewrite parts of a file, and leave every other byte as it is",
    "infill": "fill the holes of a text",
    "decide": "answer with one of a few choices, and say how likely each is",
    "replay": "show how an answer settled, from a recording",
    "convert": "make a checkpoint for MLX from any DiffusionGemma checkpoint",
    "doctor": "show the machine, what fits on it and what to install",
    "train": "fine-tune a model, or an adapter for one, on your own chats",
    "eval": "count how often a model answers right, and in how many steps",
    "models": "list, show and remove the models on this machine",
    "verify": "compare a checkpoint with transformers, stage by stage",
}

INTERRUPTED = 130

_OUT_OF_MEMORY = (
    "bad_alloc",
    "out of memory",
    "outofmemory",
    "unable to allocate",
    "attempting to allocate",
    "insufficient memory",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns 0, 1 (the user can fix it), 2 (usage) or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # transformers remarks on stderr that torch is missing; nothing here needs torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _dispatch(arguments)
            sys.stdout.flush()
            return code
    except DGError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough. Python flushes stdout once more at exit: give it a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        return _complain(
            "out of memory. Use a more quantised checkpoint or a shorter prompt "
            "(`dg-mlx doctor` lists what fits)."
        )
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "mlx":
            raise
        return _complain(
            'MLX is not installed. Run `pip install "dg-mlx[cuda13]"` with an NVIDIA GPU, else '
            '`pip install "dg-mlx[cpu]"`.'
        )


def _dispatch(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="dg-mlx",
        description="Run DiffusionGemma on your own machine.",
        epilog=r"example: dg-mlx generate --model nano $'A 1.3.\nB .41.\nC ....\nD ..21'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dg-mlx {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == chosen:
            module = import_module(f".{name}", __name__)
            module.configure(verb)
            verb.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    return int(args.run(args))


def _complain(message: str) -> int:
    print(f"dg-mlx: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"dg-mlx: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)
