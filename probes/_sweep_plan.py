"""What all cells of a sweep share, and the held-out predictions of one cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp import InterpError
from probes._calibration import softmax, temperature, two_sided
from probes._probe_cells import Cell
from probes._probe_checks import check_classes, check_finite
from probes._probe_folds import group_codes, outer_folds
from probes._probe_labels import Labels, Method, balanced_accuracy
from probes._ridge import Design

if TYPE_CHECKING:
    from probes._linear_probe import LinearProbe


@dataclass(frozen=True)
class Plan:
    """Labels, groups and folds of the examples, and how to fit.

    Args:
        names: the labels, sorted.
        codes: [example], index into `names`.
        groups: [example], or None where each example is its own.
        folds: [example].
        method: kind, penalties and rank.
        standardize: whether features are.
    """

    names: list[Any]
    codes: np.ndarray
    groups: np.ndarray | None
    folds: np.ndarray
    method: Method
    standardize: bool

    @property
    def units(self) -> np.ndarray:
        """The group of each example; itself where there are none."""
        return np.arange(len(self.codes)) if self.groups is None else self.groups

    def enough(self, rows: np.ndarray) -> bool:
        """Whether every fold has some of these rows and every class is in three folds."""
        here = np.zeros((len(self.names), self.folds.max() + 1), dtype=bool)
        here[self.codes[rows], self.folds[rows]] = True
        return bool(here.any(axis=0).all() and (here.sum(axis=1) >= 3).all())


@dataclass(frozen=True)
class HeldOut:
    """Predictions for rows that the probe was not fitted on.

    Args:
        balanced: [labelling], balanced accuracy.
        correct: [row], of the first labelling.
        scores: [row width], of the first labelling.
        probabilities: [row class], of the first labelling.
        predicted: [row labelling].
        penalty: the median over folds of what was chosen for the first labelling.
    """

    balanced: np.ndarray
    correct: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray
    penalty: float


def plan_of(
    n: int,
    labels: Iterable[Any],
    probe: LinearProbe,
    groups: Iterable[Any] | None,
    folds: int,
    seed: int,
) -> Plan:
    """Labels, groups and probe checked, and folds drawn.

    Raises:
        InterpError: see `sweep`.
    """
    from probes._linear_probe import method_of

    given = _labels(labels)
    if given.shape != (n,):
        raise InterpError(
            f"labels of shape {list(given.shape)} for {n} examples; give one label an example"
        )
    names, codes = np.unique(given, return_inverse=True)
    check_classes(names.tolist())
    grouped = group_codes(groups, n)
    drawn = outer_folds(codes, grouped, folds, seed, names.tolist())
    return Plan(
        names.tolist(), codes, grouped, drawn, method_of(probe, len(names)), probe.standardize
    )


def _labels(labels: Iterable[Any]) -> np.ndarray:
    """[example], labels as an array of one type.

    Raises:
        InterpError: a label that is missing (None, NaN), or labels that cannot be put in order.
    """
    import pandas as pd

    from probes._linear_probe import plain

    listed = labels if hasattr(labels, "__array__") else list(labels)
    given = np.asarray(plain(listed))
    each = listed if isinstance(listed, list) else given.ravel().tolist()
    missing = np.flatnonzero(pd.isna(pd.Series(each, dtype=object)))
    if len(missing):
        raise InterpError(
            f"labels have {'None' if each[missing[0]] is None else 'NaN'} at example {missing[0]}; "
            f"leave such examples out of labels and activations"
        )
    if given.dtype.kind == "O" and len(kinds := sorted({type(one).__name__ for one in each})) > 1:
        raise InterpError(f"labels are of several types ({', '.join(kinds)}); make them one")
    return given


def held_out(
    cell: Cell, plan: Plan, labellings: np.ndarray, folds: np.ndarray | None = None
) -> HeldOut:
    """Out-of-fold predictions of one cell under each labelling [row labelling].

    Args:
        cell: the activations.
        plan: how to fit.
        labellings: codes of the cell's rows.
        folds: [row], if not the plan's.

    Raises:
        InterpError: NaN activations.
    """
    from probes._linear_probe import fit_fold

    check_finite(cell.x, cell.name)
    labels = Labels(labellings, len(plan.names))
    folds = plan.folds[cell.rows] if folds is None else folds
    design = Design(cell.x, folds, labels.targets, standardize=plan.standardize)
    scores = np.empty((len(labellings), labels.width))
    predicted = np.empty(labellings.shape, dtype=np.int64)
    probabilities = np.empty((len(labellings), labels.classes))
    penalties = []
    for fold, rows in enumerate(design.rows):
        fitted = fit_fold(design, labels, plan.method, fold)
        assert fitted.test_decisions is not None
        predicted[rows] = labels.predicted(fitted.test_decisions)
        scores[rows] = fitted.test_decisions[:, 0]
        factor = 1.0
        if plan.method.kind != "logistic":
            inner = two_sided(fitted.inner_decisions)
            factor = temperature(inner, labellings[fitted.inner_rows, 0])
        probabilities[rows] = softmax(factor * two_sided(scores[rows]))
        penalties.append(plan.method.penalties[fitted.chosen[0]])
    return HeldOut(
        balanced=balanced_accuracy(predicted, labellings, labels.classes),
        correct=predicted[:, 0] == labellings[:, 0],
        scores=scores,
        probabilities=probabilities,
        predicted=predicted,
        penalty=float(np.median(penalties)),
    )
