"""Folds in which no group stands on both sides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from interp import InterpError


def group_codes(groups: Iterable[Any] | None, n: int) -> np.ndarray | None:
    """Groups as [n] integers, or None where none are given.

    Raises:
        InterpError: another length than the examples, or a single group.
    """
    if groups is None:
        return None
    names = list(groups.tolist() if hasattr(groups, "tolist") else groups)
    if len(names) != n:
        raise InterpError(f"{len(names)} groups for {n} examples; give one group an example")
    simple = all(isinstance(name, int | np.integer) for name in names)
    found, codes = np.unique(names if simple else list(map(str, names)), return_inverse=True)
    if len(found) < 2:
        raise InterpError(
            f"all {n} examples are of one group ({str(names[0])!r}), so none can be held out; "
            f"name finer groups, or leave `groups` out if examples are independent"
        )
    return codes


def units_by_class(codes: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """How many examples (or groups) hold each class: [class]."""
    if groups is None:
        return np.bincount(codes)
    pairs = np.unique(np.stack([codes, groups]), axis=1)
    return np.bincount(pairs[0], minlength=codes.max() + 1)


def stratified(codes: np.ndarray, groups: np.ndarray | None, n: int, seed: int) -> np.ndarray:
    """Fold of each example: classes spread evenly, groups whole."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = np.empty(len(codes), dtype=int)
    splits = splitter(n, shuffle=True, random_state=seed).split(codes[:, None], codes, groups)
    for number, (_, test) in enumerate(splits):
        folds[test] = number
    return np.unique(folds, return_inverse=True)[1]


def outer_folds(
    codes: np.ndarray, groups: np.ndarray | None, n: int, seed: int, names: list[Any]
) -> np.ndarray:
    """`stratified`, refused where a class is too rare for it.

    Raises:
        InterpError: fewer examples or groups of a class than folds, or fewer than three folds.
    """
    if n < 3:
        raise InterpError(
            f"folds={n}: expected 3 or more, one to test on and two to choose the penalty with"
        )
    units = units_by_class(codes, groups)
    rarest = int(units.argmin())
    if units[rarest] < n:
        what = "examples" if groups is None else "groups"
        raise InterpError(
            f"label {names[rarest]!r} occurs in {units[rarest]} {what}, fewer than the {n} folds; "
            f"give more of them, or fewer folds (at least 3)"
        )
    folds = stratified(codes, groups, n, seed)
    for fold in range(folds.max() + 1):
        lost = set(range(len(names))) - set(codes[folds != fold].tolist())
        if lost:
            raise InterpError(
                f"without fold {fold} no example is labelled {names[min(lost)]!r}: its groups are "
                f"too few or too uneven for {n} folds; give finer groups or fewer folds"
            )
    return folds


def inner_folds(
    cv: Any, x: np.ndarray, codes: np.ndarray, groups: Iterable[Any] | None, seed: int
) -> np.ndarray:
    """Fold of each example from a count (at most as many as the rarest class allows) or a splitter.

    Raises:
        InterpError: a class with one example or group, or test folds that are no partition.
    """
    grouped = group_codes(groups, len(codes))
    if isinstance(cv, int | np.integer):
        most = int(units_by_class(codes, grouped).min())
        if cv < 2 or most < 2:
            what = "examples" if grouped is None else "groups"
            given = f"cv={cv}" if cv < 2 else f"a class with {most} of the {what}"
            raise InterpError(
                f"{given}: inner folds need two or more, and at least two {what} of every class"
            )
        return stratified(codes, grouped, min(int(cv), most), seed)
    splits = list(cv.split(x, codes, grouped) if hasattr(cv, "split") else cv)
    folds = np.full(len(codes), -1)
    for number, (_, test) in enumerate(splits):
        if (folds[test] >= 0).any():
            raise InterpError("cv: an example stands in two test folds; expected a partition")
        folds[test] = number
    sizes = [len(train) + len(test) for train, test in splits]
    if (folds < 0).any() or set(sizes) != {len(codes)} or len(splits) < 2:
        raise InterpError(
            "cv: expected two or more folds, in which each example is tested once and trains "
            "otherwise, such as KFold's or GroupKFold's"
        )
    return folds
