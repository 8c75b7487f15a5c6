"""Reasoning graphs: steps as nodes shared by all models, what follows what as edges."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from interp import InterpError, Model
from probes._reasoning_graph_nodes import cluster
from probes._reasoning_graph_record import ReasoningGraph
from probes._reasoning_graph_steps import Embedding, Separator, points, split
from probes._reasoning_graph_walks import Walks
from probes._rollouts import Traces, as_rollouts, labels


def reasoning_graph(
    traces: Traces,
    *,
    separator: Separator = "\n",
    embed: Model | nn.Module | Embedding | None = None,
    layer: int | None = None,
    k: int = 2000,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> ReasoningGraph:
    r"""Nodes are groups of similar steps, the same for all models; edges join successive steps.

    Each output is split into steps, each step becomes a point, K-means on the points of all models
    together gives the nodes, and each output is then a walk: consecutive steps in one node are one
    visit. An edge leads from each visit to the next; it counts its transitions and is as long as
    its centroids are apart.

    Defined values: an empty output has no walk (`meta["empty"]` says how many); an output of one
    step is a visit without a transition; with at most k distinct steps each is a node of its own;
    where all steps fall into one node every rate is NaN.

    Args:
        traces: rollouts, or mappings with `problem model text` (and `prompt` for hidden states).
        separator: between steps, or a function from a text to its steps, such as
            `re.compile(r"(?<=[.!?])\s+").split`.
        embed: a model, whose hidden states are averaged over each step's tokens, read after the
            prompt and the steps before it; or a function from texts to an array [text d]; by
            default TF-IDF of character n-grams, which knows spelling and no meaning.
        layer: whose `resid_post` a model is read at; by default at 0.9 of its depth.
        k: nodes wanted.
        batch_size: outputs a forward.
        seed: of K-means and the fallback's SVD.
        progress: show a bar.

    Raises:
        InterpError: no output has two steps, all are empty, values that are not finite, a
            tokenizer that cannot tell where tokens stand.

    Examples:
        >>> graph = probes.reasoning_graph(rollouts, separator=";", progress=False)
        >>> graph.rates(draws=5)[["model", "problem", "quantity", "beta", "r2", "beta_visits"]]
        >>> graph.compare("base", draws=5)[["model", "quantity", "sampling", "ratio", "low"]]

    Source: Matsutani et al. 2025 (arXiv 2509.21128): joint K-means with K = 2000, merged
    repetitions, directed edges, rank decay. They embed sentences by BGE-large; the sibling
    Minegishi et al. 2025 (2506.05744) averages hidden states at 0.9 of the depth. A visit being an
    arrival, degree being in plus out, hops as distances, and every control are our specification.
    """
    if k < 1:
        raise InterpError(f"k={k}: expected at least one node")
    rollouts = as_rollouts(traces)
    steps = split(rollouts, separator)
    found, which, how = points(rollouts, steps, embed, layer, batch_size, seed, progress)
    node, centroid, means = cluster(found, np.bincount(which, minlength=len(found)), k, seed)
    visits = node[which]
    bounds = np.cumsum([0] + [len(row) for row in steps])
    walks = Walks.merged(visits, bounds)
    models, model = labels(r.model for r in rollouts)
    problems, problem = labels(r.problem for r in rollouts)
    return ReasoningGraph(
        torch.from_numpy(walks.node),
        torch.from_numpy(walks.start),
        torch.tensor(model),
        torch.tensor(problem),
        torch.from_numpy(np.ascontiguousarray(centroid)),
        models,
        problems,
        _commonest([step for row in steps for step in row], visits, len(centroid)),
        {
            "embedding": how,
            "clustering": means,
            "k": k,
            "nodes": len(centroid),
            "steps": len(visits),
            "empty": sum(not row for row in steps),
            "seed": seed,
        },
    )


def _commonest(steps: list[str], node: np.ndarray, n: int) -> list[str]:
    """For each node the text that is in it most often, the first among equals."""
    texts, which = labels(steps)
    pairs, count = np.unique(node * len(texts) + np.array(which), return_counts=True)
    best = [-1] * n
    most = [0] * n
    for pair, times in zip(pairs.tolist(), count.tolist(), strict=True):
        at, text = divmod(pair, len(texts))
        if times > most[at]:
            best[at], most[at] = text, times
    return [texts[text] for text in best]
