"""Measures of the pivot study: what each layer says of target, pivot, source and their controls."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import interp
import probes
from interp import LensTrace, Model
from interp._answers import answer_tokens
from probes import Cooccurrence, PivotScores
from studies._stats import Estimate, cluster_mean
from studies._word_pairs import WordPair

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 8  # random words of the pivot's language that are scored like the pivot
# Of few concepts, shares have exact intervals, scores and probabilities Student's: the exact one
# holds for any distribution on the range, and says next to nothing of a mean score of 24 concepts.
SHARES = ("accuracy", "is_pivot", "is_pivot_null", "is_cooccurrence", "is_direct")
WHO = ("target", "pivot", "source", "random target", "random pivot")


@dataclass(frozen=True)
class Asked:
    """What is traced for each pair: the columns of its trace, as token ids.

    Columns: the target, the pivots, the source, another pair's target, then DRAWS times pivots of
    other pairs, then candidates for the co-occurrence score (every other word of the pairs).

    Args:
        tokens: [pair column].
        partner: whose target and source are the null.
        pivots: how many pivots a pair has.
    """

    tokens: Tensor
    partner: tuple[int, ...]
    pivots: int

    @property
    def source(self) -> int:
        """The source's column; the random target's is the next."""
        return 1 + self.pivots

    def control(self, draw: int) -> list[int]:
        """The columns of a draw of other pairs' pivots."""
        start = self.source + 2 + draw * self.pivots
        return list(range(start, start + self.pivots))

    @property
    def candidates(self) -> list[int]:
        """The columns of the co-occurrence score."""
        return list(range(self.source + 2 + DRAWS * self.pivots, self.tokens.shape[1]))


def asked_of(
    model: Model, pairs: Sequence[WordPair], seed: int, corpus: Cooccurrence | None = None
) -> Asked:
    """The tokens to trace, each word by its first token after a prompt.

    Random pivots are of other groups and, where there is a corpus, of the quarter (at least eight)
    that is nearest in frequency. Candidates are as many for each pair as the fewest words left.
    """
    rng = random.Random(f"pivots/{seed}")
    ids = word_tokens(model, pairs)
    count = {} if corpus is None else dict(zip(corpus.words, corpus.tokens.tolist(), strict=True))
    rows, partners, left = [], [], []
    for pair in pairs:
        others = [i for i, other in enumerate(pairs) if other.group != pair.group]
        alike = [
            i
            for i in others
            if (pairs[i].direction, pairs[i].split) == (pair.direction, pair.split)
        ]
        partner = rng.choice(alike or others)
        partners.append(partner)
        own = {ids[word] for word in (pair.target, pair.source, *pair.pivots)}
        near = _near(pair, pairs, others, ids, count)
        drawn = [rng.choice(near) for _ in range(DRAWS)]
        words = [pair.target, *pair.pivots, pair.source, pairs[partner].target]
        words += [word for i in drawn for word in pairs[i].pivots]
        rows.append([ids[word] for word in words])
        rest = sorted(set(ids.values()) - own)
        left.append(rng.sample(rest, len(rest)))
    fewest = min(map(len, left))
    tokens = torch.tensor([row + more[:fewest] for row, more in zip(rows, left, strict=True)])
    return Asked(tokens, tuple(partners), len(pairs[0].pivots))


def word_tokens(model: Model, pairs: Sequence[WordPair]) -> dict[str, int]:
    """The first token of every word of the pairs, as it stands after a prompt."""
    words = sorted({w for p in pairs for w in (p.target, p.source, *p.pivots)})
    batch = model.batch([pairs[0].prompt])
    return {
        word: tokens[0]
        for word, tokens in zip(words, answer_tokens(model, batch, [list(words)])[0], strict=True)
    }


def _near(
    pair: WordPair, pairs: Sequence[WordPair], others: list[int], ids: dict[str, int], count: dict
) -> list[int]:
    if not count:
        return others

    def often(one: WordPair) -> int:
        return sum(count[ids[word]] for word in one.pivots)

    ordered = sorted(others, key=lambda i: abs(often(pairs[i]) - often(pair)))
    return ordered[: max(8, len(others) // 4)]


def traced(model: Model, pairs: Sequence[WordPair], asked: Asked) -> LensTrace:
    """The logit lens at the end of every prompt."""
    answers = [[int(token) for token in row] for row in asked.tokens]
    return interp.logit_lens(model, [pair.prompt for pair in pairs], answers, top_k=1)


def by_pair(
    trace: LensTrace,
    pairs: Sequence[WordPair],
    asked: Asked,
    corpus: Cooccurrence | None,
    threshold: float,
) -> pd.DataFrame:
    """One row a pair: what is said in the end, and the scores with their nulls."""
    import pandas as pd

    baseline = None
    options: dict = {}
    null: dict = {}
    if corpus is not None:
        place = {word: index for index, word in enumerate(corpus.words)}
        index = torch.tensor([[place[int(t)] for t in row] for row in asked.tokens])
        baseline = corpus.unigram[index]
        options = _association(corpus, index, asked, range(len(pairs)))
        null = _association(corpus, index, asked, asked.partner)
    pivots = list(range(1, 1 + asked.pivots))
    found = probes.pivot_scores(
        trace, pivots=pivots, baseline=baseline, threshold=threshold, **options
    )
    other = probes.pivot_scores(
        trace, pivots=pivots, baseline=baseline, threshold=threshold, **null
    )
    random_words = [
        probes.pivot_scores(
            trace, pivots=asked.control(draw), baseline=baseline, threshold=threshold, **options
        )
        for draw in range(DRAWS)
    ]
    last = trace.prob[:, -1]
    return pd.DataFrame(
        {
            "group": [pair.group for pair in pairs],
            "split": [pair.split for pair in pairs],
            "direction": [pair.direction for pair in pairs],
            "accuracy": (trace.rank[:, -1, 0] == 1).double().numpy(),
            "probability": last[:, 0].double().numpy(),
            "probability_null": last[:, asked.source + 1].double().numpy(),
            "reciprocal_rank": (1 / trace.rank[:, -1, 0].double()).numpy(),
            "reciprocal_rank_null": (1 / trace.rank[:, -1, asked.source + 1].double()).numpy(),
            "pivot": found.pivot.double().numpy(),
            "pivot_null": torch.stack([s.pivot for s in random_words]).mean(0).double().numpy(),
            "association": found.cooccurrence.double().numpy(),
            "association_null": other.cooccurrence.double().numpy(),
            **_labelled(found, random_words),
        }
    )


def _association(
    corpus: Cooccurrence, index: Tensor, asked: Asked, of: Sequence[int]
) -> dict[str, object]:
    """PMI of each row's candidates with its own source, or with another row's for the null."""
    source = index[torch.tensor(list(of)), asked.source]
    pmi = corpus.pmi[source[:, None], index[:, asked.candidates]]
    if bool(pmi.isnan().any()):  # words that the corpus does not have
        return {}
    return {"candidates": asked.candidates, "association": pmi}


def _labelled(found: PivotScores, random_words: list[PivotScores]) -> dict[str, object]:
    """Indicators of the labels; the null is a row's share of random words that pass for a pivot."""
    labels = found.label
    named = {
        "is_pivot": [float(label == "pivot") for label in labels],
        "is_cooccurrence": [float(label == "co-occurrence") for label in labels],
        "is_direct": [float(label == "direct") for label in labels],
    }
    null = torch.tensor([[float(x == "pivot") for x in s.label] for s in random_words]).mean(0)
    return {**named, "is_pivot_null": null.double().numpy()}


def summary(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Every quantity of `by_pair` by model and split, with intervals over concepts.

    A quantity with a null also has the paired difference, `<quantity>_above_null`.
    """
    import pandas as pd

    quantities = [name for name in rows if name not in ("model", "group", "split", "direction")]
    out = []
    for (model, split), part in rows.groupby(["model", "split"], sort=False):
        for name in quantities:
            bounds = (0.0, 1.0) if name in SHARES else None
            out.append(_row(model, split, name, part, part[name], seed, bounds))
            if f"{name}_null" in rows:
                above = part[name] - part[f"{name}_null"]
                bounds = (-1.0, 1.0) if name in SHARES else None
                out.append(_row(model, split, f"{name}_above_null", part, above, seed, bounds))
    return pd.DataFrame(out)


def profile(trace: LensTrace, pairs: Sequence[WordPair], asked: Asked, seed: int) -> pd.DataFrame:
    """Mean probability of each kind of word by split and layer, with intervals over concepts."""
    import pandas as pd

    pivots = list(range(1, 1 + asked.pivots))
    drawn = torch.stack([trace.prob[..., asked.control(d)].sum(-1) for d in range(DRAWS)])
    by_who = dict(
        zip(
            WHO,
            (
                trace.prob[..., 0],
                trace.prob[..., pivots].sum(-1),
                trace.prob[..., asked.source],
                trace.prob[..., asked.source + 1],
                drawn.mean(0),
            ),
            strict=True,
        )
    )
    out = []
    for split in dict.fromkeys(pair.split for pair in pairs):
        chosen = [i for i, pair in enumerate(pairs) if pair.split == split]
        groups = [pairs[i].group for i in chosen]
        for who, values in by_who.items():
            for layer in range(trace.n_layers):
                found = cluster_mean(
                    values[chosen, layer].tolist(), groups, seed, bounds=(0.0, float("inf"))
                )
                out.append({"split": split, "who": who, "layer": layer, **_numbers(found)})
    return pd.DataFrame(out)


def _row(
    model: str, split: str, name: str, part: pd.DataFrame, values: pd.Series, seed: int,
    bounds: tuple[float, float] | None,
) -> dict[str, object]:  # fmt: skip
    known = values.notna()
    row: dict[str, object] = {"model": model, "split": split, "quantity": name}
    if not known.any():
        nan = float("nan")
        return row | {"mean": nan, "low": nan, "high": nan, "concepts": 0, "n": 0}
    groups = part.loc[known, "group"].tolist()
    found = cluster_mean(values[known].tolist(), groups, seed, bounds=bounds)
    return row | _numbers(found)


def _numbers(found: Estimate) -> dict[str, float | int]:
    return {
        "mean": found.mean, "low": found.low, "high": found.high, "concepts": found.clusters,
        "n": found.n,
    }  # fmt: skip
