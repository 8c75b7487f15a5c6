"""The shape of a reasoning graph: eight global metrics and the shares of 4-node subgraphs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from interp._weights.nulls import generator, z_score
from probes._reasoning_graph_controls import shuffled
from probes._reasoning_graph_rates import Parts
from probes._reasoning_graph_walks import Walks

if TYPE_CHECKING:
    import pandas as pd

METRICS = (
    "density", "clustering", "assortativity", "modularity",
    "centralisation", "path_length", "efficiency", "connectivity",
)  # fmt: skip
# Connected 4-node subgraphs, numbered as by Pržulj (2007); G1 and G2 have 3 nodes.
GRAPHLETS = ("G3", "G4", "G5", "G6", "G7", "G8")


def topology_table(graphs: Mapping[str, Parts], draws: int, seed: int) -> pd.DataFrame:
    """`ReasoningGraph.topology` for walks by model and problem."""
    import pandas as pd

    rng = generator(seed, "topology")
    rows = []
    for model, parts in graphs.items():
        found = _shape([*parts.values()], seed)
        null = [_shape([shuffled(w, rng) for w in parts.values()], seed) for _ in range(draws)]
        for name, value in found.items():
            values = [draw[name] for draw in null if math.isfinite(draw[name])]
            mean = float(np.mean(values)) if values else math.nan
            z = z_score(value, values)
            rows.append({"model": model, "metric": name, "value": value, "null": mean, "z": z})
    return pd.DataFrame(rows, columns=["model", "metric", "value", "null", "z"])


def _shape(parts: list[Walks], seed: int) -> dict[str, float]:
    nodes, walks = Walks.joined(parts).compact()
    source, target, _ = walks.edges()
    matrix = adjacency(source, target, len(nodes))
    return metrics(matrix, seed) | graphlets(matrix)


def adjacency(
    source: Int[np.ndarray, " edge"], target: Int[np.ndarray, " edge"], n: int
) -> Float[np.ndarray, "node node"]:
    """[n n] in float64: 1 where an edge goes either way, 0 on the diagonal."""
    matrix = np.zeros((n, n))
    matrix[source, target] = matrix[target, source] = 1
    np.fill_diagonal(matrix, 0)
    return matrix


def metrics(matrix: Float[np.ndarray, "node node"], seed: int = 0) -> dict[str, float]:
    """Eight metrics of a simple undirected graph with m edges on n nodes.

    - density: 2 m / (n (n - 1)), the same that networkx calls density.
    - clustering: mean local clustering over <k> / (n - 1), that of a random graph.
    - assortativity: correlation of the degrees at the ends of an edge.
    - modularity: of the communities that Louvain's method finds with this seed.
    - centralisation: Freeman's, sum of (max k - k_i) / ((n - 1)(n - 2)); 1 for a star.
    - path_length: mean shortest path over ln n / ln <k>, that of a random graph; paths between
      nodes that reach each other.
    - efficiency: mean of 1 / shortest path over all pairs, 0 where there is no path.
    - connectivity: second smallest eigenvalue of the Laplacian; 0 where the graph is in parts.

    NaN where a metric has no value: everything with fewer than 2 nodes or without edges (the
    density of two or more nodes without edges is 0), assortativity of a regular graph,
    centralisation below 3 nodes, path_length where <k> <= 1. Which random graph "normalised"
    means is our specification, as is the undirected graph of hops: the paper's appendix could not
    be read; <k> / (n - 1) is what the code of 2506.05744 divides by.
    """
    n = len(matrix)
    degree = matrix.sum(axis=1)
    found = dict.fromkeys(METRICS, float("nan"))
    if n < 2:
        return found
    found["density"] = float(degree.sum() / (n * (n - 1)))
    if degree.sum() == 0:
        return found
    mean_degree = float(degree.mean())
    found["clustering"] = _clustering(matrix, degree) / (mean_degree / (n - 1))
    found["assortativity"] = _assortativity(matrix, degree)
    found["modularity"] = _modularity(matrix, seed)
    if n > 2:
        found["centralisation"] = float((degree.max() - degree).sum() / ((n - 1) * (n - 2)))
    found["path_length"], found["efficiency"] = _paths(matrix, mean_degree)
    found["connectivity"] = _connectivity(matrix, degree)
    return found


def graphlets(matrix: Float[np.ndarray, "node node"]) -> dict[str, float]:
    """Shares of the six connected induced subgraphs on 4 nodes; NaN where there is none.

    G3 path, G4 star, G5 cycle, G6 triangle with a tail, G7 cycle with one chord, G8 clique. Which
    number is which is our specification. Counted in closed form from the 4-node subgraphs that
    need not be induced (Pinar, Seshadhri and Vishal 2017, arXiv 1610.09411).
    """
    counts = graphlet_counts(matrix)
    total = sum(counts.values())
    return {name: counts[name] / total if total else float("nan") for name in GRAPHLETS}


def graphlet_counts(matrix: Float[np.ndarray, "node node"]) -> dict[str, int]:
    """How many sets of four nodes induce each connected subgraph."""
    degree = matrix.sum(axis=1)
    common = matrix @ matrix  # common neighbours
    on_edge = common * matrix  # triangles at each edge
    at_node = on_edge.sum(axis=1) / 2
    pairs = np.triu_indices(len(matrix), 1)
    clique = _cliques(matrix)
    edge_ends = (matrix * np.outer(degree - 1, degree - 1)).sum() / 2
    diamond = _choose2(on_edge[pairs]).sum() - 6 * clique
    cycle = _choose2(common[pairs]).sum() / 2 - diamond - 3 * clique
    paw = (at_node * (degree - 2)).sum() - 4 * diamond - 12 * clique
    star = (degree * (degree - 1) * (degree - 2)).sum() / 6 - paw - 2 * diamond - 4 * clique
    path = edge_ends - at_node.sum() - 2 * paw - 4 * cycle - 6 * diamond - 12 * clique
    found = (path, star, cycle, paw, diamond, clique)
    return {name: round(float(count)) for name, count in zip(GRAPHLETS, found, strict=True)}


def _cliques(matrix: Float[np.ndarray, "node node"]) -> float:
    """4-cliques: triangles among the later neighbours of each node, in order of degree."""
    order = np.argsort(matrix.sum(axis=1))
    later = np.triu(matrix[np.ix_(order, order)])
    total = 0.0
    for row in later:
        near = np.flatnonzero(row)
        if len(near) >= 3:
            inner = later[np.ix_(near, near)]
            total += float(((inner @ inner) * inner).sum())
    return total


def _choose2(values: np.ndarray) -> np.ndarray:
    return values * (values - 1) / 2


def _clustering(matrix: Float[np.ndarray, "node node"], degree: np.ndarray) -> float:
    closed = ((matrix @ matrix) * matrix).sum(axis=1)
    possible = degree * (degree - 1)
    return float(np.where(possible > 0, closed / np.maximum(possible, 1), 0.0).mean())


def _assortativity(matrix: Float[np.ndarray, "node node"], degree: np.ndarray) -> float:
    source, target = np.nonzero(matrix)
    one, other = degree[source], degree[target]
    if np.ptp(one) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _modularity(matrix: Float[np.ndarray, "node node"], seed: int) -> float:
    import networkx as nx

    graph = nx.from_numpy_array(matrix)
    return float(nx.community.modularity(graph, nx.community.louvain_communities(graph, seed=seed)))


def _paths(matrix: Float[np.ndarray, "node node"], mean_degree: float) -> tuple[float, float]:
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import shortest_path

    hops = shortest_path(csr_matrix(matrix), method="D", unweighted=True)
    np.fill_diagonal(hops, np.inf)
    n = len(matrix)
    efficiency = float((1 / hops).sum() / (n * (n - 1)))
    if mean_degree <= 1:
        return float("nan"), efficiency
    reached = hops[np.isfinite(hops)]
    return float(reached.mean() / (np.log(n) / np.log(mean_degree))), efficiency


def _connectivity(matrix: Float[np.ndarray, "node node"], degree: np.ndarray) -> float:
    from scipy.linalg import eigvalsh

    second = eigvalsh(np.diag(degree) - matrix, subset_by_index=[1, 1])[0]
    return max(float(second), 0.0)
