"""What several test files share."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

import dg_mlx  # before any test imports MLX: it loads the fast BLAS

# What CI says must not depend on luck; everywhere else, every run looks at other inputs.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    """No test, and no process that one starts, writes into the user's cache."""
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    os.environ["XDG_CACHE_HOME"] = folder.name


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with the real checkpoint's own small files (`DG_REFERENCE`)."""
    folder = Path(os.environ.get("DG_REFERENCE", "../shared/reference"))
    if not (folder / "hub" / "config.json").exists():
        message = f"no reference files in {folder}; set DG_REFERENCE to the folder that has them"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong is said before a model is loaded."""

    def load(name: str, **_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(dg_mlx, "load", load, raising=False)
    monkeypatch.setattr(sys, "stdin", None)
