"""Loading is strict: what is wrong with a checkpoint is named, all of it in one error."""

from __future__ import annotations

import copy
import csv
import json
import os
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten

from dg_mlx import weights
from dg_mlx.backends.base import Backend
from dg_mlx.backends.cpu import Cpu
from dg_mlx.config import ModelConfig
from dg_mlx.errors import CheckpointError
from dg_mlx.model import DiffusionGemma


def loaded(folder: Path, backend: Backend | None = None) -> DiffusionGemma:
    config = ModelConfig.load(folder)
    model = DiffusionGemma(config, backend or Backend())
    weights.load(model, config, folder, mx.float32)
    return model


def logits(model: DiffusionGemma) -> np.ndarray:
    """Of a second step behind a prompt longer than the window: every tensor but vision's counts."""
    cache = model.new_cache()
    model.prefill(mx.array([np.arange(3, 40).tolist()]), cache)
    canvas = mx.array([np.arange(40, 48).tolist()])
    first = model.denoise(canvas, cache)
    return np.array(model.denoise(canvas, cache, self_conditioning_BLV=first / 0.6))


@cache
def arrays() -> dict[str, np.ndarray]:
    return tiny.tensors(tiny.config())


def test_single_file(tmp_path):
    model = loaded(tiny.write(tmp_path))
    parameters = dict(tree_flatten(model.parameters()))
    assert len(parameters) == len(arrays())
    for name, array in arrays().items():
        np.testing.assert_array_equal(np.array(parameters[weights.module_name(name)]), array)


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_equal_the_single_file(tmp_path, shards):
    whole = loaded(tiny.write(tmp_path / "whole"))
    parts = loaded(tiny.write(tmp_path / "parts", shards=shards))
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    np.testing.assert_array_equal(logits(whole), logits(parts))


def test_missing_unknown_and_misshapen_tensors_are_named_in_one_error(tmp_path):
    broken = dict(arrays())
    del broken["model.decoder.layers.1.self_attn.v_proj.weight"]
    del broken["model.encoder.vision_tower.std_bias"]
    broken["model.decoder.layers.2.self_attn.v_proj.weight"] = np.ones((16, 32), np.float32)
    broken["model.decoder.norm.weight"] = np.ones(31, np.float32)
    broken["model.decoder.layers.0.experts.down_proj"] = np.ones((4, 32, 16), np.float32)
    with pytest.raises(CheckpointError) as error:
        loaded(tiny.write(tmp_path, arrays=broken))
    text = str(error.value)
    missing, rest = text.split("; unknown ")
    unknown, misshapen = rest.split("; misshapen ")
    assert "layers.1.self_attn.v_proj.weight" in missing and "std_bias" in missing
    assert "layers.2.self_attn.v_proj.weight" in unknown
    assert "model.decoder.norm.weight [31] (expected [32])" in misshapen
    assert "experts.down_proj" in misshapen and "[4, 32, 16]" in misshapen


def test_long_lists_of_names_are_cut(tmp_path):
    few = {n: a for n, a in arrays().items() if "layers.0" not in n}
    with pytest.raises(CheckpointError, match=r"missing .* and \d+ more"):
        loaded(tiny.write(tmp_path, arrays=few))


@pytest.mark.parametrize("left", [0, 4, 200, 20_000])
def test_truncated_file(tmp_path, left):
    file = tiny.write(tmp_path) / "model.safetensors"
    os.truncate(file, left)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is broken .* fetch it again"):
        loaded(tmp_path)


def test_one_byte_short(tmp_path):
    file = tiny.write(tmp_path) / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="is broken"):
        loaded(tmp_path)


def test_garbage(tmp_path):
    (tiny.write(tmp_path) / "model.safetensors").write_bytes(b"<html>not found</html>" * 20)
    with pytest.raises(CheckpointError, match="is broken"):
        loaded(tmp_path)


def test_missing_shard(tmp_path):
    tiny.write(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is missing"):
        loaded(tmp_path)


def test_broken_index(tmp_path):
    tiny.write(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json cannot be read"):
        loaded(tmp_path)


def test_tensor_in_two_shards(tmp_path):
    tiny.write(tmp_path, shards=2)
    one, two = tmp_path.glob("model-*.safetensors")
    two.write_bytes(one.read_bytes())
    with pytest.raises(CheckpointError, match="repeats tensor"):
        loaded(tmp_path)


def test_no_weights(tmp_path):
    (tiny.write(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no \*\.safetensors"):
        loaded(tmp_path)


def test_nan_is_named(tmp_path):
    broken = {n: a.copy() for n, a in arrays().items()}
    broken["model.decoder.layers.1.experts.gate_up_proj"][2, 3, 4] = np.nan
    broken["model.encoder.language_model.layers.0.layer_scalar"][0] = np.nan
    with pytest.raises(CheckpointError, match="NaN") as error:
        loaded(tiny.write(tmp_path, arrays=broken))
    assert "layers.1.experts.gate_up_proj" in str(error.value)
    assert "language_model.layers.0.layer_scalar" in str(error.value)
    assert str(error.value).count("layers.") == 2


def test_wrong_model_type(tmp_path):
    tiny.write(tmp_path, tiny.config() | {"model_type": "gemma4"}, arrays())
    with pytest.raises(CheckpointError, match=r"model_type 'gemma4'.*'diffusion_gemma'"):
        loaded(tmp_path)


def test_text_only_checkpoint(tmp_path):
    data = tiny.config() | {"vision_config": None}
    text_only = loaded(tiny.write(tmp_path / "text", data, tiny.tensors(data)))
    few = {n: a for n, a in arrays().items() if "vision" not in n}
    same = loaded(tiny.write(tmp_path / "same", data, few))
    assert logits(text_only).shape == logits(same).shape


# Quantised layouts -------------------------------------------------------------------------------

AFFINE4 = {"group_size": 32, "bits": 4, "mode": "affine"}
AFFINE8 = {"group_size": 32, "bits": 8, "mode": "affine"}
MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
MXFP8 = {"group_size": 32, "bits": 8, "mode": "mxfp8"}
NVFP4 = {"group_size": 16, "bits": 4, "mode": "nvfp4"}


def quantised(folder: Path, default: dict, modules: dict[str, dict | bool]) -> tuple[Path, Path]:
    """Two checkpoints: packed, and the same values written out plainly.

    `modules` overrides the default for module paths that contain a key; False leaves them plain.
    """
    data, packed, plain = tiny.config(), {}, {}
    entries: dict = dict(default)
    for name, array in arrays().items():
        module = name.removesuffix(".weight")
        matrix = array.ndim > 1 and "vision" not in name
        spec = next((v for k, v in modules.items() if k in module), default)
        if not matrix or spec is False:
            packed[name] = plain[name] = mx.array(array)
            if matrix:
                entries[module] = False
            continue
        parts = mx.quantize(mx.array(array), **spec)
        for key, part in zip(("weight", "scales", "biases"), parts, strict=False):
            packed[f"{module}.{key}"] = part
        plain[name] = mx.dequantize(*parts, **spec).astype(mx.float32)
        if spec is not default:
            entries[module] = spec
    mx.eval(packed, plain)
    for kind, values in (("packed", packed), ("plain", plain)):
        path = folder / kind
        path.mkdir()
        mx.save_safetensors(str(path / "model.safetensors"), values)
        extra = {"quantization": entries, "quantization_config": entries}
        text = json.dumps(data | (extra if kind == "packed" else {}))
        (path / "config.json").write_text(text)
    return folder / "packed", folder / "plain"


@pytest.mark.parametrize("backend", [Backend(), Cpu()], ids=lambda b: b.name)
@pytest.mark.parametrize(
    ("default", "modules"),
    [
        (AFFINE4, {}),
        (AFFINE8, {}),
        (MXFP4, {}),
        (MXFP8, {}),
        (NVFP4, {}),
        (AFFINE4, {"embed_tokens": AFFINE8, "self_attn": AFFINE8, "router": False}),
        (MXFP4, {"experts": NVFP4, "embed_tokens": MXFP8, "self_conditioning": False}),
        (NVFP4, {"mlp.down_proj": AFFINE4, "layers.1.self_attn": MXFP8}),
    ],
    ids=["affine4", "affine8", "mxfp4", "mxfp8", "nvfp4", "mixed-affine", "mixed-mx", "mixed-nv"],
)
def test_quantised_equals_dequantised(tmp_path, default, modules, backend):
    packed, plain = quantised(tmp_path, default, modules)
    model = loaded(packed, backend)
    assert model.model.decoder.layers[0].self_attn.q_proj.weight.dtype == mx.uint32
    difference = np.abs(logits(model) - logits(loaded(plain, backend))).max()
    assert difference < 1e-3


def test_override_without_a_mode_takes_the_default_group(tmp_path):
    """As the published 4-bit conversion writes it: group size and bits, no mode."""
    eight = {"group_size": 32, "bits": 8}
    packed, plain = quantised(tmp_path, AFFINE4, {"embed_tokens": AFFINE8})
    data = json.loads((packed / "config.json").read_text())
    data["quantization"]["model.decoder.embed_tokens"] = eight
    (packed / "config.json").write_text(json.dumps(data))
    assert np.abs(logits(loaded(packed)) - logits(loaded(plain))).max() < 1e-3


def test_scales_without_a_quantization_entry(tmp_path):
    packed, _ = quantised(tmp_path, AFFINE4, {})
    data = json.loads((packed / "config.json").read_text())
    del data["quantization"], data["quantization_config"]
    (packed / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"is quantised, but config\.json has no"):
        loaded(packed)


def test_wrong_bits_are_a_shape_error(tmp_path):
    packed, _ = quantised(tmp_path, AFFINE4, {})
    data = json.loads((packed / "config.json").read_text())
    data["quantization"]["bits"] = 8
    (packed / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="misshapen"):
        loaded(packed)


def test_unknown_mode(tmp_path):
    data = tiny.config() | {"quantization": {"group_size": 32, "bits": 4, "mode": "nf4"}}
    with pytest.raises(CheckpointError, match="'nf4' is unknown"):
        loaded(tiny.write(tmp_path, data, arrays()))


# The real checkpoint's names and shapes, without its data ----------------------------------------


def table(reference: Path, layout: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → shape and dtype of every tensor, from `tensors.tsv`."""
    with (reference / layout / "tensors.tsv").open(encoding="utf-8") as file:
        return {
            row["name"]: (tuple(json.loads(row["shape"])), row["dtype"])
            for row in csv.DictReader(file, delimiter="\t")
        }


@pytest.mark.reference
@pytest.mark.parametrize(
    ("layout", "count", "nbytes"),
    [("hub", 1047, 51_647_562_456), ("mlx-4bit", 1647, 16_542_844_632)],
)
def test_every_tensor_of_the_26b_is_placed(reference, layout, count, nbytes):
    found = table(reference, layout)
    config = ModelConfig.load(reference / layout)
    model = DiffusionGemma(config, Backend())
    weights.pack(model, config, found)
    weights.check(model, {name: shape for name, (shape, _) in found.items()})
    parameters = dict(tree_flatten(model.parameters()))
    assert len(found) == count == len(parameters)
    sizes = {"BF16": 2, "U32": 4, "U8": 1}
    total = 0
    for name, (shape, kind) in found.items():
        parameter = parameters[weights.module_name(name)]
        assert parameter.shape == shape
        assert (parameter.dtype == mx.uint32) == (kind == "U32")
        total += int(np.prod(shape)) * sizes[kind]
    assert total == nbytes
    assert weights.stored_dtype(found) == mx.bfloat16


@pytest.mark.reference
@pytest.mark.parametrize("layout", ["hub", "mlx-4bit"])
def test_one_tensor_less_of_the_26b_is_noticed(reference, layout):
    found = table(reference, layout)
    lost = "model.decoder.layers.17.self_attn.k_norm.weight"
    shape = found.pop(lost)[0]
    config = ModelConfig.load(reference / layout)
    model = DiffusionGemma(config, Backend())
    weights.pack(model, config, found)
    with pytest.raises(CheckpointError, match=f"missing {lost}"):
        weights.check(model, {name: s for name, (s, _) in found.items()})
    extra = {name: s for name, (s, _) in found.items()} | {lost: shape, "lm_head.weight": (1,)}
    with pytest.raises(CheckpointError, match=r"unknown lm_head\.weight"):
        weights.check(model, extra)


@pytest.mark.reference
@pytest.mark.parametrize("layout", ["mlx-8bit", "mlx-bf16"])
def test_the_other_published_configs_are_read(reference, layout):
    config = ModelConfig.load(reference / layout)
    hub = ModelConfig.load(reference / "hub")
    assert config.text == hub.text and config.vision == hub.vision
    assert (config.quantization is None) == (layout == "mlx-bf16")


@pytest.mark.reference
def test_the_table_in_these_tests_is_the_hub_s(reference):
    """`tiny.shapes` describes the real checkpoint too, so tiny checkpoints have its layout."""
    data = copy.deepcopy(json.loads((reference / "hub" / "config.json").read_text()))
    wanted = {name: shape for name, (shape, _) in table(reference, "hub").items()}
    assert tiny.shapes(data) == wanted
