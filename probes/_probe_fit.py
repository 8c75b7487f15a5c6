"""Closed-form linear classifiers of many labellings at once, their penalty chosen within train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from probes._probe_labels import Fitted, Labels, Method
from probes._ridge import Base, Design, Split, Tridiagonal, solutions, solve_once


def fit_without(
    design: Design, labels: Labels, method: Method, test_fold: int | None = None
) -> Fitted:
    """Fit on all folds but one (or on all), each labelling's penalty by the other folds in turn.

    Every fold kept is once the inner validation fold; the penalty with the best mean balanced
    accuracy wins, the first among equals. Features keep the scale of the whole training set
    meanwhile, as in a scikit-learn pipeline of StandardScaler and RidgeClassifierCV(cv=folds).
    """
    base = Base(design, () if test_fold is None else (test_fold,))
    inner = design.kept(base.excluded)
    scores = np.empty((len(method.penalties), len(inner), labels.codes.shape[1]))
    decisions: list[list[np.ndarray]] = [[] for _ in method.penalties]
    for place, fold in enumerate(inner):
        rows = design.rows[fold]
        for index, found in enumerate(_along(base.split(fold), labels, method, rows)):
            scores[index, place] = labels.balanced_accuracy(found, rows)
            decisions[index].append(found[:, 0])
    # As GridSearchCV averages, so that ties are the same ties.
    means = np.stack([np.average(scores[..., i], axis=1) for i in range(scores.shape[2])], axis=1)
    chosen = means.argmax(axis=0)
    final = _final(base.split(), labels, method, chosen, test_fold)
    return Fitted(
        chosen=chosen,
        inner_scores=scores,
        inner_rows=np.concatenate([design.rows[fold] for fold in inner]),
        inner_decisions=np.concatenate(decisions[chosen[0]]),
        test_decisions=None if test_fold is None else final.test,
        coef=final.coef,
        intercept=final.intercept,
        directions=final.directions,
    )


def fit_once(design: Design, labels: Labels, method: Method) -> np.ndarray:
    """Raw weights [width d] of the first labelling on all rows, at the method's one penalty."""
    chosen = np.zeros(labels.codes.shape[1], dtype=int)
    return _final(Base(design).split(), labels, method, chosen, None).coef


def _along(split: Split, labels: Labels, method: Method, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Scores [row labelling width] at each penalty."""
    shape = (len(rows), labels.codes.shape[1], labels.width)
    if method.kind == "mean_difference":
        weights, offset = _centroids(split, labels)
        yield (split.scaled(rows) @ weights + offset).reshape(shape)
        return
    found = solutions(split, rows, method.penalties)
    for penalty, (ahead, rhs, solution) in zip(method.penalties, found, strict=True):
        if method.kind == "rank_k":
            ahead = _reduced(split, labels, method.rank, ahead, rhs, solution, penalty)
        yield (ahead + split.target_mean).reshape(shape)


@dataclass(frozen=True)
class _Final:
    """The first labelling's classifier of raw features, and all labellings' scores of the test."""

    coef: np.ndarray
    intercept: np.ndarray
    directions: np.ndarray
    test: np.ndarray


def _final(
    split: Split, labels: Labels, method: Method, chosen: np.ndarray, test_fold: int | None
) -> _Final:
    width = labels.width
    rows = np.empty(0, dtype=int) if test_fold is None else split.design.rows[test_fold]
    test = np.empty((len(rows), len(chosen), width))
    basis = None
    if method.kind == "mean_difference":
        weights, offset = _centroids(split, labels)
        test[:] = (split.scaled(rows) @ weights + offset).reshape(test.shape)
        weights, offset = weights[:, :width], offset[:width]
    else:
        at, offset = split.at(rows), split.target_mean[:width]
        for mine, penalty, rhs, solution in _solved(split, labels, method, chosen):
            some = Labels(labels.codes[:, mine], labels.classes)
            ahead = at @ solution
            if method.kind == "rank_k":
                ahead = _reduced(split, some, method.rank, ahead, rhs, solution, penalty)
            means = split.target_mean[_columns(mine, width)]
            test[:, mine] = (ahead + means).reshape(len(rows), len(mine), width)
            if mine[0] > 0:
                continue
            weights = split.weights(solution[:, :width])
            if method.kind == "rank_k" and width > 1:
                fitted = split.fitted(rhs[:, :width], solution[:, :width], penalty)
                counts = labels.counts(split.train)[0]
                basis = discriminants(fitted, counts, method.rank)
                weights = weights @ basis @ (basis.T * counts)
    coef = (weights / split.base.scale[:, None]).T
    return _Final(
        coef=coef,
        intercept=offset - coef @ (split.design.origin + split.mean),
        directions=coef if basis is None else basis.T @ coef,
        test=test,
    )


def _solved(
    split: Split, labels: Labels, method: Method, chosen: np.ndarray
) -> Iterator[tuple[np.ndarray, float, np.ndarray, np.ndarray]]:
    """(labellings, penalty, rhs, solution) of each penalty that some labelling has chosen."""
    matrix, wanted = split.matrix(), np.unique(chosen)
    # A tridiagonal form costs as much as four Cholesky factorisations.
    shared = Tridiagonal(matrix) if len(wanted) > 4 else None
    for index in wanted:
        penalty, mine = method.penalties[index], np.flatnonzero(chosen == index)
        rhs = split.rhs[:, _columns(mine, labels.width)]
        if shared is None:
            yield mine, penalty, rhs, solve_once(matrix, penalty, rhs)
        else:
            turned = shared.solve(penalty, shared.rotate(rhs))
            yield mine, penalty, rhs, shared.rotate(turned, back=True)


def _columns(labellings: np.ndarray, width: int) -> np.ndarray:
    """Where the targets of some labellings stand."""
    return (labellings[:, None] * width + np.arange(width)).ravel()


def _centroids(split: Split, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Weights [d r] and offsets [r]: the nearest class mean, in scaled coordinates."""
    counts = labels.counts(split.train)
    moments = split.moments.reshape(-1, labels.codes.shape[1], labels.width)
    if labels.width == 1:
        one = moments[..., 0] / (2 * counts[:, 1])  # class mean less the mean of all
        zero = -moments[..., 0] / (2 * counts[:, 0])
        return one - zero, -(np.square(one) - np.square(zero)).sum(axis=0) / 2
    means = moments / (2 * counts)
    offset = -np.square(means).sum(axis=0) / 2
    return means.reshape(len(means), -1), offset.ravel()


def _reduced(
    split: Split,
    labels: Labels,
    rank: int,
    ahead: np.ndarray,
    rhs: np.ndarray,
    solution: np.ndarray,
    penalty: float,
) -> np.ndarray:
    """Ridge predictions (or weights) [. r] through the leading `rank` discriminants only."""
    if labels.width == 1:
        return ahead
    ahead = ahead.copy()
    counts = labels.counts(split.train)
    for number in range(labels.codes.shape[1]):
        own = slice(number * labels.width, (number + 1) * labels.width)
        fitted = split.fitted(rhs[:, own], solution[:, own], penalty)
        basis = discriminants(fitted, counts[number], rank)
        ahead[:, own] = ahead[:, own] @ basis @ (basis.T * counts[number])
    return ahead


def discriminants(fitted: np.ndarray, counts: np.ndarray, rank: int) -> np.ndarray:
    """Combinations of the class scores, the most discriminating first: [class rank].

    Eigenvectors of `fitted` in the metric of the class counts, the optimal scores of penalised
    discriminant analysis (Hastie, Buja and Tibshirani 1995); without a penalty they are the
    canonical variates of linear discriminant analysis.
    """
    root = np.sqrt(counts)
    inner = fitted / root / root[:, None]
    _, vectors = np.linalg.eigh((inner + inner.T) / 2)
    return vectors[:, ::-1][:, :rank] / root[:, None]
