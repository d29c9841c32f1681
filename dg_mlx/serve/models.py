"""The models in memory: which are loaded, who uses them, and what they take."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from dg_mlx import hub
from dg_mlx.errors import BusyError, DGError, HubError, MemoryLimitError
from dg_mlx.fits import Candidate, Machine, context_limit, loaded_bytes
from dg_mlx.fits import machine as this_machine
from dg_mlx.loading import Loading, give_back_memory
from dg_mlx.units import size
from dg_mlx.worker import WORKER

from . import catalog
from .catalog import Checkpoint, Offer

if TYPE_CHECKING:
    from dg_mlx.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Checkpoint):
    """A checkpoint on this machine, and what is made of it."""

    loaded: bool
    loading: bool
    loading_s: int
    """Seconds since it began to load; 0 when it does not."""
    users: int
    """Answers that run on it, or wait for it."""
    default: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of memory, now."""

    used: int
    """In arrays: weights, caches, a step's values."""
    kept: int
    """Free for MLX's next arrays, not for other programs."""
    machine: int
    """What a model may use in all."""
    free: int | None
    """What no program uses; None where the system does not say."""


@dataclass(slots=True, eq=False)
class _Slot:
    """A model that is, or will be, in memory."""

    loading: Loading
    found: Candidate | None
    """None: its files were not on this machine when it began to load."""
    users: int = 0


class Models:
    """Loads models by name, several at a time where they fit. Any thread may call it."""

    def __init__(
        self,
        load: Callable[[str], Engine],
        default: str,
        *,
        machine: Callable[[], Machine] = this_machine,
    ) -> None:
        """`load` makes the engine of a name; `default` is the name that None stands for.

        Nothing is loaded yet. `machine` describes where they run, and is asked once.
        """
        self._load, self._describe = load, machine
        self._default = catalog.canonical(default)
        self._slots: dict[str, _Slot] = {}
        self._opened: dict[Path, None] = {}
        self._forget: list[Callable[[str], None]] = []
        self._lock = threading.Lock()
        self._changing = threading.RLock()
        """Held while the default is replaced: who asks for it waits for the new one."""

    # Engines.

    @property
    def default(self) -> str:
        """The name of the model that answers where none is named."""
        return self._default

    def engine(self, name: str | None = None) -> Engine:
        """The model of a name, or the default one; waits while it loads.

        Callers of one name share a load; after one that failed, the next call tries again. Raises
        what loading raises, `MemoryLimitError` when it does not fit beside those that are loaded,
        and `HubError` when it would have to be fetched while others are loaded.
        """
        return _wait(self._claim(name))

    @contextmanager
    def lease(self, name: str | None = None) -> Iterator[Engine]:
        """`engine`, which meanwhile is not unloaded."""
        slot = self._claim(name, users=1)
        try:
            yield _wait(slot)
        finally:
            with self._lock:
                slot.users -= 1

    def use(self, name: str) -> None:
        """Load a model and make it the default.

        Where both do not fit, the old default is unloaded first, and is loaded again if the new one
        fails. Raises as `engine`, and `BusyError` when the old one is answering.
        """
        name = catalog.canonical(name)
        with self._changing:
            before, slot = self._default, None
            try:
                slot = self._begin(name)
            except MemoryLimitError:
                with self._lock:
                    self._require_room(name, self._on_disk(name), without=before)
                self.unload(before)
            in_place = slot is None
            try:
                _wait(slot or self._begin(name))
            except Exception:
                if in_place:
                    with suppress(DGError):
                        self._begin(before)
                raise
            self._default = name

    def unload(self, name: str) -> None:
        """Give a model's memory back, once it has loaded; nothing happens if it is not loaded.

        Raises `BusyError` while it is leased.
        """
        name = catalog.canonical(name)
        if self._remove(name):
            for forget in self._forget:
                forget(name)
            give_back_memory()

    def on_unload(self, forget: Callable[[str], None]) -> None:
        """Have `forget` called with the name of each model that is unloaded.

        It lets go of what was computed with it, such as prefixes. It must not ask for a model.
        """
        self._forget.append(forget)

    # What there is.

    def add(self, path: str) -> str:
        """Open a folder: it is listed from now on. Returns its name.

        Raises `HubError` where there is none, `CheckpointError` for one without a whole checkpoint.
        """
        folder = catalog.opened(path, self._here)
        with self._lock:
            self._opened[folder] = None
        return str(folder)

    def list(self) -> Sequence[Entry]:
        """All checkpoints on this machine: bundled, cached, converted, and opened folders."""
        with self._lock:
            slots, default = dict(self._slots), self._default
            named = [Path(name) for name in (*slots, default) if Path(name).is_absolute()]
            folders = [*self._opened, *named]
        entries = []
        for found in catalog.checkpoints(self._here, folders):
            slot = slots.get(found.name)
            done = slot is not None and slot.loading.done
            entries.append(
                Entry(
                    **{field.name: getattr(found, field.name) for field in fields(found)},
                    loaded=slot is not None and done and not slot.loading.failed,
                    loading=slot is not None and not done,
                    loading_s=0 if slot is None or done else slot.loading.seconds,
                    users=0 if slot is None else slot.users,
                    default=found.name == default,
                )
            )
        return entries

    def offers(self) -> Sequence[Offer]:
        """The published checkpoint in its forms, and whether they fit here."""
        return catalog.offers(self._here)

    def memory(self) -> Memory:
        """What is used and what is free. Does not wait for a running answer."""
        here = self._here
        return Memory(
            used=mx.get_active_memory(),
            kept=mx.get_cache_memory(),
            machine=here.memory_bytes,
            free=_free_memory(here.backend),
        )

    # Slots.

    @cached_property
    def _here(self) -> Machine:
        return WORKER.call(self._describe)

    def _claim(self, name: str | None, users: int = 0) -> _Slot:
        """The slot of a model, for so many more users."""
        if name is not None:
            return self._begin(catalog.canonical(name), users)
        with self._changing:
            return self._begin(self._default, users)

    def _begin(self, name: str, users: int = 0) -> _Slot:
        """The slot of a model, which begins to load if it does not already."""
        with self._lock:
            self._slots = {n: s for n, s in self._slots.items() if not s.loading.failed}
            slot = self._slots.get(name)
            if slot is None:
                found = self._on_disk(name)
                self._require_room(name, found)
                slot = _Slot(Loading(name, lambda: self._load(name)), found)
                self._slots[name] = slot
            slot.users += users
            return slot

    def _remove(self, name: str) -> bool:
        """Whether it was there."""
        slot = self._slots.get(name)
        if slot is None:
            return False
        _require_idle(slot)
        with suppress(Exception):  # raised where it was asked for
            slot.loading.engine()
        with self._lock:
            _require_idle(slot)
            if self._slots.get(name) is not slot:
                return False
            del self._slots[name]
            return True

    def _on_disk(self, name: str) -> Candidate | None:
        """A checkpoint that is on this machine. Raises `CheckpointError` if it is damaged."""
        try:
            folder = hub.find(name)
        except HubError:
            return None
        return catalog.examine(name, folder, self._here)

    def _require_room(self, name: str, found: Candidate | None, *, without: str = "") -> None:
        """Raise unless a model fits beside those that are loaded; alone, loading it tells."""
        taken = {n: self._bytes(n, s) for n, s in self._slots.items() if n not in (without, name)}
        if not taken:
            return
        if found is None:
            raise HubError(f"{name} is not on this machine; download it first.")
        beside = sum(taken.values())
        if context_limit(found, self._here, beside=beside):
            return
        enough = [
            n for n, own in taken.items() if context_limit(found, self._here, beside=beside - own)
        ]
        weights = size(loaded_bytes(found, self._here.itemsize))
        loaded = ", ".join(f"{n} ({size(own)})" for n, own in taken.items())
        raise MemoryLimitError(
            f"{name} needs {weights} for its weights and does not fit beside {loaded} in the "
            f"{size(self._here.usable_bytes)} for models; unload "
            f"{' or '.join(enough) or ' and '.join(taken)} first."
        )

    def _bytes(self, name: str, slot: _Slot) -> int:
        """Of a model's weights. Raises `HubError` while it is being fetched."""
        if slot.found is None:
            slot.found = self._on_disk(name)
        if slot.found is None:
            raise HubError(f"{name} is being fetched; wait for it, then load another model.")
        return loaded_bytes(slot.found, self._here.itemsize)


def _require_idle(slot: _Slot) -> None:
    if slot.users:
        raise BusyError(
            f"an answer runs on {slot.loading.name}; stop it or wait for it, then unload."
        )


def _wait(slot: _Slot) -> Engine:
    try:
        return slot.loading.engine()
    except Exception:
        give_back_memory()
        raise


def _free_memory(backend: str) -> int | None:
    """Bytes that no program uses, where MLX or the system says so."""
    if backend == "cuda":
        free = mx.device_info().get("free_memory")
        return None if free is None else int(free)
    if backend != "cpu" or sys.platform != "linux":
        return None
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return None
