"""Whether a translation passes through a pivot: scores from a lens trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp import InterpError, LensTrace
from interp._estimate import Estimate, cluster_mean
from probes._brief import brief

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("pivot", "co-occurrence", "direct")


@dataclass(frozen=True, eq=False)
class PivotScores:
    """What the layers before the target say, for each row of a lens trace.

    Args:
        pivot: the pivot score; 0 where the target is on top from the embedding on.
        pivot_layer: the layer of that maximum, NaN where no layer precedes the target.
        target_layer: the first layer with the target on top, NaN where it never is.
        association: Spearman's rho of P_l(w) and PMI(w, source) over the candidates; NaN without
            candidates, or where one side is constant.
        threshold: of the pivot score.
        association_threshold: of the co-occurrence score.
        meta: the model.
    """

    pivot: Float[Tensor, " row"]
    pivot_layer: Float[Tensor, " row"]
    target_layer: Float[Tensor, " row"]
    association: Float[Tensor, "row layer"]
    threshold: float
    association_threshold: float
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    @property
    def cooccurrence(self) -> Float[Tensor, " row"]:
        """The co-occurrence score: the largest association before the target, NaN for none."""
        layers = torch.arange(self.association.shape[1])
        before = layers < self.target_layer.nan_to_num(nan=float("inf"))[:, None]
        seen = self.association.masked_fill(~before | self.association.isnan(), -float("inf"))
        best = seen.amax(dim=1)
        return best.masked_fill(best.isinf(), float("nan"))

    @property
    def label(self) -> list[str]:
        """`pivot` where its score is above the threshold, else `co-occurrence`, else `direct`."""
        through = (self.pivot > self.threshold).tolist()
        beside = (self.cooccurrence > self.association_threshold).tolist()
        return [LABELS[0 if p else 1 if c else 2] for p, c in zip(through, beside, strict=True)]

    def share(
        self, label: str = "pivot", groups: Sequence[object] | None = None, *, seed: int = 0
    ) -> Estimate:
        """Share of rows with a label, with its 95 % interval over groups (concepts)."""
        if label not in LABELS:
            raise InterpError(f"no label {label!r}; expected one of {', '.join(LABELS)}")
        hits = [float(one == label) for one in self.label]
        return cluster_mean(hits, list(range(len(hits))) if groups is None else groups, seed)

    def table(self) -> pd.DataFrame:
        """One row a prompt: `row pivot_score pivot_layer target_layer cooccurrence_score label`."""
        import pandas as pd

        return pd.DataFrame(
            {
                "row": range(len(self.pivot)),
                "pivot_score": self.pivot.numpy(),
                "pivot_layer": self.pivot_layer.numpy(),
                "target_layer": self.target_layer.numpy(),
                "cooccurrence_score": self.cooccurrence.numpy(),
                "label": self.label,
            }
        )


def pivot_scores(
    trace: LensTrace,
    *,
    pivots: Sequence[int],
    target: int = 0,
    baseline: Float[Tensor, "row answer"] | None = None,
    candidates: Sequence[int] = (),
    association: Float[Tensor, "row candidate"] | None = None,
    threshold: int | float = 0.1,
    association_threshold: int | float = 0.3,
) -> PivotScores:
    """How likely the pivots are before the target: max_(l < l_t) sum_(w in pivots) P_l(w) - p(w).

    l_t is the first layer in which the target is the lens's top token (all layers count where it
    never is). Beside it, by layer, Spearman's correlation of P_l(w) with PMI(w, source) over
    candidate words. Scores mean little alone: score random words of the pivot's language the same
    way (other columns of the trace as `pivots`) and compare.

    Args:
        trace: `interp.logit_lens(model, prompts, answers)` whose answers are, for every prompt in
            the same order, the target, the pivots, and whatever else is to be scored.
        pivots: which answers are pivots: the word in other languages.
        target: which answer is the translation.
        baseline: what to subtract from each answer's probability, such as its unigram frequency:
            early layers favour frequent words whatever the prompt. Default: nothing.
        candidates: which answers take part in the co-occurrence score. Leave out target, pivots and
            source, which would mix the two scores.
        association: PMI of each row's source word with each candidate; minus infinity (they never
            meet) ranks lowest.
        threshold: a row whose pivot score is above it is labelled `pivot`.
        association_threshold: else, one whose co-occurrence score is above it, `co-occurrence`.

    Raises:
        InterpError: no pivots, an answer that the trace does not have, the target among the pivots,
            candidates without association or of another number, NaN in it.

    Examples:
        >>> asked = ["Translate Vel kalumi to Ost:"]
        >>> trace = interp.logit_lens(model, asked, [[" gorst", " water", " fire"]])
        >>> got = probes.pivot_scores(trace, pivots=[1])
        >>> control = probes.pivot_scores(trace, pivots=[2])

    Source: semantic pivots and co-occurrence are from arXiv 2505.16385. Its metrics could not be
    read: scores, labels and thresholds are our specification.
    """
    n_answers = trace.logprob.shape[-1]
    for index in (target, *pivots, *candidates):
        if not 0 <= index < n_answers:
            raise InterpError(f"no answer {index}; this trace has {n_answers}, from 0")
    if not pivots or target in pivots:
        raise InterpError(
            f"pivots={list(pivots)} with target={target}: give at least one answer that is not the "
            f"target"
        )
    prob = trace.prob if baseline is None else trace.prob - baseline[:, None]
    n_layers = trace.n_layers
    on_top = trace.rank[..., target] == 1
    first = torch.where(on_top.any(dim=1), on_top.int().argmax(dim=1), n_layers)
    before = torch.arange(n_layers) < first[:, None]
    carried = prob[..., list(pivots)].sum(-1).masked_fill(~before, -float("inf"))
    best = carried.max(dim=1)
    none, never = first == 0, first == n_layers
    return PivotScores(
        pivot=best.values.masked_fill(none, 0.0),
        pivot_layer=best.indices.float().masked_fill(none, float("nan")),
        target_layer=first.float().masked_fill(never, float("nan")),
        association=_association(trace, list(candidates), association),
        threshold=float(threshold),
        association_threshold=float(association_threshold),
        meta={"model": trace.meta.get("model", "")},
    )


def _association(
    trace: LensTrace, candidates: list[int], association: Tensor | None
) -> Float[Tensor, "row layer"]:
    """Spearman's rho over the candidates at every layer: Pearson's of average ranks."""
    from scipy.stats import rankdata

    n_rows = len(trace.logprob)
    if not candidates and association is None:
        return torch.full((n_rows, trace.n_layers), float("nan"))
    given = None if association is None else tuple(association.shape)
    if association is None or given != (n_rows, len(candidates)):
        raise InterpError(
            f"association has shape {given}; expected a number for each of {n_rows} rows and "
            f"{len(candidates)} candidates"
        )
    if bool(association.isnan().any()):
        raise InterpError(
            "association holds NaN: a candidate or a source never occurs in the corpus, so it has "
            "no PMI; leave that candidate out, or count on a larger corpus"
        )
    sides = (trace.logprob[..., candidates].double(), association.double()[:, None])
    ranks = [torch.from_numpy(rankdata(side.numpy(), axis=-1)) for side in sides]
    left, right = (rank - rank.mean(-1, keepdim=True) for rank in ranks)
    rho = (left * right).sum(-1) / (left.norm(dim=-1) * right.norm(dim=-1))
    return rho.float()  # 0 / 0 where a side is constant: NaN
