"""Labellings to fit to, how to fit, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
