"""What the settings of a page ask an engine for."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from dg_mlx.app.asked import NUMBERS, Asked, constraint, declared
from fakes import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from dg_mlx.canvas.constraint import Constraint
from dg_mlx.errors import ConstraintError, DGError, SettingsError
from dg_mlx.presets import PRESETS

OWN = FakeEngine().settings


def test_without_wishes_they_are_the_checkpoints_own() -> None:
    assert Asked().settings(OWN) == OWN
    assert Asked(numbers=dict.fromkeys(NUMBERS)).settings(OWN) == OWN  # empty fields
    options = Asked().options()
    assert options.keys() == {"seed", "thinking"} and options["thinking"] is False


def test_numbers_go_before_the_preset() -> None:
    fast = PRESETS["fast"].changes
    found = Asked(preset="fast", numbers={"entropy_bound": 0.7, "t_max": None}).settings(OWN)
    assert found.entropy_bound == 0.7 != fast["entropy_bound"]
    assert found.max_denoising_steps == fast["max_denoising_steps"] and found.t_max == OWN.t_max


def test_every_number_of_the_page_is_a_setting() -> None:
    own = {name: getattr(OWN, name) for name in NUMBERS}
    assert Asked(numbers=own).settings(OWN) == OWN


def test_whole_numbers_may_come_as_others() -> None:
    found = Asked(numbers={"max_new_tokens": 7.0}).settings(OWN)
    assert found.max_new_tokens == 7 and isinstance(found.max_new_tokens, int)
    with pytest.raises(SettingsError, match=r"max_new_tokens is 7\.5"):
        Asked(numbers={"max_new_tokens": 7.5}).settings(OWN)


@given(
    preset=st.sampled_from([*PRESETS]),
    numbers=st.dictionaries(st.sampled_from([*NUMBERS]), st.none() | st.integers() | st.floats()),
)
def test_any_numbers_are_settings_or_a_sentence(preset: str, numbers: dict[str, Any]) -> None:
    with suppress(SettingsError):
        found = Asked(preset=preset, numbers=numbers).settings(OWN)
        wanted = {name: value for name, value in numbers.items() if value is not None}
        assert all(getattr(found, name) == value for name, value in wanted.items())


def test_a_seed_is_kept_and_none_is_another_each_time() -> None:
    assert Asked(seed=0).options()["seed"] == 0
    seeds = {Asked().options()["seed"] for _ in range(8)}
    assert len(seeds) > 1 and all(0 <= seed < 2**31 for seed in seeds)


def test_tools_are_declared_one_or_several() -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    assert declared("") is declared(" \n") is None
    assert declared(json.dumps(tool)) == [tool] == declared(json.dumps([tool]))
    assert Asked(tools=json.dumps(tool)).options()["tools"] == [tool]


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        ("none", "whatever", None),
        ("json", "", Constraint.any_json()),
        ("regex", "a+", Constraint.regex("a+")),
        ("choices", "yes\n\nno\n", Constraint.choices(["yes", "no"])),
        ("schema", '{"type": "integer"}', Constraint.schema({"type": "integer"})),
    ],
)
def test_constraints_come_from_their_text(kind: Any, text: str, wanted: Constraint | None) -> None:
    assert constraint(kind, text) == wanted
    assert Asked(kind=kind, held=text).options().get("constraint") == wanted


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (Asked(kind="schema", held="{"), "the schema is no JSON .*; correct it"),
        (Asked(kind="schema", held="[" * 100_000), "the schema is no JSON .*; correct it"),
        (Asked(tools="{"), "the tools are no JSON .*; correct them"),
        (Asked(tools="[" * 100_000), "the tools are no JSON .*; correct them"),
    ],
    ids=["schema", "deep schema", "tools", "deep tools"],
)
def test_what_is_no_json_gets_a_sentence(asked: Asked, sentence: str) -> None:
    with pytest.raises(DGError, match=sentence) as caught:
        asked.options()
    assert isinstance(caught.value, (SettingsError, ConstraintError))
    assert "\n" not in str(caught.value)


@given(text=st.text())
def test_any_text_is_a_constraint_or_a_sentence(text: str) -> None:
    for kind in ("choices", "schema", "regex"):
        with suppress(ConstraintError):
            assert isinstance(constraint(kind, text), Constraint)
