"""Resets: a tuned model taken back to its base, wholly, by half, or where a mask says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from interp import Delta, Edit, InterpError, Towards
from interp._errors import nearest
from interp._weights.nulls import generator, smallest
from interp._weights.part import Part
from interventions._choose import Block, Layers, Modules, choose, choose_parts, merged
from interventions._transplant import belonging_to, open_giver
from interventions._weights import Source, Weights

_QKVO = ("q", "k", "v", "o")
_MLP = ("gate", "up", "down")


def reset(
    base: Source,
    share: int | float = 1.0,
    *,
    by: str = "entry",
    mask: Mapping[str, Tensor] | None = None,
    complement: bool = False,
    seed: int = 0,
    layers: Layers = None,
    modules: Modules = None,
    onto: Source | None = None,
    allow_distant: bool = False,
) -> Edit:
    """Put weights back to what they were in the base, bit for bit: `W -> W_base` where chosen.

    Half a chat model's weights reset at random lose little of its tuning and bring back part of
    what the tuning cost: the observation behind half fine-tuning.

    Args:
        base: the checkpoint to go back to: a folder, a hub id or a model in memory.
        share: of the entries of each parameter, at random, exactly `round(share * n)` of n.
        by: `"entry"`; or `"category"`, which takes whole matrices (share 0.5 only): in each block
            two of q, k, v, o; of gate, up, down two in half of the blocks and one in the others
            (of up and down, one); half of what else the blocks have (norms, routers). Biases go
            with their weights; embedding, head and final norm stay tuned.
        mask: bool tensors by parameter, instead of a share; other parameters stay.
        complement: what the same arguments would leave, among what they choose from.
        seed: of the choice; the same on every machine.
        layers: of the blocks; None for all, and for what is in no block.
        modules: `q k v o gate up down embed head norm`, or `attn`, `mlp`.
        onto: the tuned model, to be checked beforehand; the edit then belongs to it.
        allow_distant: as for `task_vector`; for `onto`.

    Raises:
        InterpError: a share outside 0 to 1, masks of other names or shapes, a choice of nothing.

    Examples:
        >>> with iv.reset("base/", 0.5, by="category", seed=1).applied(model):
        ...     logits = model.module(input_ids).logits

    Source: Half fine-tuning, Hui et al. 2024 (arXiv 2404.18466), category level. Our specification:
    what happens to biases, routers and experts (all of a layer alike), and in odd numbers.
    """
    _check(share, by, mask, layers, modules)
    giver = open_giver(base)
    masks: dict[str, Tensor | None]
    if mask is not None:
        masks = _given(giver, mask, complement)
    elif by == "category":
        masks = _categories(giver, seed, complement, layers, modules)
    else:
        blocks = choose(giver.parameters, layers, modules)
        masks = {n: _random(giver, n, b, share, seed, complement) for n, b in blocks.items()}
    atoms = [Delta(name, Towards(giver.value(name), mask=m)) for name, m in masks.items()]
    edit = Edit(atoms, notes={"reset": {"base": giver.name, "share": share, "seed": seed}})
    return edit if onto is None else belonging_to(edit, giver, onto, allow_distant=allow_distant)


def _check(share: int | float, by: str, mask: object, layers: object, modules: object) -> None:
    if not 0 <= share <= 1:
        raise InterpError(f"share={share}: expected a number from 0 to 1")
    if by not in ("entry", "category"):
        raise InterpError(f"by={by!r}; {nearest(by, ('entry', 'category'))}")
    if by == "category" and share != 0.5:
        raise InterpError(
            f"by='category' is half fine-tuning's choice of half of the matrices, so share is 0.5; "
            f"got {share}"
        )
    if mask is not None and (
        share != 1 or by != "entry" or layers is not None or modules is not None
    ):
        raise InterpError("mask says which entries are reset: leave out share, layers and modules")


def _given(
    giver: Weights, mask: Mapping[str, Tensor], complement: bool
) -> dict[str, Tensor | None]:
    for name, one in mask.items():
        if name not in giver.parameters:
            raise InterpError(
                f"{giver.name} has no parameter {name!r}; {nearest(name, giver.parameters)}"
            )
        shape = tuple(giver.parameters[name].source.shape)
        if one.dtype != torch.bool or tuple(one.shape) != shape:
            raise InterpError(
                f"the mask of {name} is {one.dtype} {list(one.shape)}; expected torch.bool "
                f"{list(shape)}"
            )
    return {name: ~one if complement else one for name, one in mask.items()}


def _random(
    giver: Weights, name: str, block: Block, share: int | float, seed: int, complement: bool
) -> Tensor | None:
    """Exactly `round(share * n)` of the n chosen entries, or the others of them."""
    chosen = giver.mask_of(name, block)
    if share == 1 and not complement:
        return chosen
    shape = tuple(giver.parameters[name].source.shape)
    draw = torch.from_numpy(generator(seed, "reset", name).random(shape, dtype=np.float32))
    if chosen is not None:
        draw = torch.where(chosen, draw, torch.inf)
    count = draw.numel() if chosen is None else int(chosen.sum())
    taken, _ = smallest(draw, round(share * count))
    if not complement:
        return taken
    return ~taken if chosen is None else chosen & ~taken


def _categories(
    giver: Weights, seed: int, complement: bool, layers: Layers, modules: Modules
) -> dict[str, Tensor | None]:
    drawn = half_of_categories(
        {part for held in giver.parameters.values() for part in held.parts}, seed, complement
    )
    masks = {}
    for name, parts in choose_parts(giver.parameters, layers, modules).items():
        inside = [part for part in parts if part.tensor.rsplit(".", 1)[0] in drawn]
        if inside:
            masks[name] = giver.mask_of(name, merged(giver.parameters[name], inside))
    if not masks:
        raise InterpError(
            f"layers={layers!r} and modules={modules!r} choose nothing that is reset: embedding, "
            f"head and final norm always stay, and of one module of one layer only half the seeds "
            f"take it; try another seed"
        )
    return masks


def half_of_categories(parts: Iterable[Part], seed: int, complement: bool = False) -> set[str]:
    """Labels (`layers.3.q`) of half of the matrices of all blocks, category by category.

    Args:
        parts: of the checkpoint.
        seed: of the choice.
        complement: the other half.
    """
    rng = generator(seed, "reset by category")
    labels: dict[int, dict[str, set[str]]] = {}  # layer -> module (or own label) -> labels
    rest: set[str] = set()
    for part in parts:
        label = part.tensor.rsplit(".", 1)[0]
        if part.layer is None:
            continue
        if part.module in _QKVO + _MLP:
            labels.setdefault(part.layer, {}).setdefault(part.module, set()).add(label)
        else:
            rest.add(label)
    taken: set[str] = set()
    for category in (_QKVO, _MLP):
        present = {
            layer: [module for module in category if module in of]
            for layer, of in sorted(labels.items())
        }
        odd = [layer for layer, found in present.items() if len(found) % 2]
        more = {odd[i] for i in rng.permutation(len(odd))[: len(odd) // 2]}
        for layer, found in present.items():
            count = len(found) // 2 + (layer in more)
            picked = {found[i] for i in rng.permutation(len(found))[:count]}
            for module in found:
                if (module in picked) != complement:
                    taken |= labels[layer][module]
    others = sorted(rest)
    half = {others[i] for i in rng.permutation(len(others))[: len(others) // 2]}
    return taken | (rest - half if complement else half)
