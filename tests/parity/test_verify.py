"""`dg-mlx verify`: passes on equal checkpoints, points at the stage that differs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tiny
from PIL import Image
from safetensors.numpy import load_file, save_file

from dg_mlx.cli import main
from parity import checkpoints
from parity.checkpoints import SHAPES

pytestmark = pytest.mark.parity

LAYERS = 3
DENOISED = LAYERS + 1


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    shape = SHAPES["window-shorter"]
    path = tmp_path_factory.mktemp("original")
    checkpoints.save_hub(checkpoints.build(shape), shape, path)
    return tiny.write_tokenizer(path, shape.vocab)


def verify(capsys, *arguments) -> tuple[int, str]:
    code = main(["verify", *map(str, arguments), "--backend", "cpu"])
    return code, capsys.readouterr().out


def changed(original, folder, name, change):
    """A copy of the checkpoint with one tensor changed."""
    folder.mkdir()
    for file in original.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(original / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors")
    return folder


def bend(array):
    """A small change that no norm takes out."""
    return array * np.linspace(0.8, 1.2, len(array), dtype=array.dtype)[:, None]


def test_a_checkpoint_equals_itself(original, capsys):
    code, out = verify(capsys, original, "--against", original)
    assert code == 0
    assert "logits, step 4" in out and "decoder layer 2" in out
    assert "same best guess: 100.00%" in out
    assert re.search(r"same tokens with shared noise: the first (\d) of \1\n", out)
    assert out.splitlines()[-1] == "equal within 0.001 of the largest value (float32)"


def test_json(original, capsys):
    code, out = verify(capsys, original, "--against", original, "--json", "--steps", 2)
    report = json.loads(out)
    assert code == 0 and report["passed"] and report["dtype"] == "float32"
    names = [stage["name"] for stage in report["stages"]]
    assert len(names) == LAYERS + DENOISED + 1 + 2
    assert max(stage["worst"] for stage in report["stages"]) < 1e-3
    assert report["equal_tokens"] == report["tokens"] > 0


def test_a_picture(original, tmp_path, capsys):
    rng = np.random.default_rng(0)
    path = tmp_path / "picture.png"
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(path)
    code, out = verify(capsys, original, "--against", original, "--image", path, "--json")
    report = json.loads(out)
    assert code == 0 and report["stages"][0]["name"] == "vision features"
    assert max(stage["worst"] for stage in report["stages"]) < 1e-3


@pytest.mark.parametrize(
    ("tensor", "first_bad", "last_good"),
    [
        ("model.decoder.layers.1.mlp.up_proj.weight", "encoder layer 1", "encoder layer 0"),
        ("model.decoder.layers.2.router.scale", "decoder layer 2", "decoder layer 1"),
        ("model.encoder.language_model.layers.0.layer_scalar", "encoder layer 0", "encoder input"),
        ("model.decoder.self_conditioning.up_proj.weight", "self-conditioned canvas",
         "logits, step 1"),
    ],
)  # fmt: skip
def test_it_points_at_the_stage(original, tmp_path, capsys, tensor, first_bad, last_good):
    other = changed(original, tmp_path / "other", tensor, lambda array: array[::-1] * 1.5)
    code, out = verify(capsys, other, "--against", original, "--json")
    report = json.loads(out)
    names = [stage["name"] for stage in report["stages"]]
    good = [stage["share"] <= report["tolerance"] for stage in report["stages"]]
    assert code == 1 and not report["passed"]
    assert good[names.index(last_good)] and not good[names.index(first_bad)]
    assert good.index(False) == names.index(first_bad)


def test_tolerance_decides(original, tmp_path, capsys):
    name = "model.decoder.layers.1.mlp.up_proj.weight"
    other = changed(original, tmp_path / "other", name, bend)
    assert verify(capsys, other, "--against", original)[0] == 1
    assert verify(capsys, other, "--against", original, "--tolerance", "2")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--against", "/nowhere"], "--against /nowhere is not a folder"),
        (["--steps", "0"], "--steps is 0"),
        (["--tolerance", "0"], "--tolerance is 0.0"),
        (["--image", "/nowhere.png"], "there is no image '/nowhere.png'"),
    ],
)
def test_bad_arguments(original, capsys, arguments, text):
    rest = [] if "--against" in arguments else ["--against", str(original)]
    assert main(["verify", str(original), *rest, *arguments]) == 1
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_another_shape(original, tmp_path, capsys):
    other = tiny.write_tokenizer(tiny.write(tmp_path / "tiny"))
    assert main(["verify", str(other), "--against", str(original)]) == 1
    assert "different shapes" in capsys.readouterr().err


def test_tensors_that_transformers_misses(original, tmp_path, capsys):
    folder = changed(original, tmp_path / "bad", "model.decoder.norm.weight", lambda array: array)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.decoder.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert main(["verify", str(original), "--against", str(folder), "--backend", "cpu"]) == 1
    assert "model.decoder.norm.weight" in capsys.readouterr().err
