"""Shared Gram matrices give what each split's own regression gives."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from probes._probe_fit import fit_without
from probes._probe_labels import Labels, Method
from probes._ridge import Base, Design, Tridiagonal, solutions, solve_once

PENALTIES = (1e4, 1.0, 1e-2)


def make(n: int, d: int, targets: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)) * np.logspace(-3, 3, d) + 1e4
    return x, rng.integers(0, 4, n), rng.standard_normal((n, targets))


@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_tridiagonal_solves_every_penalty(size: int) -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((size, size + 3))
    matrix, rhs = root @ root.T, rng.standard_normal((size, 4))
    found = Tridiagonal(matrix.copy())
    for penalty in PENALTIES:
        mine = found.rotate(found.solve(penalty, found.rotate(rhs)), back=True)
        exact = np.linalg.solve(matrix + penalty * np.eye(size), rhs)
        np.testing.assert_allclose(mine, exact, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(solve_once(matrix, penalty, rhs), exact, rtol=1e-8, atol=1e-12)


def test_a_semidefinite_matrix_and_hardly_any_penalty() -> None:
    matrix = np.full((6, 6), 1e8)
    solved = solve_once(matrix, 1e-6, np.ones((6, 1)))  # no longer positive, to rounding
    np.testing.assert_allclose(matrix @ solved, 1.0, rtol=1e-3)


@pytest.mark.parametrize(("n", "d"), [(60, 9), (30, 70)])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("targets", [2, 50])  # few are turned back, for many the rows are turned
def test_every_split_is_scikit_learn_s_ridge(
    n: int, d: int, standardize: bool, targets: int
) -> None:
    x, folds, y = make(n, d, targets)
    design = Design(x, folds, y, standardize=standardize)
    base = Base(design, (2,))
    kept = folds != 2
    scale = x[kept].std(axis=0) if standardize else np.ones(d)
    np.testing.assert_allclose(base.scale, scale, rtol=1e-9)
    split, rows = base.split(0), design.rows[0]
    assert split.dual == (d > n)
    train = kept & (folds != 0)
    for penalty, (ahead, _, _) in zip(PENALTIES, solutions(split, rows, PENALTIES), strict=True):
        ridge = Ridge(penalty, solver="svd").fit(x[train] / scale, y[train])
        expected = ridge.predict(x[rows] / scale)
        np.testing.assert_allclose(ahead + split.target_mean, expected, rtol=1e-5, atol=1e-6)
        weights = split.weights(solve_once(split.matrix(), penalty, split.rhs))
        np.testing.assert_allclose(weights.T, ridge.coef_, rtol=1e-4, atol=1e-7)


def test_an_outlier_left_out_leaves_nothing_behind() -> None:
    """The Gram matrix less the outlier's fold would be off by the outlier's rounding error."""
    x, folds, y = make(60, 5)
    clean = x.copy()
    x[np.flatnonzero(folds == 1)[0]] = 1e11
    found = Base(Design(x, folds, y), (1,)).split()
    expected = Base(Design(clean, folds, y), (1,)).split()
    np.testing.assert_allclose(found.matrix(), expected.matrix(), rtol=1e-6, atol=1e-6)


def test_many_labellings_at_once_are_each_of_them_alone() -> None:
    rng = np.random.default_rng(0)
    x, folds, _ = make(80, 6)
    codes = rng.integers(0, 3, (80, 12))
    for kind, penalties in (
        ("ridge", PENALTIES),
        ("rank_k", PENALTIES),
        ("mean_difference", (0.0,)),
    ):
        method = Method(kind, penalties, 1)
        labels = Labels(codes, 3)
        together = fit_without(Design(x, folds, labels.targets), labels, method, 3)
        assert together.test_decisions is not None
        assert len(np.unique(together.chosen)) > 1 or kind == "mean_difference"
        for number in range(12):
            one = Labels(codes[:, [number]], 3)
            alone = fit_without(Design(x, folds, one.targets), one, method, 3)
            assert alone.test_decisions is not None
            assert alone.chosen[0] == together.chosen[number]
            np.testing.assert_allclose(
                alone.test_decisions[:, 0], together.test_decisions[:, number], atol=1e-7
            )
