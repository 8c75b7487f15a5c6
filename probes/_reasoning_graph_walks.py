"""Walks: sequences of nodes, the graph they span, and what each node is to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

QUANTITIES = ("visits", "degree", "betweenness")
_THREADS_FROM = 500  # nodes; below, rustworkx loses more than it wins by starting threads


@dataclass(frozen=True)
class Walks:
    """Several walks one after the other; consecutive nodes of a walk differ.

    Args:
        node: all visits.
        start: where each walk begins in `node`, and then its length.
    """

    node: Int[np.ndarray, " visit"]
    start: Int[np.ndarray, " boundary"]

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def lengths(self) -> Int[np.ndarray, " walk"]:
        """Visits of each walk."""
        return np.diff(self.start)

    @staticmethod
    def merged(node: Int[np.ndarray, " step"], start: Int[np.ndarray, " boundary"]) -> Walks:
        """From the node of every step: steps in one node right after each other are one visit."""
        new = np.ones(len(node), dtype=bool)
        new[1:] = node[1:] != node[:-1]
        new[start[:-1][np.diff(start) > 0]] = True
        count = np.concatenate([[0], np.cumsum(new)])
        return Walks(node[new], count[start])

    @staticmethod
    def joined(parts: Sequence[Walks]) -> Walks:
        """All walks of several."""
        start = np.concatenate([[0], *(part.lengths for part in parts)]).astype(np.int64).cumsum()
        return Walks(np.concatenate([np.empty(0, np.int64), *(p.node for p in parts)]), start)

    def take(self, which: Int[np.ndarray, " piece"]) -> Walks:
        """The walks with these numbers, in this order."""
        return self.windows(self.start[:-1][which], self.lengths[which])

    def windows(self, begin: Int[np.ndarray, " piece"], length: Int[np.ndarray, " piece"]) -> Walks:
        """Pieces of walks: `length` visits from `begin` (a place in `node`) on."""
        start = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        place = np.arange(start[-1]) + np.repeat(begin - start[:-1], length)
        return Walks(self.node[place], start)

    def edges(
        self,
    ) -> tuple[Int[np.ndarray, " edge"], Int[np.ndarray, " edge"], Int[np.ndarray, " edge"]]:
        """Source, target and number of each distinct transition; none from a node to itself."""
        inside = np.ones(max(len(self.node) - 1, 0), dtype=bool)
        ends = self.start[1:-1] - 1  # the last visit of a walk is followed by another walk's
        inside[ends[(ends >= 0) & (ends < len(inside))]] = False
        source, target = self.node[:-1][inside], self.node[1:][inside]
        different = source != target
        size = int(self.node.max(initial=0)) + 1
        pairs, count = np.unique(source[different] * size + target[different], return_counts=True)
        return pairs // size, pairs % size, count

    def compact(self) -> tuple[Int[np.ndarray, " node"], Walks]:
        """The nodes visited, and the same walks with those numbered from 0."""
        nodes, index = np.unique(self.node, return_inverse=True)
        return nodes, Walks(index, self.start)


def measures(walks: Walks) -> dict[str, Float[np.ndarray, " node"]]:
    """Visits, degree and betweenness of every visited node, in the order of node numbers.

    Degree counts distinct neighbours in and out. Betweenness is that of the directed graph with
    every edge as one hop, 1 / ((n - 1)(n - 2)) sum over s, t of sigma_st(v) / sigma_st.
    """
    nodes, inner = walks.compact()
    source, target, _ = inner.edges()
    n = len(nodes)
    return {
        "visits": np.bincount(inner.node, minlength=n).astype(float),
        "degree": (np.bincount(source, minlength=n) + np.bincount(target, minlength=n)).astype(
            float
        ),
        "betweenness": betweenness(n, source, target),
    }


def betweenness(
    n: int, source: Int[np.ndarray, " edge"], target: Int[np.ndarray, " edge"]
) -> Float[np.ndarray, " node"]:
    """Normalised betweenness of n nodes; zero for all where n < 3."""
    if n < 3 or len(source) == 0:
        return np.zeros(n)
    import rustworkx

    graph = rustworkx.PyDiGraph(multigraph=False)
    graph.add_nodes_from(range(n))
    graph.add_edges_from_no_data(list(zip(source.tolist(), target.tolist(), strict=True)))
    found = rustworkx.betweenness_centrality(graph, parallel_threshold=_THREADS_FROM)
    return np.array([found[index] for index in range(n)])
