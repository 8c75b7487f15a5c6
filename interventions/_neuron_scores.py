"""How much each neuron does for a model's predictions, by several measures."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

import interp
from interp import InterpError, Model
from interp._batch import Batch

NeuronScore = Literal[
    "integrated_gradients", "gradient_x_activation", "activation", "wanda", "random"
]


def neuron_scores(
    model: Model,
    batch: Batch,
    score: NeuronScore,
    *,
    target: Any = "prob",
    nodes: int = 16,
    seed: int = 0,
) -> Float[Tensor, "layer d_mlp"]:
    """The mean over prompts of each neuron's score at the last position, neurons as `mlp_post`.

    `integrated_gradients` and `gradient_x_activation`: what the neuron adds to the target, signed;
    `activation`: |a_j|; `wanda`: ||W_:j|| |a_j|, the size of what it writes (the column norm of
    the down projection; after Wanda, Sun et al. 2023, arXiv 2306.11695); `random`: uniform numbers.

    Raises:
        InterpError: an unknown score; layers of different width, or of experts.
    """
    if score not in get_args(NeuronScore):
        raise InterpError(f"score={score!r}: expected one of {', '.join(get_args(NeuronScore))}")
    _require_dense(model)
    if score in ("integrated_gradients", "gradient_x_activation"):
        found = interp.attribute(model, batch, target, "mlp_post", method=score, nodes=nodes)
        return torch.stack([found[site].float().mean(dim=0) for site in found.sites])
    widths = [_down(block).shape[1] for block in model.anatomy.blocks]
    if score == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(len(widths), widths[0], generator=generator)
    acts = interp.capture(model, batch, "mlp_post.*", positions="last")
    sizes = acts.stack("mlp_post")[:, :, 0].float().abs().mean(dim=1)
    if score == "activation":
        return sizes
    norms = torch.stack([_down(block).float().norm(dim=0) for block in model.anatomy.blocks])
    return sizes * norms.cpu()


def _down(block: Any) -> Tensor:
    """The down projection as [d_model d_mlp]."""
    from transformers.pytorch_utils import Conv1D

    weight = block.down.weight.detach()
    return weight.T if isinstance(block.down, Conv1D) else weight


def _require_dense(model: Model) -> None:
    for block in model.anatomy.blocks:
        if block.down is None or (block.experts is not None and block.mlp is not None):
            raise InterpError(
                f"block {block.index} is a mixture of experts, whose neurons see different tokens "
                f"and cannot be ranked together; choose them by hand: iv.prune_neurons("
                f"{{{block.index}: [(expert, neuron), ...]}})"
            )
    widths = {_down(block).shape[1] for block in model.anatomy.blocks}
    if len(widths) > 1:
        raise InterpError(f"the layers have {sorted(widths)} neurons; a common width was expected")
