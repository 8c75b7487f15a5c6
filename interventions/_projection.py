"""The down projection of a block, as a linear memory from keys to values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp import Delta, InterpError, LowRank, Model, Site
from interp._anatomy import Block
from interp._edit.parameters import named_parameters
from interp._experts import ExpertPort
from interp._forward import run
from interp._hooked import ports_of
from interp._ports import ModulePort
from interp._reading import reading
from interventions._rewrite import Row

_ROWS = 64  # sequences a forward


@dataclass(frozen=True)
class Projection:
    """`W` of one block's MLP: its input is a key, what it adds to its output a value.

    Args:
        layer: from 0.
        parameter: the weight's name.
        transposed: whether the weight is stored [in out] (GPT-2's Conv1D).
        input: reads its input, the neurons.
        output: reads and writes its output, before any norm or multiplier.
        block: the block it is in.
    """

    layer: int
    parameter: str
    transposed: bool
    input: ModulePort
    output: ModulePort
    block: Block

    def delta(
        self, left: Float[Tensor, "d_model rank"], right: Float[Tensor, "rank d_mlp"]
    ) -> Delta:
        """`W + left @ right`, as the weight is stored."""
        change = LowRank(right.T, left.T) if self.transposed else LowRank(left, right)
        return Delta(self.parameter, change)


def projection(model: Model, layer: int) -> Projection:
    """The down projection of a layer.

    Raises:
        InterpError: no such layer, a mixture of experts, a projection that is no plain matrix.
    """
    n_layers = model.anatomy.n_layers
    if not -n_layers <= layer < n_layers:
        raise InterpError(f"layer {layer}: this model has layers 0 to {n_layers - 1}")
    site = Site("mlp_post", layer % n_layers)
    port = ports_of(model, site)[site]
    if isinstance(port, ExpertPort):
        raise InterpError(
            f"layer {site.layer} of this model is a mixture of experts: a token's key goes to "
            f"several down projections, so no one matrix holds its value; choose a dense layer, "
            f"or iv.localised_finetuning of another projection"
        )
    assert isinstance(port, ModulePort)
    down = port.module
    name = next((n for n, p in named_parameters(model.module).items() if p.owner is down), None)
    if name is None or not isinstance(down, nn.Linear | Conv1D):
        raise InterpError(
            f"the down projection of layer {site.layer} is a {type(down).__name__} and no plain "
            f"matrix; merge the adapter first (merge_and_unload)"
        )
    parameter = name.rsplit(".", 1)[0] + ".weight"
    output = replace(port, side="output", fragile=True)  # Falcon adds attention onto it in place
    block = model.anatomy.blocks[site.layer or 0]
    return Projection(site.layer or 0, parameter, isinstance(down, Conv1D), port, output, block)


def keys_and_outputs(
    model: Model, at: Projection, rows: Sequence[Row]
) -> tuple[Float[Tensor, "row d_mlp"], Float[Tensor, "row d_model"]]:
    """What a projection reads and gives at each row's position, in float64 on the CPU."""
    keys: list[Tensor] = []
    outputs: list[Tensor] = []
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        batch = model.batch([list(row.ids) for row in some])
        where = torch.arange(len(some)), torch.tensor([row.at for row in some])

        with ExitStack() as stack:
            stack.enter_context(reading(model))
            stack.enter_context(at.input.attach(_keeper(keys, where), reads=True))
            stack.enter_context(at.output.attach(_keeper(outputs, where), reads=True))
            run(model.module, batch.inputs)
    return torch.cat(keys).double(), torch.cat(outputs).double()


def _keeper(kept: list[Tensor], where: tuple[Tensor, Tensor]) -> Callable[[Tensor, Site], None]:
    """Appends what stands at (row, column) of whatever passes."""

    def keep(tensor: Tensor, _site: Site) -> None:
        kept.append(tensor[where[0].to(tensor.device), where[1].to(tensor.device)].cpu())

    return keep
