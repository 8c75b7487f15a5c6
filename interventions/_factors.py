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
from interp._edit.parameters import Parameter, find, named_parameters
from interventions._choose import Block, Layers, Modules, choose
from interventions._weights import open_weights


class LowRankChanges:
    """Low-rank changes of some matrices while they are learned, added to their modules' output.

    What holds them has `at`, the matrices, `named`, all that is learned, and says of a matrix its
    `change` and whether it has `moved`.
    """

    at: dict[str, Parameter]
    named: Mapping[str, Tensor]

    def change(self, name: str) -> LowRank:
        """The change of one matrix as it is now, with gradients to what is learned."""
        raise NotImplementedError

    def moved(self, name: str) -> bool:
        """Whether that change is one."""
        raise NotImplementedError

    @contextmanager
    def on(self) -> Iterator[None]:
        """The changes on the model, with gradients to what is learned."""
        with ExitStack() as stack:
            for name, parameter in self.at.items():
                stack.enter_context(adding_to_output(parameter, Delta(name, self.change(name))))
            yield

    def edit(self) -> Edit:
        """The changes as they are now; matrices that never moved are left out."""
        atoms = []
        for name in self.at:
            if self.moved(name):
                change = self.change(name)
                kept = (side.detach().cpu().clone() for side in (change.left, change.right))
                atoms.append(Delta(name, LowRank(*kept)))
        return Edit(atoms)

    def write(self) -> None:
        """Nothing to write: the model reads what is learned as it is."""

    def state(self) -> dict[str, Tensor]:
        """A copy of all that is learned."""
        return {name: tensor.detach().clone() for name, tensor in self.named.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Back to a copy."""
        for name, tensor in self.named.items():
            tensor.copy_(state[name])


@dataclass
class Factors(LowRankChanges):
    """LoRA factors: left and right of each matrix.

    Args:
        at: the matrices.
        learned: left and right of each as it is stored.
        within: which rows and columns of it they may change.
        scale: of their product.
        skipped: what was chosen and is no matrix of a module of its own, such as experts.
    """

    at: dict[str, Parameter]
    learned: dict[str, tuple[Tensor, Tensor]]
    within: dict[str, Block]
    scale: float
    skipped: list[str]

    @staticmethod
    def begin(
        model: Model, layers: Layers, modules: Modules, rank: int, scale: float, seed: int
    ) -> Factors:
        """Random at the input's side, 0 at the output's: no change at first."""
        weights = open_weights(model)
        parameters = named_parameters(model.module)
        generator = torch.Generator().manual_seed(seed)
        factors = Factors({}, {}, {}, scale, [])
        for name, block in choose(weights.parameters, layers, modules).items():
            shape = tuple(weights.parameters[name].source.shape)
            if len(shape) < 2:
                continue  # a bias
            own = len(shape) == 2 and name.endswith(".weight")
            if not own or not isinstance(parameters[name].owner, nn.Linear | Conv1D):
                factors.skipped.append(name)
                continue
            nothing = LowRank(torch.zeros(shape[0], 1), torch.zeros(1, shape[1]))
            at = factors.at[name] = find(model.module, name, nothing, parameters)
            inputs, outputs = shape if isinstance(at.owner, Conv1D) else shape[::-1]
            drawn = (2 * torch.rand(rank, inputs, generator=generator) - 1) / inputs**0.5
            zeros = torch.zeros(rank, outputs)
            sides = (drawn.T, zeros) if isinstance(at.owner, Conv1D) else (zeros.T, drawn)
            home = at.tensor.device
            left, right = (s.contiguous().to(home).requires_grad_() for s in sides)
            factors.learned[name] = left, right
            factors.within[name] = block
        if not factors.at:
            raise InterpError("none of the chosen modules is a matrix of its own; choose others")
        return factors

    @property
    def named(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Both sides of every matrix."""
        return {
            f"{name}/{side}": tensor
            for name, sides in self.learned.items()
            for side, tensor in zip(("left", "right"), sides, strict=True)
        }

    @property
    def sides(self) -> list[Tensor]:
        """The same without names."""
        return list(self.named.values())

    def change(self, name: str) -> LowRank:
        """Their product, in the rows and columns chosen."""
        left, right = self.learned[name]
        return self.within[name].low_rank(self.scale * left, right)

    def moved(self, name: str) -> bool:
        """Whether neither side is 0."""
        return all(bool(side.any()) for side in self.learned[name])
