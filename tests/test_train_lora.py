"""Adapters: what they leave alone, what they train, and what is stored of them.

Gradients are compared with torch's in tests/parity/test_train.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tiny
from dg_mlx.convert.adapter import merge
from dg_mlx.convert.formats.plain import open_folder
from dg_mlx.convert.job import Options, convert
from mlx.utils import tree_flatten
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import dg_mlx
from dg_mlx import adapter
from dg_mlx.backends import Backend
from dg_mlx.config import ModelConfig, Quantization
from dg_mlx.errors import CheckpointError, SettingsError
from dg_mlx.model import DiffusionGemma
from dg_mlx.model.lora import (
    EXPERTS,
    TARGETS,
    LoraSettings,
    adapt,
    adapters,
    trainable_parameters,
    weights,
)
from dg_mlx.train.batch import Example, collate
from dg_mlx.train.loss import Objective, draw, gradients
from dg_mlx.weights import load
from dg_mlx.worker import WORKER

EMBEDDING = "model.decoder.embed_tokens"
ALL = (*TARGETS, EXPERTS, EMBEDDING, "model.encoder.*")
Build = Callable[[], DiffusionGemma]
PACKED: dict[str, Any] = {"recipe": "uniform", "group_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def build(folder: Path) -> Build:
    def one() -> DiffusionGemma:
        config = ModelConfig.load(folder)
        model = DiffusionGemma(config, Backend())
        load(model, config, folder, mx.float32)
        return model

    return one


def logits(model: DiffusionGemma) -> np.ndarray:
    """Of two steps behind two chunks of a prompt."""
    cache = model.new_cache()
    model.prefill(mx.arange(21)[None] + 4, cache)
    canvas = mx.arange(tiny.CANVAS)[None] * 3
    return np.array(model.denoise(canvas, cache, model.denoise(canvas, cache)))


def shaken(model: DiffusionGemma, seed: int = 0) -> DiffusionGemma:
    """With adapters that do something."""
    rng = np.random.default_rng(seed)
    for _, module in adapters(model):
        module.lora_b = mx.array(rng.normal(0, 0.1, module.lora_b.shape).astype(np.float32))
    return model


def batch():
    rng = np.random.default_rng(0)
    example = Example(ids=[5, 6, 7], answer=rng.integers(4, 100, tiny.CANVAS).tolist())
    noise = draw(rng, np.array([1]), canvas=tiny.CANVAS, vocab=tiny.VOCAB, objective=Objective())
    return collate([example], noise)


@pytest.mark.parametrize("targets", [TARGETS, ALL])
def test_nothing_changes_at_first(build: Build, targets: tuple[str, ...]) -> None:
    model = build()
    before = logits(model)
    adapt(model, LoraSettings(targets=targets))
    np.testing.assert_array_equal(logits(model), before)
    assert np.abs(logits(shaken(model)) - before).max() > 0.01


def test_the_seed_fixes_the_start(build: Build) -> None:
    starts = []
    for seed in (3, 3, 4):
        model = build()
        adapt(model, LoraSettings(), seed)
        starts.append(dict(tree_flatten(model.trainable_parameters())))
    same = [all(bool((starts[0][n] == other[n]).all()) for n in other) for other in starts[1:]]
    assert same == [True, False]


def test_only_adapters_are_trained(build: Build) -> None:
    model = build()
    names = adapt(model, LoraSettings(rank=2, targets=("*.q_proj", EXPERTS)))
    # In each of three layers; the vision tower's are called q_proj.linear.
    assert [n.rsplit(".", 1)[1] for n in names].count("q_proj") == 3 and len(names) == 9
    trained = dict(tree_flatten(model.trainable_parameters()))
    assert trained.keys() == {f"{n}.{x}" for n in names for x in ("lora_a", "lora_b")}
    assert trainable_parameters(model) == sum(a.size for a in trained.values())
    _, gradient = gradients(shaken(model), batch(), Objective())
    flat = dict(tree_flatten(gradient))
    assert flat.keys() == trained.keys()
    assert all(float(mx.abs(g).max()) > 0 for g in flat.values())


def test_one_adapter_alone_computed_again(build: Build) -> None:
    """The other layers have nothing to train, and still pass gradients on."""
    model = build()
    adapt(model, LoraSettings(rank=2, targets=("model.decoder.layers.0.*.q_proj",)))
    shaken(model)
    (_, plain), (_, again) = (
        gradients(model, batch(), Objective(), checkpoint=c) for c in (False, True)
    )
    again = dict(tree_flatten(again))
    for name, array in tree_flatten(plain):
        assert float(mx.abs(array).max()) > 0
        np.testing.assert_allclose(again[name], array, rtol=1e-3, atol=1e-6)


def test_the_default_is_all_linear_layers_but_experts(build: Build) -> None:
    model = build()
    names = adapt(model, LoraSettings())
    expected = {
        n for n, _ in weights(model)
        if n.startswith("model.decoder.") and ".experts." not in n and n != EMBEDDING
    }  # fmt: skip
    assert set(names) == expected
    assert LoraSettings().rank == 8 and LoraSettings().scale == 1


@pytest.mark.parametrize("mode", ["affine", "mxfp8"])
def test_a_packed_base(build: Build, mode: str) -> None:
    """As its unpacked values would be, and only the adapters have gradients."""
    spec = Quantization(group_size=32, bits=8, mode=mode)
    options = {"group_size": 32, "bits": 8, "mode": mode}
    packed, plain = build(), build()
    others = dict(weights(plain))
    for name, module in weights(packed):
        if "vision" in name:
            continue
        parts = mx.quantize(module.weight, **options)
        module.pack(spec)
        for key, array in zip(("weight", "scales", "biases"), parts, strict=False):
            module[key] = array
        others[name].weight = mx.dequantize(*parts, **options).astype(mx.float32)
    for model in (packed, plain):
        adapt(model, LoraSettings(rank=2, targets=(*TARGETS, EXPERTS, EMBEDDING)), seed=1)
        shaken(model)
    np.testing.assert_allclose(logits(packed), logits(plain), atol=2e-4)
    (_, mine), (_, other) = (gradients(m, batch(), Objective()) for m in (packed, plain))
    other = dict(tree_flatten(other))
    for name, array in tree_flatten(mine):
        assert float(mx.abs(array - other[name]).max()) < 1e-3, name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank is 0; it must be a whole number"),
        ({"rank": True}, "rank is True"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be a number above 0"),
        ({"targets": ()}, "there are no targets"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        LoraSettings(**settings)


def test_a_pattern_that_fits_nothing(build: Build) -> None:
    model = build()
    with pytest.raises(SettingsError) as error:
        adapt(model, LoraSettings(targets=("*.q_proj", "*.query")))
    assert "'*.query'" in str(error.value) and "q_proj" in str(error.value)
    assert trainable_parameters(model) > 10_000  # untouched


def test_adapters_twice(build: Build) -> None:
    model = build()
    adapt(model, LoraSettings())
    with pytest.raises(SettingsError, match="has adapters already"):
        adapt(model, LoraSettings())


@pytest.mark.parametrize("targets", [TARGETS, (EXPERTS,), ("*.experts.down_proj",), ALL])
def test_merged_is_what_was_trained(
    build: Build, folder: Path, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    model, settings = build(), LoraSettings(rank=3, alpha=5, targets=targets)
    names = adapt(model, settings)
    adapter.save(shaken(model), tmp_path / "mine", settings, base=str(folder))
    source = merge(open_folder(folder, tiny.config()), tmp_path / "mine")
    merged = {
        name: np.array(tensor.read(0, tensor.rows)).reshape(tensor.shape)
        for name, tensor in source.tensors.items()
    }
    changed = [n for n, a in load_file(folder / "model.safetensors").items()
               if not np.array_equal(a, merged[n])]  # fmt: skip
    assert len(changed) == len(names)
    assert not any("one use only" in note for note in source.notes)
    path = tiny.write(tmp_path / "merged", arrays=merged)
    config = ModelConfig.load(path)
    plain = DiffusionGemma(config, Backend())
    load(plain, config, path, mx.float32)
    np.testing.assert_allclose(logits(plain), logits(model), atol=3e-5)


def test_saved_and_loaded(build: Build, tmp_path: Path) -> None:
    model, settings = build(), LoraSettings(rank=3, alpha=5, targets=ALL)
    names = adapt(model, settings)
    adapter.save(shaken(model), tmp_path / "mine", settings, base="someone/model")
    again = build()
    found = adapter.load(again, tmp_path / "mine")
    assert (found.rank, found.alpha) == (3, 5)
    assert [n for n, _ in adapters(again)] == names
    mine = dict(tree_flatten(model.trainable_parameters()))
    for name, array in tree_flatten(again.trainable_parameters()):
        np.testing.assert_array_equal(array, mine[name], err_msg=name)
    np.testing.assert_array_equal(logits(again), logits(model))


def test_files_are_as_peft_names_them(build: Build, tmp_path: Path) -> None:
    """The names in tests/golden/adapter, which PEFT wrote, for the same modules."""
    model = build()
    settings = LoraSettings(targets=("model.decoder.layers.0.experts.*", EMBEDDING, "*.0.*.q_proj"))
    adapt(model, settings)
    adapter.save(model, tmp_path / "mine", settings, base="someone/model")
    golden = Path(__file__).parent / "golden" / "adapter" / f"peft-{adapter.LAYOUT}"
    with safe_open(golden / "adapter_model.safetensors", "numpy") as file:
        theirs = set(file.keys())
    ours = load_file(tmp_path / "mine" / "adapter_model.safetensors")
    assert theirs <= ours.keys()
    # What is more is the encoder's and the head's copy of the same weights.
    assert all("encoder.language_model" in n or "lm_head" in n for n in ours.keys() - theirs)
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    known = json.loads((golden / "adapter_config.json").read_text()).keys()
    assert config.keys() <= known
    assert config["base_model_name_or_path"] == "someone/model"


def test_a_newer_adapter_replaces_an_older_one(build: Build, tmp_path: Path) -> None:
    model, settings = build(), LoraSettings(rank=1, targets=("*.q_proj",))
    adapt(model, settings)
    for seed in range(2):
        adapter.save(shaken(model, seed), tmp_path / "mine", settings, base="b")
    again = build()
    adapter.load(again, tmp_path / "mine")
    np.testing.assert_array_equal(logits(again), logits(model))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_write_that_fails_leaves_the_old_one(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = build(), LoraSettings(rank=1, targets=("*.q_proj",))
    adapt(model, settings)
    adapter.save(model, tmp_path / "mine", settings, base="b")
    before = {p.name: p.read_bytes() for p in (tmp_path / "mine").iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(adapter, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        adapter.save(shaken(model), tmp_path / "mine", settings, base="b")
    assert {p.name: p.read_bytes() for p in (tmp_path / "mine").iterdir()} == before


def test_a_folder_of_something_else_stays(build: Build, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"-")
    with pytest.raises(CheckpointError, match="holds no adapter; name another folder"):
        adapter.save(build(), tmp_path, LoraSettings(), base="b")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / adapter.WEIGHTS).unlink(), "cannot be read"),
        (lambda f: save_file({"x": np.zeros(1, "f")}, f / adapter.WEIGHTS), "has no base_model"),
        (
            lambda f: (f / adapter.CONFIG).write_text(
                (f / adapter.CONFIG).read_text().replace('"r": 1', '"r": 2')
            ),
            "Choose the checkpoint that the adapter was made for",
        ),
        (
            lambda f: (f / adapter.CONFIG).write_text(
                (f / adapter.CONFIG).read_text().replace('"lora_alpha": 8.0', '"lora_alpha": null')
            ),
            "lora_alpha = None; it must be a number",
        ),
    ],
)
def test_broken_adapters(
    build: Build, tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    model, settings = build(), LoraSettings(rank=1, targets=("*.q_proj",))
    adapt(model, settings)
    adapter.save(model, tmp_path / "mine", settings, base="b")
    spoil(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=words):
        adapter.load(build(), tmp_path / "mine")


# Loaded to answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [TARGETS, (EXPERTS, EMBEDDING)])
@pytest.mark.parametrize("quant", ["none", "8bit"])
def test_an_engine_with_an_adapter(tmp_path: Path, quant: str, targets: tuple[str, ...]) -> None:
    """As the model was while it was trained, whether the base is packed or not."""
    data = tiny.config()  # all widths multiples of the group
    data["vision_config"] |= {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    source = tiny.write_tokenizer(tiny.write(tmp_path / "source", data))
    options = Options(quant=quant, logits=False, **{} if quant == "none" else PACKED)
    convert(str(source), tmp_path / "base", options, lambda *_: None)
    config = ModelConfig.load(tmp_path / "base")
    assert (config.quantization is None) == (quant == "none")
    model = DiffusionGemma(config, Backend())
    load(model, config, tmp_path / "base", mx.float32)
    before = logits(model)
    settings = LoraSettings(rank=3, alpha=5, targets=targets)
    adapt(model, settings)
    adapter.save(shaken(model), tmp_path / "mine", settings, base="b")
    engine = dg_mlx.load(
        str(tmp_path / "base"), backend="cpu", dtype="float32", adapter=tmp_path / "mine"
    )
    found = WORKER.call(lambda: logits(engine.model))
    np.testing.assert_allclose(found, logits(model), atol=1e-4)
    assert np.abs(found - before).max() > 0.01
