"""A change of one tensor of the weights: the other atom that every edit is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp._edit.change import Change, Dense, LowRank, Sparse, Towards, same_change
from interp._errors import InterpError


@dataclass(frozen=True, eq=False, init=False)
class Delta:
    """`W -> W + change` for one parameter, in float32 and rounded once to the weight's dtype.

    Args:
        parameter: its name in the state dict, `"model.layers.3.mlp.down_proj.weight"` (the plain
            model's, also when peft has wrapped it).
        change: a `Dense`, `LowRank`, `Sparse` or `Towards`; a bare tensor means `Dense`.
        untie: a tied tensor is one parameter and moves at both ends; True moves only the end that
            is named. Of a tensor that is not tied it says nothing.

    Raises:
        InterpError: an empty name, NaN or infinity in the change.

    Examples:
        >>> Delta("lm_head.weight", LowRank(torch.ones(7, 1), torch.ones(1, 4)))
        Delta(lm_head.weight: rank 1)
    """

    parameter: str
    change: Change
    untie: bool

    def __init__(self, parameter: str, change: Change | Tensor, untie: bool = False) -> None:
        put = object.__setattr__
        put(self, "parameter", parameter)
        put(self, "change", Dense(change.detach()) if isinstance(change, Tensor) else change)
        put(self, "untie", untie)
        if not self.parameter or not isinstance(self.parameter, str):
            raise InterpError(f"a Delta needs a parameter's name, got {self.parameter!r}")
        if not isinstance(self.change, Change):
            raise InterpError(
                f"the change of {self.parameter} is {type(self.change).__name__}; expected a "
                f"tensor, Dense, LowRank, Sparse or Towards"
            )
        for name, value in _held(self.change).items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                bad = int((~value.isfinite()).sum())
                raise InterpError(
                    f"the change of {self.parameter} holds {bad} entries that are NaN or infinite "
                    f"(in {name})"
                )

    def times(self, t: int | float) -> Delta:
        """The same change `t` times as large."""
        return replace(self, change=self.change.times(t))

    __rmul__ = times

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Delta):
            return NotImplemented
        return (self.parameter, self.untie) == (other.parameter, other.untie) and same_change(
            self.change, other.change
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Delta({self.describe()})"

    def describe(self) -> str:
        """The change in words: `lm_head.weight: rank 1`."""
        change = self.change
        if isinstance(change, LowRank):
            what = f"rank {change.left.shape[1]}"
        elif isinstance(change, Sparse):
            share = len(change.index) / max(1, torch.Size(change.shape).numel())
            what = f"{len(change.index)} entries ({share:.2g} of it)"
        elif isinstance(change, Towards):
            part = "" if change.mask is None else f", {float(change.mask.float().mean()):.2g} of it"
            what = f"{change.amount:.3g} of the way to a target{part}"
        elif isinstance(change, Dense):
            what = "dense" if change.factor == 1 else f"dense times {change.factor:.3g}"
        else:
            what = type(change).__name__
        return f"{self.parameter}: {what}{', untied' if self.untie else ''}"


def _held(change: Change) -> dict[str, Tensor]:
    """The tensors of a change that are in memory: what lies on disk was checked when written."""
    found = {}
    for name in ("values", "minus", "left", "right", "target"):
        value = getattr(change, name, None)
        if isinstance(value, Tensor):
            found[name] = value
    return found
