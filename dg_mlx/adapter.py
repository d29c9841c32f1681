"""Adapters on disk, in PEFT's layout: `dg-mlx convert` merges them, and transformers loads them.

PEFT wraps encoder and decoder apart though they share weights. So an adapter of a shared weight is
stored under each of its names: there, all copies change alike, and a merge counts equal ones once.
The experts' matrices lie as in PEFT 0.19.1 and newer.

Legend: E experts, O outputs, I inputs, r rank, V vocabulary, H hidden.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dg_mlx.errors import CheckpointError
from dg_mlx.keys import Keys, read_json
from dg_mlx.model import DiffusionGemma
from dg_mlx.model.linear import Embedding, ExpertLinear
from dg_mlx.model.lora import LoraSettings, LoraWeight, adapt, adapters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAYOUT = "0.21.2"
"""The version of PEFT whose files these are like."""

_PREFIX = "base_model.model."
_DECODER, _ENCODER = "model.decoder.", "model.encoder.language_model."
_TABLE, _HEAD = "model.decoder.embed_tokens", "lm_head"

Array = NDArray[np.float32]


class _Place(NamedTuple):
    """Where and how one copy of an adapter is stored."""

    module: str
    """PEFT's name, with its wrappers."""
    kind: str
    """"linear", "embedding" or "experts"."""

    @property
    def keys(self) -> tuple[str, str]:
        """Names of A and B in the file."""
        name = f"{_PREFIX}{self.module}.lora_"
        if self.kind == "embedding":
            return f"{name}embedding_A", f"{name}embedding_B"
        return f"{name}A.weight", f"{name}B.weight"

    def stored(self, a: Array, b: Array) -> tuple[Array, Array]:
        """(A, B) as PEFT lays them out, of (r, I) and (O, r), or with E before both."""
        if self.kind == "embedding":
            return b.T, a.T
        if self.kind == "experts":
            return a.reshape(-1, a.shape[-1]), b.transpose(1, 2, 0).reshape(b.shape[1], -1)
        return a, b

    def read(self, first: Array, second: Array, experts: int) -> tuple[Array, Array]:
        """The way back."""
        if self.kind == "embedding":
            return second.T, first.T
        if self.kind == "experts":
            a_ErI = first.reshape(experts, -1, first.shape[-1])
            return a_ErI, second.reshape(second.shape[0], -1, experts).transpose(2, 0, 1)
        return first, second


def save(model: DiffusionGemma, folder: Path, settings: LoraSettings, *, base: str) -> None:
    """Write the model's adapters into a folder, whole or not at all; an older one is replaced.

    `base` says what was adapted: a hub repo id or a folder. Raises `CheckpointError` when the
    folder holds something else.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} exists and holds no adapter; name another folder.")
    found = dict(adapters(model))
    arrays: dict[str, Array] = {}
    for name, module in found.items():
        a, b = (np.array(x.astype(mx.float32)) for x in (module.lora_a, module.lora_b))
        for place in _places(name, module, found):
            pair = zip(place.keys, place.stored(a, b), strict=True)
            arrays |= {key: np.ascontiguousarray(array) for key, array in pair}
    partial, replaced = (folder.with_name(f".{folder.name}.{x}") for x in ("partial", "replaced"))
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(arrays, partial / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(_config(found, settings, base), indent=2) + "\n"
    (partial / CONFIG).write_text(text, encoding="utf-8")
    if folder.exists():
        os.replace(folder, replaced)
    os.replace(partial, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def load(model: DiffusionGemma, folder: Path) -> LoraSettings:
    """Adapt a model as `save` found it. Raises `CheckpointError` naming what does not fit."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no LoRA adapter; give a folder with {CONFIG}.")
    config = read_json(folder / CONFIG)
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, (int, float)):
        raise CheckpointError(
            f"{folder / CONFIG} has lora_alpha = {alpha!r}; it must be a number. Save it again."
        )
    names = [*(config.get("target_modules") or []), *(config.get("target_parameters") or [])]
    settings = LoraSettings(
        rank=Keys(config, str(folder / CONFIG)).positive("r"),
        alpha=float(alpha),
        targets=tuple(n for n in names if not n.startswith(_ENCODER) and n != _HEAD),
    )
    try:
        stored = mx.load(str(folder / WEIGHTS))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} cannot be read ({error}); save the adapter again."
        ) from None
    assert isinstance(stored, dict)
    adapt(model, settings)
    found = dict(adapters(model))
    for name, module in found.items():
        place = _places(name, module, found)[0]
        first, second = (_take(stored, key, folder) for key in place.keys)
        a, b = place.read(first, second, _experts(module))
        if (a.shape, b.shape) != (module.lora_a.shape, module.lora_b.shape):
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} has factors of the shapes {list(a.shape)} and "
                f"{list(b.shape)}; this checkpoint takes {list(module.lora_a.shape)} and "
                f"{list(module.lora_b.shape)}. Choose the checkpoint that the adapter was made for."
            )
        module.lora_a, module.lora_b = mx.array(a), mx.array(b)
    return settings


def _take(stored: dict[str, mx.array], key: str, folder: Path) -> Array:
    if key not in stored:
        raise CheckpointError(
            f"{folder / WEIGHTS} has no {key}; adapters in other layouts than dg-mlx train writes "
            "have to be merged: dg-mlx convert MODEL OUT --adapter FOLDER."
        )
    return np.array(stored[key].astype(mx.float32))


def _experts(module: LoraWeight) -> int:
    return int(module.lora_a.shape[0]) if isinstance(module, ExpertLinear) else 1


def _places(name: str, module: LoraWeight, found: dict[str, LoraWeight]) -> list[_Place]:
    """Every place of a module's adapter, the decoder's first."""
    if isinstance(module, ExpertLinear):
        experts, _, leaf = name.rpartition(".")
        # PEFT wraps one parameter in the other: the first that it meets lies inside.
        inside = leaf == "gate_up_proj" and f"{experts}.down_proj" in found
        wrapped = f"{experts}.base_layer" if inside else experts
        return [_Place(copy, "experts") for copy in _copies(wrapped)]
    kind = "embedding" if isinstance(module, Embedding) else "linear"
    places = [_Place(copy, kind) for copy in _copies(name)]
    return [*places, _Place(_HEAD, "linear")] if name == _TABLE else places


def _copies(name: str) -> Iterator[str]:
    """A module's name, and the encoder's for the same weight."""
    yield name
    if name.startswith((f"{_DECODER}layers.", _TABLE)):
        yield _ENCODER + name.removeprefix(_DECODER)


def _config(found: dict[str, LoraWeight], settings: LoraSettings, base: str) -> dict[str, Any]:
    """What PEFT's `LoraConfig` needs to wrap the same modules."""
    experts = [n for n, module in found.items() if isinstance(module, ExpertLinear)]
    # In the order in which PEFT meets them: see `_places`.
    experts.sort(key=lambda name: (name.rpartition(".")[0], name.endswith("down_proj")))
    others = [n for n in found if n not in experts]
    modules = [copy for name in others for copy in _copies(name)]
    return {
        "peft_type": "LORA",
        "peft_version": LAYOUT,
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
        "target_modules": [*modules, _HEAD] if _TABLE in found else modules,
        "target_parameters": [copy for name in experts for copy in _copies(name)],
    }
