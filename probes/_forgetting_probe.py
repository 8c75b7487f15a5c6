"""Whether a fact's answer can be told from the last position's stream, by probes of other people.

Which answer of its attribute a stream holds is what a readout can share across entities: the
answer's identity is written the same way for everybody it is true of, while who is asked about
differs. So one probe an attribute and layer, with the answers as classes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes._forgetting_fact import Fact

Found = tuple[Int[Tensor, "fact layer who"], Float[Tensor, "fact layer who"]]


def probed(
    last: Mapping[str, Float[Tensor, "prompt layer d_model"]],
    facts: Sequence[Fact],
    train: Sequence[Fact],
    tokens: Int[Tensor, " prompt"],
    wanted: Int[Tensor, "fact who"],
    probe: Any,
    folds: int,
    seed: int,
) -> dict[str, Found]:
    """Rank and probability of [answer, decoy] among the attribute's answers, by probe.

    What cannot be told has rank 0 and probability NaN: an answer that fewer than two entities of
    the training part have, and everything at a layer where all streams are the same.

    Args:
        last: streams of "base", "tuned" and perhaps "random", facts first, then `train`.
        facts: that are tested.
        train: that are only trained on.
        tokens: the label of each of `facts` and `train`.
        wanted: the labels of answer and decoy.
        probe: a `LinearProbe`, of which copies are fitted.
        folds: parts of the entities.
        seed: of the parts and of the shuffled labels.
    """
    from sklearn.base import clone

    everything = [*facts, *train]
    entities = [fact.entity for fact in everything]
    labels, shuffled = tokens, _shuffled(everything, tokens, seed)
    sources = {f"{name}_probe": (streams, labels) for name, streams in last.items()}
    sources["shuffled_probe"] = (last["tuned"], shuffled)
    n_layers = last["base"].shape[1]
    shape = (len(facts), n_layers, wanted.shape[1])
    found = {
        name: (torch.zeros(shape, dtype=torch.long), torch.full(shape, float("nan")))
        for name in sources
    }
    for inside, outside in _splits(facts, everything, folds, seed):
        for name, (streams, target) in sources.items():
            for layer in range(n_layers):
                outer = _learnable(target, outside, entities)
                known = streams[outer, layer]
                if bool((known == known[0]).all()):  # the embedding, where prompts end alike
                    continue
                rank, prob = _read(
                    clone(probe).fit(
                        known.double().numpy(),
                        target[outer].numpy(),
                        groups=[entities[i] for i in outer.tolist()],
                    ),
                    streams[inside, layer],
                    wanted[inside],
                )
                found[name][0][inside, layer] = rank
                found[name][1][inside, layer] = prob
    return found


def _splits(
    facts: Sequence[Fact], everything: Sequence[Fact], folds: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """(tested, trained on), attribute by attribute; no entity is on both sides."""
    rng = random.Random(f"folds/{seed}")
    found = []
    for attribute in dict.fromkeys(fact.attribute for fact in facts):
        here = [i for i, fact in enumerate(everything) if fact.attribute == attribute]
        judged = [i for i in here if i < len(facts)]
        entities = sorted({everything[i].entity for i in judged})
        if len(judged) < len(here):
            outside = [i for i in here[len(judged) :] if everything[i].entity not in entities]
            found.append((torch.tensor(judged), torch.tensor(outside)))
            continue
        rng.shuffle(entities)
        for part in range(folds):
            tested = set(entities[part::folds])
            inside = [i for i in here if everything[i].entity in tested]
            outside = [i for i in here if everything[i].entity not in tested]
            found.append((torch.tensor(inside), torch.tensor(outside)))
    return found


def _learnable(labels: Tensor, rows: Tensor, entities: Sequence[str]) -> Tensor:
    """The rows whose label two entities or more have."""
    owners = {(int(labels[i]), entities[i]) for i in rows.tolist()}
    answers = Counter(label for label, _ in owners)
    return torch.tensor([i for i in rows.tolist() if answers[int(labels[i])] > 1])


def _shuffled(facts: Sequence[Fact], tokens: Tensor, seed: int) -> Tensor:
    """Answers dealt out anew among the entities of each attribute; an entity keeps one answer."""
    rng = random.Random(f"shuffled/{seed}")
    keys = [
        (fact.attribute, fact.entity, int(token)) for fact, token in zip(facts, tokens, strict=True)
    ]
    dealt: dict[tuple[str, str, int], int] = {}
    for attribute in dict.fromkeys(fact.attribute for fact in facts):
        owners = sorted({key for key in keys if key[0] == attribute})
        answers = [token for *_, token in owners]
        rng.shuffle(answers)
        dealt |= dict(zip(owners, answers, strict=True))
    return torch.tensor([dealt[key] for key in keys])


def _read(probe: Any, unknown: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Rank and probability [fact who] of the wanted labels."""
    import numpy as np

    prob = np.asarray(probe.predict_proba(unknown.double().numpy()))
    classes = {label: column for column, label in enumerate(np.asarray(probe.classes_).tolist())}
    columns = torch.tensor([[classes.get(int(w), -1) for w in row] for row in wanted])
    scores = torch.from_numpy(prob).float()
    picked = scores.gather(1, columns.clamp(min=0))
    order = torch.arange(scores.shape[1])
    ahead = (scores[:, None] > picked[..., None]) | (
        (scores[:, None] == picked[..., None]) & (order < columns[..., None])
    )
    missing = columns < 0
    return (ahead.sum(-1) + 1).masked_fill(missing, 0), picked.masked_fill(missing, float("nan"))
