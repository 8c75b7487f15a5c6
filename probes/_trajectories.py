"""Trajectories: how many different right and wrong ways a model has of solving a problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from tqdm.auto import tqdm

from interp import InterpError
from probes._chrf import chrf_matrix
from probes._rollouts import Rollout, Traces, as_rollouts, labels
from probes._trajectories_record import Trajectories


def trajectories(
    traces: Traces,
    *,
    verify: Callable[[str, str], bool] | None = None,
    similarity: float = 60.0,
    progress: bool = True,
) -> Trajectories:
    """Cluster a model's outputs for a problem: unique ways to be right, and to be wrong.

    Outputs that differ in more than white space are clustered apart for each problem, model and
    verdict: average linkage on 100 - s, s = (chrF(i, j) + chrF(j, i)) / 2, cut where the average
    similarity falls below `similarity`. Rarefaction then gives the number of clusters expected
    among any smaller number of samples, so that models are compared at equal effort.

    Defined values: one output is one cluster; a side without outputs (all correct, all wrong) has
    0 clusters; an empty output is like nothing else, so all empty ones are one cluster.

    Args:
        traces: rollouts, or mappings with `problem model text` and perhaps `correct`.
        verify: (problem, text) -> bool, asked where a rollout does not say whether it is correct.
        similarity: where to cut, in chrF points (0 to 100).
        progress: show a bar.

    Raises:
        InterpError: a rollout of unknown correctness and no verifier.

    Examples:
        >>> paths = probes.trajectories(rollouts, progress=False)
        >>> paths.table()[["problem", "model", "correct", "clusters", "clusters_at_n"]]

    Source: Matsutani et al. 2025 (arXiv 2509.21128): chrF, average linkage, the cut at 60.
    sacreBLEU's n-gram order and beta, one vote for each distinct output, and rarefaction are our
    specification: the first two could not be read, and counts at unequal samples do not compare.
    """
    if not 0 <= similarity <= 100:
        raise InterpError(f"similarity={similarity}: expected chrF points between 0 and 100")
    rollouts = [_judged(r, i, verify) for i, r in enumerate(as_rollouts(traces))]
    models, model = labels(r.model for r in rollouts)
    problems, problem = labels(r.problem for r in rollouts)
    groups: dict[tuple[int, int, bool], list[int]] = {}
    for index, rollout in enumerate(rollouts):
        key = (problem[index], model[index], bool(rollout.correct))
        groups.setdefault(key, []).append(index)
    cluster = torch.zeros(len(rollouts), dtype=torch.long)
    for members in tqdm(groups.values(), desc="trajectories", disable=not progress):
        found = clusters([rollouts[i].text for i in members], similarity)
        cluster[members] = torch.tensor(found)
    return Trajectories(
        torch.tensor(model),
        torch.tensor(problem),
        torch.tensor([bool(r.correct) for r in rollouts]),
        cluster,
        models,
        problems,
        {"similarity": similarity},
    )


def clusters(texts: Sequence[str], similarity: float) -> list[int]:
    """The number of each text's cluster, from 0 in the order of first appearance."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    unique, which = labels("".join(text.split()) for text in texts)
    if len(unique) == 1:
        return which
    score = chrf_matrix(unique).numpy()
    distance = 100 - (score + score.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="average")
    found = fcluster(tree, 100 - similarity, criterion="distance")
    return labels(str(found[index]) for index in which)[1]


def _judged(rollout: Rollout, number: int, verify: Callable[[str, str], bool] | None) -> Rollout:
    if rollout.correct is not None:
        return rollout
    if verify is None:
        raise InterpError(
            f"trace {number} does not say whether it is correct; give `correct`, or "
            f"verify=function of (problem, text)"
        )
    return replace(rollout, correct=bool(verify(rollout.problem, rollout.text)))
