"""Scores of held-out predictions, with intervals in which groups and not rows are the evidence."""

from __future__ import annotations

import numpy as np

from interp._estimate import FEW, _exact


def draws(units: np.ndarray, n: int, seed: int) -> np.ndarray:
    """How often each row counts in each bootstrap draw of whole groups: [draw row]."""
    _, units = np.unique(units, return_inverse=True)
    total = int(units.max()) + 1
    rng = np.random.default_rng(seed)
    picked = rng.multinomial(total, np.full(total, 1 / total), size=n)
    return picked[:, units].astype(np.float64)


def weighted_balanced_accuracy(
    correct: np.ndarray, codes: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """[draw]: mean over classes of the weighted recall; NaN where a class was not drawn."""
    recalls = []
    for label in np.unique(codes):
        own = codes == label
        with np.errstate(invalid="ignore", divide="ignore"):
            recalls.append(weights[:, own] @ correct[own] / weights[:, own].sum(axis=1))
    return np.mean(recalls, axis=0)


def auroc(
    scores: np.ndarray, codes: np.ndarray, folds: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """[draw]: how often a member of a class scores above a non-member, ties half.

    Pairs within a fold only, since scores of different folds come from different probes. With
    several classes the mean over classes, each against the rest.

    Args:
        scores: [row width].
        codes: [row].
        folds: [row].
        weights: [draw row].
    """
    columns = [1] if scores.shape[1] == 1 else range(scores.shape[1])
    found = []
    for place, label in enumerate(columns):
        hits, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            rows = rows[np.argsort(scores[rows, place], kind="stable")]
            values, here = scores[rows, place], weights[:, rows]
            member = codes[rows] == label
            below = np.zeros((len(weights), len(rows) + 1))
            np.cumsum(here * ~member, axis=1, out=below[:, 1:])
            own = values[member]
            less = below[:, np.searchsorted(values, own, "left")]
            upto = below[:, np.searchsorted(values, own, "right")]
            hits += (here[:, member] * (less + upto)).sum(axis=1) / 2
            pairs += here[:, member].sum(axis=1) * below[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(hits / pairs)
    return np.mean(found, axis=0)


def interval(
    value: float, drawn: np.ndarray, groups_by_class: np.ndarray, n_groups: int, *, pairs: bool
) -> tuple[float, float]:
    """95 % interval: the bootstrap's percentiles, or an exact one where groups are few.

    Below thirty groups in some class, or where no draw differs, percentiles are too narrow. Then
    Clopper and Pearson's, for as many trials as would give the mean of the classes' recalls its
    variance; for AUROC (`pairs`) as many as the rarest class has groups.
    """
    if groups_by_class.min() >= FEW and np.nanmax(drawn) > np.nanmin(drawn):
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        return float(low), float(high)
    trials = groups_by_class.min()
    if not pairs:
        trials = min(n_groups, len(groups_by_class) ** 2 / (1 / groups_by_class).sum())
    return _exact(value, max(1, int(trials)), (0.0, 1.0))
