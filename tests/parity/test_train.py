"""Training: the loss and every gradient, against transformers' class under torch's autograd."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from torch.nn import functional
from transformers import DynamicCache

from dg_mlx.backends import Backend
from dg_mlx.config import ModelConfig, Quantization
from dg_mlx.model import DiffusionGemma
from dg_mlx.model.lora import EXPERTS, TARGETS, LoraSettings, adapt, adapters, weights
from dg_mlx.reference import Reference
from dg_mlx.train import loss
from dg_mlx.train.batch import Draw, Example, collate
from dg_mlx.train.loss import Objective, gradients
from dg_mlx.weights import load
from parity import checkpoints
from parity.checkpoints import SHAPES
from parity.prompts import prompt, text

pytestmark = pytest.mark.parity

WORST = 1e-4
"""Largest relative error of a gradient: norm of the difference over the norm."""
VANISHING = 1e-4
"""A gradient's norm below which its relative error says nothing; the others' are around 1."""


@pytest.fixture(scope="module")
def trainee(folder):
    """(shape's name, vision attention) → our model, to be trained."""

    def build(name, attention="all"):
        config = ModelConfig.load(folder(name))
        model = DiffusionGemma(config, Backend(), attention)
        load(model, config, folder(name), mx.float32)
        return model

    return build


def examples(shape, blocks, lengths, seed=0, pictures=()):
    """Random prompts, some of them with pictures, and random answers of so many canvases."""
    rng = np.random.default_rng(seed)
    found = []
    for index, (count, length) in enumerate(zip(blocks, lengths, strict=True)):
        answer = rng.integers(0, shape.image_token, count * shape.canvas).tolist()
        if index < len(pictures):
            given = prompt(shape, pictures[index], seed=seed + index)
            found.append(Example(ids=given.ids, answer=answer, media=given.media, canvases=count))
        else:
            found.append(
                Example(ids=text(shape, length, seed=seed + index), answer=answer, canvases=count)
            )
    return found


def randomness(shape, chosen, conditioned, seed=0):
    """Corruption of many kinds: t from little to all."""
    rng = np.random.default_rng(seed)
    size = (len(chosen), shape.canvas)
    return Draw(
        block_B=np.array(chosen),
        replaced_BL=rng.random(size) < np.linspace(0.2, 1, len(chosen))[:, None],
        noise_BL=rng.integers(0, shape.vocab, size).astype(np.int32),
        conditioned_B=np.array(conditioned),
    )


class Torch:
    """The same objective, written for transformers' class, one example at a time or padded."""

    def __init__(self, reference, objective):
        self.reference, self.model, self.objective = reference, reference.model, objective
        self.tensors = dict(self.model.named_parameters(remove_duplicate=False))
        self.tensors |= dict(self.model.named_buffers(remove_duplicate=False))
        for tensor in self.tensors.values():
            if tensor.is_floating_point():
                tensor.requires_grad_(True)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.padding_idx = None  # or one id's row would be left out of the gradient

    def encoded(self, ids_BS, real_BS, images):
        """What the class takes for a prompt: ids, masks, pictures, an empty cache."""
        model, ids = self.model, torch.tensor(ids_BS).long()
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        media = self.reference._media(ids, images)
        positions = torch.arange(ids.shape[1])[None]
        with self.reference._masks(ids):
            masks = model.model.encoder.create_masks_for_generate(
                config=model.config,
                inputs_embeds=torch.empty((*ids.shape, 0)),
                attention_mask=torch.tensor(real_BS),
                past_key_values=cache,
                position_ids=positions,
                mm_token_type_ids=media.get("mm_token_type_ids"),
            )
        return {
            "input_ids": ids, "attention_mask": masks, "past_key_values": cache,
            "position_ids": positions, **media,
        }  # fmt: skip

    def canvas_losses(self, batch):
        """(B,) cross-entropy of the canvases."""
        images = batch.media.images if batch.media is not None else ()
        noisy, target = (torch.tensor(a).long() for a in (batch.noisy_BL, batch.canvas_BL))
        canvas = np.ones(batch.noisy_BL.shape, np.bool_)
        seen = torch.tensor(np.concatenate([batch.context_real_BS, canvas], axis=1))

        def logits(**conditioning):
            context = self.encoded(batch.context_BS, batch.context_real_BS, images)
            return self.model(
                decoder_input_ids=noisy, decoder_attention_mask=seen, **context, **conditioning
            ).logits

        conditioning = {}
        if batch.conditioned_B.any():
            with torch.no_grad():
                first = logits()
            mask = torch.tensor(batch.conditioned_B)
            conditioning = {"self_conditioning_logits": first, "self_conditioning_mask": mask}
        scores = logits(**conditioning)
        return functional.cross_entropy(scores.transpose(1, 2), target, reduction="none").mean(1)

    def encoder_losses(self, batch):
        """(B,) next-token cross-entropy of everything clean."""
        images = batch.media.images if batch.media is not None else ()
        ids = torch.tensor(batch.clean).long()
        context = self.encoded(batch.clean, batch.real, images)
        hidden = self.model.model.encoder(**context).last_hidden_state
        cap = self.model.final_logit_softcapping
        scores = torch.tanh(self.model.lm_head(hidden) / cap) * cap
        entropy = functional.cross_entropy(
            scores[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
        )
        counted = torch.tensor(batch.real[:, :-1] & batch.real[:, 1:])
        if images:
            counted &= ids[:, 1:] != self.model.config.image_token_id
        return (entropy * counted).sum(1) / counted.sum(1)

    def losses(self, batches):
        """(total, diffusion, encoder) of the batches together."""
        diffusion = torch.cat([self.canvas_losses(batch) for batch in batches]).mean()
        encoder = torch.tensor(0.0)
        if self.objective.encoder_weight:
            encoder = torch.cat([self.encoder_losses(batch) for batch in batches]).mean()
        return diffusion + self.objective.encoder_weight * encoder, diffusion, encoder

    def run(self, batches):
        """The losses, and the gradients by name."""
        total, diffusion, encoder = self.losses(batches)
        total.backward()
        found = {
            n: np.zeros(t.shape, np.float32) if t.grad is None else t.grad.numpy().copy()
            for n, t in self.tensors.items()
        }
        for tensor in self.tensors.values():
            tensor.grad = None
            tensor.requires_grad_(False)
        return [float(x.detach()) for x in (total, diffusion, encoder)], found


def single(draw, row):
    return Draw(
        block_B=draw.block_B[row : row + 1],
        replaced_BL=draw.replaced_BL[row : row + 1],
        noise_BL=draw.noise_BL[row : row + 1],
        conditioned_B=draw.conditioned_B[row : row + 1],
    )


def stacked(tensors):
    """Gradients by the hub's names, the layers' scalars of each stack as one vector.

    The last of them have no effect behind a norm: alone, they would be rounding over rounding.
    """
    found, scalars = {}, {}
    for name, tensor in tensors.items():
        array = np.array(tensor)
        if name.endswith("layer_scalar"):
            stack, _, rest = name.partition(".layers.")
            scalars.setdefault(f"{stack} scalars", {})[int(rest.split(".")[0])] = array
        else:
            found[name.removesuffix(".weight") if ".experts." in name else name] = array
    vectors = {n: np.concatenate([v[i] for i in sorted(v)]) for n, v in scalars.items()}
    return found | vectors


def compare(kind, ours, theirs, same):
    """Losses, and every gradient by its relative error. Returns whose gradients are not 0."""
    (value, gradient), (value_ref, gradient_ref) = ours, theirs
    same(f"{kind}: loss", np.array(value), np.array(value_ref), tolerance=2e-5)
    mine, other = stacked(dict(tree_flatten(gradient))), stacked(gradient_ref)
    worst = 0.0
    for name, array in mine.items():
        norm, error = np.linalg.norm(other[name]), float(np.linalg.norm(array - other[name]))
        if norm < VANISHING:  # nothing depends on it, or a norm undoes it: only rounding is left
            assert error < VANISHING / 100, f"{kind}: {name}: {error:.1e} of {norm:.1e}"
            continue
        assert error <= WORST * norm, f"{kind}: {name}: {error:.1e} of {norm:.1e}"
        worst = max(worst, error / float(norm))
    same(f"{kind}: worst gradient", np.array([worst]), np.zeros(1), tolerance=WORST)
    return [name for name, array in mine.items() if np.linalg.norm(array)]


CASES = {
    # blocks of each answer, the chosen one, prompt lengths, who is conditioned, pictures
    "one canvas": ([1], [0], [9], [False], ()),
    "conditioned": ([1], [0], [9], [True], ()),
    "padded, mixed": ([1, 1, 1], [0, 0, 0], [3, 21, 10], [True, False, True], ()),
    "blocks, mixed": ([3, 1, 2, 4], [1, 0, 1, 3], [5, 30, 2, 8], [True, False, False, True], ()),
    "pictures": (
        [1, 2, 1], [0, 1, 0], [0, 0, 7], [True, False, True],
        ([4, (6, 6), 3, (3, 6), 5], [2, (3, 12), 4]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("name", list(SHAPES))
def test_objective(name, case, weight, trainee, theirs, same):
    blocks, chosen, lengths, conditioned, pictures = CASES[case]
    shape, objective = SHAPES[name], Objective(encoder_weight=weight)
    given = examples(shape, blocks, lengths, seed=5, pictures=pictures)
    noise = randomness(shape, chosen, conditioned)
    mine = gradients(trainee(name), collate(given, noise), objective)
    alone = [collate([e], single(noise, i)) for i, e in enumerate(given)]
    expected = Torch(theirs(name), objective).run(alone)
    touched = compare(f"training, {case}", mine, expected, same)
    assert any("vision" in name for name in touched) == bool(pictures)


def case_of(name, case, trainee, theirs, attention="all"):
    """A case once more: our model, its batch, and the reference."""
    blocks, chosen, lengths, conditioned, pictures = CASES[case]
    shape = SHAPES[name]
    given = examples(shape, blocks, lengths, seed=8, pictures=pictures)
    batch = collate(given, randomness(shape, chosen, conditioned, seed=3))
    return trainee(name, attention), batch, theirs(name, attention)


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("name", list(SHAPES))
def test_padded_as_transformers_pads(name, case, trainee, theirs, same):
    model, batch, reference = case_of(name, case, trainee, theirs)
    objective = Objective()
    expected = Torch(reference, objective).run([batch])
    mine = gradients(model, batch, objective)
    compare(f"training, one padded batch, {case}", mine, expected, same)


@pytest.mark.parametrize("name", list(SHAPES))
def test_pictures_seen_as_google_does(name, trainee, theirs, same):
    model, batch, reference = case_of(name, "pictures", trainee, theirs, "sliding")
    objective = Objective()
    expected = Torch(reference, objective).run([batch])
    mine = gradients(model, batch, objective)
    compare("training, pictures, sliding", mine, expected, same)


@pytest.mark.parametrize("case", ["blocks, mixed", "pictures"])
@pytest.mark.parametrize("name", list(SHAPES))
def test_computing_again_changes_nothing(name, case, trainee, theirs, same, monkeypatch):
    """Checkpointed layers, and logits in runs of seven positions."""
    model, batch, reference = case_of(name, case, trainee, theirs)
    objective = Objective()
    expected = Torch(reference, objective).run([batch])
    monkeypatch.setattr(loss, "LOGITS_BYTES", 7 * 4 * SHAPES[name].vocab)
    mine = gradients(model, batch, objective, checkpoint=True)
    compare(f"training, checkpointed, {case}", mine, expected, same)


class Summed(torch.nn.Module):
    """transformers' class with W + scale * B @ A in place of W, for the copies of W too."""

    def __init__(self, model):
        super().__init__()
        self.given, self._torch = model.model, model

    def forward(self, batches):
        return self._torch.losses(batches)

    def run(self, batches, pairs, scale):
        """The losses, and the gradients of A and B."""
        leaves = {n: [torch.tensor(x, requires_grad=True) for x in ab] for n, ab in pairs.items()}
        own = dict(self.named_parameters(remove_duplicate=False))
        tensors = {}
        for name, (a, b) in leaves.items():
            path = f"given.{name}" if ".experts." in name else f"given.{name}.weight"
            tensors[path] = own[path].detach() + scale * b @ a
        total, *others = torch.func.functional_call(self, tensors, (batches,))
        total.backward()
        found = {n: [x.grad.numpy() for x in ab] for n, ab in leaves.items()}
        return [float(x.detach()) for x in (total, *others)], found


def pack(model, spec):
    """Quantise every weight that can be, in place. Returns what they stand for, by name."""
    plain = {}
    options = {"group_size": spec.group_size, "bits": spec.bits, "mode": spec.mode}
    for name, module in weights(model):
        if "vision" in name or module.weight.shape[-1] % spec.group_size:
            continue
        packed = mx.quantize(module.weight, **options)
        module.pack(spec)
        for key, array in zip(("weight", "scales", "biases"), packed, strict=False):
            module[key] = array
        plain[name] = np.array(mx.dequantize(*packed, **options).astype(mx.float32))
    return plain


SPECS = {
    "plain": None,
    "affine": Quantization(group_size=32, bits=4, mode="affine"),
    "mxfp8": Quantization(group_size=32, bits=8, mode="mxfp8"),
}
EMBEDDING = "model.decoder.embed_tokens"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint whose matrices can be packed in groups of 32."""
    shape = checkpoints.resized(SHAPES["window-shorter"], hidden=64, dense=64, expert_width=32)
    folder = tmp_path_factory.mktemp("wide")
    return shape, checkpoints.save_hub(checkpoints.build(shape), shape, folder)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("spec", list(SPECS))
def test_adapters(spec, checkpoint, wide, same):
    shape, folder = wide
    config = ModelConfig.load(folder)
    model, reference = (
        DiffusionGemma(config, Backend(), "all"),
        Reference(folder, vision_attention="all"),
    )
    load(model, config, folder, mx.float32)
    if SPECS[spec] is not None:
        theirs = dict(reference.model.named_parameters(remove_duplicate=False))
        for name, array in pack(model, SPECS[spec]).items():
            stored = theirs[name if ".experts." in name else f"{name}.weight"]
            stored.data.copy_(torch.tensor(array))
    tower = "model.encoder.vision_tower.encoder.layers.*"
    settings = LoraSettings(rank=3, alpha=5, targets=(*TARGETS, EXPERTS, EMBEDDING, tower))
    adapt(model, settings)
    rng, pairs = np.random.default_rng(0), {}
    for name, module in adapters(model):
        module.lora_b = mx.array(rng.normal(0, 0.05, module.lora_b.shape).astype(np.float32))
        pairs[name] = np.array(module.lora_a), np.array(module.lora_b)
    blocks, chosen, lengths, conditioned, pictures = CASES["pictures"]
    given = examples(shape, blocks, lengths, seed=8, pictures=pictures)
    batch = collate(given, randomness(shape, chosen, conditioned, seed=3))
    value, gradient = gradients(model, batch, Objective(), checkpoint=checkpoint)
    torch_model = Torch(reference, Objective())
    expected, found = Summed(torch_model).run([batch], pairs, settings.scale)
    same(f"adapters on {spec}: loss", np.array(value), np.array(expected), tolerance=2e-5)
    flat, worst = dict(tree_flatten(gradient)), 0.0
    assert len(flat) == 2 * len(pairs)
    for name, both in found.items():
        for key, other in zip(("lora_a", "lora_b"), both, strict=True):
            error = np.linalg.norm(np.array(flat[f"{name}.{key}"]) - other)
            assert error <= WORST * np.linalg.norm(other), f"{name}.{key}: {error:.1e}"
            worst = max(worst, float(error / np.linalg.norm(other)))
    same(f"adapters on {spec}: worst gradient", np.array([worst]), np.zeros(1), tolerance=WORST)
