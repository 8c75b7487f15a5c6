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

from interp import InterpError
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
    the training part have, everything where it has fewer than two such answers, and everything at a
    layer where all streams are the same.

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
    labels, shuffled = tokens, _shuffled(everything, tokens, len(facts), seed)
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
            outer = _learnable(target, outside, entities)
            if len(target[outer].unique()) < 2:  # nothing to tell apart
                continue
            for layer in range(n_layers):
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


def check_probe(
    facts: Sequence[Fact], train: Sequence[Fact], tokens: Tensor, folds: int, seed: int = 0
) -> None:
    """Refuse what no probe can be trained on.

    Raises:
        InterpError: fewer entities than folds, fewer than two answers that entities share, or an
            attribute none of whose facts can be read.
    """
    if folds < 2:
        raise InterpError(f"folds={folds}: expected at least 2")
    remedy = "give more facts, more in train=, or probe=None to go without"
    everything = [*facts, *train]
    for attribute in dict.fromkeys(fact.attribute for fact in facts):
        judged = {fact.entity for fact in facts if fact.attribute == attribute}
        here = [i for i, fact in enumerate(everything) if fact.attribute == attribute]
        apart = [i for i in here if i >= len(facts)]
        if not apart and len(judged) < folds:
            raise InterpError(
                f"attribute {attribute!r} has facts about {len(judged)} entities, fewer than "
                f"folds={folds}, so no probe can be trained on one part and read another; {remedy}"
            )
        used = [i for i in apart if everything[i].entity not in judged] if apart else here
        owners = {(int(tokens[i]), everything[i].entity) for i in used}
        answers = [token for token, _ in owners]
        enough = {token for token in answers if answers.count(token) > 1}
        if len(enough) < 2:
            raise InterpError(
                f"attribute {attribute!r} has {len(enough)} answers that two entities or more of "
                f"its {len({name for _, name in owners})} share, too few for a probe to learn "
                f"(two answers at least); {remedy}"
            )
    owner = [fact.entity for fact in everything]
    readable: set[str] = set()
    for inside, outside in _splits(facts, everything, folds, seed):
        classes = set(tokens[_learnable(tokens, outside, owner)].tolist())
        if len(classes) > 1 and classes & set(tokens[inside].tolist()):
            readable.add(everything[int(inside[0])].attribute)
    for attribute in dict.fromkeys(fact.attribute for fact in facts):
        if attribute not in readable:
            raise InterpError(
                f"no fact of attribute {attribute!r} can be read by a probe trained on other "
                f"entities: two answers at least must be shared by two of those, the fact's own "
                f"among them; {remedy}"
            )


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
    known = [i for i in rows.tolist() if answers[int(labels[i])] > 1]
    return torch.tensor(known, dtype=torch.long)


def _shuffled(facts: Sequence[Fact], tokens: Tensor, judged: int, seed: int) -> Tensor:
    """Answers dealt out anew among the entities of each attribute; an entity keeps one answer.

    Judged facts (the first `judged`) and those that are only trained on are dealt apart: else rare
    answers of the judged could leave nothing to learn.
    """
    rng = random.Random(f"shuffled/{seed}")
    keys = [
        (fact.attribute, i < judged, fact.entity, int(tokens[i])) for i, fact in enumerate(facts)
    ]
    dealt: dict[tuple[str, bool, str, int], int] = {}
    for side in dict.fromkeys(key[:2] for key in keys):
        owners = sorted({key for key in keys if key[:2] == side})
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
