"""Settings under a name."""

from pathlib import Path

import pytest

from dg_mlx.errors import SettingsError
from dg_mlx.hub import bundled_folder
from dg_mlx.presets import DEFAULT, PRESETS, preset
from dg_mlx.settings import GenerationSettings

DOCS = Path(__file__).parent.parent / "docs" / "presets.md"


@pytest.fixture
def own() -> GenerationSettings:
    return GenerationSettings.load(bundled_folder("nano"))


def test_the_default_changes_nothing(own: GenerationSettings) -> None:
    assert preset(DEFAULT).apply(own) == own


@pytest.mark.parametrize("name", [name for name in PRESETS if name != DEFAULT])
def test_the_others_change_something_and_say_what_it_does(
    name: str, own: GenerationSettings
) -> None:
    changed = preset(name).apply(own)
    assert changed != own
    text = DOCS.read_text(encoding="utf-8")
    for setting in PRESETS[name].changes:
        assert f"`{setting}` {getattr(changed, setting)}" in text
    assert text.count(f"| {name} |") >= 2  # what it is, and what was measured


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match="choose from faithful, balanced, fast"):
        preset("slow")
