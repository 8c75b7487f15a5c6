"""Published overlaps and Jaccards, and what isotropic noise through the gate gives instead."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from interp._weights.across import jaccard
from interp._weights.nulls import gated_noise, generator, normal
from interp._weights.overlap import low_mask, principal_mask
from interp._weights.svd import svd_exact

SCALES = (0.02, 0.022, 0.025, 0.028, 0.0315, 0.035)
# 2606.07082: density of changed entries, share of them among the 30 % smallest |W|.
OVERLAPS = {"SFT": (0.9273, 0.3188), "OPD": (0.4628, 0.5359), "RLVR": (0.2776, 0.7348)}
# 2511.08567, table 2: observed Jaccard, its baseline of independent masks.
JACCARDS = {
    "q": (0.580, 0.430),
    "k": (0.580, 0.413),
    "v": (0.597, 0.467),
    "o": (0.552, 0.373),
    "down": (0.585, 0.453),
    "up": (0.578, 0.443),
    "gate": (0.575, 0.437),
}


def nulls(options: Any) -> dict[str, Any]:
    """Means and spread over weight scales, one octave apart at most (the gate repeats)."""
    n = min(options.size, 1024)
    low: dict[str, list[float]] = {name: [] for name in OVERLAPS}
    high: dict[str, list[float]] = {name: [] for name in OVERLAPS}
    shared: dict[str, list[float]] = {name: [] for name in JACCARDS}
    for scale in SCALES:
        w = (scale * normal((n, n), generator(0, scale))).bfloat16().float()
        small = low_mask(w, 0.3, generator(1, scale))
        principal = principal_mask(w, svd_exact(w, 64), 64, 0.3)
        for name, (density, _) in OVERLAPS.items():
            mask = gated_noise(w, round(density * n * n), generator(2, scale, name))[0]
            low[name].append(int((small & mask).sum()) / int(mask.sum()))
            high[name].append(int((principal & mask).sum()) / int(mask.sum()))
        for name, (_, baseline) in JACCARDS.items():
            count = round(2 * baseline / (1 + baseline) * n * n)
            pair = [gated_noise(w, count, generator(3, scale, name, run))[0] for run in (0, 1)]
            shared[name].append(jaccard(*pair))
    rows = {
        name: {
            "density": density,
            "published overlap, low 30 %": published,
            "noise": mean(low[name]),
            "spread over scales": stdev(low[name]),
            "noise, principal 30 %": mean(high[name]),
        }
        for name, (density, published) in OVERLAPS.items()
    }
    pairs = {
        name: {
            "published Jaccard": observed,
            "independent masks": baseline,
            "noise": mean(shared[name]),
            "spread over scales": stdev(shared[name]),
            "share of the excess that noise explains": (mean(shared[name]) - baseline)
            / (observed - baseline),
        }
        for name, (observed, baseline) in JACCARDS.items()
    }
    return {"size": n, "overlaps": rows, "jaccards": pairs}
