"""Graphs by hand: walks from lists, and rollouts that walk on letters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import probes
from probes._reasoning_graph_walks import Walks


def walks(*sequences: Sequence[int]) -> Walks:
    flat = np.array([node for sequence in sequences for node in sequence], dtype=np.int64)
    return Walks.merged(flat, np.cumsum([0, *(len(sequence) for sequence in sequences)]))


def random_walks(
    seed: int, count: int = 40, nodes: int = 12, longest: int = 8, steep: float = 0.0
) -> Walks:
    """Independent draws with weights exp(-steep * node), some walks empty."""
    rng = np.random.default_rng(seed)
    weight = np.exp(-steep * np.arange(nodes))
    return walks(
        *(
            rng.choice(nodes, size=rng.integers(0, longest), p=weight / weight.sum()).tolist()
            for _ in range(count)
        )
    )


def merged(sequence: Sequence[int]) -> list[int]:
    """The literal reading of "consecutive duplicates are one visit"."""
    return [a for i, a in enumerate(sequence) if i == 0 or sequence[i - 1] != a]


def rollouts(
    seed: int,
    *,
    models: dict[str, float],
    problems: int = 30,
    samples: int = 16,
    steps: int = 6,
    nodes: int = 10,
) -> list[probes.Rollout]:
    """Steps are words of their problem; a model is how steeply it prefers the first of them."""
    rng = np.random.default_rng(seed)
    made = []
    for model, steep in models.items():
        weight = np.exp(-steep * np.arange(nodes))
        for problem in range(problems):
            for _ in range(samples):
                path = rng.choice(nodes, size=steps, p=weight / weight.sum())
                text = ";".join(f"step{problem}x{node}" for node in path)
                made.append(probes.Rollout(str(problem), model, text))
    return made
