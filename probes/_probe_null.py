"""Labels without meaning: shuffled as a null, and random ones a type as a control task."""

from __future__ import annotations

import numpy as np


def shuffled(
    codes: np.ndarray, groups: np.ndarray | None, folds: np.ndarray, n: int, seed: int
) -> np.ndarray:
    """`n` labellings that are as likely as the true one if labels say nothing: [row n].

    Where each group has one label, labels are exchanged between groups, within a fold, so that
    classes stay spread over the folds as they are (else the true labelling would be the only
    stratified one). Where labels differ within a group they are exchanged within it.
    """
    rng = np.random.default_rng(seed)
    units = np.arange(len(codes)) if groups is None else np.unique(groups, return_inverse=True)[1]
    out = np.empty((len(codes), n), dtype=codes.dtype)
    if one_label_a_group(codes, units):
        label, home = np.empty(units.max() + 1, codes.dtype), np.empty(units.max() + 1, int)
        label[units], home[units] = codes, folds
        blocks = [np.flatnonzero(home == fold) for fold in np.unique(home)]
        for number in range(n):
            drawn = label.copy()
            for block in blocks:
                drawn[block] = label[rng.permutation(block)]
            out[:, number] = drawn[units]
        return out
    blocks = [np.flatnonzero(units == unit) for unit in range(units.max() + 1)]
    for number in range(n):
        for block in blocks:
            out[block, number] = codes[rng.permutation(block)]
    return out


def one_label_a_group(codes: np.ndarray, units: np.ndarray) -> bool:
    """Whether no group has two labels."""
    pairs = np.unique(np.stack([units, codes]), axis=1).shape[1]
    return bool(pairs == len(np.unique(units)))


def control_task(
    codes: np.ndarray, types: np.ndarray, folds: int, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Random labels, one a type, and folds over which each type's rows are spread.

    Labels are as frequent among types as the true ones among rows. None where there are fewer
    types than classes.

    Returns:
        codes [row n] and folds [row].

    Source: Hewitt and Liang 2019 (arXiv 1909.03368).
    """
    rng = np.random.default_rng(seed)
    _, types = np.unique(types, return_inverse=True)
    n_types, classes = types.max() + 1, codes.max() + 1
    if n_types < classes:
        return None
    # Each class once, the rest as in the data.
    pool = np.concatenate([np.arange(classes), rng.choice(codes, n_types - classes)])
    labels = np.stack([rng.permutation(pool)[types] for _ in range(n)], axis=1)
    order = rng.permutation(len(codes))
    order = order[np.argsort(types[order], kind="stable")]  # by type, within it at random
    spread = np.empty(len(codes), dtype=int)
    spread[order] = np.arange(len(codes)) % folds
    return labels, spread
