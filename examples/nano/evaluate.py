"""Solve held-out puzzles with the reference class's own generate() and the checkpoint's sampler.

Run `python evaluate.py FOLDER`: 200 puzzles for each row of the table.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import chats
import export
import model
import sudoku
import tokenizer
import torch
from safetensors.torch import load_file
from transformers import DiffusionGemmaForBlockDiffusion

ROWS = ((4, 5), (4, 8), (6, 14), (6, 18), (6, 24), (9, 36), (9, 40), (9, 45), (9, 55))


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How `count` puzzles of `size` with `givens` cells given went."""

    size: int
    givens: int
    count: int
    solved: float  # share answered exactly
    early: float  # share wrong although the sampler stopped before its last step
    mean_steps: float
    seconds: float  # for one puzzle, in a batch


def load(path: Path) -> DiffusionGemmaForBlockDiffusion:
    """The reference class, in fp32, with a checkpoint folder or a file of train.py."""
    if path.is_dir():
        weights = load_file(path / "model.safetensors")
    else:
        weights = {name: w.bfloat16() for name, w in torch.load(path)["weights"].items()}
    weights = {name: weight.float() for name, weight in weights.items()}
    loaded = export.reference(weights, torch.float32)
    if path.is_dir():
        settings = json.loads((path / "generation_config.json").read_text())
        loaded.generation_config = type(loaded.generation_config)(**settings)
    return loaded


@torch.no_grad()
def answers(loaded: DiffusionGemmaForBlockDiffusion, prompts: list[str]) -> list[tuple[str, int]]:
    """Answers to prompts of one length, and the denoising steps that each took."""
    ids = torch.tensor([tokenizer.encode(prompt) for prompt in prompts])
    out = loaded.generate(ids)
    new = out.sequences[:, ids.shape[1] :]
    steps = ((new != 0).sum(-1) / out.tokens_per_forward).round().int().tolist()
    texts = [tokenizer.decode(row).split("<turn|>")[0] for row in new.tolist()]
    return list(zip(texts, steps, strict=True))


def score(loaded: DiffusionGemmaForBlockDiffusion, size: int, givens: int, count: int) -> Score:
    """Solve `count` fresh held-out puzzles."""
    puzzles = [sudoku.make(size, givens, held_out=True) for _ in range(count)]
    start, results = time.perf_counter(), []
    for first in range(0, count, 8):
        some = puzzles[first : first + 8]
        results += answers(loaded, [chats.prompt(puzzle) for puzzle in some])
    seconds = (time.perf_counter() - start) / count
    right = [text == p.answer for (text, _), p in zip(results, puzzles, strict=True)]
    steps = [steps for _, steps in results]
    limit = loaded.generation_config.max_denoising_steps
    early = [not good and taken < limit for good, taken in zip(right, steps, strict=True)]
    return Score(
        size=size,
        givens=givens,
        count=count,
        solved=sum(right) / count,
        early=sum(early) / count,
        mean_steps=sum(steps) / count,
        seconds=seconds,
    )


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="checkpoint folder, or a file of train.py")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--steps", type=int, help="denoising steps instead of the checkpoint's")
    parser.add_argument("--rows", help="such as 9x45,6x18")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(options.path)
    if options.steps:
        loaded.generation_config.max_denoising_steps = options.steps
    rows = ROWS
    if options.rows:
        rows = [tuple(map(int, row.split("x"))) for row in options.rows.split(",")]
    print(f"canvas {model.CANVAS}, {loaded.generation_config.max_denoising_steps} steps at most")
    print("| grid | given | solved | stopped early but wrong | mean steps | s/puzzle |")
    print("|---|---|---|---|---|---|")
    for size, givens in rows:
        sudoku.seed(options.seed + 100 * size + givens)  # a row is the same whatever rows are asked
        torch.manual_seed(options.seed)
        s = score(loaded, size, givens, options.count)
        print(
            f"| {size}x{size} | {givens} of {size * size} | {s.solved:.1%} | {s.early:.1%} "
            f"| {s.mean_steps:.1f} | {s.seconds:.3f} |",
            flush=True,
        )
    for text in ("hi", "What can you do?", "write a poem about the sea"):
        prompt = f"<bos><|turn>user\n{text}<turn|>\n<|turn>model\n"
        answer, steps = answers(loaded, [prompt])[0]
        print(f"{text!r}: {'the help text' if answer == chats.HELP else answer!r}, {steps} steps")


if __name__ == "__main__":
    main()
