"""Random checkpoints once per session, and a table of the worst differences at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny

if TYPE_CHECKING:
    from dg_mlx import Engine
    from dg_mlx.reference import Reference

TOLERANCE = 1e-3
"""Largest difference of an fp32 logit."""

_worst: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The fast suite must not import torch, nor need it."""
    unwanted = "not parity" in config.option.markexpr or find_spec("torch") is None
    return True if unwanted and collection_path.name.startswith("test_") else None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the worst difference of every kind of case."""
    if _worst:
        terminalreporter.section("largest difference from transformers, per kind of case")
        for kind, (worst, count) in sorted(_worst.items()):
            terminalreporter.write_line(f"{kind:<44} {worst:9.2e}   {count:5d} comparisons")


@pytest.fixture(scope="session")
def same() -> Callable[..., None]:
    """Assert that two arrays agree, and remember by how much."""

    def check(kind: str, ours: Any, theirs: Any, tolerance: float = TOLERANCE) -> None:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape
        worst = float(np.abs(ours - theirs).max())
        earlier, count = _worst[kind]
        _worst[kind] = (max(worst, earlier), count + 1)
        assert worst <= tolerance, f"{kind}: differs by {worst:.2e}"

    return check


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(shape's name, spelling) → checkpoint folder; spelling "hub" or "transformers"."""
    from parity import checkpoints

    @cache
    def build(name: str, spelling: str = "hub") -> Path:
        shape = checkpoints.SHAPES[name]
        path = tmp_path_factory.mktemp(f"{name}-{spelling}")
        model = checkpoints.build(shape)
        if spelling == "transformers":
            checkpoints.save_transformers(model, path)
        else:
            checkpoints.save_hub(model, shape, path)
        return tiny.write_tokenizer(path, shape.vocab)

    return build


@pytest.fixture(scope="session")
def ours(folder: Callable[..., Path]) -> Callable[..., Engine]:
    """(shape's name, spelling, vision attention) → our engine, in fp32."""
    import dg_mlx

    @cache
    def load(name: str, spelling: str = "hub", attention: str = "all") -> Engine:
        return dg_mlx.load(
            folder(name, spelling), backend="cpu", dtype="float32", vision_attention=attention
        )

    return load


@pytest.fixture(scope="session")
def theirs(folder: Callable[..., Path]) -> Callable[..., Reference]:
    """(shape's name, vision attention) → transformers' model of the same checkpoint."""
    from dg_mlx.reference import Reference

    @cache
    def load(name: str, attention: str = "all") -> Reference:
        return Reference(folder(name), vision_attention=attention)

    return load
