"""Which models are in memory, which are on the disk, and what is said of each."""

from __future__ import annotations

import copy
import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from fakes import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from dg_mlx import fits, hub
from dg_mlx.errors import BusyError, CheckpointError, HubError, MemoryLimitError
from dg_mlx.plan import plan
from dg_mlx.serve import catalog
from dg_mlx.serve import models as models_module
from dg_mlx.serve.catalog import default_target
from dg_mlx.serve.models import Models
from dg_mlx.worker import WORKER


def machine(memory_bytes: float = 64e9, backend: str = "cpu") -> fits.Machine:
    return fits.Machine(
        backend=backend,
        chip="a chip",
        memory_bytes=int(memory_bytes),
        mlx_version="0.32",
        itemsize=4,
        unpacks=False,
        notes=(),
    )


class Loader:
    """Makes engines, or fails, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.may_end: dict[str, threading.Event] = {}
        self.began = threading.Semaphore(0)

    def __call__(self, name: str) -> Any:
        self.asked.append(name)
        self.began.release()
        if name in self.may_end:
            assert self.may_end[name].wait(60)
        if name in self.errors:
            raise self.errors[name]
        return FakeEngine()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's own conversions and cache."""
    from huggingface_hub.utils import _cache_manager

    monkeypatch.setenv("DG_MLX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "home"


@pytest.fixture
def load() -> Loader:
    return Loader()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], str]:
    """Makes a tiny checkpoint in a folder of this name."""
    return lambda name: str(tiny.write_tokenizer(tiny.write(tmp_path / name)))


def large(folder: Path) -> str:
    """One with twice the experts."""
    return str(tiny.write_tokenizer(tiny.write(folder, tiny.config(num_experts=16))))


def room_for_one(name: str, more: float = 0.5) -> fits.Machine:
    """A machine that has memory for one model of this kind, and for some of another's weights."""
    found = fits.candidate(name, Path(name))
    weights = fits.loaded_bytes(found, 4)
    least = plan(found.config, context=1, weights_bytes=weights, itemsize=4).total
    return machine((least + more * weights) / (1 - fits.RESERVED_SHARE))


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """What each of several threads returns or raises."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


# Loading -----------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_it_is_asked_for(load: Loader) -> None:
    models = Models(load, "nano", machine=machine)
    assert load.asked == []
    assert models.engine() is models.engine("nano")
    assert load.asked == ["nano"]


def test_callers_of_one_name_share_a_load(load: Loader) -> None:
    models = Models(load, "nano", machine=machine)
    load.may_end["nano"] = threading.Event()
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.extend(in_threads(8, models.engine)))
    waiting.start()
    load.began.acquire()
    assert [entry.loading for entry in models.list()] == [True]
    load.may_end["nano"].set()
    waiting.join(60)
    assert len(found) == 8
    assert {id(each) for each in found} == {id(models.engine())}
    assert load.asked == ["nano"]


def test_a_load_that_failed_is_tried_again(load: Loader) -> None:
    models = Models(load, "nano", machine=machine)
    load.errors["nano"] = CheckpointError("it is broken; fetch it again.")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="it is broken"):
            models.engine()
    assert [entry.loaded for entry in models.list()] == [False]
    del load.errors["nano"]
    models.engine()
    assert load.asked == ["nano"] * 3


def test_a_load_that_failed_keeps_no_memory() -> None:
    held: list[weakref.ref[Any]] = []

    def load(name: str) -> Any:
        weights = FakeEngine()
        held.append(weakref.ref(weights))
        try:
            raise ValueError("inner")
        except ValueError:
            raise CheckpointError("it is broken; fetch it again.") from None

    models = Models(load, "nano", machine=machine)
    with pytest.raises(CheckpointError) as caught:
        models.engine()
    gc.collect()
    assert held[0]() is None
    assert "broken" in str(caught.value)


def test_all_that_waited_hear_why(load: Loader) -> None:
    models = Models(load, "nano", machine=machine)
    load.errors["nano"] = CheckpointError("it is broken; fetch it again.")
    assert {str(error) for error in in_threads(4, models.engine)} == {
        "it is broken; fetch it again."
    }


def test_two_models_where_they_fit(load: Loader, checkpoint: Any) -> None:
    first, second = checkpoint("first"), checkpoint("second")
    models = Models(load, first, machine=lambda: room_for_one(first, more=1.5))
    assert models.engine() is not models.engine(second)
    assert models.engine() is models.engine(first)
    assert load.asked == [first, second]


def test_what_does_not_fit_beside_others_says_what_to_unload(load: Loader, checkpoint: Any) -> None:
    first, second = checkpoint("first"), checkpoint("second")
    models = Models(load, first, machine=lambda: room_for_one(first))
    models.engine()
    with pytest.raises(MemoryLimitError, match=rf"second needs .* unload {first} first\.$") as said:
        models.engine(second)
    assert "\n" not in str(said.value)
    assert load.asked == [first]
    models.unload(first)
    models.engine(second)


def test_any_of_several_may_go(load: Loader, checkpoint: Any) -> None:
    names = [checkpoint(name) for name in ("one", "two", "three")]
    models = Models(load, "nano", machine=lambda: room_for_one(names[0], more=1.5))
    models.engine(names[0])
    models.engine(names[1])
    with pytest.raises(MemoryLimitError, match=rf"unload {names[0]} or {names[1]} first\.$"):
        models.engine(names[2])


def test_what_is_not_here_is_not_fetched_beside_others(load: Loader) -> None:
    models = Models(load, "nano", machine=machine)
    models.engine()
    with pytest.raises(HubError, match=r"someone/new is not on this machine; download it first\."):
        models.engine("someone/new")
    assert load.asked == ["nano"]


def test_while_a_model_is_fetched_no_other_is_loaded(load: Loader) -> None:
    models = Models(load, "someone/new", machine=machine)
    models.engine()  # the loader has it from somewhere
    with pytest.raises(HubError, match="someone/new is being fetched; wait for it"):
        models.engine("nano")


def test_a_folder_is_one_model_whatever_its_path(
    load: Loader, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(checkpoint("it"))
    monkeypatch.chdir(folder.parent)
    models = Models(load, "it", machine=machine)
    assert models.default == str(folder)
    assert models.engine("./it") is models.engine() is models.engine(str(folder))
    assert load.asked == [str(folder)]


# The default -------------------------------------------------------------------------------------


def test_another_default(load: Loader, checkpoint: Any) -> None:
    other = checkpoint("other")
    models = Models(load, "nano", machine=machine)
    before = models.engine()
    models.use(other)
    assert models.default == other
    assert models.engine() is models.engine(other) is not before
    assert models.engine("nano") is before


def test_the_old_default_makes_room(load: Loader, checkpoint: Any) -> None:
    first, second = checkpoint("first"), checkpoint("second")
    models = Models(load, first, machine=lambda: room_for_one(first))
    models.engine()
    models.use(second)
    assert {e.name: (e.loaded, e.default) for e in models.list()} == {
        "nano": (False, False),
        second: (True, True),
    }


@pytest.mark.parametrize("more", [0.5, 1.5])
@pytest.mark.parametrize("error", [CheckpointError("no; fetch it again."), RuntimeError("malloc")])
def test_the_default_stays_when_another_cannot_be_loaded(
    load: Loader, checkpoint: Any, more: float, error: Exception
) -> None:
    first, second = checkpoint("first"), checkpoint("second")
    models = Models(load, first, machine=lambda: room_for_one(first, more))
    before = models.engine()
    load.errors[second] = error
    with pytest.raises(type(error), match=str(error)):
        models.use(second)
    assert models.default == first
    after = models.engine()
    assert (after is before) == (more > 1)
    assert load.asked == [first, second] + ([first] if more < 1 else [])


def test_no_model_goes_for_one_that_would_not_fit_even_so(
    load: Loader, checkpoint: Any, tmp_path: Path
) -> None:
    default, other, third = checkpoint("default"), checkpoint("other"), large(tmp_path / "third")
    models = Models(load, default, machine=lambda: room_for_one(third, more=0.1))
    before = models.engine()
    models.engine(other)
    with pytest.raises(MemoryLimitError, match=rf"not fit beside {other} .* unload {other} first"):
        models.use(third)
    assert (models.default, models.engine()) == (default, before)


def test_no_model_goes_in_the_middle_of_its_answer(load: Loader, checkpoint: Any) -> None:
    first, second = checkpoint("first"), checkpoint("second")
    models = Models(load, first, machine=lambda: room_for_one(first))
    with models.lease() as engine:
        with pytest.raises(BusyError, match="an answer runs on"):
            models.use(second)
        assert (models.default, models.engine()) == (first, engine)
    assert load.asked == [first]


def test_a_damaged_folder_is_not_worth_an_unload(load: Loader, checkpoint: Any) -> None:
    first, damaged = checkpoint("first"), checkpoint("damaged")
    (Path(damaged) / "config.json").write_text("{")
    models = Models(load, first, machine=lambda: room_for_one(first))
    before = models.engine()
    with pytest.raises(CheckpointError):
        models.use(damaged)
    assert models.engine() is before


def test_who_asks_for_the_default_meanwhile_gets_the_new_one(load: Loader, checkpoint: Any) -> None:
    first, second = checkpoint("first"), checkpoint("second")
    models = Models(load, first, machine=lambda: room_for_one(first))
    models.engine()
    load.may_end[second] = threading.Event()
    change = threading.Thread(target=lambda: models.use(second))
    load.began.acquire()
    change.start()
    load.began.acquire()  # the second has begun
    found: list[Any] = []
    ask = threading.Thread(target=lambda: found.append(models.engine()))
    ask.start()
    assert models.default == first, "and nothing waits to say so"
    load.may_end[second].set()
    change.join(60)
    ask.join(60)
    assert found == [models.engine(second)]


# Unloading ---------------------------------------------------------------------------------------


def test_a_model_that_answers_is_not_unloaded(load: Loader) -> None:
    models = Models(load, "nano", machine=machine)
    with models.lease() as engine:
        with pytest.raises(BusyError, match=r"an answer runs on nano; stop it or wait for it"):
            models.unload("nano")
        assert models.engine() is engine
        assert [entry.users for entry in models.list()] == [1]
    assert [entry.users for entry in models.list()] == [0]
    models.unload("nano")
    models.unload("nano")
    assert [entry.loaded for entry in models.list()] == [False]


def test_a_lease_ends_with_an_error_too(load: Loader) -> None:
    models = Models(load, "nano", machine=machine)
    with pytest.raises(ZeroDivisionError), models.lease():
        1 / 0  # noqa: B018
    load.errors["other"] = CheckpointError("no")
    models.unload("nano")
    with pytest.raises(CheckpointError), models.lease("other"):
        pass
    models.unload("other")


def test_unloading_gives_the_memory_back(load: Loader) -> None:
    models = Models(load, "nano", machine=machine)
    engine = weakref.ref(models.engine())
    forgotten: list[str] = []
    models.on_unload(forgotten.append)
    models.unload("nano")
    assert engine() is None
    assert forgotten == ["nano"]
    models.engine()
    assert load.asked == ["nano", "nano"]


def test_a_real_model_leaves_mlx_with_nothing(checkpoint: Any) -> None:
    import dg_mlx

    models = Models(dg_mlx.load, checkpoint("it"), machine=machine)
    gc.collect()
    before = models.memory().used
    models.engine()
    assert models.memory().used > before
    models.unload(models.default)
    after = models.memory()
    assert (after.used, after.kept) == (before, 0)


# What there is -----------------------------------------------------------------------------------


def test_the_list(load: Loader, checkpoint: Any, home: Path) -> None:
    opened = checkpoint("opened")
    target = default_target("someone/it", "4bit")
    tiny.write_tokenizer(tiny.write(target))
    (target.parent / ".other.partial").mkdir()
    models = Models(load, "nano", machine=machine)
    assert models.add(opened) == opened
    models.engine(opened)
    nano, made, last = models.list()
    assert (nano.name, nano.bundled, nano.default, nano.loaded) == ("nano", True, True, False)
    assert nano.fits.startswith("fits, up to")
    assert made.folder == home / "models" / "it-4bit"
    assert made.name == str(made.folder)
    assert (last.name, last.bundled, last.default, last.loaded) == (opened, False, False, True)
    assert last.size_bytes == sum(path.stat().st_size for path in Path(opened).iterdir())
    assert {entry.problem for entry in (nano, made, last)} == {""}


def test_a_folder_that_is_loaded_is_listed(load: Loader, checkpoint: Any) -> None:
    models = Models(load, checkpoint("default"), machine=machine)
    other = checkpoint("other")
    models.engine(other)
    assert [(e.name, e.loaded) for e in models.list()] == [
        ("nano", False),
        (other, True),
        (models.default, False),
    ]


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "another model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "gemma4"}'),
        "dg-mlx runs 'diffusion_gemma'",
    ),
    "no settings": (lambda folder: (folder / "generation_config.json").unlink(), "is missing"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no *.safetensors"),
    "cut off": (truncate, "is broken"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
    "gone": (lambda folder: [path.unlink() for path in folder.iterdir()], "config.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_listed_with_why(load: Loader, checkpoint: Any, damage: str) -> None:
    folder = Path(checkpoint("it"))
    models = Models(load, "nano", machine=machine)
    models.add(str(folder))
    spoil, why = DAMAGES[damage]
    spoil(folder)
    nano, entry = models.list()
    assert nano.problem == ""
    assert why in entry.problem
    assert "\n" not in entry.problem
    assert entry.fits == ""
    with pytest.raises(CheckpointError) as said:
        models.add(str(folder))
    assert " ".join(str(said.value).split()) == entry.problem


def test_what_was_fetched_in_part_is_listed_with_why(load: Loader, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models--someone--it" / "snapshots" / ("a" * 40)
    tiny.write_tokenizer(tiny.write(folder))
    models = Models(load, "nano", machine=machine)
    assert [entry.problem for entry in models.list()] == ["", ""]
    (folder / "model.safetensors").unlink()
    nano, entry = models.list()
    assert (nano.problem, entry.name) == ("", "someone/it")
    assert "has no *.safetensors; fetch the checkpoint again." in entry.problem


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tokenizer(tiny.write(tmp_path_factory.mktemp("spoilt") / "it"))


@settings(deadline=None)
@given(place=st.sampled_from(list(places(tiny.config()))), junk=JUNK)
def test_whatever_a_config_says_the_list_is_shown(
    spoilt: Path, place: tuple[Any, ...], junk: Any
) -> None:
    data = copy.deepcopy(tiny.config())
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    (spoilt / "config.json").write_text(json.dumps(data))
    entry = catalog._look("it", spoilt, machine(), size_bytes=0)
    assert bool(entry.problem) != bool(entry.fits)
    assert "\n" not in entry.problem


def test_what_cannot_be_opened(load: Loader, tmp_path: Path) -> None:
    models = Models(load, "nano", machine=machine)
    for path in (tmp_path / "none", tmp_path / "none" / "config.json", "~nobody/it", "x" * 9999):
        with pytest.raises(HubError, match=r"there is no folder .*; give the folder that holds"):
            models.add(str(path))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        models.add(str(tmp_path))
    assert [entry.name for entry in models.list()] == ["nano"]


def test_offers(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "free_bytes", lambda: 30_000_000_000)
    models = Models(load, "nano", machine=lambda: machine(40e9, "metal"))
    found = {offer.form: offer for offer in models.offers()}
    assert found["4bit"].repo == fits.LARGE
    assert {form: (o.runs, o.has_room, o.here) for form, o in found.items()} == {
        "bf16": (False, False, False),
        "8bit": (True, True, False),
        "4bit": (True, True, False),
    }
    assert found["4bit"].size_bytes == 16_542_844_632
    assert found["4bit"].fits.startswith("fits, up to")
    assert found["bf16"].fits.startswith("does not fit")


def test_what_is_fetched_is_no_offer_to_fetch(
    load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / f"models--{fits.LARGE.replace('/', '--')}"
    tiny.write_tokenizer(tiny.write(folder / "snapshots" / ("a" * 40)))
    monkeypatch.setattr(hub, "free_bytes", lambda: 0)
    found = {o.form: (o.here, o.has_room) for o in Models(load, "nano", machine=machine).offers()}
    assert found == {"bf16": (False, False), "8bit": (False, False), "4bit": (True, True)}


def test_what_was_fetched_in_part_is_offered_for_the_rest(
    load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / f"models--{fits.LARGE.replace('/', '--')}"
    tiny.write(folder / "snapshots" / ("a" * 40))  # without its tokenizer
    whole = fits.published("4bit").stored_bytes
    have = next(model.size_bytes for model in hub.cached() if model.name == fits.LARGE)
    assert have > 0
    for free, enough in ((whole - have, True), (whole - have - 1, False)):
        monkeypatch.setattr(hub, "free_bytes", lambda free=free: free)
        offers = Models(load, "nano", machine=machine).offers()
        assert [(o.here, o.has_room) for o in offers if o.form == "4bit"] == [(False, enough)]


@contextmanager
def busy_worker() -> Iterator[None]:
    """MLX's thread is in the middle of a step."""
    inside, may_end = threading.Event(), threading.Event()

    def step() -> None:
        inside.set()
        assert may_end.wait(60)

    thread = threading.Thread(target=lambda: WORKER.call(step))
    thread.start()
    assert inside.wait(60)
    try:
        yield
    finally:
        may_end.set()
        thread.join(60)


def test_memory_is_told_while_a_step_runs(load: Loader) -> None:
    models = Models(load, "nano", machine=machine)
    models.engine()
    models.list()
    with busy_worker():
        memory = models.memory()
    assert memory.machine == 64_000_000_000
    assert memory.used >= 0
    assert memory.kept >= 0
    assert memory.free is None or memory.free > 0


def test_free_memory_is_that_of_the_device(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(backend: str) -> int | None:
        return Models(load, "nano", machine=lambda: machine(8e9, backend)).memory().free

    assert free("metal") is None
    monkeypatch.setattr(models_module.mx, "device_info", lambda: {"free_memory": 5})
    assert free("cuda") == 5
    monkeypatch.setattr(models_module.mx, "device_info", dict)
    assert free("cuda") is None


# Targets of conversions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "quant", "name"),
    [
        ("google/diffusiongemma-26B-A4B-it", "4bit", "diffusiongemma-26B-A4B-it-4bit"),
        ("owner/name-GGUF:Q4_K_M", "mxfp4", "name-GGUF-Q4_K_M-mxfp4"),
        ("x" * 9999, "4bit", "x" * 180 + "-4bit"),
        ("/data/it.gguf", "none", "it-plain"),
        ("./a/..hidden", "8bit", "hidden-8bit"),
        ("/", "8bit", "model-8bit"),
    ],
)
def test_default_targets(home: Path, source: str, quant: str, name: str) -> None:
    assert default_target(source, quant) == home / "models" / name


@settings(deadline=None)
@given(source=st.text(st.characters(exclude_categories=("Cs",))) | st.text("аß界😀", min_size=50))
def test_a_default_target_is_a_folder_that_is_listed(source: str) -> None:
    target = default_target(source, "4bit")
    assert target.parent == catalog.models_folder()
    assert not target.name.startswith(".")
    assert len(target.name.encode()) < 200
