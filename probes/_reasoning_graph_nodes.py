"""Nodes: steps of all models together, in groups of similar ones."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Int

_LLOYD_UP_TO = 5e6  # points x centres; beyond, mini-batches
_STARTS = 4
_BATCH = 8192
_EPOCHS = 5


def cluster(
    points: Float[np.ndarray, "point d"], weights: Int[np.ndarray, " point"], k: int, seed: int
) -> tuple[Int[np.ndarray, " point"], Float[np.ndarray, "node d"], str]:
    """K-means of weighted points: the node of each, the centroids, and how in words.

    With at most k points every one is a node of its own. Centres that attract no point are left
    out, so there can be fewer than k.

    Args:
        points: [point d], float32.
        weights: how often each occurs.
        k: nodes wanted.
        seed: of the starts.
    """
    if len(points) <= k:
        return np.arange(len(points)), points, "every distinct step is a node"
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(points) * k <= _LLOYD_UP_TO:
        means = KMeans(k, n_init=_STARTS, random_state=seed)
        how = f"K-means, best of {_STARTS} starts"
    else:
        means = MiniBatchKMeans(
            k, batch_size=_BATCH, max_iter=_EPOCHS, n_init=1, random_state=seed,
            reassignment_ratio=0.0, max_no_improvement=None,
        )  # fmt: skip
        how = f"mini-batch K-means, {_EPOCHS} epochs of batches of {_BATCH}"
    with warnings.catch_warnings():
        # Fewer distinct points than centres: the centres left empty go below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means.fit(points, sample_weight=weights.astype(points.dtype))
    used, node = np.unique(means.labels_, return_inverse=True)
    return node, np.asarray(means.cluster_centers_[used], dtype=np.float32), how
