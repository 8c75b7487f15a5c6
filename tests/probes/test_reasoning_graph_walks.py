"""Visits, degree and betweenness of walks, against networkx and literal loops."""

from collections import Counter
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from probes._reasoning_graph_walks import Walks, betweenness, measures
from tests.probes.reasoning_graphs import merged, walks

SEQUENCES = [[0, 0, 1, 2, 2, 1], [], [7], [1, 7, 7, 7], [3, 1, 3, 1], [2, 0], [4, 4, 4]]


def graph_of(sequences: list[list[int]]) -> tuple[nx.DiGraph, Counter]:
    graph, count = nx.DiGraph(), Counter()
    for sequence in sequences:
        path = merged(sequence)
        graph.add_nodes_from(path)
        graph.add_edges_from(pairwise(path))
        count.update(pairwise(path))
    return graph, count


def test_repetitions_merge_within_a_walk_and_never_across_two() -> None:
    got = walks(*SEQUENCES)
    parts = [got.node[a:b].tolist() for a, b in pairwise(got.start)]
    assert parts == [merged(sequence) for sequence in SEQUENCES]


def test_edges_are_the_transitions_with_their_counts() -> None:
    source, target, count = walks(*SEQUENCES).edges()
    got = dict(zip(zip(source.tolist(), target.tolist(), strict=True), count.tolist(), strict=True))
    assert got == dict(graph_of(SEQUENCES)[1])


@pytest.mark.parametrize("seed", range(4))
def test_node_measures_equal_networkx(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, 15, rng.integers(0, 9)).tolist() for _ in range(10 + 10 * seed)]
    graph, _ = graph_of(sequences)
    order = sorted(graph)
    got = measures(walks(*sequences))
    visits = Counter(node for sequence in sequences for node in merged(sequence))
    central = nx.betweenness_centrality(graph)
    np.testing.assert_array_equal(got["visits"], [visits[node] for node in order])
    np.testing.assert_array_equal(got["degree"], [graph.degree(node) for node in order])
    np.testing.assert_allclose(got["betweenness"], [central[node] for node in order], atol=1e-12)


def test_betweenness_closed_forms() -> None:
    def directed(edges: list[tuple[int, int]], n: int) -> np.ndarray:
        source, target = np.array(edges, dtype=np.int64).reshape(-1, 2).T
        return betweenness(n, source, target)

    out_and_in = [(0, i) for i in range(1, 6)] + [(i, 0) for i in range(1, 6)]
    np.testing.assert_allclose(directed(out_and_in, 6), [1, 0, 0, 0, 0, 0])  # star
    line = [(i, i + 1) for i in range(4)]
    np.testing.assert_allclose(directed(line, 5), np.array([0, 3, 4, 3, 0]) / 12)  # i (n - 1 - i)
    ring = [(i, (i + 1) % 6) for i in range(6)]
    np.testing.assert_allclose(directed(ring, 6), np.full(6, 10 / 20))  # C(n - 1, 2) each
    everything = [(i, j) for i in range(5) for j in range(5) if i != j]
    np.testing.assert_allclose(directed(everything, 5), np.zeros(5))
    apart = [(0, 1), (1, 2), (3, 4), (4, 5)]  # two parts
    np.testing.assert_allclose(directed(apart, 6), np.array([0, 1, 0, 0, 1, 0]) / 20)
    np.testing.assert_allclose(directed([(0, 1)], 2), np.zeros(2))


def test_pieces_and_joins_keep_walks_whole() -> None:
    got = walks([1, 2, 3], [], [4, 5], [6])
    again = Walks.joined([got.take(np.array([2, 0])), got.take(np.array([3]))])
    assert again.node.tolist() == [4, 5, 1, 2, 3, 6]
    assert again.start.tolist() == [0, 2, 5, 6]
    piece = got.windows(np.array([1, 3]), np.array([2, 1]))
    assert piece.node.tolist() == [2, 3, 4] and piece.start.tolist() == [0, 2, 3]


def test_no_walks_at_all() -> None:
    nothing = Walks.joined([])
    assert len(nothing) == 0
    assert all(len(values) == 0 for values in measures(nothing).values())
