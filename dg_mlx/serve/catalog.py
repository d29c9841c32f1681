"""The checkpoints on this machine, those that could be fetched, and whether they fit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dg_mlx import hub, weights
from dg_mlx.config import ModelConfig
from dg_mlx.conversation import data_folder
from dg_mlx.errors import CheckpointError, DGError, HubError
from dg_mlx.fits import REPOS, Candidate, Machine, candidate, context_limit, published, verdict
from dg_mlx.settings import GenerationSettings

_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
_MOST_OF_NAMES = 180
"""Bytes; systems allow 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One that is on this machine."""

    name: str
    """What loads it: a bundled name, a repo id, or a folder's path."""
    folder: Path
    bundled: bool
    size_bytes: int
    fits: str
    """Whether it fits into the memory, in words; empty for a damaged one."""
    problem: str
    """Why it cannot be loaded, in a sentence; empty for a sound one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A published checkpoint."""

    repo: str
    form: str
    """"bf16", "8bit" or "4bit"."""
    size_bytes: int
    """To download, and on the disk."""
    fits: str
    """Whether it fits into the memory, in words."""
    runs: bool
    """The same as a value."""
    has_room: bool
    """The disk of the hub's cache has enough."""
    here: bool
    """It is on this machine already, whole."""


def models_folder() -> Path:
    """Where conversions are written unless their target is named."""
    return data_folder() / "models"


def default_target(source: str, quant: str) -> Path:
    """The folder for a conversion of `source` into a format such as "4bit" or "none".

    The same each time: a conversion that was stopped goes on in its folder.
    """
    stem = os.path.basename(os.path.abspath(os.path.expanduser(source.removesuffix(".gguf"))))
    stem = (
        _NOT_IN_NAMES.sub("-", stem).strip(".-").encode()[:_MOST_OF_NAMES].decode(errors="ignore")
    )
    stem = stem or "model"
    return models_folder() / f"{stem}-{'plain' if quant == 'none' else quant}"


def canonical(name: str) -> str:
    """The one name under which a model is known: folders have many paths."""
    path = os.path.expanduser(name)  # pathlib's raises for a user that is not there
    return name if name in hub.BUNDLED or not os.path.isdir(path) else str(Path(path).resolve())


def opened(path: str, here: Machine) -> Path:
    """A folder that holds a whole checkpoint. Raises `HubError` and `CheckpointError`."""
    folder = Path(os.path.expanduser(path))
    if not os.path.isdir(folder):
        raise HubError(f"there is no folder {path}; give the folder that holds config.json.")
    examine(path, folder, here)
    return folder.resolve()


def examine(name: str, folder: Path, here: Machine) -> Candidate:
    """What a checkpoint takes. All that loading reads is looked at, down to files' headers.

    Raises `CheckpointError` where it is damaged.
    """
    try:
        ModelConfig.load(folder)
        GenerationSettings.load(folder)
        weights.shapes(folder)
        if not (folder / "tokenizer.json").is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer.json; copy it from the original checkpoint."
            )
        found = candidate(name, folder)
        context_limit(found, here)
        return found
    except DGError:
        raise
    except Exception as error:  # a config may say anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"{folder} cannot be used ({reason}); fetch the checkpoint again."
        ) from None


def checkpoints(here: Machine, folders: Iterable[Path]) -> list[Checkpoint]:
    """Bundled ones, the hub's cache, conversions, and these folders; each once."""
    found: dict[str, Checkpoint] = {}
    for model in hub.cached():
        if model.name not in found:  # the latest revision comes first
            found[model.name] = _look(
                model.name, model.folder, here, size_bytes=model.size_bytes, bundled=model.bundled
            )
    for folder in (*_conversions(), *folders):
        name = str(folder)
        if name not in found:
            found[name] = _look(name, folder, here, size_bytes=_size(folder))
    return list(found.values())


def offers(here: Machine) -> list[Offer]:
    """The 26B checkpoint in its published forms."""
    cached = {model.name: model for model in reversed(hub.cached())}  # the latest revision wins
    free = hub.free_bytes()
    made = []
    for form, repo in REPOS.items():
        found, model = published(form), cached.get(repo)
        have = 0 if model is None else model.size_bytes
        whole = model is not None and not _look(repo, model.folder, here, size_bytes=have).problem
        made.append(
            Offer(
                repo=repo,
                form=form,
                size_bytes=found.stored_bytes,
                fits=verdict(found, here),
                runs=context_limit(found, here) > 0,
                has_room=whole or found.stored_bytes - have <= free,
                here=whole,
            )
        )
    return made


def _look(
    name: str, folder: Path, here: Machine, *, size_bytes: int, bundled: bool = False
) -> Checkpoint:
    fits = problem = ""
    try:
        fits = verdict(examine(name, folder, here), here)
    except DGError as error:
        problem = " ".join(str(error).split())
    return Checkpoint(
        name=name,
        folder=folder,
        bundled=bundled,
        size_bytes=size_bytes,
        fits=fits,
        problem=problem,
    )


def _conversions() -> Iterator[Path]:
    with suppress(OSError):
        for path in sorted(models_folder().resolve().iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield path


def _size(folder: Path) -> int:
    """Bytes of its files, as far as they can be seen."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                total += path.stat().st_size if path.is_file() else 0
    return total
