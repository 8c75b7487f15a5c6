"""Figures of an attribution, in matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interp._errors import InterpError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from interp._attribution import Attribution


def draw(one: Attribution, ax: Axes | None) -> Axes:
    """An attribution of one row: heads as a map, all other units as sums for each layer."""
    kinds = {site.kind for site in one.values}
    if len(kinds) != 1:
        raise InterpError(
            f"a figure shows one kind of site, and this has {', '.join(sorted(kinds))}; attribute "
            f"them apart, or plot .summary()"
        )
    return _heads(one, ax) if kinds == {"z"} else _layers(one, ax)


def _heads(one: Attribution, ax: Axes | None) -> Axes:
    """Layer x head: what each head adds, its units summed."""
    values = [value[0].double() for value in one.values.values()]
    heads = torch.stack([v if v.ndim == 1 else v.sum(-1) for v in values]).numpy()
    n_layers, n_heads = heads.shape
    ax = _axes(ax, max(4.0, 0.4 * n_heads + 2), max(3.0, 0.35 * n_layers + 1.2))
    limit = float(abs(heads).max()) or 1.0
    image = ax.imshow(heads, origin="lower", aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set_xticks(range(n_heads))
    ax.set_yticks(range(n_layers), [str(site.layer) for site in one.values])
    ax.set(xlabel="head", ylabel="layer")
    ax.figure.colorbar(image, ax=ax, label=f"adds to the {_target(one)}", pad=0.01)
    return ax


def _layers(one: Attribution, ax: Axes | None) -> Axes:
    """For each layer the sum of what speaks for the target, of what speaks against it, and both."""
    table = one.summary()
    places = range(len(table))
    ax = _axes(ax, max(5.0, 0.5 * len(table) + 1.5), 3.4)
    ax.bar(places, table["positive"], color="#4c78a8", label="units that add")
    ax.bar(places, table["negative"], color="#e45756", label="units that take away")
    ax.plot(places, table["total"], "o", color="black", label="all together")
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set_xticks(places, [str(layer) for layer in table["layer"]])
    ax.set(xlabel=f"layer ({next(iter(one.values)).kind})", ylabel=f"adds to the {_target(one)}")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _target(one: Attribution) -> str:
    return str(one.meta.get("target", "target")).replace("_", " ")


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]
