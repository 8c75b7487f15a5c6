"""Metrics against networkx and closed forms, subgraph shares against all sets of four nodes."""

from __future__ import annotations

import math
from itertools import combinations

import networkx as nx
import numpy as np
import pytest

from probes._reasoning_graph_topology import GRAPHLETS, METRICS, graphlet_counts, graphlets, metrics

BY_DEGREES = {
    (1, 1, 2, 2): "G3",
    (1, 1, 1, 3): "G4",
    (2, 2, 2, 2): "G5",
    (1, 2, 2, 3): "G6",
    (2, 2, 3, 3): "G7",
    (3, 3, 3, 3): "G8",
}


def matrix(graph: nx.Graph) -> np.ndarray:
    return nx.to_numpy_array(graph, weight=None)


def random(p: float, seed: int, n: int = 14) -> nx.Graph:
    return nx.gnp_random_graph(n, p, seed=seed)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.4, 0.7, 1.0])
def test_subgraphs_equal_enumeration_of_all_sets_of_four(p: float) -> None:
    graph = random(p, seed=round(10 * p))
    brute = dict.fromkeys(GRAPHLETS, 0)
    for four in combinations(graph, 4):
        inner = graph.subgraph(four)
        if nx.is_connected(inner):
            brute[BY_DEGREES[tuple(sorted(degree for _, degree in inner.degree))]] += 1
    assert graphlet_counts(matrix(graph)) == brute
    total = sum(brute.values())
    shares = graphlets(matrix(graph))
    if total:
        assert shares == {name: count / total for name, count in brute.items()}
    else:
        assert all(math.isnan(share) for share in shares.values())


@pytest.mark.parametrize("p", [0.08, 0.3, 0.6])
def test_metrics_equal_networkx_also_in_parts(p: float) -> None:
    graph = random(p, seed=3)
    if p < 0.1:
        assert not nx.is_connected(graph)
    got = metrics(matrix(graph))
    n, mean = len(graph), 2 * graph.size() / len(graph)
    hops = [h for _, row in nx.all_pairs_shortest_path_length(graph) for h in row.values() if h]
    expected = {
        "density": nx.density(graph),
        "clustering": nx.average_clustering(graph) / (mean / (n - 1)),
        "assortativity": nx.degree_assortativity_coefficient(graph),
        "efficiency": nx.global_efficiency(graph),
        "connectivity": np.linalg.eigvalsh(nx.laplacian_matrix(graph).toarray())[1],
        "centralisation": sum(
            max(dict(graph.degree).values()) - k for _, k in graph.degree
        ) / ((n - 1) * (n - 2)),
        "path_length": np.mean(hops) / (math.log(n) / math.log(mean)) if mean > 1 else math.nan,
    }  # fmt: skip
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_closed_forms() -> None:
    star = metrics(matrix(nx.star_graph(6)))  # 7 nodes
    assert star["centralisation"] == pytest.approx(1)
    assert star["connectivity"] == pytest.approx(1)
    assert star["assortativity"] == pytest.approx(-1)
    assert star["clustering"] == 0
    assert star["efficiency"] == pytest.approx((6 + 15 / 2) / 21)
    path = metrics(matrix(nx.path_graph(7)))
    assert path["connectivity"] == pytest.approx(2 - 2 * math.cos(math.pi / 7))
    cycle = metrics(matrix(nx.cycle_graph(8)))
    assert cycle["centralisation"] == 0
    assert cycle["connectivity"] == pytest.approx(2 - 2 * math.cos(2 * math.pi / 8))
    assert math.isnan(cycle["assortativity"])
    complete = metrics(matrix(nx.complete_graph(5)))
    assert complete["density"] == complete["clustering"] == complete["efficiency"] == 1
    assert complete["connectivity"] == pytest.approx(5)
    assert complete["modularity"] == pytest.approx(0)


def test_modularity_of_two_cliques_with_one_bridge() -> None:
    graph = nx.barbell_graph(6, 0)
    m, inside, degrees = graph.size(), 15, 31
    best = 2 * (inside / m - (degrees / (2 * m)) ** 2)
    assert metrics(matrix(graph))["modularity"] == pytest.approx(best)


def test_a_graph_in_parts_has_values() -> None:
    two = nx.disjoint_union(nx.complete_graph(3), nx.complete_graph(3))
    got = metrics(matrix(two))
    assert got["connectivity"] == pytest.approx(0, abs=1e-9)
    assert got["efficiency"] == pytest.approx(6 / 15)
    assert got["modularity"] == pytest.approx(0.5)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_no_edges_is_not_a_number_but_never_an_error(n: int) -> None:
    got = metrics(np.zeros((n, n)))
    assert tuple(got) == METRICS
    assert got["density"] == 0 if n > 1 else math.isnan(got["density"])
    assert all(math.isnan(value) for name, value in got.items() if name != "density")
    assert all(math.isnan(share) for share in graphlets(np.zeros((n, n))).values())
