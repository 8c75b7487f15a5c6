"""Low-rank changes of weights: given as factors, or as the folder of a LoRA adapter."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp import Delta, Edit, InterpError, LowRank, Model, Towards
from interp._weights.lora import LowRank as Factors
from interp._weights.parameters import Assembled
from interp._weights.stored import Stored, whole
from interventions._choose import Block
from interventions._weights import Source, Weights, open_weights


def low_rank(
    parameter: str, left: Float[Tensor, "rows rank"], right: Float[Tensor, "rank columns"]
) -> Edit:
    """Add a low-rank matrix to one parameter: `W -> W + left @ right`.

    Args:
        parameter: its name in the state dict; [rows columns] as it is stored, so [out in] for a
            Linear and [in out] for GPT-2's Conv1D.
        left: [rows rank].
        right: [rank columns].

    Examples:
        >>> name = "model.layers.2.mlp.down_proj.weight"
        >>> iv.low_rank(name, torch.randn(128, 1), torch.randn(1, 384))
        Edit(model.layers.2.mlp.down_proj.weight: rank 1)
    """
    return Edit([Delta(parameter, LowRank(left, right))])


def lora(adapter: str | Path, base: Source) -> Edit:
    """A LoRA adapter as an edit: `W -> W + scale * B A`, and whole weights where it keeps such.

    The scale is `alpha / r` (`alpha / sqrt(r)` with rsLoRA). `0.5 * lora(...)` applies half of it,
    `interp.bake` writes it into the weights without peft.

    Args:
        adapter: a folder that peft wrote.
        base: the checkpoint it was trained on: a folder, a hub id or a model in memory.

    Raises:
        InterpError: no plain LoRA adapter, one that does not fit the base.

    Warns:
        UserWarning: the adapter names another base than this one; a folder's name says which.

    Examples:
        >>> edit = iv.lora("adapter/", "base/")
        >>> with edit.applied(module):
        ...     logits = module(input_ids).logits

    Source: Hu et al. 2021 (arXiv 2106.09685).
    """
    start = open_weights(base)
    end = open_weights(adapter, start)
    if not end.adapter:
        raise InterpError(
            f"{adapter} holds a whole checkpoint and no adapter; its difference from the base is "
            f"iv.task_vector({str(adapter)!r}, base)"
        )
    trained_on = _trained_on(Path(end.checkpoint.source))
    if trained_on and not _is(trained_on, base):
        warnings.warn(
            f"{adapter} says that it was trained on {trained_on!r}, and this base is "
            f"{_named(base)!r}; if those are two checkpoints, it is a change of other weights",
            stacklevel=2,
        )
    everything = dict.fromkeys(start.parameters, Block())
    atoms = adapter_atoms(end, start, everything, _replaced)
    made_on = () if start.identity is None else (start.identity,)
    names = {"adapter": end.name, "base": start.name, "trained on": trained_on}
    return Edit(atoms, made_on, {"lora": names})


def adapter_atoms(
    end: Weights,
    start: Weights,
    chosen: Mapping[str, Block],
    replaced: Callable[[Weights, Weights, str, Block], Delta],
) -> list[Delta]:
    """The atoms of an opened adapter: low-rank ones, and those of the tensors it replaces whole."""
    kept = {id(stored) for stored in start.checkpoint.tensors.values()}
    atoms = []
    for name, block in chosen.items():
        held = end.parameters[name]
        if held.low_rank is not None:
            atoms.append(Delta(name, block.low_rank(*_factors(held.low_rank))))
        elif not all(id(stored) in kept for stored in _stored(held.source)):
            atoms.append(replaced(end, start, name, block))
    return atoms


def _trained_on(folder: Path) -> str | None:
    """The base that an adapter names."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config.get("base_model_name_or_path") or None


def _is(told: str, base: Source) -> bool:
    """Whether a base may be the one told of: by its name, its folder's, or that of a hub's copy."""
    named = _named(base)
    same_folder = Path(named).name == Path(told).name
    return not named or named == told or same_folder or told.replace("/", "--") in named


def _named(base: Source) -> str:
    """A checkpoint's own name; nothing for a module that was never on disk."""
    if isinstance(base, Model | nn.Module):
        module = base.module if isinstance(base, Model) else base
        return str(getattr(module, "name_or_path", "") or "")
    return str(base)


def _replaced(end: Weights, start: Weights, name: str, block: Block) -> Delta:
    return Delta(name, Towards(end.value(name), mask=start.mask_of(name, block)))


def _factors(change: Factors) -> tuple[Tensor, Tensor]:
    """Left and right of an adapter's change of a matrix as it is stored."""
    a, b = whole(change.a).to(torch.float32), whole(change.b).to(torch.float32)
    return (change.scale * a.T, b.T) if change.transposed else (change.scale * b, a)


def _stored(source: Stored | Assembled) -> list[Stored]:
    return [source] if isinstance(source, Stored) else [stored for _, stored, _ in source.pieces]
