"""Figures of a diff: heat map layer x module, trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_ORDER = ["q", "k", "v", "o", "gate", "up", "down", "router", "norm", "embed", "positions", "head"]


def draw_heat_map(table: pd.DataFrame, metric: str, title: str, ax: Axes | None) -> Axes:
    """Modules in rows, layers in columns; embedding and head are not in a layer and left out."""
    ax = _axes(ax)
    inside = table[table["layer"].notna()]
    modules = _modules(inside)
    layers = sorted({int(layer) for layer in inside["layer"]})
    grid = np.full((len(modules), len(layers)), np.nan)
    for row in inside[["module", "layer", metric]].itertuples(index=False):
        grid[modules.index(row[0]), layers.index(int(row[1]))] = row[2]
    image = ax.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest")
    step = max(1, len(layers) // 12)
    ax.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    ax.set_yticks(range(len(modules)), modules)
    ax.set_xlabel("layer")
    ax.set_title(f"{metric.replace('_', ' ')}: {title}")
    ax.figure.colorbar(image, ax=ax, shrink=0.9)
    return ax


def draw_trajectory(
    table: pd.DataFrame, metric: str, tuned: Sequence[str], ax: Axes | None
) -> Axes:
    """One line a module over checkpoints, the mean over layers with their range shaded."""
    ax = _axes(ax)
    inside = table[table["layer"].notna()]
    at = np.arange(len(tuned))
    for module in _modules(inside):
        rows = inside[inside["module"] == module]
        groups = [rows[rows["tuned"] == label][metric].to_numpy(dtype=float) for label in tuned]
        mean = [g.mean() if len(g) else np.nan for g in groups]
        (line,) = ax.plot(at, mean, marker="o", label=module)
        low = [g.min() if len(g) else np.nan for g in groups]
        high = [g.max() if len(g) else np.nan for g in groups]
        ax.fill_between(at, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    ax.set_xticks(at, list(tuned))
    ax.set_ylabel(metric.replace("_", " "))
    ax.legend(frameon=False, ncols=2)
    return ax


def _modules(table: pd.DataFrame) -> list[str]:
    present = list(dict.fromkeys(table["module"]))
    known = [module for module in _ORDER if module in present]
    return known + [module for module in present if module not in known]


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, 4), layout="constrained")[1]


def draw_beside_null(table: pd.DataFrame, metric: str, ax: Axes | None) -> Axes:
    """A metric over layers, one line a module, and its null dashed in the same colour."""
    ax = _axes(ax)
    inside = table[table["layer"].notna()]
    for module in _modules(inside):
        rows = inside[inside["module"] == module].groupby("layer").mean(numeric_only=True)
        (line,) = ax.plot(rows.index.to_numpy(dtype=float), rows[metric], marker="o", label=module)
        if f"{metric}_null" in rows:
            null = rows[f"{metric}_null"]
            at = rows.index.to_numpy(dtype=float)
            ax.plot(at, null, color=line.get_color(), linestyle="--", linewidth=1)
    ax.set_xlabel("layer")
    ax.locator_params(axis="x", integer=True)
    ax.set_ylabel(metric.replace("_", " "))
    ax.set_title(f"{metric.replace('_', ' ')} (solid) and its null (dashed)")
    ax.legend(frameon=False, ncols=2)
    return ax
