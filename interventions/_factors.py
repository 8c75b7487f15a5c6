"""Low-rank factors of some matrices while they are learned, added to their modules' output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp import Delta, Edit, InterpError, LowRank, Model
from interp._edit.applied import adding_to_output
from interp._edit.parameters import Parameter, find
from interventions._choose import Layers, Modules, choose
from interventions._weights import open_weights


@dataclass
class Factors:
    """LoRA factors of some matrices while they are learned, added to their modules' output."""

    at: dict[str, Parameter]
    learned: dict[str, tuple[Tensor, Tensor]]  # of the matrix as it is stored
    scale: float

    @staticmethod
    def begin(
        model: Model, layers: Layers, modules: Modules, rank: int, scale: float, seed: int
    ) -> Factors:
        """Random at the input's side, 0 at the output's: no change at first."""
        weights = open_weights(model)
        generator = torch.Generator().manual_seed(seed)
        at: dict[str, Parameter] = {}
        learned: dict[str, tuple[Tensor, Tensor]] = {}
        for name in choose(weights.parameters, layers, modules):
            shape = tuple(weights.parameters[name].source.shape)
            if len(shape) != 2 or not name.endswith("weight"):
                continue
            nothing = LowRank(torch.zeros(shape[0], 1), torch.zeros(1, shape[1]))
            at[name] = find(model.module, name, nothing)
            if not isinstance(at[name].owner, nn.Linear | Conv1D):
                del at[name]
                continue
            inputs = shape[0] if isinstance(at[name].owner, Conv1D) else shape[1]
            outputs = shape[1] if isinstance(at[name].owner, Conv1D) else shape[0]
            home = at[name].tensor.device
            drawn = (2 * torch.rand(rank, inputs, generator=generator) - 1) / inputs**0.5
            zeros = torch.zeros(rank, outputs)
            sides = (drawn.T, zeros) if isinstance(at[name].owner, Conv1D) else (zeros.T, drawn)
            left, right = (s.contiguous().to(home).requires_grad_() for s in sides)
            learned[name] = (left, right)
        if not at:
            raise InterpError("none of the chosen modules is a matrix of its own; choose others")
        return Factors(at, learned, scale)

    @property
    def named(self) -> dict[str, Tensor]:
        """All that is learned."""
        return {
            f"{name}/{side}": tensor
            for name, sides in self.learned.items()
            for side, tensor in zip(("left", "right"), sides, strict=True)
        }

    @property
    def sides(self) -> list[Tensor]:
        """The same without names."""
        return list(self.named.values())

    @contextmanager
    def on(self) -> Iterator[None]:
        """The changes on the model, with gradients to the factors."""
        with ExitStack() as stack:
            for name, (left, right) in self.learned.items():
                change = Delta(name, LowRank(self.scale * left, right))
                stack.enter_context(adding_to_output(self.at[name], change))
            yield

    def edit(self) -> Edit:
        """The changes as they are now; matrices that never moved are left out."""
        atoms = []
        for name, (left, right) in self.learned.items():
            kept = (self.scale * left).detach().cpu().clone(), right.detach().cpu().clone()
            if bool(kept[0].any()) and bool(kept[1].any()):
                atoms.append(Delta(name, LowRank(*kept)))
        return Edit(atoms)

    def write(self) -> None:
        """Nothing to do: the model adds what is learned as it is."""

    def state(self) -> dict[str, Tensor]:
        """A copy of all that is learned."""
        return {name: tensor.detach().clone() for name, tensor in self.named.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Back to a copy."""
        for name, tensor in self.named.items():
            tensor.copy_(state[name])
