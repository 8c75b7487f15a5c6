"""Leave out the edited heads that dev does without."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from interp import Affine, Edit, InterpError, Model
from interp._model import as_model
from interp._selfcheck import evaluating
from interventions._examples import Example, answered, encode
from interventions._head_gates import HeadGates

Head = tuple[int, int]


def thin_head_edits(
    model: Model | nn.Module,
    found: HeadGates,
    dev: Sequence[Example],
    groups: Sequence[object] | None = None,
    *,
    end: bool = True,
) -> HeadGates:
    """The fewest of the edited heads whose cost on dev is within one standard error of the least.

    Heads are left out one after another, first the one whose absence alone costs least; the cost of
    what remains is the mean of -log p(completion), in nats, over groups, and its standard error is
    their standard deviation / sqrt(groups). Nothing is trained. An open gate is no proof that its
    head is needed: its price's slope is as P(open)(1 - P(open)), next to nothing once it is open.

    Args:
        model: that the edit was learned on.
        found: what `find_head_edits` returned.
        dev: (prompt, completion) pairs; they choose, so they are no test of what is returned.
        groups: of each pair, such as the person asked about; by default each is its own.
        end: whether the tokenizer's EOS counts after each completion, as in training.

    Returns:
        HeadGates: the gates of all others 0; `meta["thinned"]` has a row a state on the way, its
        `heads cost error`, and the head left out there.

    Raises:
        InterpError: no pairs, or not as many groups.

    Examples:
        >>> data = [("Question: Where does Mia live? Answer:", " Arlen")] * 8
        >>> found = iv.find_head_edits(model, data, epochs=20, gate_lr=0.5)
        >>> needed = iv.thin_head_edits(model, found, data)
        >>> set(needed.heads) <= set(found.heads)
        True

    Source: ours. Backward elimination in one pass, with the rule by which a lasso's penalty is
    chosen (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 7.10).
    """
    handle = as_model(model)
    named = list(range(len(dev))) if groups is None else list(groups)
    if len(named) != len(dev):
        raise InterpError(f"{len(named)} groups for {len(dev)} pairs; expected one each")
    encoded = encode(handle, dev, end=end)

    def cost(kept: Collection[Head]) -> tuple[float, float]:
        with _only(found.edit, kept).applied(handle), evaluating(handle.module):
            return _clustered([-nats for nats in answered(handle, encoded)[1]], named)

    heads = found.heads
    alone = {head: cost([h for h in heads if h != head])[0] for head in heads}
    order = sorted(heads, key=lambda head: alone[head])
    states = [order[dropped:] for dropped in range(len(order) + 1)]
    costs = [cost(kept) for kept in states]
    least, error = min(costs)
    last = max(i for i, (mean, _) in enumerate(costs) if mean <= least + error)
    told = [
        {
            "heads": len(kept),
            "cost": mean,
            "error": of_mean,
            "without": list(gone) if gone else None,
        }
        for kept, (mean, of_mean), gone in zip(states, costs, [None, *order], strict=True)
    ]
    return HeadGates(
        replace(_only(found.edit, states[last]), made_on=found.edit.made_on),
        _masked(found.additive, states[last]),
        _masked(found.multiplicative, states[last]),
        found.history,
        found.meta | {"thinned": told},
    )


def _only(edit: Edit, heads: Collection[Head]) -> Edit:
    """The edit of some of its heads."""
    atoms = []
    for atom in edit.affines:
        index = [int(head) for head in atom.index or ()]  # type: ignore[arg-type]
        at = [i for i, head in enumerate(index) if (atom.site.layer, head) in heads]
        if at and atom.shift is not None:
            atoms.append(Affine(atom.site, [index[i] for i in at], atom.scale[at], atom.shift[at]))
    return Edit(atoms, notes=edit.notes)


def _masked(gates: Tensor, heads: Collection[Head]) -> Tensor:
    kept = torch.zeros_like(gates)  # NaN where there is no such head stays
    for head in heads:
        kept[head] = 1.0
    return gates * kept


def _clustered(values: Sequence[float], groups: Sequence[object]) -> tuple[float, float]:
    """Mean over groups of their means, and its standard error; 0 of a single group."""
    members: dict[object, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    means = [statistics.fmean(some) for some in members.values()]
    error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0
    return statistics.fmean(means), error
