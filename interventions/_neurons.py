"""Edits of single neurons of the MLPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interp import Affine, Edit, InterpError, Site


def prune_neurons(
    neurons: Mapping[int, Sequence[int] | Sequence[tuple[int, int]]], *, positions: Any = "all"
) -> Edit:
    """Set neurons to zero at the input of the down projection: `mlp_post[j] -> 0`.

    The same as deleting their rows of gate and up and their columns of down, which is what baking
    does.

    Args:
        neurons: layer -> neurons; (expert, neuron) pairs where the layer is a mixture of experts.
        positions: as for `Affine`.

    Examples:
        >>> iv.prune_neurons({1: [12, 40]})
        Edit(mlp_post.1, neurons 12, 40: scale 0)
    """
    if not isinstance(neurons, Mapping):
        raise InterpError("expected a mapping from layer to neurons, such as {7: [12, 40]}")
    return Edit(
        tuple(
            Affine(Site("mlp_post", int(layer)), tuple(chosen), scale=0.0, positions=positions)  # type: ignore[arg-type]
            for layer, chosen in neurons.items()
            if len(chosen)
        )
    )
