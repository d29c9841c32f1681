"""A run's folder: what the run is, its checkpoints, and the model that comes out.

RUN/
  settings.toml   what the run was told
  run.json        what it is: settings, data and model by their checksums
  metrics.jsonl, curve.svg
  step-000100/    weights and optimiser, as they were after that step
  model/ or adapter/

Every folder is written under a hidden name and renamed when it is whole, so what has a name is
whole, whatever happened.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx

from dg_mlx import weights as stored
from dg_mlx.disk import lock, sync, write_text
from dg_mlx.errors import CheckpointError, MemoryLimitError
from dg_mlx.keys import read_json

from .settings import FREE, TrainSettings

RECORD, SETTINGS = "run.json", "settings.toml"
MODEL, ADAPTER = "model", "adapter"
SHARD_BYTES = 5_000_000_000

_LOCK = ".lock"
_WEIGHTS, _OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_COPIED = ("*.json", "*.jinja", "tokenizer*")

Arrays = dict[str, mx.array]


class RunFolder:
    """The folder of one run, which no other process may use meanwhile."""

    def __init__(
        self, folder: Path, settings: TrainSettings, record: dict[str, Any], *, force: bool
    ) -> None:
        """Begin a run or go on with it. Raises `CheckpointError`.

        An existing run goes on if its record is the same; `force` starts over.
        """
        self.path = folder.expanduser().absolute()
        self._lock: BinaryIO | None = None
        with disk_errors(self.path):
            self._check(force)
            self.path.mkdir(parents=True, exist_ok=True)
            self._take()
            try:
                self._open(settings, record, force)
            except BaseException:
                self.close()
                raise

    @property
    def result(self) -> Path | None:
        """The finished model or adapter."""
        found = (self.path / name for name in (MODEL, ADAPTER))
        return next((folder for folder in found if folder.is_dir()), None)

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, ascending."""
        return steps(self.path)

    def save(self, step: int, weights: Arrays, optimizer: Arrays) -> Path:
        """Write a checkpoint."""
        folder = self.path / _name(step)
        with whole(folder) as partial:
            _store(partial / _WEIGHTS, weights)
            _store(partial / _OPTIMIZER, optimizer)
        return folder

    def prune(self, keep: int) -> None:
        """Delete all checkpoints but the last ones."""
        for step in self.steps()[:-keep]:
            shutil.rmtree(self.path / _name(step), ignore_errors=True)

    def load(self, step: int) -> tuple[Arrays, Arrays]:
        """Weights and optimiser of a checkpoint."""
        folder = self.path / _name(step)
        return _arrays(folder / _WEIGHTS), _arrays(folder / _OPTIMIZER)

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check(self, force: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"{self.path} is a file; name a folder to write.")
        if not self.path.exists() or (self.path / RECORD).is_file():
            return
        if any(path.name != _LOCK for path in self.path.iterdir()):
            more = ", so --force will not replace it" if force else ""
            raise CheckpointError(
                f"{self.path} exists and holds no run{more}; name another folder."
            )

    def _take(self) -> None:
        """Be the only process here."""
        self._lock = lock(self.path / _LOCK)
        if self._lock is None:
            raise CheckpointError(
                f"another process trains in {self.path}; wait for it, or name another folder."
            )

    def _open(self, settings: TrainSettings, record: dict[str, Any], force: bool) -> None:
        known = self.path / RECORD
        if force:
            for path in [path for path in self.path.iterdir() if path.name != _LOCK]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.path.glob(".*.partial"):
            shutil.rmtree(path, ignore_errors=True)
        if known.exists():
            self._require_same(read_json(known), record)
        write_text(self.path / SETTINGS, settings.as_toml())
        write_text(known, json.dumps(record, indent=1, sort_keys=True) + "\n")

    def _require_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        if self.result is not None:
            raise CheckpointError(
                f"{self.path} holds a finished run; name another folder, or pass --force to start "
                "over."
            )
        differs = list(differences(before, now))
        if differs:
            raise CheckpointError(
                f"{self.path} holds a run with other settings or data: {'; '.join(differs)}. Use "
                "those, name another folder, or pass --force to start over."
            )


def record(settings: TrainSettings, model: Path, data: Mapping[str, str]) -> dict[str, Any]:
    """What makes a run the run it is. `data`: its source's identity."""
    named = {"data", "held_out"} | FREE
    values = {name: v for name, v in settings.as_dict().items() if name not in named}
    files = [model / "config.json", *stored.files(model)]
    return {
        "settings": values,
        "data": dict(data),
        "model": {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is not the same in two records, in words."""
    old, new = before.get("settings", {}), now["settings"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} was {old.get(name, 'not given')}, not {new.get(name, 'not given')}"
    for kind, whose in (("data", ""), ("model", "the model's ")):
        old, new = before.get(kind, {}), now[kind]
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                yield f"{whose}{name} is not the same"


def steps(folder: Path) -> list[int]:
    """The steps of which a run's folder has checkpoints, ascending."""
    names = (path.name for path in folder.glob("step-*"))
    return sorted(int(name.removeprefix("step-")) for name in names)


def export(parameters: Arrays, base: Path, folder: Path) -> None:
    """A checkpoint folder: these parameters under the base's names and in its types.

    Everything else, from the config to the tokenizer, is the base's.
    """
    table = {name: kind for name, (_, kind) in stored.shapes(base).items()}
    with whole(folder) as partial:
        small = {path for pattern in _COPIED for path in base.glob(pattern) if path.is_file()}
        for path in sorted(small):
            if path.name != stored.INDEX:
                shutil.copyfile(path, partial / path.name)
        groups = _shards(parameters, table)
        where: dict[str, str] = {}
        for number, names in enumerate(groups, 1):
            one = len(groups) == 1
            file = "model" if one else f"model-{number:05d}-of-{len(groups):05d}"
            arrays = {n: _as_stored(parameters, n, table[n]) for n in names}
            _store(partial / f"{file}.safetensors", arrays)
            where |= dict.fromkeys(names, f"{file}.safetensors")
        if len(groups) > 1:
            total = sum(parameters[stored.module_name(n)].nbytes for n in table)
            index = {"metadata": {"total_size": total}, "weight_map": where}
            write_text(partial / stored.INDEX, json.dumps(index, indent=1) + "\n")


def _as_stored(parameters: Arrays, name: str, kind: str) -> mx.array:
    array = parameters[stored.module_name(name)]
    return array.astype(stored.DTYPES[kind]) if kind in stored.DTYPES else array


def _shards(parameters: Arrays, table: Mapping[str, str]) -> list[list[str]]:
    """Names in files of `SHARD_BYTES` at most."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in sorted(table):
        own = parameters[stored.module_name(name)].size * (2 if table[name] != "F32" else 4)
        if groups[-1] and size + own > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += own
    return groups


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name, and replaces an older one, when it is on the disk."""
    partial = folder.with_name(f".{folder.name}.partial")
    with disk_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for path in partial.iterdir():
            sync(path)
        sync(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        sync(folder.parent)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """The system's errors as one line each."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MemoryLimitError(
                f"the disk of {folder} is full. Free some room and run the same command again: it "
                "goes on from the last checkpoint."
            ) from None
        raise CheckpointError(
            f"{error.filename or folder} cannot be written ({error.strerror}); name a folder "
            "elsewhere."
        ) from None


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _store(path: Path, arrays: Arrays) -> None:
    try:
        mx.save_safetensors(str(path), arrays, {"format": "mlx"})
    except RuntimeError as error:  # MLX does not say why it could not write
        if "unable to write" not in str(error).lower():
            raise
        raise OSError(errno.ENOSPC, "not all was written", str(path)) from None


def _arrays(path: Path) -> Arrays:
    try:
        found = mx.load(str(path))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is broken ({error}); delete its folder to go on from the one before."
        ) from None
    assert isinstance(found, dict)
    return found
