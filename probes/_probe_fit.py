"""Closed-form linear classifiers of many labellings at once, their penalty chosen within train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from probes._ridge import Base, Design, Split, Tridiagonal, solutions, solve_once

CLOSED = ("ridge", "mean_difference", "rank_k")


@dataclass(frozen=True)
class Labels:
    """Several labellings of the same rows.

    Args:
        codes: [row labelling], from 0.
        classes: how many.
    """

    codes: np.ndarray
    classes: int

    @property
    def width(self) -> int:
        """Columns a labelling: one of -1 and 1, or one a class against the rest."""
        return 1 if self.classes == 2 else self.classes

    @property
    def targets(self) -> np.ndarray:
        """[row, labelling * width] of -1 and 1."""
        if self.classes == 2:
            return 2.0 * self.codes - 1
        hot = self.codes[:, :, None] == np.arange(self.classes)
        return (2.0 * hot - 1).reshape(len(self.codes), -1)

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """[labelling class], at least 1."""
        hot = self.codes[rows][:, :, None] == np.arange(self.classes)
        return np.maximum(hot.sum(axis=0), 1)

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """The class of each row: [row labelling], from scores [row labelling width]."""
        return (scores[..., 0] > 0).astype(int) if self.width == 1 else scores.argmax(axis=-1)

    def balanced_accuracy(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[labelling]: the mean recall of the classes that occur among the rows."""
        return balanced_accuracy(self.predicted(scores), self.codes[rows], self.classes)


@dataclass(frozen=True)
class Method:
    """A closed-form kind and what it needs.

    Args:
        kind: `ridge`, `mean_difference` or `rank_k`.
        penalties: candidates, in the order in which ties are broken; one for mean_difference.
        rank: of rank_k.
    """

    kind: str
    penalties: Sequence[float]
    rank: int = 1


@dataclass(frozen=True)
class Fitted:
    """One training set's classifiers.

    Args:
        chosen: [labelling], index of the penalty.
        inner_scores: [penalty fold labelling], balanced accuracy on inner folds.
        inner_rows: rows of the inner folds, in the order of `inner_decisions`.
        inner_decisions: [row width], the first labelling's at its chosen penalty.
        test_decisions: [row labelling width] on the rows left out, or None.
        coef: [width d], the first labelling's, for raw features.
        intercept: [width].
        directions: [rank d], raw: those of rank_k, otherwise `coef`.
    """

    chosen: np.ndarray
    inner_scores: np.ndarray
    inner_rows: np.ndarray
    inner_decisions: np.ndarray
    test_decisions: np.ndarray | None
    coef: np.ndarray
    intercept: np.ndarray
    directions: np.ndarray


def balanced_accuracy(predicted: np.ndarray, codes: np.ndarray, classes: int) -> np.ndarray:
    """[labelling]: mean recall of the classes present, of predictions [row labelling]."""
    total, present = np.zeros(codes.shape[1]), np.zeros(codes.shape[1])
    for label in range(classes):
        here = codes == label
        count = here.sum(axis=0)
        hits = (here & (predicted == label)).sum(axis=0)
        total += np.where(count > 0, hits / np.maximum(count, 1), 0.0)
        present += count > 0
    return total / present


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
    coef, offset, directions, test = _final(base.split(), labels, method, chosen, test_fold)
    return Fitted(
        chosen=chosen,
        inner_scores=scores,
        inner_rows=np.concatenate([design.rows[fold] for fold in inner]),
        inner_decisions=np.concatenate(decisions[chosen[0]]),
        test_decisions=test,
        coef=coef,
        intercept=offset,
        directions=directions,
    )


def fit_once(design: Design, labels: Labels, method: Method) -> np.ndarray:
    """Raw weights [width d] of the first labelling on all rows, at the method's one penalty."""
    chosen = np.zeros(labels.codes.shape[1], dtype=int)
    return _final(Base(design).split(), labels, method, chosen, None)[0]


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


def _final(
    split: Split, labels: Labels, method: Method, chosen: np.ndarray, test_fold: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """The first labelling's raw weights, intercept and directions; all labellings' test scores."""
    design, width = split.design, labels.width
    rows = np.empty(0, dtype=int) if test_fold is None else design.rows[test_fold]
    basis = None
    if method.kind == "mean_difference":
        weights, offset = _centroids(split, labels)
        test = (split.scaled(rows) @ weights + offset).reshape(len(rows), len(chosen), width)
        first, offset = weights[:, :width], offset[:width]
    else:
        at = split.at(rows)
        test = np.empty((len(rows), len(chosen), width))
        matrix, wanted = split.matrix(), np.unique(chosen)
        # A tridiagonal form costs as much as four Cholesky factorisations.
        shared = Tridiagonal(matrix) if len(wanted) > 4 else None
        for index in wanted:
            penalty = method.penalties[index]
            mine = np.flatnonzero(chosen == index)
            columns = (mine[:, None] * width + np.arange(width)).ravel()
            rhs = split.rhs[:, columns]
            if shared is None:
                solution = solve_once(matrix, penalty, rhs)
            else:
                turned = shared.solve(penalty, shared.rotate(rhs))
                solution = shared.rotate(turned, back=True)
            one = _Columns(labels, mine)
            ahead = at @ solution
            if method.kind == "rank_k":
                ahead = _reduced(split, one, method.rank, ahead, rhs, solution, penalty)
            test[:, mine] = (ahead + split.target_mean[columns]).reshape(
                len(rows), len(mine), width
            )
            if mine[0] == 0:
                first = split.weights(solution[:, :width])
                if method.kind == "rank_k" and width > 1:
                    counts = labels.counts(split.train)[0]
                    fitted = split.fitted(rhs[:, :width], solution[:, :width], penalty)
                    basis = discriminants(fitted, counts, method.rank)
                    first = first @ basis @ (basis.T * counts)
        offset = split.target_mean[:width]
    directions = first if basis is None else first @ basis
    coef = (first / split.base.scale[:, None]).T
    intercept = offset - coef @ (design.origin + split.mean)
    found = (directions / split.base.scale[:, None]).T
    return coef, intercept, found, None if test_fold is None else test


class _Columns(Labels):
    """Some of the labellings."""

    def __init__(self, labels: Labels, which: np.ndarray) -> None:
        super().__init__(labels.codes[:, which], labels.classes)


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
