"""Transplants: layers, modules or heads of a model replaced by those of another checkpoint."""

from __future__ import annotations

from pathlib import Path

from interp import Delta, Edit, InterpError, Towards
from interp._weights.checkpoint import local_folder
from interp._weights.lora import is_adapter
from interventions._choose import Heads, Layers, Modules, choose
from interventions._compatible import require_compatible
from interventions._weights import Source, Weights, open_weights


def transplant(
    source: Source,
    *,
    layers: Layers = None,
    modules: Modules = None,
    heads: Heads = None,
    onto: Source | None = None,
    allow_distant: bool = False,
) -> Edit:
    """Put chosen weights of another checkpoint into a model, bit for bit: `W -> W_source`.

    `t * transplant(...)` goes t of the way. Folders are read when the edit is applied, one tensor
    at a time. A target in bfloat16 gets the source rounded to bfloat16.

    Args:
        source: the giver: a folder, a hub id or a model in memory.
        layers: of the blocks, such as `[3, 4]`; None for all, and for what is in no block.
        modules: `q k v o gate up down embed head norm`, or `attn`, `mlp`.
        heads: (layer, head) pairs instead of layers: their rows of q, k and v with biases, and
            their columns of o. Where several heads share keys and values (grouped queries), k and v
            stay unless `modules` names them, and then move for the whole group.
        onto: the receiver, where it should be checked beforehand that the two are states of one
            model; the edit then belongs to it.
        allow_distant: as for `task_vector`; for `onto`.

    Returns:
        An Edit with one atom a parameter.

    Raises:
        InterpError: a layer, module or head that is not there; with `onto`, checkpoints that do not
            correspond.

    Examples:
        >>> edit = iv.transplant("rl/", layers=[2, 3], modules="mlp")
        >>> with edit.applied(model):
        ...     logits = model.module(input_ids).logits
        >>> iv.transplant("rl/", heads=[(1, 0)])
        Edit(model.layers.1.self_attn.q_proj.weight: 1 of the way to a target, 0.12 of it; \
model.layers.1.self_attn.o_proj.weight: 1 of the way to a target, 0.12 of it)
    """
    giver = open_giver(source)
    chosen = choose(giver.parameters, layers, modules, heads)
    atoms = [
        Delta(name, Towards(giver.value(name), mask=giver.mask_of(name, block)))
        for name, block in chosen.items()
    ]
    edit = Edit(atoms, notes={"transplant": {"source": giver.name}})
    return edit if onto is None else belonging_to(edit, giver, onto, allow_distant=allow_distant)


def open_giver(source: Source) -> Weights:
    """A checkpoint whose own bits are wanted, so no adapter."""
    if isinstance(source, str | Path) and is_adapter(local_folder(source)):
        raise InterpError(
            f"{source} holds a LoRA adapter, which is a change and no weights to put in place; use "
            f"iv.lora({str(source)!r}, base)"
        )
    return open_weights(source)


def belonging_to(edit: Edit, giver: Weights, onto: Source, *, allow_distant: bool) -> Edit:
    """The edit after its giver was compared with its receiver, whose identity it now bears."""
    receiver = open_weights(onto)
    names = [delta.parameter for delta in edit.deltas]
    require_compatible(giver, receiver, names, allow_distant=allow_distant)
    made_on = () if receiver.identity is None else (receiver.identity,)
    return Edit(edit.atoms, made_on, edit.notes)
