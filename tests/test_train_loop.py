"""Training runs: steps, the rate's course, resuming, the run's folder, the command line."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_map

import dg_mlx
from dg_mlx import cli, weights
from dg_mlx.backends import Backend
from dg_mlx.config import ModelConfig
from dg_mlx.errors import BackendError, CheckpointError, DGError, MemoryLimitError, SettingsError
from dg_mlx.model import DiffusionGemma, ImagePatches, Media
from dg_mlx.train import curve, loss, metrics, optimizer, setup
from dg_mlx.train.batch import Example
from dg_mlx.train.loop import train
from dg_mlx.train.metrics import Evaluated, Finished, Saved, Started, Stepped
from dg_mlx.train.optimizer import Trainer, flattened, rate
from dg_mlx.train.settings import TrainSettings

WORDS = ("ab", "cdc", "efg", "hi", "jkl", "mnop")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint that stores bf16, as published ones do."""
    folder = tmp_path_factory.mktemp("base")
    tiny.write_tokenizer(tiny.write(folder, tiny.config(num_hidden_layers=2, layer_types=LAYERS)))
    return folder


LAYERS = [tiny.S, tiny.F]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "chats.jsonl")


def write_data(path: Path, words: tuple[str, ...] = WORDS) -> Path:
    def chat(word: str) -> str:
        turns = [{"role": "user", "content": word}, {"role": "assistant", "content": word[::-1]}]
        return json.dumps({"messages": turns})

    path.write_text("".join(f"{chat(word)}\n" for word in words))
    return path


def settings(base: Path | str, *data: Path, **changes) -> TrainSettings:
    given = {
        "steps": 6, "batch": 2, "eval_every": 0, "save_every": 2, "backend": "cpu",
        "learning_rate": 1e-3,
    }  # fmt: skip
    names = tuple(str(path) for path in data or ("none.jsonl",))
    return TrainSettings(model=str(base), data=names, **given | changes)


def trainer(base: Path, told: TrainSettings) -> Trainer:
    config = ModelConfig.load(base)
    model = DiffusionGemma(config, Backend())
    weights.load(model, config, base, mx.float32)
    return Trainer(model, told)


def examples(count: int, seed: int = 0) -> list[Example]:
    """Prompts of several lengths and answers of a canvas or two."""
    rng = np.random.default_rng(seed)
    return [
        Example(
            ids=rng.integers(4, 100, 2 + i % 3).tolist(),
            answer=rng.integers(4, 100, tiny.CANVAS * (1 + i % 2)).tolist(),
            canvases=1 + i % 2,
        )
        for i in range(count)
    ]


def tensors(folder: Path) -> dict[str, bytes]:
    found = mx.load(str(folder / "model.safetensors"))
    return {name: bytes(memoryview(array)) for name, array in found.items()}


def run(told: TrainSettings, folder: Path, **options) -> list[metrics.Event]:
    return list(train(told, folder, **options))


# Steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({}, 2e-2),
        ({"optimizer": "muon"}, 2e-3),
        ({"rank": 8, "alpha": 32.0, "recompute": True}, 1e-2),
    ],
)
def test_a_few_examples_are_learned(base: Path, changes: dict, rate: float) -> None:
    some = examples(4)
    told = settings(base, steps=60, batch=4, self_conditioning=0.0, encoder_weight=0.0, **changes)
    told = replace(told, learning_rate=rate)
    trained = trainer(base, told)
    before = metrics.held_out_loss(trained.model, some, trained.objective, 4)
    for step in range(1, told.steps + 1):
        trained.step([some], step)
    after = metrics.held_out_loss(trained.model, some, trained.objective, 4)
    assert after < before * 0.6


def test_batches_add_up(base: Path) -> None:
    some = examples(8)
    told = settings(base, batch=8, clip=0.0)
    one, two = trainer(base, told), trainer(base, replace(told, batch=4, accumulate=2))
    for step in (1, 2):
        a, b = one.step([some], step), two.step([some[:4], some[4:]], step)
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
        assert a.tokens == b.tokens
    for name, array in one.weights.items():
        # AdamW makes a step of the same size of a gradient that is all but zero.
        assert mx.abs(array - two.weights[name]).max().item() < 2 * told.learning_rate
    worst = max(mx.abs(a - two.weights[n]).mean().item() for n, a in one.weights.items())
    assert worst < 1e-5


def test_frozen_weights_stay(base: Path) -> None:
    trained = trainer(base, settings(base))
    names = set(trained.weights)
    assert "model.decoder.embed_tokens.weight" in names
    assert "model.encoder.language_model.layers.0.layer_scalar" in names
    assert not any("vision" in name for name in names)
    adapted = trainer(base, settings(base, rank=2, targets=("*.q_proj",)))
    assert {n.rpartition(".")[2] for n in adapted.weights} == {"lora_a", "lora_b"}
    assert all(".q_proj." in name for name in adapted.weights)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_vision_tower_learns_when_asked(base: Path, optimizer: str) -> None:
    """Two pictures, told apart: with the tower frozen and its projection too, and without."""
    side = 3 * tiny.config()["vision_config"]["patch_size"]
    patches = [np.full((9, side * side // 3), value, np.float32) for value in (0.1, 0.9)]
    answers = np.random.default_rng(1).integers(4, 100, (2, tiny.CANVAS))
    shown = [
        Example(
            ids=[5, tiny.config()["image_token_id"], 6],
            answer=answer.tolist(),
            media=Media(
                images=(ImagePatches(pixels_PC=pixels, grid=(3, 3), start=1, tokens=1, key="k"),)
            ),
        )
        for pixels, answer in zip(patches, answers, strict=True)
    ]
    trained = trainer(base, settings(base, vision=True, optimizer=optimizer))
    names = {name for name in trained.weights if "vision" in name}
    assert any("patch_embedder" in name for name in names)
    assert any("embedding_projection" in name for name in names)
    before = dict(trained.weights)
    found = trained.step([shown], 1)
    assert math.isfinite(found.loss)
    still = [n for n in names if mx.array_equal(before[n], trained.weights[n])]
    assert not [n for n in still if not n.endswith("position_embedding_table")]


def test_vision_needs_a_tower(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="leaves the vision tower as it is; drop --vision"):
        settings(base, vision=True, rank=4)
    blind = tiny.config(num_hidden_layers=2, layer_types=LAYERS) | {"vision_config": None}
    folder = tiny.write(tmp_path / "blind", blind)
    with pytest.raises(SettingsError, match="reads text only; drop --vision"):
        trainer(folder, settings(folder, vision=True))


def test_the_mean_of_the_weights_is_the_result(base: Path) -> None:
    some = examples(4)
    trained = trainer(base, settings(base, average=0.5, learning_rate=1e-2))
    name = "model.decoder.norm.weight"
    mean = trained.weights[name]
    for step in range(1, 13):
        trained.step([some], step)
        kept = min(0.5, step / (step + 9))
        mean = kept * mean + (1 - kept) * trained.weights[name]
    last = trained.weights[name]
    assert mx.allclose(trained.parameters()[name], mean, atol=1e-6)
    assert mx.abs(mean - last).max().item() > 1e-4
    with trained.result() as model:
        assert mx.allclose(model.model.decoder.norm.weight, mean, atol=1e-6)
    assert mx.array_equal(trained.model.model.decoder.norm.weight, last)


def test_canvases_of_two_lengths(base: Path) -> None:
    """Batches of one step may have shorter canvases; each counts by its examples."""
    some, told = examples(4), settings(base, clip=0.0)
    short = [replace(e, answer=e.answer[:5], canvases=1) for e in some[:2]]
    one = trainer(base, told)
    found = one.step([short, some[2:]], 1)
    alone = [trainer(base, told).step([part], 1) for part in (short, some[2:])]
    assert found.tokens == sum(a.tokens for a in alone)
    assert found.encoder == pytest.approx(sum(a.encoder for a in alone) / 2, rel=1e-4)


def test_bf16_keeps_its_weights_in_fp32(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.load(base)
    model = DiffusionGemma(config, Backend())
    weights.load(model, config, base, mx.bfloat16)
    trained = Trainer(model, settings(base, learning_rate=1e-5, warmup_share=0.0))
    ones = tree_map(mx.ones_like, model.trainable_parameters())
    monkeypatch.setattr(loss, "gradients", lambda *a, **k: ([mx.array(1.0)] * 3, ones))
    before = dict(trained.weights)
    for step in (1, 2):
        trained.step([examples(2)], step)
    for name, array in flattened(model.trainable_parameters()).items():
        assert (trained.weights[name].dtype, array.dtype) == (mx.float32, mx.bfloat16)
        assert not mx.array_equal(before[name], trained.weights[name])  # bf16 would round it away
        assert mx.array_equal(array, trained.weights[name].astype(mx.bfloat16))


def test_bf16_is_not_for_the_cpu(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"cannot train in bfloat16; drop --dtype\."):
        run(settings(base, data, dtype="bfloat16"), tmp_path / "run")


def test_the_loss_must_be_finite(base: Path) -> None:
    trained = trainer(base, settings(base))
    trained.model.model.decoder.norm.weight = mx.full(tiny.HIDDEN, math.nan)
    with pytest.raises(SettingsError, match=r"the loss is nan at step 3; .* --learning-rate"):
        trained.step([examples(2)], 3)


# Rate, clipping, optimisers ----------------------------------------------------------------------


def test_the_rate_rises_stays_and_falls() -> None:
    told = settings("m", steps=10, warmup_share=0.2, decay_share=0.5, final_share=0.1)
    linear = [rate(replace(told, decay="linear"), step) for step in range(1, 11)]
    assert linear == pytest.approx([0.5, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28, 0.1])
    cosine = [rate(told, step) for step in range(6, 11)]
    half = [(1 + math.cos(math.pi * k / 5)) / 2 for k in range(1, 6)]
    assert cosine == pytest.approx([0.1 + 0.9 * h for h in half])


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_rate_is_a_share(steps: int, warmup: float, decay: float, final: float) -> None:
    told = settings(
        "m", steps=steps, warmup_share=warmup, decay_share=decay * (1 - warmup), final_share=final
    )
    shares = [rate(told, step) for step in range(1, steps + 1)]
    assert all(0 <= share <= 1 for share in shares)


def test_clipping() -> None:
    gradients = {"a": mx.array([3.0, 0.0]), "b": mx.array([[4.0]])}
    clipped, norm = optimizer.clip(gradients, 1.0)
    assert norm.item() == pytest.approx(5)
    assert clipped["a"].tolist() == pytest.approx([0.6, 0])
    assert clipped["b"].tolist() == [pytest.approx([0.8])]
    for largest in (0.0, 10.0):
        same, norm = optimizer.clip(gradients, largest)
        assert norm.item() == pytest.approx(5)
        assert same["a"].tolist() == [3, 0]


def test_adamw_is_the_published_one() -> None:
    told = settings("m", learning_rate=0.1, weight_decay=0.5)
    w, v = np.array([[1.0, -2.0]]), np.array([3.0])
    parts = optimizer.Optimizer(told, {"w": mx.array(w), "v": mx.array(v)})
    held = {"w": mx.array(w, mx.float32), "v": mx.array(v, mx.float32)}
    first, second = np.zeros_like(w), np.zeros_like(w)
    for step in range(1, 4):
        g = np.array([[0.3, -0.1]]) * step
        held = parts.update(held, {"w": mx.array(g, mx.float32), "v": mx.zeros(1)}, 1.0)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        m, s = first / (1 - 0.9**step), second / (1 - 0.999**step)
        w = w * (1 - 0.1 * 0.5) - 0.1 * m / (np.sqrt(s) + 1e-8)
    np.testing.assert_allclose(np.array(held["w"]), w, rtol=1e-5)
    assert held["v"].item() == 3  # a vector does not decay


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (3, 16, 24)])
def test_muon_makes_each_matrix_orthogonal(shape: tuple[int, ...]) -> None:
    x = mx.random.normal(shape, key=mx.random.key(3))
    values = np.linalg.svd(np.array(optimizer.orthogonal(x)), compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.5
    if len(shape) == 3:
        alone = optimizer.orthogonal(x[1])
        assert mx.allclose(optimizer.orthogonal(x)[1], alone, atol=1e-5)


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number of 1 or more"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number."),
        ({"batch": True}, "batch is True; it must be a whole number."),
        ({"rank": 0}, "rank is 0; it must be"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; it must be a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be"),
        ({"held_out_share": 1.0}, "held_out_share is 1.0; it must be 0 or more, and below 1"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; choose from adamw, muon."),
        ({"dtype": "float16"}, "dtype is 'float16'; choose from float32, bfloat16."),
        ({"alpha": 4.0}, "alpha is for a LoRA adapter; give --rank too"),
        ({"optimizer": "muon", "rank": 4}, "muon is for whole matrices"),
        ({"muon_learning_rate": 0.1}, "is for --optimizer muon"),
        ({"held_out": "x", "held_out_share": 0.1}, "exclude each other"),
        ({"warmup_share": 0.5}, "are more than the whole run"),
    ],
)
def test_what_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        settings("m", **changes)
    assert message in str(error.value)


def test_settings_are_a_file(tmp_path: Path) -> None:
    told = settings('odd "name"', Path("a.jsonl"), rank=4, targets=("*.q_proj",), recompute=True)
    path = tmp_path / "run.toml"
    path.write_text(told.as_toml())
    assert TrainSettings.load(path) == told
    assert TrainSettings.load(path, steps=9).steps == 9
    path.write_text("model = 'm'\ndata = ['a']\nspeed = 3\n")
    with pytest.raises(SettingsError, match="has 'speed', which is no setting; choose from model"):
        TrainSettings.load(path)
    path.write_text("model = ")
    with pytest.raises(SettingsError, match="is no TOML"):
        TrainSettings.load(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        TrainSettings.load(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="there is no model; give --model"):
        TrainSettings.load(None, data=("a.jsonl",))


# Runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    more = {"held_out_share": 0.34, "eval_every": 3, "eval_answers": 1, "average": 0.9}
    told = settings(base, data, keep=1, **more)
    events = run(told, folder)
    kinds = [type(event) for event in events]
    assert kinds.count(Stepped) == 6 and kinds.count(Saved) == 3
    assert kinds.count(Evaluated) == 3  # before, after 3, after 6
    assert kinds[0] is Started and events[-1] == Finished(folder=folder / "model")
    return folder


def test_what_a_run_leaves(unbroken: Path, base: Path) -> None:
    assert [path.name for path in unbroken.glob("step-*")] == ["step-000006"]
    rows = metrics.read(unbroken)
    stepped = [row for row in rows if "loss" in row]
    assert [row["step"] for row in stepped] == [1, 2, 3, 4, 5, 6]
    names = "step loss diffusion encoder lr grad_norm tokens seconds peak_gb"
    assert " ".join(stepped[0]) == names
    assert [row["step"] for row in rows if "held_out_loss" in row] == [0, 3, 6]
    drawing = ElementTree.parse(unbroken / "curve.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawing.findall("{*}polyline")) == 2
    assert not list(unbroken.glob(".*.partial"))
    known = weights.shapes(base)
    assert weights.shapes(unbroken / "model") == known


def test_the_result_loads_and_answers(unbroken: Path) -> None:
    engine = dg_mlx.load(str(unbroken / "model"), backend="cpu")
    assert engine.generate("ab").stats.tokens


def kill_at(step: int, told: TrainSettings, folder: Path, tmp_path: Path) -> None:
    """Run it in another process, which kills itself after a step."""
    config = tmp_path / "killed.toml"
    config.write_text(told.as_toml())
    program = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from dg_mlx.train.loop import train\nfrom dg_mlx.train.settings import TrainSettings\n"
        "told, folder, step = sys.argv[1:]\n"
        "for event in train(TrainSettings.load(Path(told)), Path(folder)):\n"
        "    if type(event).__name__ == 'Stepped' and event.step == int(step):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, config, folder, str(step)], timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_to_the_same_bits(
    unbroken: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    told = TrainSettings.load(unbroken / "settings.toml")
    kill_at(3, told, tmp_path / "run", tmp_path)
    assert (tmp_path / "run/step-000002").is_dir()
    events = run(told, tmp_path / "run")
    assert events[0].step in (2, 4)  # the worker may have come further than what was drawn
    assert tensors(tmp_path / "run/model") == tensors(unbroken / "model")
    known, found = (mx.load(str(f / "step-000006/optimizer.safetensors"))
                    for f in (unbroken, tmp_path / "run"))  # fmt: skip
    assert known.keys() == found.keys()
    assert all(mx.array_equal(known[name], found[name]) for name in known)
    rows = [[r for r in metrics.read(f) if "loss" in r] for f in (unbroken, tmp_path / "run")]
    assert [(r["step"], r["loss"]) for r in rows[0]] == [(r["step"], r["loss"]) for r in rows[1]]


def test_a_stopped_run_goes_on_to_the_same_bits(base: Path, data: Path, tmp_path: Path) -> None:
    told = settings(base, data, rank=2, accumulate=2, save_every=100, steps=5)
    whole = run(told, tmp_path / "whole")
    with contextlib.closing(train(told, tmp_path / "run")) as events:
        for event in events:
            if isinstance(event, Stepped) and event.step == 2:
                break
    (left,) = (tmp_path / "run").glob("step-*")
    again = run(told, tmp_path / "run")
    assert f"step-{again[0].step:06d}" == left.name
    assert whole[-1] == Finished(folder=tmp_path / "whole/adapter")
    files = [tmp_path / f"{name}/adapter/adapter_model.safetensors" for name in ("whole", "run")]
    a, b = (mx.load(str(path)) for path in files)
    assert a.keys() == b.keys() and all(mx.array_equal(a[name], b[name]) for name in a)


def test_another_run_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    told = settings(base, data, steps=3)
    with contextlib.closing(train(told, folder)) as events:
        next(events)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0.001, not 0.01; seed was 0, n"):
        run(replace(told, learning_rate=0.01, seed=4), folder)
    other = write_data(tmp_path / "other.jsonl", WORDS[::-1])
    with pytest.raises(CheckpointError, match=r"data file 1 is not the same\. Use those, name"):
        run(replace(told, data=(str(other),)), folder)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(data.read_bytes())
    again = replace(told, data=(str(moved),), keep=1, log_every=7)  # without an effect on it
    assert isinstance(run(again, folder)[-1], Finished)
    with pytest.raises(CheckpointError, match="holds a finished run; name another folder, or"):
        run(told, folder)
    assert isinstance(run(told, folder, force=True)[0], Started)


def test_folders_that_are_no_run(base: Path, data: Path, tmp_path: Path) -> None:
    told = settings(base, data, steps=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; name a folder"):
        run(told, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds no run; name another folder"):
        run(told, tmp_path / "full")
    with pytest.raises(CheckpointError, match="so --force will not replace it"):
        run(told, tmp_path / "full", force=True)
    assert (tmp_path / "full/thesis.txt").read_text() == "mine"


def test_two_processes_cannot_share_a_folder(base: Path, data: Path, tmp_path: Path) -> None:
    told = settings(base, data)
    with contextlib.closing(train(told, tmp_path / "run")) as events:
        next(events)
        with pytest.raises(CheckpointError, match="another process trains in"):
            run(told, tmp_path / "run")


def test_what_does_not_fit_is_refused(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "training_bytes", lambda *a, **k: 10**15)
    with pytest.raises(MemoryLimitError) as error:
        run(settings(base, data), tmp_path / "run")
    assert "this training needs about 1000000.0 GB; this machine has" in str(error.value)
    assert "train an adapter (--rank 8), or lower --batch" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[write] Unable to write 8 bytes to file.")

    told = settings(base, data, steps=2, save_every=1)
    with contextlib.closing(train(told, tmp_path / "run")) as events:
        next(event for event in events if isinstance(event, Saved))
    with monkeypatch.context() as patch:
        patch.setattr(mx, "save_safetensors", full)
        with pytest.raises(MemoryLimitError, match=r"is full\. Free some room and run the same"):
            run(told, tmp_path / "run")
    assert isinstance(run(told, tmp_path / "run")[-1], Finished)


def test_the_share_must_leave_both(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="leaves 6 to train on and 0 to evaluate"):
        run(settings(base, data, held_out_share=0.01), tmp_path / "run")


# Several processes -------------------------------------------------------------------------------


def train_together(folder: Path, config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dg_mlx.cli", "train", folder, "--config", config, *options],
        capture_output=True, text=True, timeout=240, env=os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[1])
        },
    )  # fmt: skip


def test_two_processes_learn_as_one(base: Path, data: Path, tmp_path: Path) -> None:
    told = settings(base, data, steps=4, batch=3, accumulate=2, optimizer="muon", save_every=2)
    config = tmp_path / "run.toml"
    config.write_text(told.as_toml())
    alone = run(told, tmp_path / "alone")
    done = train_together(tmp_path / "run", config, "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run/model'}\n"
    losses = [row["loss"] for row in metrics.read(tmp_path / "run")]
    assert losses == pytest.approx([e.loss for e in alone if isinstance(e, Stepped)], rel=1e-3)
    both = [
        mx.load(str(tmp_path / f / "step-000004/weights.safetensors")) for f in ("alone", "run")
    ]
    for name, array in both[0].items():
        assert mx.abs(array - both[1][name]).mean().item() < 1e-3, name

    shutil.rmtree(tmp_path / "run/model")  # as a run that was interrupted after step 2
    shutil.rmtree(tmp_path / "run/step-000004")
    again = train_together(tmp_path / "run", config, "--processes", "2")
    assert "going on after step 2" in again.stderr
    back = mx.load(str(tmp_path / "run/step-000004/weights.safetensors"))
    assert all(mx.array_equal(array, back[name]) for name, array in both[1].items())


def test_each_process_needs_a_batch(base: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(settings(base, data).as_toml())
    done = train_together(tmp_path / "run", config, "--processes", "2")
    assert done.returncode == 1
    assert "accumulate is 1, for 2 processes; each of them computes whole" in done.stderr
    assert not (tmp_path / "run").exists()


# The curve ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), max_size=900), st.text(max_size=20))
def test_the_curve_is_well_formed(losses: list[float], title: str) -> None:
    title = "".join(c for c in title if c.isprintable())
    rows = [{"step": i, "loss": value} for i, value in enumerate(losses, 1)]
    drawing = ElementTree.fromstring(curve.draw(rows, f"<{title}> & more"))
    for line in drawing.findall("{*}polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert 0 < len(points) <= curve.POINTS
        assert all(0 <= x <= curve.WIDTH and 0 <= y <= curve.HEIGHT for x, y in points)


def test_ticks_are_round() -> None:
    assert curve.ticks(0, 6) == [0, 1, 2, 3, 4, 5, 6]
    assert curve.ticks(0, 950) == [0, 200, 400, 600, 800, 1000]


# The command line --------------------------------------------------------------------------------


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "  dg-mlx train ./run" in shown and "(default: 0.0001)" in shown


def test_the_command_line_trains_nano(tmp_path: Path) -> None:
    puzzle, answer = "A 1.3.\nB .41.\nC ....\nD ..21", "A 1234\nB 3412\nC 2143\nD 4321"
    turns = [{"role": "user", "content": puzzle}, {"role": "assistant", "content": answer}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (tmp_path / "run.toml").write_text("model = 'nano'\ndata = ['chats.jsonl']\nsteps = 9\n")
    done = subprocess.run(
        [
            sys.executable, "-m", "dg_mlx.cli", "train", "run", "--config", "run.toml",
            "--steps", "2", "--batch", "1", "--held-out", "chats.jsonl", "--eval-every", "2",
            "--log-every", "1", "--learning-rate", "1e-5", "--fill", "<turn|>", "--backend", "cpu",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run/model'}\n"
    assert "step 2/2: loss " in done.stderr
    assert "step 2: held-out loss " in done.stderr and "100% of 1 answers right" in done.stderr
    assert "steps = 2\n" in (tmp_path / "run/settings.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nano"], "there is no data; give --data FILE.jsonl."),
        (["--data", "a.jsonl"], "there is no model; give --model, or name it in --config."),
        (["--model", "nano", "--data", "x", "--processes", "0"], "--processes is 0; it must be"),
        (["--model", "nano", "--data", "none.jsonl"], "none.jsonl does not exist"),
        (["--model", "nano", "--data", "x", "--batch", "0"], "batch is 0; it must be"),
    ],
)
def test_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", str(tmp_path / "run"), *arguments]) == 1
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


def test_data_errors_are_the_users() -> None:
    from dg_mlx.train.data import DataError

    assert issubclass(DataError, DGError)
