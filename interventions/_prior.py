"""A direction in weights that gradients lean towards, and what an edit moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import Edit, InterpError, Model
from interp._edit.change import wide
from interp._edit.parameters import named_parameters
from interp._errors import nearest


def moved(edit: Edit, name: str, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """What an edit adds to a parameter, its deltas one after another.

    Raises:
        InterpError: a change of another shape.
    """
    now = weight
    for delta in edit.deltas:
        if delta.parameter != name:
            continue
        if tuple(delta.change.shape) != tuple(weight.shape):
            raise InterpError(
                f"the edit changes {name} of shape {list(delta.change.shape)}, and here it has "
                f"shape {list(weight.shape)}: it was made for another model"
            )
        now = delta.change.applied_to(now)
    return now - weight


@dataclass
class Prior:
    """Unit vectors D / |D| over the chosen entries of each parameter, and their pull."""

    edit: Edit
    named: set[str]
    pull: float
    at: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # places, unit vector

    @staticmethod
    def of(model: Model, edit: Edit, masked: Iterable[str], pull: int | float) -> Prior:
        """Checked against the model and the parameters masked."""
        if edit.affines:
            raise InterpError(
                "prior changes activations; it must be a change of weights, such as iv.task_vector"
            )
        parameters = named_parameters(model.module)
        named = {delta.parameter for delta in edit.deltas}
        for name in named - parameters.keys():
            raise InterpError(f"prior changes {name!r}; {nearest(name, parameters)}")
        if not named & set(masked):
            raise InterpError(
                "prior changes none of the parameters that the mask names, so it would do nothing"
            )
        for delta in edit.deltas:
            shape = tuple(parameters[delta.parameter].tensor.shape)
            if tuple(delta.change.shape) != shape:
                raise InterpError(
                    f"prior changes {delta.parameter} of shape {list(delta.change.shape)}, and "
                    f"here it has shape {list(shape)}: it was made for another model"
                )
        return Prior(edit, named, float(pull))

    @torch.no_grad()
    def bend(
        self,
        name: str,
        gradient: Float[Tensor, " entry"],
        places: Int[Tensor, " entry"],
        before: Callable[[str], Float[Tensor, "..."]],
    ) -> None:
        """In place, g <- g - a |g| D / |D| with a = pull (1 + cos(g, D)) / 2.

        D is what the edit moves in the weights as they were before the training.
        """
        if name not in self.named:
            return
        if name not in self.at or not torch.equal(self.at[name][0], places):
            self.at[name] = places, self._unit(name, before(name), places)
        unit, size = self.at[name][1], gradient.norm()
        if bool(size > 0):
            gradient -= self.pull * (1 + gradient @ unit / size) / 2 * size * unit

    def _unit(self, name: str, weight: Tensor, places: Tensor) -> Tensor:
        change = moved(self.edit, name, weight.to(wide(weight.dtype))).reshape(-1)[places]
        norm = change.norm()
        return change / norm if bool(norm > 0) else change
