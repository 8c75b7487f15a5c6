"""What a weight edit does to one tensor: dense, low-rank or sparse, or a move towards another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp._errors import InterpError
from interp._weights.stored import Stored, whole


@runtime_checkable
class Unread(Protocol):
    """A tensor that is read, or drawn, when it is needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, known beforehand."""
        ...

    def read(self) -> Tensor:
        """The tensor, the same every time."""
        ...


Source = Tensor | Stored | Unread  # in memory, where it lies on disk, or to be made when needed


@runtime_checkable
class Change(Protocol):
    """A map of one tensor, `W -> W + change`, in float32 (float64 for float64 weights)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor it changes."""
        ...

    def applied_to(self, weight: Tensor) -> Tensor:
        """The changed tensor, new, in `weight`'s dtype."""
        ...

    def times(self, t: int | float) -> Change:
        """The same change `t` times as large."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What to store, by name; `change_from` reads it back."""
        ...


@dataclass(frozen=True, eq=False)
class Dense:
    """`W + factor * (values - minus)`; `values` and `minus` may lie on disk until they are needed.

    Args:
        values: [...], the shape of the tensor.
        minus: subtracted in float32 where given: a task vector is `Dense(rl, minus=sft)`.
        factor: a number.
        mask: entries that change, where not all do.
    """

    values: Source
    minus: Source | None = None
    factor: int | float = 1.0
    mask: Tensor | None = None

    def __repr__(self) -> str:
        return f"Dense({list(self.shape)}, factor {self.factor:.4g}{_masked(self.mask)})"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor it changes."""
        return tuple(self.values.shape)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The change itself."""
        change = load(self.values).to(dtype, copy=True)
        if self.minus is not None:
            change -= load(self.minus).to(dtype)
        if self.mask is not None:
            change *= self.mask
        return change if self.factor == 1.0 else change.mul_(self.factor)

    def applied_to(self, weight: Tensor) -> Tensor:
        """`W + change`, rounded once."""
        dtype = wide(weight.dtype)
        moved = (weight.to(dtype) + self.dense(dtype).to(weight.device)).to(weight.dtype)
        if self.mask is None:
            return moved
        return torch.where(self.mask.to(weight.device), moved, weight)  # -0.0 + 0.0 is 0.0

    def times(self, t: int | float) -> Dense:
        """The same change `t` times as large."""
        return Dense(self.values, self.minus, t * self.factor, self.mask)

    def tensors(self) -> dict[str, Tensor]:
        """The change as one tensor."""
        return {"dense": self.dense()}


@dataclass(frozen=True, eq=False)
class LowRank:
    """`W + left @ right`, as the tensor is stored: [rows rank] and [rank columns]."""

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != len(self.right):
            raise InterpError(
                f"a low-rank change takes left [rows rank] and right [rank columns], got "
                f"{list(self.left.shape)} and {list(self.right.shape)}"
            )

    def __repr__(self) -> str:
        return f"LowRank({list(self.shape)}, rank {self.left.shape[1]})"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor it changes."""
        return (self.left.shape[0], self.right.shape[1])

    def applied_to(self, weight: Tensor) -> Tensor:
        """`W + left @ right`, rounded once."""
        dtype = wide(weight.dtype)
        left, right = (side.to(weight.device, dtype) for side in (self.left, self.right))
        return torch.addmm(weight.to(dtype), left, right).to(weight.dtype)

    def times(self, t: int | float) -> LowRank:
        """The same change `t` times as large."""
        return LowRank(t * self.left, self.right)

    def tensors(self) -> dict[str, Tensor]:
        """The two factors."""
        return {"left": self.left, "right": self.right}


@dataclass(frozen=True, eq=False)
class Sparse:
    """`W[index] + values`: `index` counts entries of the flattened tensor."""

    index: Tensor
    values: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        numel = int(torch.Size(self.shape).numel())
        if self.index.shape != self.values.shape or self.index.ndim != 1:
            raise InterpError(
                f"a sparse change takes one index a value, got {list(self.index.shape)} and "
                f"{list(self.values.shape)}"
            )
        if self.index.is_floating_point() or self.index.dtype == torch.bool:
            raise InterpError(f"the indices of a sparse change are {self.index.dtype}, not whole")
        low, high = (int(self.index.min()), int(self.index.max())) if len(self.index) else (0, 0)
        if numel and not 0 <= low <= high < numel:
            raise InterpError(
                f"a sparse change of a tensor {list(self.shape)} names entries {low} to {high}, "
                f"outside 0 to {numel - 1}"
            )

    def __repr__(self) -> str:
        return f"Sparse({list(self.shape)}, {len(self.index)} entries)"

    def applied_to(self, weight: Tensor) -> Tensor:
        """`W` with the named entries changed, each rounded once; the others keep their bits."""
        flat = weight.detach().clone().reshape(-1)
        index = self.index.to(weight.device, torch.long)
        dtype = wide(weight.dtype)
        # Through a wide copy of the touched entries, so that an index named twice adds up twice.
        touched, place = index.unique(return_inverse=True)
        moved = flat[touched].to(dtype)
        moved.index_add_(0, place, self.values.to(weight.device, dtype))
        flat[touched] = moved.to(weight.dtype)
        return flat.view(weight.shape)

    def times(self, t: int | float) -> Sparse:
        """The same change `t` times as large."""
        return Sparse(self.index, t * self.values, self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Indices, values and shape."""
        return {
            "index": self.index,
            "values": self.values,
            "shape": torch.tensor(self.shape, dtype=torch.long),
        }


@dataclass(frozen=True, eq=False)
class Towards:
    """`W + amount * (target - W)`: a reset or a transplant, exact at amount 1.

    The one change that depends on the weight it meets. As a difference stored beforehand it would
    miss the target by a rounding, and by more on any other model.

    Args:
        target: [...], in memory or on disk.
        amount: the share of the way.
        mask: entries that move, where not all do.
    """

    target: Source
    amount: int | float = 1.0
    mask: Tensor | None = None

    def __repr__(self) -> str:
        return f"Towards({list(self.shape)}, amount {self.amount:.4g}{_masked(self.mask)})"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor it changes."""
        return tuple(self.target.shape)

    def applied_to(self, weight: Tensor) -> Tensor:
        """The target's own bits at amount 1; between the two below it."""
        target = load(self.target).to(weight.device)
        if self.amount == 1.0:
            moved = target.to(weight.dtype)
        else:
            dtype = wide(weight.dtype)
            start = weight.to(dtype)
            moved = (start + self.amount * (target.to(dtype) - start)).to(weight.dtype)
        if self.mask is None:
            return moved.clone() if moved.data_ptr() == target.data_ptr() else moved
        return torch.where(self.mask.to(weight.device), moved, weight)

    def times(self, t: int | float) -> Towards:
        """The same way, `t` times as far."""
        return Towards(self.target, t * self.amount, self.mask)

    def tensors(self) -> dict[str, Tensor]:
        """The target in its own dtype, the amount and the mask."""
        found = {
            "target": load(self.target),
            "amount": torch.tensor(self.amount, dtype=torch.float64),
        }
        return found if self.mask is None else {**found, "mask": self.mask}


def change_from(tensors: Mapping[str, Tensor]) -> Change:
    """The change that `Change.tensors` stored.

    Raises:
        InterpError: names that no change has.
    """
    names = set(tensors)
    if names == {"dense"}:
        return Dense(tensors["dense"])
    if names == {"left", "right"}:
        return LowRank(tensors["left"], tensors["right"])
    if names == {"index", "values", "shape"}:
        shape = tensors["shape"]
        if shape.ndim != 1 or shape.is_floating_point() or not 0 < len(shape) < 8:
            raise InterpError("the shape of a sparse change is not a list of sizes")
        return Sparse(tensors["index"], tensors["values"], tuple(shape.tolist()))
    if {"target", "amount"} <= names <= {"target", "amount", "mask"}:
        mask = tensors.get("mask")
        if tensors["amount"].numel() != 1 or (
            mask is not None and (mask.dtype != torch.bool or mask.shape != tensors["target"].shape)
        ):
            raise InterpError("a move towards a target takes one amount and a mask of its shape")
        return Towards(tensors["target"], float(tensors["amount"]), mask)
    raise InterpError(f"no change is stored as {sorted(names)}")


def load(source: Source) -> Tensor:
    """A tensor, read now where it lies on disk."""
    if isinstance(source, Tensor):
        return source
    return whole(source) if isinstance(source, Stored) else source.read()


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def same_change(a: Any, b: Any) -> bool:
    """Whether two changes store the same bits."""
    if type(a) is not type(b) or a.shape != b.shape:
        return False
    left, right = a.tensors(), b.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def _masked(mask: Tensor | None) -> str:
    return "" if mask is None else ", masked"
