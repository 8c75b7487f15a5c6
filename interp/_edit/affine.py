"""An affine map on a site: one of the two atoms that every edit is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp._edit.clock import Positions, check_positions
from interp._errors import InterpError, UnsupportedSite, nearest
from interp._site import KINDS, Site

HEAD_SITES = ("q", "k", "v", "z")
NEURON_SITES = ("mlp_post",)
WRITABLE = tuple(kind for kind in KINDS if kind not in ("pattern", "head_out"))

Index = tuple[int, ...] | tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False, init=False)
class Affine:
    """`y = scale * x + shift` on chosen units of a site, at chosen positions.

    A unit is a head at `q k v z` and a neuron at `mlp_post`; elsewhere there are none and the map
    acts on the whole stream. Ablation (scale 0, perhaps with a mean as shift), head edits, neuron
    pruning and steering are all this.

    Args:
        site: one site, such as `"z.3"`.
        index: the units, or None for all: heads; neurons; (expert, neuron) pairs where the layer
            is a mixture of experts.
        scale: [] or [unit] or, at heads, [unit d_head]; on a stream [] or [d_model].
        shift: None, or [width] (the same for every chosen unit), [unit width] or
            [batch pos unit width], where width is d_head and there is no such axis for neurons; on
            a stream [d_model] or [batch pos d_model]. With batch and pos, row i belongs to prompt i
            and pos counts real tokens from the prompt's start.
        positions: `"all"`, `"prompt"`, `"last"` (the prompt's last token), `"generated"`, or token
            indices from the prompt's start, negative from its end. They never move while a
            continuation grows.

    Raises:
        InterpError: an unknown or read-only site, units where there are none, a unit twice, shapes
            that do not fit each other, NaN or infinity.

    Examples:
        >>> Affine("z.3", (5,), scale=0.0)
        Affine(z.3, head 5: scale 0)
        >>> 0.5 * Affine("z.3", (5,), scale=0.0)
        Affine(z.3, head 5: scale 0.5)
    """

    site: Site
    index: Index | None
    scale: Tensor
    shift: Tensor | None
    positions: Positions

    def __init__(
        self,
        site: str | Site,
        index: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
        scale: int | float | Tensor | Sequence[Any] = 1.0,
        shift: int | float | Tensor | Sequence[Any] | None = None,
        positions: str | int | Sequence[int] = "all",
    ) -> None:
        put = object.__setattr__
        put(self, "site", Site.parse(site))
        if self.site.kind not in WRITABLE:
            raise UnsupportedSite(
                f"{self.site} can be read but not edited; "
                f"{nearest(self.site.kind, WRITABLE)} (a head is scaled or shifted exactly at z)"
            )
        if self.site.layer is not None and self.site.layer < 0:
            raise InterpError(
                f"{self.site}: an edit does not know how many layers a model has, so its layers "
                f"count from 0"
            )
        put(self, "index", None if index is None else _units(self.site, index))
        put(self, "scale", _finite(scale, f"the scale at {self.site}"))
        put(self, "shift", None if shift is None else _finite(shift, f"the shift at {self.site}"))
        put(self, "positions", check_positions(positions))
        self._check_shapes()

    @property
    def heads(self) -> bool:
        """Whether the site's units are heads, each with a width of its own."""
        return self.site.kind in HEAD_SITES

    @property
    def per_prompt(self) -> bool:
        """Whether the shift differs from prompt to prompt and token to token."""
        return self.shift is not None and self.shift.ndim > (2 if self.heads else 1)

    @property
    def scales(self) -> bool:
        """Whether the map multiplies at all."""
        return not bool((self.scale == 1).all())

    def times(self, t: int | float) -> Affine:
        """The change scaled: `scale -> 1 + t (scale - 1)`, `shift -> t shift`."""
        shift = None if self.shift is None else t * self.shift
        return replace(self, scale=1 + t * (self.scale - 1), shift=shift)

    __rmul__ = times

    def _check_shapes(self) -> None:
        units = None if self.index is None else len(self.index)
        axes = ("unit", "d_head") if self.heads else ("unit",) if self.units_exist else ("d_model",)
        scale, shift = self.scale, self.shift
        if scale.ndim > len(axes):
            raise InterpError(
                f"the scale at {self.site} has shape {list(scale.shape)}; expected a number, or "
                f"axes {' '.join(axes)}"
            )
        shapes = [("scale", tuple(scale.shape))] if scale.ndim else []
        if shift is not None:
            fewest = 0 if axes == ("unit",) else 1
            if not fewest <= shift.ndim <= len(axes) + 2 or shift.ndim == len(axes) + 1:
                raise InterpError(
                    f"the shift at {self.site} has shape {list(shift.shape)}; expected axes "
                    f"{' '.join(axes)}, perhaps with batch pos before them"
                )
            if shift.ndim >= len(axes) and shift.ndim:
                shapes.append(("shift", tuple(shift.shape[-len(axes) :])))
        for name, shape in shapes:
            if units is not None and shape[0] != units:
                raise InterpError(
                    f"the {name} at {self.site} is for {shape[0]} units, but index names {units}: "
                    f"{list(self.index or ())[:8]}"
                )

    @property
    def units_exist(self) -> bool:
        """Whether the site has heads or neurons to choose from."""
        return self.site.kind in HEAD_SITES + NEURON_SITES

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Affine):
            return NotImplemented
        mine = (self.site, self.index, self.positions, self.shift is None)
        theirs = (other.site, other.index, other.positions, other.shift is None)
        return (
            mine == theirs
            and torch.equal(self.scale, other.scale)
            and (self.shift is None or other.shift is None or torch.equal(self.shift, other.shift))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Affine({self.describe()})"

    def describe(self) -> str:
        """The map in words: `z.3, head 5: scale 0, at last`."""
        what = []
        if self.scales:
            what.append(f"scale {_brief(self.scale)}")
        if self.shift is not None:
            per = " per prompt and token" if self.per_prompt else ""
            what.append(f"add norm {float(self.shift.norm()):.3g}{per}")
        where = str(self.site)
        if self.index is not None:
            noun = "head" if self.heads else "neuron"
            shown = ", ".join(str(unit) for unit in self.index[:6])
            more = f" and {len(self.index) - 6} more" if len(self.index) > 6 else ""
            where += f", {noun}{'s' if len(self.index) > 1 else ''} {shown}{more}"
        at = "" if self.positions == "all" else f", at {_where(self.positions)}"
        return f"{where}: {', '.join(what) or 'nothing'}{at}"


def _where(positions: Positions) -> str:
    return positions if isinstance(positions, str) else "tokens " + ", ".join(map(str, positions))


def _brief(scale: Tensor) -> str:
    low, high = float(scale.min()), float(scale.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _units(site: Site, index: Any) -> Index:
    if site.kind not in HEAD_SITES + NEURON_SITES:
        raise InterpError(
            f"{site} has no heads or neurons to choose from, so index={index!r} means nothing; "
            f"leave it out, and give vectors of d_model entries"
        )
    given: list[Any] = [index] if isinstance(index, int) else list(index)
    if not given:
        raise InterpError(f"index at {site} names no unit; leave it out to mean all of them")
    pairs = isinstance(given[0], Sequence)
    try:
        units = [(int(u[0]), int(u[1])) if pairs else int(u) for u in given]
    except (TypeError, ValueError, IndexError) as error:
        raise InterpError(
            f"index at {site} holds {given[:4]!r}; expected whole numbers, or (expert, neuron) "
            f"pairs in a mixture of experts"
        ) from error
    if pairs and site.kind != "mlp_post":
        raise InterpError(f"index at {site}: heads are numbers, got pairs such as {given[0]!r}")
    worst = min(min(u) if isinstance(u, tuple) else u for u in units)
    if worst < 0:
        raise InterpError(f"index at {site} names unit {worst}; units count from 0")
    if len(set(units)) < len(units):
        twice = next(u for u in units if units.count(u) > 1)
        raise InterpError(f"index at {site} names unit {twice} twice")
    return tuple(units)  # type: ignore[return-value]


def _finite(value: Any, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach().to("cpu", torch.float32).clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InterpError(f"{what} is {type(value).__name__}; expected numbers") from error
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise InterpError(f"{what} holds {bad} entries that are NaN or infinite")
    return tensor
