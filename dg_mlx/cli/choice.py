"""Which model the chat opens when none is named."""

from __future__ import annotations

from collections.abc import Callable

from dg_mlx import hub
from dg_mlx.fits import LARGE, Machine, context_limit, machine, published
from dg_mlx.units import size

from .options import DEFAULT_MODEL
from .terminal import note

ENOUGH = 8192
"""Tokens of context below which the large checkpoint is not offered."""


def choose_model(ask: Callable[[str], str] | None) -> str:
    """A name for `dg_mlx.load`; `ask` puts a question to a person, None where nobody is there.

    Nothing is fetched without a yes.
    """
    if any(model.name == LARGE for model in hub.cached()):
        return LARGE
    here = machine()
    if ask is not None and here.backend != "cpu" and (offer := _offer(here)):
        if ask(f"{offer} Fetch it? [y/N] ").strip().lower() in ("y", "yes"):
            return LARGE
        note(f"then it is {DEFAULT_MODEL}; --model {LARGE} fetches the large one")
    else:
        note(f"no --model given, so this is {DEFAULT_MODEL}: a toy that is part of dg-mlx")
    return DEFAULT_MODEL


def _offer(here: Machine) -> str | None:
    """What could be fetched, in a sentence; None where it does not fit."""
    found = published("4bit")
    context = context_limit(found, here)
    if context < ENOUGH:
        return None
    return (
        f"This {here.chip} with {size(here.memory_bytes)} runs the 26B model: {LARGE}, "
        f"{size(found.stored_bytes)} to download, up to {context:,} tokens of context."
    )
