"""Independent references for weight diffs: numpy, full decompositions, textbook formulas."""

from __future__ import annotations

import numpy as np
import scipy.linalg


def principal_angles(x: np.ndarray, y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles in degrees between leading left and right subspaces, by scipy."""
    u, _, vh = np.linalg.svd(x, full_matrices=False)
    p, _, qh = np.linalg.svd(y, full_matrices=False)
    left = scipy.linalg.subspace_angles(u[:, :k], p[:, :k])
    right = scipy.linalg.subspace_angles(vh[:k].T, qh[:k].T)
    return np.degrees(left), np.degrees(right)


def hill(s: np.ndarray, k: int) -> float:
    """[1 / (k - 1) sum_{i < k} log(s_i / s_k)]^-1."""
    return float(1 / (np.log(s[: k - 1] / s[k - 1]).sum() / (k - 1)))
