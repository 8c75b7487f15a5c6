"""Heads and singular vectors that carry the old answer under attack, and life without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import Model
from studies._superficial_cases import Case
from studies._superficial_heads import (
    Head,
    HeadVectors,
    decoded,
    first_tokens,
    head_vectors,
    last_probs,
    layers_with_heads,
    loph,
    vector_scores,
    z_of,
)

if TYPE_CHECKING:
    import pandas as pd

LEAST = 0.1  # LOPH above which a head counts as one that writes the answer
FEWEST = 4  # where no head reaches that, the best so many are taken
SHARES = (0.05, 0.10)  # of a head's singular vectors


def loph_table(model: Model, cases: Sequence[Case], indices: Sequence[int]) -> pd.DataFrame:
    """One row a (case, attack, layer, head): what the lens reads from the head alone."""
    import pandas as pd

    rows = []
    for number in range(min(len(case.attacks) for case in cases)):
        prompts = [case.attacks[number].old + case.text for case in cases]
        found = {
            name: loph(
                model, prompts, first_tokens(model, prompts, [getattr(c, name) for c in cases])
            )
            for name in ("old", "new", "decoy")
        }
        for place, layer in enumerate(layers_with_heads(model)):
            for head in range(found["old"].shape[2]):
                for row, case in enumerate(cases):
                    rows.append(
                        {"case": indices[row], "group": case.group, "layer": layer, "head": head,
                         "probe": case.attacks[number].name}
                        | {name: float(value[row, place, head]) for name, value in found.items()}
                    )  # fmt: skip
    return pd.DataFrame(rows)


def chosen_heads(table: pd.DataFrame) -> tuple[list[Head], bool]:
    """Heads whose mean LOPH exceeds 0.1 on even cases; without any the best four, and False."""
    even = table[table["case"] % 2 == 0]
    means = even.groupby(["layer", "head"])["old"].mean().sort_values(ascending=False)
    passing = means[means > LEAST]
    best = passing if len(passing) else means.head(FEWEST)
    return [(int(layer), int(head)) for layer, head in best.index], bool(len(passing))


def ablation_tables(
    model: Model,
    cases: Sequence[Case],
    indices: Sequence[int],
    heads: Sequence[Head],
    draws: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What removing heads and singular vectors does to P(old), P(new), and what vectors decode to.

    Vectors are scored for each case on all its attacks but the last, which alone is reported on.

    Returns:
        `case removed draw p_old p_new`, with `removed` "nothing", "heads", "random heads",
        "5 %" and "10 %" of the chosen heads' vectors and "random 5 %", "random 10 %"; and
        `case head share chosen_old chosen_decoy random_old`, whether they are decoded.
    """
    import pandas as pd

    generator = torch.Generator().manual_seed(seed)
    prompts = [case.attacks[-1].old + case.text for case in cases]
    tokens = {
        name: first_tokens(model, prompts, [getattr(case, name) for case in cases])
        for name in ("old", "new", "decoy")
    }
    vectors = {head: head_vectors(model, head) for head in heads}
    scores = _scores(model, cases, vectors)
    z = z_of(model, prompts, heads)
    rows: list[dict] = []

    def measure(name: str, draw: int, removed: Mapping[Head, Tensor | None]) -> None:
        probs = last_probs(model, prompts, removed)
        for row, case in enumerate(cases):
            rows.append(
                {"case": indices[row], "group": case.group, "removed": name, "draw": draw}
                | {f"p_{n}": float(probs[row, tokens[n][row]]) for n in ("old", "new")}
            )

    measure("nothing", 0, {})
    measure("heads", 0, dict.fromkeys(heads))
    for draw in range(draws):
        measure("random heads", draw, dict.fromkeys(_other_heads(model, heads, generator)))
    said: list[dict] = []
    for share in SHARES:
        label = f"{share:.0%}".replace("%", " %")
        best = {head: _top(scores[head], share) for head in heads}
        measure(label, 0, {head: vectors[head].onto(best[head]) for head in heads})
        blind: dict[Head, Tensor] = {}
        for draw in range(draws):
            blind = {head: _top(_drawn(scores[head], generator), share) for head in heads}
            measure(f"random {label}", draw, {h: vectors[h].onto(blind[h]) for h in heads})
        for head in heads:
            parts = vectors[head].parts(z[head])
            whole, some, other = (
                parts.sum(1), _sum(parts, best[head]), _sum(parts, blind[head])
            )  # fmt: skip
            hits = {
                "head_old": decoded(model, whole, tokens["old"]),
                "chosen_old": decoded(model, some, tokens["old"]),
                "chosen_decoy": decoded(model, some, tokens["decoy"]),
                "random_old": decoded(model, other, tokens["old"]),
            }
            for row, case in enumerate(cases):
                said.append(
                    {"case": indices[row], "group": case.group, "layer": head[0],
                     "head": head[1], "share": share}
                    | {name: bool(hit[row]) for name, hit in hits.items()}
                )  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(said)


def _scores(
    model: Model, cases: Sequence[Case], vectors: Mapping[Head, HeadVectors]
) -> dict[Head, Float[Tensor, "case rank"]]:
    """Each vector's score, averaged over the attacks that are not reported on."""
    total: dict[Head, Tensor] = {}
    numbers = range(max(1, min(len(case.attacks) for case in cases) - 1))
    for number in numbers:
        prompts = [case.attacks[number].old + case.text for case in cases]
        tokens = first_tokens(model, prompts, [case.old for case in cases])
        z = z_of(model, prompts, list(vectors))
        for head, of in vectors.items():
            scored = vector_scores(model, of, z[head], tokens) / len(numbers)
            total[head] = total[head] + scored if head in total else scored
    return total


def _top(scores: Float[Tensor, "case rank"], share: float) -> Int[Tensor, "case k"]:
    """The best share of the vectors, at least one."""
    return scores.topk(max(1, int(share * scores.shape[1])), dim=1).indices


def _drawn(scores: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(scores.shape, generator=generator)


def _sum(
    parts: Float[Tensor, "case rank d_model"], chosen: Int[Tensor, "case k"]
) -> Float[Tensor, "case d_model"]:
    return parts.gather(1, chosen[:, :, None].expand(-1, -1, parts.shape[2])).sum(1)


def _other_heads(model: Model, heads: Sequence[Head], generator: torch.Generator) -> list[Head]:
    """As many heads as were chosen, from those that were not."""
    blocks = model.anatomy.blocks
    others = [
        (layer, head)
        for layer in layers_with_heads(model)
        for head in range(blocks[layer].n_heads)
        if (layer, head) not in heads
    ]
    drawn = torch.randperm(len(others), generator=generator)[: len(heads)]
    return [others[i] for i in drawn.tolist()]
