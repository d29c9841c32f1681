"""The recipe in examples/nano: what it writes can be loaded, and what it learns from is sound."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import dg_mlx
from dg_mlx.config import ModelConfig
from dg_mlx.processor import Processor
from dg_mlx.tasks import TASKS
from dg_mlx.train.settings import TrainSettings

RECIPE = Path(__file__).parents[1] / "examples" / "nano"
NANO = Path(dg_mlx.__file__).parent / "nano"


def script(name: str, *options: object) -> None:
    done = subprocess.run(
        [sys.executable, RECIPE / name, *map(str, options)],
        env=os.environ | {"PYTHONPATH": str(RECIPE.parents[1])},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano") / "start"
    script("start.py", folder, "--seed", 3)
    return folder


@pytest.fixture
def mixture(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPE))
    import mixture

    return mixture


def test_the_start_has_every_part(start: Path) -> None:
    config = ModelConfig.load(start)
    assert config.vision is not None and config.text.num_experts > 1
    engine = dg_mlx.load(str(start), backend="cpu")
    once = engine.settings.replace(max_denoising_steps=1)
    from PIL import Image

    shown = [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "?"}]
    reply = engine.generate([{"role": "user", "content": shown}], settings=once)
    assert reply.stats.tokens


def test_it_can_start_from_another_nano(tmp_path: Path) -> None:
    script("start.py", tmp_path / "text", "--text", "--from", NANO)
    config = ModelConfig.load(tmp_path / "text")
    assert config.vision is None
    old, new = (mx.load(str(f / "model.safetensors")) for f in (NANO, tmp_path / "text"))
    for name in set(old) & set(new):
        kept = new[name][tuple(slice(n) for n in old[name].shape)]
        assert mx.array_equal(kept, old[name]), name
    assert len(set(old) & set(new)) > 100


def test_a_step_is_batches_of_one_kind(start: Path, mixture: Any) -> None:
    config = ModelConfig.load(start)
    processor = Processor(start, config)
    told = TrainSettings(model="x", steps=100, seed=1)
    source, again = (mixture.Mixture(told, start, config, processor) for _ in range(2))
    seen = set()
    for step in range(1, 9):
        batches = source.batches(step)
        assert len(batches) == mixture.PARTS
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
        (canvas,) = {example.canvas for batch in batches for example in batch}
        seen.add(canvas)
        ends = {example.answer[-1] for batch in batches for example in batch}
        assert ends <= {6, 14}, "an answer ends with the turn, or with a call"
        longest = max(len(e.ids) for batch in batches for e in batch)
        assert len(batches[0]) <= source.largest[0] and longest < source.largest[1]
        same = again.batches(step)
        assert [[e.ids for e in b] for b in batches] == [[e.ids for e in b] for b in same]
    assert len(seen) > 1
    named = [name for group in mixture.GROUPS for name in group.tasks]
    assert sorted(named) == sorted(TASKS)
    assert {len(e.answer) for e in source.held_out} == {mixture.WHOLE}
