"""Task vectors: what training changed, as an edit that can be scaled, added and moved elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from interp import Delta, Dense, Edit
from interp._edit.change import load, wide
from interventions._choose import Block, Layers, Modules, choose
from interventions._compatible import require_compatible
from interventions._low_rank import adapter_atoms
from interventions._weights import Source, Weights, open_weights


def task_vector(
    tuned: Source,
    base: Source,
    *,
    layers: Layers = None,
    modules: Modules = None,
    allow_distant: bool = False,
) -> Edit:
    """What training changed in the weights: `W -> W + t * mask * (W_tuned - W_base)`, t = 1.

    From folders nothing but headers and a small sample is read until the edit is applied, baked or
    saved, and then one tensor at a time; differences are taken in float32 (float64 for float64).
    It was made on `base`: for another target, `tau.applied(target, transfer=True)`.

    Args:
        tuned: a folder, a hub id, a model in memory, or the folder of a LoRA adapter of `base`
            (whose change stays low-rank).
        base: the checkpoint that training started from.
        layers: of the blocks, such as `range(4, 8)`; None for all, and for what is in no block.
        modules: `q k v o gate up down embed head norm`, or `attn`, `mlp`; fused tensors change in
            the rows of the chosen modules only.
        allow_distant: take the difference although configs, tokens or lineage say that these are
            not two states of one model.

    Returns:
        An Edit with one dense or low-rank atom a parameter; `notes["lineage"]` says how far apart
        the two are. `-1 * tau` is the sign flip, `norm_matched_random(tau)` the other control.

    Raises:
        InterpError: another architecture, config, vocabulary or shapes, tied against untied heads,
            no common start (cosine below 0.5); a layer or module that is not there.

    Warns:
        UserWarning: a relative distance above 0.2, tokens that one side lacks.

    Examples:
        >>> tau = iv.task_vector("rl/", "sft/", modules="mlp")
        >>> with (0.5 * tau).applied(model):
        ...     logits = model.module(input_ids).logits

    Source: Ilharco et al. 2022 (arXiv 2212.04089); reasoning vectors, 2509.01363. Their arithmetic
    in bfloat16 does not give what it asks for: apply to a float32 model.
    """
    start = open_weights(base)
    end = open_weights(tuned, start)
    chosen = choose(start.parameters, layers, modules)
    if layers is None and modules is None:  # so that what only one side has is noticed
        chosen |= {name: Block() for name in end.parameters if name not in chosen}
    found = require_compatible(end, start, chosen, allow_distant=allow_distant)
    if end.adapter:
        atoms = adapter_atoms(end, start, chosen, _difference)
    else:
        atoms = [_difference(end, start, name, block) for name, block in chosen.items()]
    notes = {
        "task_vector": {"tuned": end.name, "base": start.name},
        "lineage": {"cosine": found.cosine, "relative_norm": found.relative_norm},
    }
    return Edit(atoms, () if start.identity is None else (start.identity,), notes)


def _difference(end: Weights, start: Weights, name: str, block: Block) -> Delta:
    mask = start.mask_of(name, block)
    values, minus = end.value(name), start.value(name)
    if isinstance(values, Tensor) or isinstance(minus, Tensor):  # at once, in one model's memory
        a, b = load(values), load(minus)
        dtype = torch.promote_types(wide(a.dtype), wide(b.dtype))
        return Delta(name, Dense(a.to(dtype) - b.to(dtype), mask=mask))
    return Delta(name, Dense(values, minus, mask=mask))
