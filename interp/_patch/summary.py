"""Patch effects as tables: one row each, over prompts, and approximate beside exact."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp._errors import InterpError
from interp._patch.plan import HEADS

if TYPE_CHECKING:
    import pandas as pd

    from interp._patch.effects import PatchEffects


def tidy(effects: PatchEffects) -> pd.DataFrame:
    """A row for each prompt and patch."""
    import pandas as pd

    columns: dict[str, list[Any]] = defaultdict(list)
    for name, value in effects.score.items():
        prompt, span, _ = (axis.ravel() for axis in np.indices(value.shape))
        columns["prompt"] += prompt.tolist()
        for key, labels in _labels(effects, name).items():
            columns[key] += labels * len(value)
        at = [[p[0] if len(p) == 1 else None for p in row] for row in effects.positions]
        columns["position"] += [at[p][s] for p, s in zip(prompt, span, strict=True)]
        columns["score"] += value.flatten().tolist()
        columns["normalised"] += effects.normalise(value).flatten().tolist()
        if effects.exact:
            columns["exact"] += effects.exact[name].flatten().tolist()
    order = ["prompt", "site", "layer", "span", "position", "head", "neurons"]
    order += ["score", "normalised", "exact"]
    frame = pd.DataFrame({key: columns[key] for key in order if key in columns})
    return _whole_numbers(frame[frame["score"].notna()].reset_index(drop=True))


def summarise(effects: PatchEffects, clusters: list[Any] | None) -> pd.DataFrame:
    """Means over prompts with Student's interval over clusters."""
    import pandas as pd

    n_prompts = len(effects.clean)
    named = list(range(n_prompts)) if clusters is None else list(clusters)
    if len(named) != n_prompts:
        raise InterpError(f"{len(named)} clusters for {n_prompts} prompts")
    _, index = np.unique([str(one) for one in named], return_inverse=True)
    columns: dict[str, list[Any]] = defaultdict(list)
    for name, value in effects.score.items():
        for key, labels in _labels(effects, name).items():
            columns[key] += labels
        scores = value.double().flatten(1)
        there = ~scores.isnan()
        mean, low, high = _student(scores.numpy(), index)
        columns["prompts"] += there.sum(0).tolist()
        columns["score"] += mean.tolist()
        columns["low"] += low.tolist()
        columns["high"] += high.tolist()
        columns["normalised"] += effects.over_prompts(scores).tolist()
    order = ["site", "layer", "span", "head", "neurons", "prompts"]
    order += ["score", "low", "high", "normalised"]
    frame = pd.DataFrame({key: columns[key] for key in order if key in columns})
    return _whole_numbers(frame[frame["prompts"] > 0].reset_index(drop=True))


def agreement(effects: PatchEffects) -> pd.DataFrame:
    """Approximate against exact effects, by kind of site."""
    import pandas as pd

    if not effects.exact:
        raise InterpError(
            "no exact scores to compare with; patch with method='attribution' and compare=True, "
            "or compare=200 for that many patches drawn at random"
        )
    start = (effects.corrupted if effects.meta["direction"] == "denoising" else effects.clean).view(
        -1, 1, 1
    )
    rows = []
    for kind in effects.kinds():
        names = [name for name in effects.score if name.split(".")[0] == kind]
        exact = torch.cat([(effects.exact[n] - start).flatten() for n in names]).double()
        found = torch.cat([(effects.score[n] - start).flatten() for n in names]).double()
        both = ~(exact.isnan() | found.isnan())
        exact, found = exact[both], found[both]
        rows.append(
            {
                "site": kind,
                "n": len(exact),
                "pearson": _correlation(found, exact),
                "spearman": _correlation(_ranks(found), _ranks(exact)),
                "mean_error": float((found - exact).abs().mean()),
                "max_error": float((found - exact).abs().max()) if len(exact) else float("nan"),
                "scale": float(exact.abs().mean()),
            }
        )
    return pd.DataFrame(rows)


def _labels(effects: PatchEffects, name: str) -> dict[str, list[Any]]:
    """What names each patch of a site, one entry for each (span, unit)."""
    _, n_spans, n_units = effects.score[name].shape
    kind, _, layer = name.partition(".")
    heads = any(other.split(".")[0] in HEADS for other in effects.score)
    neurons = any(effects.units[n] for n in effects.score if n.split(".")[0] == "mlp_post")
    members: list[Any] = [group[0] if len(group) == 1 else " ".join(map(str, group)) for group in
               effects.units[name]] or [None]  # fmt: skip
    size = n_spans * n_units
    labels: dict[str, list[Any]] = {"site": [name] * size}
    if not effects.joint:
        labels["layer"] = [int(layer)] * size
        labels["span"] = [span for span in effects.spans for _ in range(n_units)]
        if heads:
            labels["head"] = (members if kind in HEADS else [None]) * (size // len(members))
        if neurons:
            labels["neurons"] = (members if kind == "mlp_post" else [None]) * (size // len(members))
    return labels


def _whole_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of numbers with gaps as pandas' own integers; groups stay text."""
    for name in ("layer", "position", "head", "neurons"):
        if name in frame and not any(isinstance(value, str) for value in frame[name]):
            frame[name] = frame[name].astype("Int64")
    return frame


def _student(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over rows and its interval over clusters (a ratio of sums, linearised), by column."""
    from scipy.stats import t

    there = ~np.isnan(values)
    members = clusters == np.arange(clusters.max() + 1)[:, None]  # [cluster row]
    sums, counts = members @ np.where(there, values, 0.0), members @ there.astype(float)
    n = (counts > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / counts.sum(0)
        residuals = (sums - mean * counts) / (counts.sum(0) / n)
        error = np.sqrt(np.square(residuals).sum(0) / (n - 1) / n)
        half = t.ppf(0.975, np.maximum(n - 1, 1)) * error
    half = np.where(n > 1, half, np.nan)
    return mean, mean - half, mean + half


def _correlation(one: Tensor, other: Tensor) -> float:
    if len(one) < 2 or float(one.std()) == 0 or float(other.std()) == 0:
        return float("nan")
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    """Mean ranks, ties shared."""
    _, index, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[index]
