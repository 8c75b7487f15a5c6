"""One atom of every kind for a block of any architecture, and which of them cannot be folded.

What can be folded is written by hand from the modeling files, so that a planner that refuses too
much fails as one that folds wrongly does.
"""

from __future__ import annotations

import torch
from torch import Tensor

import interp
from interp import Affine
from tests.oracles.layout import PARALLEL, layer_of

HEADS, STREAM = ("q", "k", "v", "z"), ("attn_out", "mlp_out")
_QKV = {"q shift", "k shift", "v shift"}
_ATTN = {"z shift", "attn_out shift", "resid_mid shift"}  # without a bias in the output projection
_MLP = {"mlp_post shift", "mlp_out shift", "resid_post shift"}  # nor in the down projection
_AFTER_NORM = {"attn_out shift", "resid_mid shift"} | _MLP
_TIED = {"embed scale", "embed shift"}  # the head would move too
_LATENT = {f"{kind} {part}" for kind in "qkv" for part in ("scale", "shift")}  # no such sites

# Beside the scale of the stream, which nothing can take.
REFUSED: dict[str, set[str]] = {
    "gpt2": {"embed scale"},  # a shift goes into the learned positions
    "llama": set(),
    "qwen2": set(),  # a Llama with biases
    "qwen3": _MLP,
    "mistral": set(),  # a Llama with biases
    "gemma2": _AFTER_NORM | _TIED,
    "gemma3": _AFTER_NORM | _TIED,
    "phi3": _QKV | _ATTN | _MLP,
    "gpt_neox": set(),
    "olmo2": _AFTER_NORM,
    "cohere": _TIED,  # parallel: the attention's bias serves the MLP
    "granite": set(),
    "glm4": _ATTN | _MLP,
    "phi": set(),
    "starcoder2": _TIED,
    "stablelm": _ATTN | _MLP,
    "smollm3": _TIED,
    "opt": {"embed scale"},
    "gptj": {"q shift", "k shift"},  # parallel: fc_out's bias serves everything else
    "bloom": set(),  # the embedding's norm has a bias
    "falcon": _TIED,
    "mixtral": _QKV | _ATTN | _MLP,
    "qwen3_moe": _MLP,
    "olmoe": _MLP,
    "gpt_oss": set(),  # biases everywhere, of experts too
    "deepseek_v3": _LATENT | _MLP,
    "qwen3_next": _MLP,
    "gpt_neox-sequential": set(),
    "falcon-new": _TIED,
    "falcon-sequential": _TIED,
    "stablelm-parallel": _ATTN | _MLP,
    "opt-projected": set(),  # the projection after the embedding takes a scale
}


def atoms(name: str, module: object, seed: int = 0) -> dict[str, Affine]:
    """`"z scale"` and the like -> an atom, in a block that has every part."""
    model, layer = interp.Model(module), layer_of(name)
    block, d_model = model.anatomy.blocks[layer], model.anatomy.d_model
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    found: dict[str, Affine] = {}
    for kind in HEADS:
        qkv = block.qkv
        if kind == "z":
            assert block.o_proj is not None
            heads = block.n_heads
            shape = block.o_proj.weight.shape
            width = int(shape[0] if name == "gpt2" else shape[1]) // heads
        elif qkv is None:
            continue
        else:
            heads, width = (qkv.n_heads if kind == "q" else qkv.n_kv_heads), qkv.d_head
        head = heads - 1
        found[f"{kind} scale"] = Affine(
            f"{kind}.{layer}", (head,), scale=1 + 0.5 * normal(1, width)
        )
        found[f"{kind} shift"] = Affine(f"{kind}.{layer}", (head,), shift=normal(1, width))
    neurons = (3, 11) if block.experts is None else ((1, 3), (2, 11))
    found["mlp_post scale"] = Affine(f"mlp_post.{layer}", neurons, scale=-1.5)
    found["mlp_post shift"] = Affine(f"mlp_post.{layer}", neurons, shift=normal(2))
    for kind in STREAM:
        found[f"{kind} scale"] = Affine(f"{kind}.{layer}", scale=1 + 0.5 * normal(d_model))
        found[f"{kind} shift"] = Affine(f"{kind}.{layer}", shift=normal(d_model))
    if name not in PARALLEL:
        found["resid_mid shift"] = Affine(f"resid_mid.{layer}", shift=normal(d_model))
    found["resid_post shift"] = Affine(f"resid_post.{layer}", shift=normal(d_model))
    found["resid_post scale"] = Affine(f"resid_post.{layer}", scale=0.5)
    found["embed scale"] = Affine("embed", scale=1 + 0.5 * normal(d_model))
    found["embed shift"] = Affine("embed", shift=normal(d_model))
    return found


def foldable(name: str, module: object, seed: int = 0) -> dict[str, Affine]:
    """Those that can be folded."""
    refused = REFUSED[name] | {"resid_post scale"}
    return {what: atom for what, atom in atoms(name, module, seed).items() if what not in refused}
