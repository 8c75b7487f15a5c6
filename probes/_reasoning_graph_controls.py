"""Controls of a reasoning graph: shuffled transitions, matched subsets, rollouts dealt out anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from probes._reasoning_graph_walks import Walks

_REPAIRS = 20


def shuffled(walks: Walks, rng: np.random.Generator) -> Walks:
    """The same visits in random places: the walks' lengths and every node's visits stay.

    As in the original no walk goes on where it stands: places at which it would are exchanged with
    random others, and what is left after twenty rounds (a node with most of all visits) is no
    transition.
    """
    node = rng.permutation(walks.node)
    n = len(node)
    first = np.zeros(n, dtype=bool)
    first[walks.start[:-1][walks.lengths > 0]] = True
    for _ in range(_REPAIRS):
        same = np.flatnonzero(~first[1:] & (node[1:] == node[:-1])) + 1
        if len(same) == 0:
            break
        others = np.setdiff1d(np.arange(n), same)
        partner = rng.permutation(others)[: len(same)]
        same = same[: len(partner)]
        node[same], node[partner] = node[partner], node[same]
    return Walks(node, walks.start)


def match_visits(parts: Sequence[Walks], rng: np.random.Generator) -> list[Walks]:
    """As many visits in each: walks in random order, the last one cut short."""
    visits = min(len(part.node) for part in parts)
    return [_first(part.take(rng.permutation(len(part))), visits) for part in parts]


def match_length(parts: Sequence[Walks], rng: np.random.Generator) -> list[Walks]:
    """Walks equally long too: random windows of the smallest median length, then equal visits."""
    longest = max(2, int(min(np.median(p.lengths[p.lengths > 0]) for p in parts)))
    cut = []
    for part in parts:
        length = np.minimum(part.lengths, longest)
        begin = part.start[:-1] + rng.integers(0, part.lengths - length + 1)
        cut.append(part.windows(begin, length))
    return match_visits(cut, rng)


Matching = Callable[[Sequence[Walks], np.random.Generator], list[Walks]]
MATCHINGS: Mapping[str, Matching] = {"visits": match_visits, "length": match_length}


def exchanged(one: Walks, other: Walks, rng: np.random.Generator) -> tuple[Walks, Walks]:
    """Both again after the walks were dealt out anew: whose walk it is no longer matters."""
    both = Walks.joined([one, other])
    order = rng.permutation(len(both))
    return both.take(order[: len(one)]), both.take(order[len(one) :])


def _first(walks: Walks, visits: int) -> Walks:
    stop = int(np.searchsorted(walks.start, visits))
    start = walks.start[: stop + 1].copy()
    start[-1] = visits
    return Walks(walks.node[:visits], start)
