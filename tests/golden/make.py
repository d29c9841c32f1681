"""Write the golden files: tiny checkpoints and what transformers computes from them.

Run by `make golden`; needs torch. The weights are rounded to fp16 and computed in fp32.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tiny  # noqa: E402
from parity import checkpoints  # noqa: E402
from parity.checkpoints import SHAPES, Shape, resized  # noqa: E402
from parity.prompts import prompt, text  # noqa: E402

from dg_mlx.reference import Reference, SharedNoise  # noqa: E402
from dg_mlx.settings import GenerationSettings  # noqa: E402

CHECKPOINTS = {
    "window-shorter": SHAPES["window-shorter"],
    "window-longer": SHAPES["window-longer"],
    "seven-experts": resized(SHAPES["seven-experts"], hidden=36, patch=4, expert_width=16),
}
PICTURES = {
    "square": [4, (6, 6), 7],
    "wide": [2, (3, 12), 5],
    "tall": [9, (9, 3), 1],
    "long": [3, (9, 12), 6],
    "two": [5, (6, 6), 3, (3, 9), 8],
    "frames": [4, 2, (3, 6), 2, (3, 6), 2, (3, 6), 6],
}
GENERATIONS: dict[str, dict[str, Any]] = {
    "plain": {"eos_token_id": ()},
    "end": {},  # as "plain", ended by a token that "plain" writes in its second block
    "early": {
        "confidence_threshold": 3.0,
        "stability_threshold": 2,
        "entropy_bound": 8.0,
        "eos_token_id": (),
    },
    "cut": {"max_new_tokens": 13, "eos_token_id": (), "max_denoising_steps": 9},
}
TEMPERATURE = 0.6

Arrays = dict[str, np.ndarray]


def canvases(shape: Shape, seed: int, *size: int) -> np.ndarray:
    """Random canvases of this shape."""
    return np.random.default_rng(seed).integers(0, shape.vocab, (*size, shape.canvas))


def steps(
    reference: Reference, cache: Any, canvas_KBL: np.ndarray, mask_BS: np.ndarray | None = None
) -> np.ndarray:
    """Logits of consecutive steps, each conditioned on the one before."""
    scaled, found = None, []
    for canvas_BL in canvas_KBL:
        logits = reference.denoise(canvas_BL, cache, self_conditioning_BLV=scaled, mask_BS=mask_BS)
        found.append(logits)
        scaled = logits / np.float32(TEMPERATURE)
    return np.stack(found)


def text_cases(shape: Shape, reference: Reference) -> Arrays:
    """Three blocks of two steps, and a left-padded batch."""
    arrays: Arrays = {"blocks.ids": np.array([text(shape, 19)])}
    arrays["blocks.canvas"] = canvases(shape, 1, 3, 2, 1)
    cache = reference.new_cache()
    reference.prefill(arrays["blocks.ids"], cache)
    found = []
    for canvas_KBL in arrays["blocks.canvas"]:
        found.append(steps(reference, cache, canvas_KBL))
        reference.prefill(found[-1][-1].argmax(-1), cache)
    arrays["blocks.logits"] = np.stack(found)
    lengths = [21, 9, 2]
    rows = [[0] * (21 - n) + text(shape, n, seed=n) for n in lengths]
    mask = np.array([[False] * (21 - n) + [True] * n for n in lengths])
    arrays |= {"batch.ids": np.array(rows), "batch.mask": mask}
    arrays["batch.canvas"] = canvases(shape, 2, 2, 3)
    cache = reference.new_cache()
    reference.prefill(arrays["batch.ids"], cache, mask_BS=mask)
    arrays["batch.logits"] = steps(reference, cache, arrays["batch.canvas"], mask)
    return arrays


def picture_cases(shape: Shape, references: dict[str, Reference]) -> Arrays:
    """Two steps behind every kind of prompt with pictures, for both rules."""
    arrays: Arrays = {"pictures.canvas": canvases(shape, 3, 2, 1)}
    for name, parts in PICTURES.items():
        given = prompt(shape, parts, seed=5)
        assert given.media is not None
        key = f"picture.{name}"
        arrays[f"{key}.ids"] = np.array(given.ids)
        arrays[f"{key}.grids"] = np.array([i.grid for i in given.media.images])
        arrays[f"{key}.starts"] = np.array([i.start for i in given.media.images])
        images = given.media.images
        arrays[f"{key}.pixels"] = np.concatenate([i.pixels_PC for i in images])
        for attention, reference in references.items():
            cache = reference.new_cache()
            reference.prefill(arrays[f"{key}.ids"][None], cache, images=images)
            arrays[f"{key}.{attention}"] = steps(reference, cache, arrays["pictures.canvas"])
    return arrays


def generations(shape: Shape, reference: Reference, settings: GenerationSettings) -> Arrays:
    """Whole answers: every step's best guess, and the final ids."""
    arrays: Arrays = {"generation.ids": np.array(text(shape, 11))}
    for number, (name, changes) in enumerate(GENERATIONS.items()):
        seed = 0 if name == "end" else number
        if name == "end":
            plain = arrays["generation.plain.written"].tolist()
            at = next(i for i in range(shape.canvas + 1, len(plain)) if plain[i] not in plain[:i])
            changes = {"eos_token_id": (plain[at],)}
        noise = SharedNoise(seed, length=shape.canvas, vocab=shape.vocab)
        done = reference.generate(
            arrays["generation.ids"].tolist(), settings=settings.replace(**changes), noise=noise
        )
        key = f"generation.{name}"
        arrays[f"{key}.written"] = np.array(done.ids)
        arrays[f"{key}.guesses"] = np.stack(done.guesses).astype(np.int16)
        arrays[f"{key}.steps"] = np.array(done.steps_per_block)
        arrays[f"{key}.seed"] = np.array(seed)
        arrays[f"{key}.end"] = np.array(changes["eos_token_id"], dtype=np.int64)
    return arrays


def main() -> None:
    """Rewrite everything in this folder."""
    torch.set_num_threads(1)
    for name, shape in CHECKPOINTS.items():
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        checkpoints.save_hub(checkpoints.build(shape), shape, folder, dtype=torch.float16)
        tiny.write_tokenizer(folder, shape.vocab)
        references = {a: Reference(folder, vision_attention=a) for a in ("sliding", "all")}
        settings = GenerationSettings.load(folder)
        arrays = text_cases(shape, references["all"])
        arrays |= picture_cases(shape, references)
        arrays |= generations(shape, references["all"], settings)
        np.savez_compressed(folder / "cases.npz", **arrays)
        sizes = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
        print(name, sizes)


if __name__ == "__main__":
    main()
