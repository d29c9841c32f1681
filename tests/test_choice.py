"""Which model the chat opens when none is named."""

from types import SimpleNamespace

import pytest

from dg_mlx.cli import choice
from dg_mlx.fits import LARGE, Machine


def machine(gigabytes: float, backend: str = "metal") -> Machine:
    return Machine(
        backend=backend,
        chip="Apple M4",
        memory_bytes=int(gigabytes * 1e9),
        mlx_version="0.32",
        itemsize=2,
        unpacks=False,
        notes=(),
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch):
    def place(found: Machine, cached: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(choice, "machine", lambda: found)
        models = [SimpleNamespace(name=name) for name in cached]
        monkeypatch.setattr(choice.hub, "cached", lambda: models)

    return place


def never(question: str) -> str:
    raise AssertionError(question)


def test_a_mac_with_enough_memory_is_asked(here) -> None:
    asked: list[str] = []

    def yes(question: str) -> str:
        asked.append(question)
        return "y"

    here(machine(36))
    assert choice.choose_model(yes) == LARGE
    assert "Apple M4 with 36.0 GB" in asked[0]
    assert "16.5 GB to download" in asked[0]


def test_nothing_is_fetched_without_a_yes(here, capsys) -> None:
    here(machine(36))
    assert choice.choose_model(lambda question: "") == "nano"
    assert f"--model {LARGE}" in capsys.readouterr().err


@pytest.mark.parametrize("found", [machine(16), machine(64, "cpu")])
def test_nano_elsewhere(here, found: Machine) -> None:
    here(found)
    assert choice.choose_model(never) == "nano"


def test_nobody_is_there_to_ask(here) -> None:
    here(machine(64))
    assert choice.choose_model(None) == "nano"


def test_what_is_there_already_is_taken(here) -> None:
    here(machine(36), cached=("nano", LARGE))
    assert choice.choose_model(never) == LARGE
