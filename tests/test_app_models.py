"""What the page's tab of models says, without a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine

pytest.importorskip("gradio")

from dg_mlx.app.desk import Desk
from dg_mlx.app.models import FORMATS, _time, state
from dg_mlx.convert import recipe

from dg_mlx.serve.models import Models


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from huggingface_hub.utils import _cache_manager

    monkeypatch.setenv("DG_MLX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", str(tmp_path / "cache"))
    made = Desk(Models(lambda name: FakeEngine(), "nano"), None)  # type: ignore[arg-type, return-value]
    yield made
    made.close()


def test_the_formats_are_those_of_conversions() -> None:
    assert set(FORMATS) == set(recipe.FORMATS)


def test_a_model_and_what_it_does(desk: Desk) -> None:
    [nano] = state(desk, "", "4bit")["models"]
    assert (nano["title"], nano["place"], nano["size"]) == ("nano", "bundled", "3.4 MB")
    assert (nano["default"], nano["loaded"], nano["users"]) == (True, False, 0)
    with desk.models.lease():
        [nano] = state(desk, "", "4bit")["models"]
        assert (nano["loaded"], nano["users"]) == (True, 1)


def test_a_target_is_named_once_there_is_a_source(desk: Desk, tmp_path: Path) -> None:
    assert state(desk, "  ", "4bit")["target"] == ""
    assert state(desk, "a/b", "8bit")["target"] == str(tmp_path / "home" / "models" / "b-8bit")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (754, "12 min 34 s"), (8000, "2 h 13 min")],
)
def test_times_have_two_units(seconds: float, text: str) -> None:
    assert _time(seconds) == text
