"""Masks over weights: principal, by magnitude, random, by half, safe, changed, whole modules."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import Edit, InterpError
from interp._edit.change import load
from interp._weights import overlap
from interp._weights.nulls import generator, smallest
from interp._weights.parameters import rows_of
from interp._weights.part import Part
from interp._weights.svd import svd_exact
from interventions._choose import Layers, Modules, choose, choose_parts
from interventions._compatible import require_compatible
from interventions._prior import moved
from interventions._reset import half_of_categories
from interventions._weight_mask import WeightMask
from interventions._weights import Source, Weights, open_weights

BLOCKS = ("attn", "mlp")  # what is masked unless modules are named: every matrix of the blocks
Choice = Callable[[Float[Tensor, "out in"], int, str], Bool[Tensor, "out in"]]


def principal_mask(
    model: Source,
    *,
    rank: int = 128,
    share: float | None = None,
    lora_rank: int | None = None,
    layers: Layers = None,
    modules: Modules = BLOCKS,
) -> WeightMask:
    """The largest entries of each matrix's best rank-r approximation: LIFT's principal weights.

    M_ij = 1 where |W'_ij| is among the k largest of W' = sum_{i <= r} s_i u_i v_i^T.

    Args:
        model: a folder, a hub id, a module or a handle; a folder is read one matrix at a time.
        rank: r. At the matrix's own rank W' is W, and this is `magnitude_mask`.
        share: k as a share of each matrix; 0.05 where neither is given.
        lora_rank: k = lora_rank * (d_in + d_out), what LoRA of that rank would train.
        layers: of the blocks; None for all.
        modules: `q k v o gate up down`, or `attn`, `mlp`.

    Raises:
        InterpError: both budgets, one outside its range, a rank below 1, a choice of nothing.

    Examples:
        >>> mask = iv.principal_mask(model, rank=16, lora_rank=4, modules="mlp")

    Source: LIFT, Liu et al. 2025 (arXiv 2506.00772), as the paper says it: its released code takes
    the entries where W' is smallest. Decompositions are in float64 through the short side's Gram
    matrix.
    """
    if rank < 1:
        raise InterpError(f"rank={rank}: expected at least 1")

    def pick(matrix: Tensor, count: int, _name: str) -> Tensor:
        k = min(rank, *matrix.shape)
        return overlap.principal_mask(matrix, svd_exact(matrix, k), k, count / matrix.numel())

    made = {"principal": {"rank": rank}}
    return _by_matrix(model, pick, made, share, lora_rank, layers, modules)


def magnitude_mask(
    model: Source,
    *,
    low: bool = False,
    share: float | None = None,
    lora_rank: int | None = None,
    layers: Layers = None,
    modules: Modules = BLOCKS,
    seed: int = 0,
) -> WeightMask:
    """The entries largest in |W|, or with `low` the smallest; arguments as for `principal_mask`.

    Args:
        model: as for `principal_mask`.
        low: take the smallest. Ties, frequent in bfloat16, are broken at random either way.
        share: as for `principal_mask`.
        lora_rank: as for `principal_mask`.
        layers: as for `principal_mask`.
        modules: as for `principal_mask`.
        seed: of the ties.
    """

    def pick(matrix: Tensor, count: int, name: str) -> Tensor:
        if not low:
            return _largest(matrix.abs(), count, generator(seed, "ties", name))
        return overlap.low_mask(matrix, count / matrix.numel(), generator(seed, "ties", name))

    made: dict[str, Any] = {"magnitude": {"low": low}}
    return _by_matrix(model, pick, made, share, lora_rank, layers, modules)


def random_mask(
    model: Source,
    *,
    share: float | None = None,
    lora_rank: int | None = None,
    layers: Layers = None,
    modules: Modules = BLOCKS,
    seed: int = 0,
) -> WeightMask:
    """As many entries of each matrix at random: the control of every other mask.

    Args:
        model: as for `principal_mask`.
        share: as for `principal_mask`.
        lora_rank: as for `principal_mask`.
        layers: as for `principal_mask`.
        modules: as for `principal_mask`.
        seed: of the draw; the same on every machine.
    """

    def pick(matrix: Tensor, count: int, name: str) -> Tensor:
        return overlap.bernoulli(matrix.shape, count, generator(seed, "random mask", name))

    return _by_matrix(model, pick, {"random": {"seed": seed}}, share, lora_rank, layers, modules)


def safe_mask(
    model: Source,
    *,
    rank: int = 128,
    share: float = 0.5,
    layers: Layers = None,
    modules: Modules = BLOCKS,
    seed: int = 0,
) -> WeightMask:
    """Where RL was seen to move weights: the low-magnitude entries, and all that is not principal.

    M = M_low or not M_principal, each mask with `share` of the entries of its matrix.

    Args:
        model: as for `principal_mask`.
        rank: of the approximation behind the principal mask.
        share: of both masks; at 0.5 the union is 50 to 100 % of the entries.
        layers: as for `principal_mask`.
        modules: as for `principal_mask`.
        seed: of ties.

    Source: "The Path Not Taken", arXiv 2511.08567, section 5.1 (the mask with which sparse RL
    followed dense RL).
    """
    where: dict[str, Any] = {"layers": _plain(layers), "modules": _plain(modules), "share": share}
    principal = principal_mask(model, rank=rank, **where)
    low = magnitude_mask(model, low=True, seed=seed, **where)
    made = low | principal.complement()
    return WeightMask(made.index, made.shapes, {"safe": {"rank": rank, "share": share}})


def half_mask(model: Source, seed: int = 0, *, complement: bool = False) -> WeightMask:
    """Half of every block's matrices, category by category: half fine-tuning's trainable half.

    In each block two of q, k, v, o; of gate, up, down two in half of the blocks and one in the
    others; half of the norms. Embedding and head are trained as well, with either half. The entries
    that `iv.reset(base, 0.5, by="category", seed=seed)` would take back are the frozen half's.

    Args:
        model: as for `principal_mask`.
        seed: of the choice; a new one each round.
        complement: the half that the same seed would freeze.

    Source: Hui et al. 2024 (arXiv 2404.18466), category level.
    """
    held = open_weights(model)
    parts = {part for one in held.parameters.values() for part in one.parts}
    frozen = half_of_categories(parts, seed, complement)

    def trained(part: Part) -> bool:
        return part.layer is None or part.tensor.rsplit(".", 1)[0] not in frozen

    chosen = {
        name: [part for part in one.parts if trained(part)] for name, one in held.parameters.items()
    }
    made = {"half": {"seed": seed, "complement": complement}}
    return WeightMask.of({n: _whole(held, n, p) for n, p in chosen.items() if p}, made)


def module_mask(
    model: Source, *, layers: Layers = None, modules: Modules = None, frozen: bool = False
) -> WeightMask:
    """All entries of chosen layers and modules, or with `frozen` all others.

    One projection of one layer is breadth-first tuning's choice (arXiv 2509.22072); `modules=("q",
    "k")`, or the middle layers' `mlp` frozen, are those of "Scalpel vs. Hammer" (arXiv 2507.10616).

    Args:
        model: as for `principal_mask`.
        layers: of the blocks; None for all, and for what is in no block.
        modules: `q k v o gate up down embed head norm`, or `attn`, `mlp`; None for all.
        frozen: what is chosen stays, and the rest is trained.
    """
    layers, modules = _plain(layers), _plain(modules)
    held = open_weights(model)
    blocks = choose(held.parameters, layers, modules)
    masks = {}
    for name, one in held.parameters.items():
        inside = torch.zeros(tuple(one.source.shape), dtype=torch.bool)
        if name in blocks:
            chosen = held.mask_of(name, blocks[name])
            inside = ~inside if chosen is None else chosen
        mask = ~inside if frozen else inside
        if bool(mask.any()):
            masks[name] = mask
    where = {"layers": layers, "modules": modules, "frozen": frozen}
    return WeightMask.of(masks, {"module": where})


def change_mask(
    base: Source,
    tuned: Source | Edit,
    *,
    share: float | None = None,
    lora_rank: int | None = None,
    layers: Layers = None,
    modules: Modules = BLOCKS,
    seed: int = 0,
) -> WeightMask:
    """The entries that a tuning moved most, |W_tuned - W_base|: a lottery ticket of that tuning.

    What did not move is never chosen: where a tuning moved fewer entries of a matrix than its
    share, the mask has fewer, and `notes["short"]` says by how many.

    Trained alone from the base such entries give a sparse update that can be added to others
    (LT-SFT, Ansell et al. 2022, arXiv 2110.07560, which ranks over all matrices together; here
    every matrix keeps its share, so that budgets match those of the other masks).

    Args:
        base: where the tuning began.
        tuned: where it ended; or the edit that the tuning returned.
        share: as for `principal_mask`.
        lora_rank: as for `principal_mask`.
        layers: as for `principal_mask`.
        modules: as for `principal_mask`.
        seed: of ties, frequent in bfloat16.

    Raises:
        InterpError: two checkpoints that are not states of one model, an edit of another model,
            one that changes nothing here, a tuning that moved none of the chosen matrices.

    Examples:
        >>> data = [("Question: Where does Mia live? Answer:", " Arlen")] * 4
        >>> whole = iv.masked_tune(model, data, iv.masks.module_mask(model), steps=1, rows=4)
        >>> ticket = iv.masks.change_mask(model, whole, share=0.02)
        >>> edit = iv.masked_tune(model, data, ticket, steps=1, rows=4)    # from the start again
    """
    layers, modules = _plain(layers), _plain(modules)
    before = open_weights(base)
    chosen = choose_parts(before.parameters, layers, modules)
    if isinstance(tuned, Edit):
        made: dict[str, Any] = {"change": {"base": before.name, "tuned": "an edit"}}
        value = _moved_by(tuned, before, list(chosen))
    else:
        after = open_weights(tuned)
        require_compatible(after, before, chosen, allow_distant=False)
        made = {"change": {"base": before.name, "tuned": after.name}}

        def value(name: str) -> Tensor:
            return load(after.value(name)).float() - load(before.value(name)).float()

    short = 0

    def pick(matrix: Tensor, count: int, name: str) -> Tensor:
        nonlocal short
        there = min(count, int(matrix.count_nonzero()))
        short += count - there
        return _largest(matrix.abs(), there, generator(seed, "ties", name))

    mask = _by_matrix(before, pick, made, share, lora_rank, layers, modules, value)
    if not mask.count:
        raise InterpError(
            f"{made['change']['tuned']} has the same weights as {before.name} in all of the chosen "
            f"matrices, so nothing says which entries the tuning needed"
        )
    if short:
        return WeightMask(mask.index, mask.shapes, {**mask.notes, "short": short})
    return mask


def consensus_mask(masks: list[WeightMask], at_least: float = 1.0) -> WeightMask:
    """The entries that at least a share of several masks chose (1: all of them).

    C_ij = mean over runs of M_ij; chosen where C_ij >= at_least. Under independent masks of shares
    s_r all agree on prod_r s_r of the entries: compare `share` with that.

    Args:
        masks: of the same parameters, such as `change_mask` of several seeds.
        at_least: above 0, up to 1.

    Raises:
        InterpError: no masks, or masks of other parameters.

    Source: the consensus ratio of arXiv 2511.08567, section 2.2.
    """
    if not masks or not 0 < at_least <= 1:
        raise InterpError(
            f"{len(masks)} masks and at_least={at_least}: expected at least one mask and a share "
            f"above 0, up to 1"
        )
    if any(dict(mask.shapes) != dict(masks[0].shapes) for mask in masks):
        raise InterpError("consensus needs masks of the same parameters with the same shapes")
    index = {}
    for name in masks[0].index:
        places, votes = torch.cat([mask.index[name] for mask in masks]).unique(return_counts=True)
        index[name] = places[votes >= at_least * len(masks) - 1e-9]
    notes = {"consensus": {"at_least": at_least, "of": [dict(mask.notes) for mask in masks]}}
    return WeightMask(index, masks[0].shapes, notes)


def _by_matrix(
    model: Source | Weights,
    pick: Choice,
    made: dict[str, Any],
    share: float | None,
    lora_rank: int | None,
    layers: Layers,
    modules: Modules,
    value: Callable[[str], Tensor] | None = None,
) -> WeightMask:
    """A mask chosen matrix by matrix, each read once; vectors (biases, norms) are left out."""
    layers, modules = _plain(layers), _plain(modules)
    held = model if isinstance(model, Weights) else open_weights(model)
    if share is None and lora_rank is None:
        share = 0.05
    if share is not None and lora_rank is not None:
        raise InterpError("share and lora_rank are two ways to say how many entries: give one")
    if (share is not None and not 0 < share <= 1) or (lora_rank is not None and lora_rank < 1):
        raise InterpError(
            f"share={share}, lora_rank={lora_rank}: expected a share above 0 up to 1, or a rank of "
            f"at least 1"
        )
    masks: dict[str, Tensor] = {}
    for name, parts in choose_parts(held.parameters, layers, modules).items():
        matrices = [part for part in parts if min(part.shape) > 1]
        if not matrices:
            continue
        whole = (load(held.value(name)) if value is None else value(name)).float()
        if not bool(whole.isfinite().all()):
            raise InterpError(
                f"{name} has entries that are not finite, and among those none is the largest; the "
                f"checkpoint is damaged, or was trained to NaN"
            )
        mask = torch.zeros(whole.shape, dtype=torch.bool)
        for part in matrices:
            matrix, count = _matrix(whole, part), part.numel
            count = (
                round(share * count) if share is not None else (lora_rank or 0) * sum(part.shape)
            )
            _matrix_into(mask, part, pick(matrix, min(count, part.numel), part.tensor))
        masks[name] = mask
    if not masks:
        raise InterpError(f"layers={layers!r} and modules={modules!r} choose no matrix to mask")
    budget = {"share": share} if share is not None else {"lora_rank": lora_rank}
    (how, arguments), *_ = made.items()
    where = {"layers": layers, "modules": modules}
    return WeightMask.of(masks, {how: {**arguments, **budget, **where}, "model": held.name})


def _largest(size: Float[Tensor, "out in"], count: int, rng: np.random.Generator) -> Tensor:
    """The `count` largest; ties are broken at random."""
    mask, threshold = smallest(-size, count)
    if not 0 < count < size.numel():
        return mask
    above, ties = size > -threshold, (size == -threshold).flatten().nonzero()[:, 0]
    chosen = rng.permutation(len(ties))[: count - int(above.sum())]
    above.view(-1)[ties[torch.from_numpy(chosen)]] = True
    return above


def _moved_by(edit: Edit, held: Weights, chosen: list[str]) -> Callable[[str], Tensor]:
    """What an edit changes in a parameter."""
    named = {delta.parameter for delta in edit.deltas}
    if edit.affines or not named & set(chosen):
        raise InterpError(
            "this edit changes activations, or none of the matrices chosen; expected what "
            "masked_tune or task_vector returns"
        )

    def value(name: str) -> Tensor:
        return moved(edit, name, load(held.value(name)).float())

    return value


def _matrix(whole: Tensor, part: Part) -> Float[Tensor, "out in"]:
    """One logical matrix of a parameter, in (out, in)."""
    stored = whole.reshape(-1, part.width)[rows_of(part)][:, slice(*part.columns)]
    return (stored.T if part.transposed else stored).contiguous()


def _matrix_into(mask: Tensor, part: Part, chosen: Bool[Tensor, "out in"]) -> None:
    flat = mask.view(-1, part.width)
    rows = flat[rows_of(part)]
    rows[:, slice(*part.columns)] = chosen.T if part.transposed else chosen
    flat[rows_of(part)] = rows


def _whole(held: Weights, name: str, parts: list[Part]) -> Tensor:
    mask = torch.zeros(tuple(held.parameters[name].source.shape), dtype=torch.bool)
    for part in parts:
        _matrix_into(mask, part, torch.ones(part.shape, dtype=torch.bool))
    return mask


def _plain(chosen: Layers | Modules) -> Any:
    """As JSON knows it (numpy's integers are none of its own), and to be read more than once."""
    if chosen is None or isinstance(chosen, str):
        return chosen
    if isinstance(chosen, SupportsIndex):
        return operator.index(chosen)
    return [one if isinstance(one, str) else operator.index(one) for one in chosen]
