"""Matrices put together by (layer, module), and what may be said of them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_SHARES = ("unchanged", "sparsity", "sign_flips")
_SKIP = ("dtype", "dtype_base", "svd", "alignment_n", "rows_added", "numel")


def by_module(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each (tuned, layer, module): weight matrices only, experts together."""
    import pandas as pd

    kept = frame[frame["tensor"].str.endswith(".weight")]
    rows = []
    for (tuned, layer, module), group in kept.groupby(
        ["tuned", "layer", "module"], dropna=False, sort=False
    ):
        rows.append({"tuned": tuned, "layer": layer, "module": module, **_together(group)})
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def _together(group: pd.DataFrame) -> dict[str, Any]:
    numel = int(group["numel"].sum())
    norm = math.sqrt((group["norm"] ** 2).sum())
    a = math.sqrt((group["norm_base"] ** 2).sum())
    row: dict[str, Any] = {
        "numel": numel,
        "norm": norm,
        "relative_norm": norm / a if a else math.nan,
        "rms": norm / math.sqrt(numel),
        "norm_base": a,
        "max_abs": float(group["max_abs"].max()),
    }
    products = group["norm_base"] * group["norm_tuned"]
    b = math.sqrt((group["norm_tuned"] ** 2).sum())
    if a and b:
        dots = ((1 - group["cosine_distance"].fillna(1)) * products).sum()
        row["cosine"] = float(dots / (a * b))
    for share in _SHARES:
        row[share] = float((group[share] * group["numel"]).sum() / numel)
    others = group.select_dtypes("number").columns
    for column in others:
        summed = column in row or column in ("layer", "head", "expert", *_SKIP)
        if not summed and not re.search(r"(^|_)z(_|$)|norm|nonfinite|cosine", column):
            row[column] = float(group[column].mean())
    return row


def findings(table: pd.DataFrame) -> list[str]:
    """Of each tuned checkpoint how far it moved, then a sentence for each metric with a null.

    That says how many matrices lie outside their null: "above" or "below" only where |z| >= 3. To
    lie within says nothing of the size of a change, only that noise would look the same.
    """
    metrics = [c.removesuffix("_z") for c in table.columns if c.endswith("_z")]
    sentences = []
    for tuned, group in table.groupby("tuned", sort=False):
        if "relative_norm" in group:
            sentences.append(f"{tuned}: {_moved(group)}")
        for metric in metrics:
            z = group[f"{metric}_z"].dropna().to_numpy(dtype=float)
            if len(z) == 0:
                continue
            value = float(np.nanmean(group[metric]))
            null = float(np.nanmean(group[f"{metric}_null"]))
            above, below = int((z >= 3).sum()), int((z <= -3).sum())
            says = f"{tuned}: {metric} {value:.3f}, null {null:.3f}"
            if above + below == 0:
                says += f"; no more than {_null(metric)} gives (|z| < 3 in all {len(z)} matrices)"
            else:
                says += f"; |z| >= 3 in {above} (above) and {below} (below) of {len(z)} matrices"
            sentences.append(says)
    return sentences


def _moved(group: pd.DataFrame) -> str:
    """||D|| / ||W|| over all tensors together, and of the module where it is largest."""
    known = group[group["norm"].notna()]  # rows that a vocabulary gained have nothing to move from
    changed = int((known["norm"] > 0).sum())
    if changed == 0:
        return f"equal to the base in all {len(known)} tensors"
    shares = {
        str(name): _relative(part)
        for name, part in known.groupby("module", sort=False, dropna=False)
    }
    most = max(shares, key=lambda name: shares[name])
    return (
        f"the weights moved by {100 * _relative(known):.2g} % of their norm, {most} most "
        f"({100 * shares[most]:.2g} %); {changed} of {len(known)} tensors changed"
    )


def _relative(rows: pd.DataFrame) -> float:
    norm, base = (math.sqrt((rows[name] ** 2).sum()) for name in ("norm", "norm_base"))
    return norm / base if base else math.inf if norm else 0.0


def _null(metric: str) -> str:
    """What the plain null of a metric is made of, in words."""
    if metric == "sparsity":
        return "noise of this norm"
    gated = metric.startswith(("overlap", "jaccard", "consensus", "row_", "column_"))
    return "noise of this density" if gated else "its null"
