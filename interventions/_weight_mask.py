"""Which entries of which parameters: what a tuning may move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp import Delta, Edit, InterpError, Sparse
from interp._record import load_record, save_record
from interp._weights.nulls import generator, normal

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class WeightMask:
    """Chosen entries of some parameters, kept as their places: eight bytes an entry.

    Args:
        index: for each parameter, places in the flattened tensor, ascending, each once.
        shapes: of those parameters.
        notes: how it was made, as plain JSON.

    Examples:
        >>> mask = iv.principal_mask(model, share=0.05)
        >>> mask.save("masks/principal")
        >>> iv.WeightMask.load("masks/principal") == mask
        True
    """

    index: Mapping[str, Int[Tensor, " entry"]]
    shapes: Mapping[str, tuple[int, ...]]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.index) != set(self.shapes):
            raise InterpError("a mask has one shape for each parameter it names")
        for name, places in self.index.items():
            numel = torch.Size(self.shapes[name]).numel()
            if places.dtype != torch.int64 or places.ndim != 1:
                raise InterpError(
                    f"the mask of {name} is {places.dtype} {list(places.shape)}; expected int64 "
                    f"places in the flattened tensor (WeightMask.of takes bool tensors)"
                )
            rising = bool((places[1:] > places[:-1]).all())
            if len(places) and not (rising and int(places[0]) >= 0 and int(places[-1]) < numel):
                raise InterpError(
                    f"the mask of {name} does not name entries 0 to {numel - 1} in order, each once"
                )

    @staticmethod
    def of(masks: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> WeightMask:
        """From bool tensors by parameter."""
        odd = next((name for name, mask in masks.items() if mask.dtype != torch.bool), None)
        if odd is not None:
            raise InterpError(f"the mask of {odd} is {masks[odd].dtype}; expected torch.bool")
        index = {name: mask.flatten().nonzero()[:, 0].cpu() for name, mask in masks.items()}
        return WeightMask(index, {n: tuple(m.shape) for n, m in masks.items()}, dict(notes or {}))

    @property
    def count(self) -> int:
        """Entries chosen."""
        return sum(len(places) for places in self.index.values())

    @property
    def share(self) -> float:
        """Entries chosen, of all entries of the parameters named."""
        numel = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        return self.count / numel if numel else 0.0

    def dense(self, name: str) -> Bool[Tensor, "..."]:
        """One parameter's mask as a bool tensor of its shape."""
        mask = torch.zeros(torch.Size(self.shapes[name]).numel(), dtype=torch.bool)
        mask[self.index[name]] = True
        return mask.view(self.shapes[name])

    def complement(self) -> WeightMask:
        """The other entries of the same parameters."""
        masks = {name: ~self.dense(name) for name in self.index}
        return WeightMask.of(masks, {"complement": dict(self.notes)})

    def noise(self, scale: int | float, seed: int = 0) -> Edit:
        """Gaussian noise of standard deviation `scale` on the chosen entries.

        How much a model suffers says what the entries matter (LIFT's test of a mask, Liu et al.
        2025, arXiv 2506.00772); compare masks of the same count.

        Examples:
            >>> harm = interp.side_effects(model, iv.principal_mask(model).noise(0.01), texts)
        """
        atoms = []
        for name, places in self.index.items():
            drawn = normal((len(places),), generator(seed, "mask noise", name))
            atoms.append(Delta(name, Sparse(places, scale * drawn, self.shapes[name])))
        return Edit(atoms, notes={"noise": {"scale": scale, "seed": seed, "on": dict(self.notes)}})

    def overlap(self, other: WeightMask) -> float:
        """Jaccard index: entries in both, of the entries in either; by chance s t / (s + t - s t).

        s and t are the two shares, where the masks name the same parameters.
        """
        both = (self & other).count
        return both / (self.count + other.count - both) if self.count + other.count else 1.0

    def table(self) -> pd.DataFrame:
        """A row for each parameter: `parameter count numel share`."""
        import pandas as pd

        rows = []
        for name, places in self.index.items():
            numel = torch.Size(self.shapes[name]).numel()
            count = len(places)
            rows.append({"parameter": name, "count": count, "numel": numel, "share": count / numel})
        return pd.DataFrame(rows, columns=["parameter", "count", "numel", "share"])

    def save(self, path: str | Path) -> Path:
        """Write a folder that `WeightMask.load` reads back."""
        shapes = {name: list(self.shapes[name]) for name in self.index}  # the order of `load`
        meta = {"shapes": shapes, "notes": dict(self.notes)}
        return save_record(path, "weight_mask", dict(self.index), meta, self.table())

    @staticmethod
    def load(path: str | Path) -> WeightMask:
        """Read what `save` wrote.

        Raises:
            InterpError: no mask there, or a damaged one.
        """
        tensors, meta = load_record(path, "weight_mask")
        try:
            shapes = {str(n): tuple(int(s) for s in shape) for n, shape in meta["shapes"].items()}
            notes = dict(meta["notes"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InterpError(f"{path} is damaged: {error}; write the mask anew") from error
        # A file holds its tensors by name, layer 10 before layer 2; meta.json keeps the order.
        index = {name: tensors[name] for name in shapes if name in tensors} | tensors
        return WeightMask(index, shapes, notes)

    def __and__(self, other: WeightMask) -> WeightMask:
        """Entries in both, of the parameters that both name."""
        self._check(other)
        names = [name for name in self.index if name in other.index]
        index = {n: self.index[n][torch.isin(self.index[n], other.index[n])] for n in names}
        notes = {"both": [dict(self.notes), dict(other.notes)]}
        return WeightMask(index, {name: self.shapes[name] for name in names}, notes)

    def __or__(self, other: WeightMask) -> WeightMask:
        """Entries in either."""
        self._check(other)
        shapes = {**self.shapes, **other.shapes}
        none = torch.zeros(0, dtype=torch.int64)
        index = {
            name: torch.cat([self.index.get(name, none), other.index.get(name, none)]).unique()
            for name in shapes
        }
        return WeightMask(index, shapes, {"either": [dict(self.notes), dict(other.notes)]})

    def _check(self, other: WeightMask) -> None:
        for name in self.index:
            if name in other.shapes and self.shapes[name] != other.shapes[name]:
                raise InterpError(
                    f"{name} has shape {list(self.shapes[name])} in one mask and "
                    f"{list(other.shapes[name])} in the other: they are of different models"
                )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WeightMask):
            return NotImplemented
        return dict(self.shapes) == dict(other.shapes) and all(
            torch.equal(places, other.index[name]) for name, places in self.index.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        how = next(iter(self.notes), "mask")
        return f"WeightMask({how}: {self.count} entries of {len(self.index)} parameters)"
