"""From class scores to probabilities, and how far these are from what happened."""

from __future__ import annotations

import numpy as np

BINS = 10


def temperature(scores: np.ndarray, codes: np.ndarray) -> float:
    """The factor a > 0 at which softmax(a * scores) best predicts held-out classes.

    Maximum likelihood with Platt's smoothed targets, so that classes which the scores separate
    perfectly still give a finite factor. One factor never changes which class is likeliest.

    Args:
        scores: [row class] of rows that the scores were not fitted on.
        codes: [row], the class of each.

    Source: Guo et al. 2017 (arXiv 1706.04599), with the targets of Platt 1999.
    """
    scores = scores - scores.max(axis=1, keepdims=True)
    counts = np.bincount(codes, minlength=scores.shape[1])
    smooth = 1 / (counts[codes] + scores.shape[1])
    targets = np.repeat(smooth[:, None], scores.shape[1], axis=1)
    targets[np.arange(len(codes)), codes] += 1 - smooth * scores.shape[1]
    wanted = (targets * scores).sum()

    def slope(log_factor: float) -> float:
        """Of the log-likelihood, which is concave in the factor."""
        return float(wanted - (softmax(np.exp(log_factor) * scores) * scores).sum())

    low, high = np.log(1e-6), np.log(1e6)
    if slope(low) <= 0:
        return float(np.exp(low))
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(np.exp(low))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def two_sided(scores: np.ndarray) -> np.ndarray:
    """Scores of every class: a single column f becomes -f/2 and f/2."""
    return np.concatenate([-scores / 2, scores / 2], axis=-1) if scores.shape[-1] == 1 else scores


def brier(probabilities: np.ndarray, codes: np.ndarray) -> float:
    """Mean of sum_c (p_c - y_c)^2 / 2: with two classes the mean of (p - y)^2."""
    hit = np.eye(probabilities.shape[1])[codes]
    return float(np.square(probabilities - hit).sum(axis=1).mean() / 2)


def expected_calibration_error(probabilities: np.ndarray, codes: np.ndarray) -> float:
    """Mean over ten bins of equal count of |accuracy - confidence| of the likeliest class."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == codes
    order = np.argsort(confidence, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    gaps = [len(rows) * abs(correct[rows].mean() - confidence[rows].mean()) for rows in bins]
    return float(sum(gaps) / len(order))
