"""`dg-mlx models`: what is on this machine."""

from __future__ import annotations

import argparse
import sys

from dg_mlx import hub
from dg_mlx.config import ModelConfig
from dg_mlx.errors import HubError
from dg_mlx.fits import candidate, machine, verdict
from dg_mlx.plan import parameters
from dg_mlx.units import size

_EXAMPLES = """
examples:
  dg-mlx models list
  dg-mlx models show nano
  dg-mlx models remove mlx-community/diffusiongemma-26B-A4B-it-4bit
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    parser.epilog = _EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="bundled models and those in the hub's cache")
    show = actions.add_parser("show", help="shape, size, and whether it fits here")
    show.add_argument("name", help="bundled name, folder, or repo id in the cache")
    remove = actions.add_parser("remove", help="delete a model from the hub's cache")
    remove.add_argument("name", help="repo id")
    remove.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    """List, show or remove."""
    match args.action:
        case "list":
            _list()
        case "show":
            _show(args.name)
        case _:
            _remove(args.name, yes=args.yes)
    return 0


def _list() -> None:
    models = hub.cached()
    width = max(len(model.name) for model in models)
    for model in models:
        revision = "bundled" if model.bundled else str(model.revision)[:8]
        print(f"{model.name:{width}}  {size(model.size_bytes):>8}  {revision:8}  {model.folder}")


def _show(name: str) -> None:
    folder = hub.find(name)
    config = ModelConfig.load(folder)
    text, packing = config.text, config.quantization
    found = candidate(name, folder)
    full = sum(text.is_full(i) for i in range(text.num_hidden_layers))
    packed = f"{packing.bits} bits ({packing.mode})" if packing else "not quantised"
    rows = {
        "folder": str(folder),
        "parameters": f"{parameters(config) / 1e6:,.1f} million",
        "weights": f"{size(found.stored_bytes)}, {config.dtype}, {packed}",
        "layers": f"{text.num_hidden_layers} ({full} see the whole context)",
        "hidden": f"{text.hidden_size}, vocabulary {text.vocab_size}",
        "experts": f"{text.num_experts}, {text.top_k_experts} per token",
        "canvas": f"{config.canvas_length} tokens",
        "context": f"{text.max_position_embeddings} tokens, window {text.sliding_window}",
        "pictures": "yes" if config.vision else "no",
        "here": verdict(found, machine()),
    }
    for key, value in rows.items():
        print(f"{key:10}  {value}")


def _remove(name: str, *, yes: bool) -> None:
    if not yes:
        found = [model for model in hub.cached() if model.name == name and not model.bundled]
        if found and not sys.stdin.isatty():
            raise HubError(f"removing {name} needs a yes; pass --yes.")
        if found:
            total = size(sum(model.size_bytes for model in found))
            if input(f"delete {name} ({total})? [y/N] ").strip().lower() not in ("y", "yes"):
                print("kept")
                return
    print(f"freed {size(hub.remove(name))}")
