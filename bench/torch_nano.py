"""nano's text layers in torch, as lean as they get: what `train_cpu.py` compares with.

Names and layouts are those of the published checkpoint. B batch, S prompt, L canvas, T either, K
keys, H hidden, V vocabulary, E experts.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

HIDDEN, LAYERS, HEADS, VOCAB, CANVAS = 128, 6, 4, 384, 112
DENSE, EXPERTS, TOP_K, EXPERT = 256, 4, 2, 64
WINDOW, SOFT_CAP, EPS = 128, 30.0, 1e-6
FULL = (2, 5)  # layers with full attention: one KV head of 64, K = V
HEAD_DIM = {False: 32, True: 64}
KV_HEADS = {False: 2, True: 1}
THETA = {False: 100.0, True: 1e4}
PARTIAL = 0.25  # share of the head's pairs that full layers rotate

Weights = Mapping[str, Tensor]
Cache = list[tuple[Tensor, Tensor]]


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint and its shape."""
    table = {
        "model.decoder.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.decoder.norm.weight": (HIDDEN,),
    }
    own = "model.decoder.self_conditioning."
    table |= {own + "pre_norm.weight": (HIDDEN,), own + "down_proj.weight": (HIDDEN, DENSE)}
    table |= {own + f"{name}_proj.weight": (DENSE, HIDDEN) for name in ("gate", "up")}
    for layer in range(LAYERS):
        full = layer in FULL
        head, kv = HEAD_DIM[full], KV_HEADS[full] * HEAD_DIM[full]
        rows = {
            "self_attn.q_proj.weight": (HEADS * head, HIDDEN),
            "self_attn.k_proj.weight": (kv, HIDDEN),
            "self_attn.o_proj.weight": (HIDDEN, HEADS * head),
            "self_attn.q_norm.weight": (head,),
            "self_attn.k_norm.weight": (head,),
            "mlp.gate_proj.weight": (DENSE, HIDDEN),
            "mlp.up_proj.weight": (DENSE, HIDDEN),
            "mlp.down_proj.weight": (HIDDEN, DENSE),
            "router.proj.weight": (EXPERTS, HIDDEN),
            "router.scale": (HIDDEN,),
            "router.per_expert_scale": (EXPERTS,),
            "experts.gate_up_proj": (EXPERTS, 2 * EXPERT, HIDDEN),
            "experts.down_proj": (EXPERTS, HIDDEN, EXPERT),
            "layer_scalar": (1,),
        }
        if not full:
            rows["self_attn.v_proj.weight"] = (kv, HIDDEN)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            rows[f"{name}_layernorm.weight"] = (HIDDEN,)
        for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2"):
            rows[f"{name}.weight"] = (HIDDEN,)
        rows["pre_feedforward_layernorm_2.weight"] = (HIDDEN,)
        table |= {f"model.decoder.layers.{layer}.{name}": shape for name, shape in rows.items()}
        table[f"model.encoder.language_model.layers.{layer}.layer_scalar"] = (1,)
    return table


def initial(seed: int) -> dict[str, Tensor]:
    """Fresh fp32 weights: matrices N(0, 1/fan_in), q/k norms 0.65, other norms and scales 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes().items():
        if len(shape) == 1:
            value = 0.65 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0
            weights[name] = torch.full(shape, value)
        else:
            scale = shape[-1] ** -0.5
            if name.endswith("self_conditioning.down_proj.weight"):
                scale *= 0.3
            weights[name] = torch.randn(shape, generator=generator) * scale
    return weights


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """RMS norm over the last axis, in fp32 inside."""
    return functional.rms_norm(x, x.shape[-1:], weight, EPS)


def rope_table(positions: Tensor, full: bool) -> tuple[Tensor, Tensor]:
    """cos and sin [..., 1, head] at `positions`; full layers turn the first pairs only."""
    head = HEAD_DIM[full]
    pairs = torch.arange(head // 2, dtype=torch.float32)
    frequencies = THETA[full] ** (-2 * pairs / head)
    if full:
        frequencies = torch.where(pairs < PARTIAL * head // 2, frequencies, 0.0)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), -1)[..., None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of x [B, T, heads, head]."""
    first, second = x.chunk(2, -1)
    return x * rope[0].to(x.dtype) + torch.cat((-second, first), -1) * rope[1].to(x.dtype)


def keys_values(w: Weights, x: Tensor, rope) -> tuple[Tensor, Tensor]:
    """Rotated keys and values [B, KV heads, T, head]; full layers read both from one projection."""
    norm = w["self_attn.k_norm.weight"]
    heads = (*x.shape[:-1], -1, norm.shape[0])
    key = functional.linear(x, w["self_attn.k_proj.weight"]).view(heads)
    value = key
    if "self_attn.v_proj.weight" in w:
        value = functional.linear(x, w["self_attn.v_proj.weight"]).view(heads)
    return rotate(rms_norm(key, norm), rope).transpose(1, 2), rms_norm(value).transpose(1, 2)


def attend(w: Weights, x: Tensor, rope, keys, values, mask: Tensor) -> Tensor:
    """Attention with scale 1; mask is added to scores [B, KV heads, group, T, K]."""
    batch, length, _ = x.shape
    norm = w["self_attn.q_norm.weight"]
    head, kv = norm.shape[0], keys.shape[1]
    query = functional.linear(x, w["self_attn.q_proj.weight"]).view(batch, length, -1, head)
    query = rotate(rms_norm(query, norm), rope).transpose(1, 2)
    group = query.shape[1] // kv
    scores = torch.matmul(query.reshape(batch, kv, group * length, head), keys.transpose(2, 3))
    scores = scores.view(batch, kv, group, length, -1).float() + mask
    chances = torch.softmax(scores, -1).to(x.dtype)
    out = torch.matmul(chances.view(batch, kv, group * length, -1), values)
    out = out.view(batch, kv * group, length, head).transpose(1, 2).reshape(batch, length, -1)
    return functional.linear(out, w["self_attn.o_proj.weight"])


def experts(w: Weights, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """All experts as one wide MLP, unchosen ones weighted 0, and the balancing loss (1 at best)."""
    routed = rms_norm(residual) * w["router.scale"] * HIDDEN**-0.5
    scores = functional.linear(routed, w["router.proj.weight"])
    chances = torch.softmax(scores, -1, dtype=torch.float32)
    chosen = (chances[..., None] < chances[..., None, :]).sum(-1) < TOP_K
    share = torch.where(chosen, chances, 0.0)
    share = share / share.sum(-1, keepdim=True)
    balance = EXPERTS / TOP_K * (chosen.float().mean((0, 1)) * chances.mean((0, 1))).sum()
    share = (share * w["router.per_expert_scale"]).to(x.dtype)
    gate_up = functional.linear(x, w["experts.gate_up_proj"].reshape(-1, HIDDEN))
    gate, up = gate_up.view(*x.shape[:-1], EXPERTS, 2 * EXPERT).chunk(2, -1)
    inner = (functional.gelu(gate, approximate="tanh") * up * share[..., None]).flatten(-2)
    down = w["experts.down_proj"].permute(1, 0, 2).reshape(HIDDEN, -1)
    return functional.linear(inner, down), balance


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    """Gated dense MLP."""
    gate = functional.gelu(functional.linear(x, w[name + "gate_proj.weight"]), approximate="tanh")
    return functional.linear(
        gate * functional.linear(x, w[name + "up_proj.weight"]), w[name + "down_proj.weight"]
    )


def block(w: Weights, x: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
    """The rest of a layer after attention: norms, dense MLP, experts, layer scalar."""
    residual = x + rms_norm(attention, w["post_attention_layernorm.weight"])
    dense = mlp(w, "mlp.", rms_norm(residual, w["pre_feedforward_layernorm.weight"]))
    normed = rms_norm(residual, w["pre_feedforward_layernorm_2.weight"])
    sparse, balance = experts(w, normed, residual)
    both = rms_norm(dense, w["post_feedforward_layernorm_1.weight"])
    both = both + rms_norm(sparse, w["post_feedforward_layernorm_2.weight"])
    x = residual + rms_norm(both, w["post_feedforward_layernorm.weight"])
    return x * w["layer_scalar"], balance


def encoder_layer(w: Weights, x: Tensor, rope, mask: Tensor) -> tuple[Tensor, ...]:
    """One causal layer: output, keys, values, balancing loss."""
    normed = rms_norm(x, w["input_layernorm.weight"])
    keys, values = keys_values(w, normed, rope)
    x, balance = block(w, x, attend(w, normed, rope, keys, values, mask))
    return x, keys, values, balance


def decoder_layer(w: Weights, x: Tensor, rope, mask: Tensor, past) -> tuple[Tensor, Tensor]:
    """One bidirectional layer over the prompt's cached keys and values and the canvas."""
    normed = rms_norm(x, w["input_layernorm.weight"])
    keys, values = keys_values(w, normed, rope)
    keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 2)
    return block(w, x, attend(w, normed, rope, keys, values, mask))


def embed(w: Weights, ids: Tensor) -> Tensor:
    """Scaled token embeddings."""
    return functional.embedding(ids, w["model.decoder.embed_tokens.weight"]) * math.sqrt(HIDDEN)


def layers(w: Weights, *, encoder: bool) -> list[dict[str, Tensor]]:
    """Each layer's tensors by their short names; only the layer scalar differs by pass."""
    result = []
    for index in range(LAYERS):
        start = f"model.decoder.layers.{index}."
        own = {name.removeprefix(start): w[name] for name in w if name.startswith(start)}
        if encoder:
            own["layer_scalar"] = w[f"model.encoder.language_model.layers.{index}.layer_scalar"]
        result.append(own)
    return result


def encode(w: Weights, ids_BS: Tensor) -> tuple[Cache, Tensor]:
    """Causal pass over right-padded prompts: keys and values of every layer, balancing loss."""
    positions = torch.arange(ids_BS.shape[1])
    ropes = {full: rope_table(positions, full) for full in (False, True)}
    distance = positions[:, None] - positions
    masks = {
        True: torch.where(distance >= 0, 0.0, -1e9),
        False: torch.where((distance >= 0) & (distance < WINDOW), 0.0, -1e9),
    }
    x, cache, total = embed(w, ids_BS), [], 0.0
    *first, last = layers(w, encoder=True)
    for index, own in enumerate(first):
        full = index in FULL
        x, keys, values, balance = encoder_layer(own, x, ropes[full], masks[full])
        cache.append((keys, values))
        total = total + balance / (LAYERS - 1)
    normed = rms_norm(x, last["input_layernorm.weight"])  # nothing reads the last layer's output
    cache.append(keys_values(last, normed, ropes[LAYERS - 1 in FULL]))
    return cache, total


def decode(w: Weights, canvas_BL: Tensor, signal_BLH, lengths_B, cache) -> tuple[Tensor, Tensor]:
    """Bidirectional pass over the canvas after prompts of `lengths_B`: logits (fp32), balance.

    `signal_BLH` is the self-conditioning signal: zeros, or `soft_embedding` of earlier logits.
    """
    canvas = canvas_BL.shape[1]
    positions = lengths_B[:, None] + torch.arange(canvas)
    ropes = {full: rope_table(positions, full) for full in (False, True)}
    place = torch.arange(cache[0][0].shape[2])
    inside = place < lengths_B[:, None]
    masks = {True: inside, False: inside & (place > lengths_B[:, None] - WINDOW)}
    for full, seen in masks.items():
        seen = functional.pad(torch.where(seen, 0.0, -1e9), (0, canvas))
        masks[full] = seen[:, None, None, None]
    own = "model.decoder.self_conditioning."
    signal = mlp(w, own, rms_norm(signal_BLH, w[own + "pre_norm.weight"]))
    x, total = rms_norm(embed(w, canvas_BL) + signal), 0.0
    for index, own in enumerate(layers(w, encoder=False)):
        full = index in FULL
        x, balance = decoder_layer(own, x, ropes[full], masks[full], cache[index])
        total = total + balance / LAYERS
    x = rms_norm(x, w["model.decoder.norm.weight"])
    logits = functional.linear(x, w["model.decoder.embed_tokens.weight"]).float()
    return SOFT_CAP * torch.tanh(logits / SOFT_CAP), total


def soft_embedding(w: Weights, logits_BLV: Tensor) -> Tensor:
    """The self-conditioning signal of temperature-scaled logits."""
    table = w["model.decoder.embed_tokens.weight"]
    return torch.softmax(logits_BLV, -1).to(table.dtype) @ table * math.sqrt(HIDDEN)
