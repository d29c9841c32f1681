"""Train nano: uniform corruption of the canvas, cross-entropy, self-conditioning on a CPU.

Run `python train.py --out RUN --minutes 85`; the same command again resumes from RUN/last.pt.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import chats
import model
import sudoku
import torch
from tokenizer import IDS, VOCAB_SIZE, encode
from torch import Tensor
from torch.nn import functional

PROMPT_BOUNDS = (72, 128, 192, 288)  # prompts are padded to the next of these, batch by batch
END = IDS["<turn|>"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The recipe."""

    batch: int = 48
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 50
    decay_share: float = 0.4  # the last part of the run, with a linear decay
    noise_power: float = 0.6  # corruption t = u ** this, u ~ U(0, 1); 1 is the published objective
    own_noise: float = 0.2  # share of noise drawn from the answer's own tokens
    balance: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Right-padded prompts [B, S], their lengths [B] and answers [B, L] filled with end tokens."""

    prompts: Tensor
    lengths: Tensor
    answers: Tensor


def batches(rng: random.Random, size: int) -> Iterator[Batch]:
    """Endless batches of prompts of similar length."""
    buckets: dict[int, list[tuple[list[int], list[int]]]] = {bound: [] for bound in PROMPT_BOUNDS}
    while True:
        prompt, answer = (encode(text) for text in chats.chat(rng))
        bound = next((bound for bound in PROMPT_BOUNDS if len(prompt) <= bound), None)
        if bound is None:
            continue
        bucket = buckets[bound]
        bucket.append((prompt, answer + [END] * (model.CANVAS - len(answer))))
        if len(bucket) == size:
            yield Batch(
                prompts=torch.tensor([ids + [0] * (bound - len(ids)) for ids, _ in bucket]),
                lengths=torch.tensor([len(ids) for ids, _ in bucket]),
                answers=torch.tensor([ids for _, ids in bucket]),
            )
            bucket.clear()


def corrupt(answers_BL: Tensor, settings: Settings) -> Tensor:
    """Replace each token with probability t, drawn per sample, by a random id."""
    batch, length = answers_BL.shape
    noise = torch.randint(VOCAB_SIZE, (batch, length))
    own = answers_BL.gather(1, torch.randint(length, (batch, length)))
    noise = torch.where(torch.rand(batch, length) < settings.own_noise, own, noise)
    chance = torch.rand(batch, 1) ** settings.noise_power
    return torch.where(torch.rand(batch, length) < chance, noise, answers_BL)


def loss_of(w: model.Weights, batch: Batch, settings: Settings) -> tuple[Tensor, dict[str, float]]:
    """Loss of one batch; the first half is self-conditioned on a pass without gradient."""
    cache, encoder_balance = model.encode(w, batch.prompts)
    canvas = corrupt(batch.answers, settings)
    half = len(canvas) // 2
    with torch.no_grad():
        past = [(keys[:half], values[:half]) for keys, values in cache]
        dtype = w["model.decoder.embed_tokens.weight"].dtype
        zeros = torch.zeros(*canvas.shape, model.HIDDEN, dtype=dtype)
        logits, _ = model.decode(w, canvas[:half], zeros[:half], batch.lengths[:half], past)
        temperature = torch.empty(half, 1, 1).uniform_(0.5, 0.8)
        logits = (logits / temperature).to(dtype).float()
    signal = torch.cat((model.soft_embedding(w, logits), zeros[half:]))
    logits, balance = model.decode(w, canvas, signal, batch.lengths, cache)
    entropy = functional.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
    balance = (encoder_balance + balance) / 2
    loss = entropy + settings.balance * balance
    return loss, {"loss": entropy.item(), "balance": balance.item()}


class Muon:
    """Muon over equally shaped matrices at once; stacks of experts count as their matrices."""

    def __init__(self, weights: dict[str, Tensor], weight_decay: float) -> None:
        """Group `weights` by shape."""
        self.weight_decay = weight_decay
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for weight in weights.values():
            self.groups.setdefault(tuple(weight.shape), []).append(weight)
        self.momentum = {
            shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Orthogonalise the Nesterov momentum and apply it."""
        for shape, group in self.groups.items():
            grad = torch.stack([weight.grad for weight in group])
            momentum = self.momentum[shape]
            momentum.lerp_(grad, 0.05)
            update = _orthogonal(grad.lerp(momentum, 0.95).flatten(0, -3)).view_as(grad)
            scale = max(1.0, shape[-2] / shape[-1]) ** 0.5
            for weight, direction in zip(group, update, strict=True):
                weight.mul_(1 - lr * self.weight_decay).sub_(direction, alpha=lr * scale)


def _orthogonal(grad: Tensor) -> Tensor:
    """Newton-Schulz iteration of Muon (Jordan et al. 2024) over a stack of matrices, in bf16."""
    wide = grad.shape[-2] <= grad.shape[-1]
    x = (grad if wide else grad.mT).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x if wide else x.mT).float()


class Run:
    """Weights, optimizers and counters of a run; saved and restored as one file."""

    def __init__(self, folder: Path, settings: Settings, seed: int) -> None:
        """Start fresh in `folder`."""
        self.folder, self.settings = folder, settings
        self.weights = {
            name: weight.requires_grad_() for name, weight in model.initial(seed).items()
        }
        small = {"model.decoder.embed_tokens.weight"}
        small |= {name for name, weight in self.weights.items() if weight.ndim < 2}
        matrices = {name: w for name, w in self.weights.items() if name not in small}
        self.muon = Muon(matrices, settings.weight_decay)
        others = [self.weights[name] for name in sorted(small)]
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)
        self.step, self.samples, self.seconds = 0, 0, 0.0

    def save(self) -> None:
        """Write everything to last.pt, atomically, and the weights alone to a numbered file."""
        weights = {"weights": {name: weight.detach() for name, weight in self.weights.items()}}
        torch.save(weights, self.folder / f"weights-{self.step:06d}.pt")
        state = weights | {
            "momentum": self.muon.momentum,
            "adam": self.adam.state_dict(),
            "counters": (self.step, self.samples, self.seconds),
        }
        torch.save(state, self.folder / "last.pt.tmp")
        (self.folder / "last.pt.tmp").replace(self.folder / "last.pt")

    def load(self) -> None:
        """Continue from the last file, if there is one."""
        path = self.folder / "last.pt"
        if not path.exists():
            return
        state = torch.load(path)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.muon.momentum = state["momentum"]
        self.adam.load_state_dict(state["adam"])
        self.step, self.samples, self.seconds = state["counters"]

    def rate(self, share: float) -> float:
        """The learning rate's factor when `share` of the run is done."""
        warm = min(1.0, (self.step + 1) / self.settings.warmup_steps)
        return warm * min(1.0, max(0.0, 1 - share) / self.settings.decay_share)

    def update(self, batch: Batch, factor: float) -> dict[str, float]:
        """One optimizer step."""
        low = {name: weight.bfloat16() for name, weight in self.weights.items()}
        loss, metrics = loss_of(low, batch, self.settings)
        loss.backward()
        self.muon.step(self.settings.muon_lr * factor)
        for group in self.adam.param_groups:
            group["lr"] = self.settings.adam_lr * factor
        self.adam.step()
        for weight in self.weights.values():
            weight.grad = None
        self.step += 1
        self.samples += len(batch.answers)
        return metrics


def train(run: Run, *, minutes: float, seed: int) -> None:
    """Train until `minutes` of wall-clock time are spent, resumed time included."""
    rng = random.Random(seed + run.step)
    sudoku.seed(seed + run.step)
    torch.manual_seed(seed + run.step)
    stream = batches(rng, run.settings.batch)
    before, start, saved = run.seconds, time.monotonic(), time.monotonic()
    seen: Counter[str] = Counter()
    while run.seconds < minutes * 60:
        factor = run.rate(run.seconds / (minutes * 60))
        batch = next(stream)
        metrics = run.update(batch, factor)
        seen["batches"] += 1
        for name, value in metrics.items():
            seen[name] += value
        seen[f"loss_{batch.prompts.shape[1]}"] += metrics["loss"]
        seen[f"n_{batch.prompts.shape[1]}"] += 1
        run.seconds = before + time.monotonic() - start
        if run.step % 50 == 0:
            _log(run, seen, factor)
            seen.clear()
        if time.monotonic() - saved > 180:
            run.save()
            saved = time.monotonic()
    run.save()


def _log(run: Run, seen: Counter[str], factor: float) -> None:
    record = {
        "step": run.step,
        "samples": run.samples,
        "seconds": round(run.seconds, 1),
        "rate": round(run.samples / run.seconds, 1),
        "factor": round(factor, 3),
        "loss": seen["loss"] / seen["batches"],
        "balance": seen["balance"] / seen["batches"],
    }
    for bound in PROMPT_BOUNDS:
        if seen[f"n_{bound}"]:
            record[f"loss_{bound}"] = seen[f"loss_{bound}"] / seen[f"n_{bound}"]
    assert math.isfinite(record["loss"]), "the loss is not finite"
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()})
    with (run.folder / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and log")
    parser.add_argument("--minutes", type=float, default=85.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="1.3x; minutes to start")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.compile:
        torch._dynamo.config.recompile_limit = 64
        model.encoder_layer = torch.compile(model.encoder_layer, dynamic=False)
        model.decoder_layer = torch.compile(model.decoder_layer, dynamic=False)
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options.out, Settings(), options.seed)
    run.load()
    train(run, minutes=options.minutes, seed=options.seed)


if __name__ == "__main__":
    main()
