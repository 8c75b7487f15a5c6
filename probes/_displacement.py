"""Likelihood displacement: whether training on a pair made its preferred answer less likely."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import interp
from interp import Model
from interp._estimate import Estimate, share
from interp._model import as_model
from probes._brief import brief
from probes._token_rows import listed_pairs
from probes._vocabulary import shared_vocabulary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Displacement:
    """Log-probs of both answers of preference pairs before and after training, in nats.

    Args:
        before: log p(y | x) under the model before; columns chosen, rejected.
        after: the same after.
        meta: the models.
    """

    before: Float[Tensor, "pair 2"]
    after: Float[Tensor, "pair 2"]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    @property
    def chosen(self) -> Float[Tensor, " pair"]:
        """The change of log p(y+); below zero the preferred answer was displaced."""
        return (self.after - self.before)[:, 0]

    @property
    def margin(self) -> Float[Tensor, " pair"]:
        """The change of log p(y+) - log p(y-), which preference training raises."""
        return (self.after - self.before)[:, 0] - (self.after - self.before)[:, 1]

    def displaced(self) -> Estimate:
        """Share of pairs whose preferred answer became less likely, with its exact interval."""
        return share(int((self.chosen < 0).sum()), len(self.chosen))

    def table(self) -> pd.DataFrame:
        """One row a pair: `pair chosen_before chosen_after rejected_... chosen_change margin`."""
        import pandas as pd

        columns: dict[str, Any] = {"pair": range(len(self.before))}
        for index, name in enumerate(("chosen", "rejected")):
            columns[f"{name}_before"] = self.before[:, index].numpy()
            columns[f"{name}_after"] = self.after[:, index].numpy()
        columns |= {"chosen_change": self.chosen.numpy(), "margin_change": self.margin.numpy()}
        return pd.DataFrame(columns)


def likelihood_displacement(
    before: Model | nn.Module,
    after: Model | nn.Module,
    prompts: Any,
    chosen: Any,
    rejected: Any,
    *,
    batch_size: int = 8,
) -> Displacement:
    """The change of log p(y+ | x) and log p(y- | x) between two checkpoints, for each pair.

    Args:
        before: the model before preference training.
        after: and after.
        prompts: texts or token ids.
        chosen: y+ of each prompt: a text, or a list of token ids.
        rejected: y- of each.
        batch_size: pairs a forward.

    Raises:
        InterpError: other vocabularies, lists of different lengths, no pairs, an answer without
            tokens.

    Examples:
        >>> trained = model                                  # another checkpoint in real life
        >>> got = probes.likelihood_displacement(model, trained, [prompt], [" Bridge."], [" No."])
        >>> print(got.displaced())
        0.00 [0.00, 0.97]

    Source: Razin et al. 2024 (arXiv 2410.08847, ICLR 2025).
    """
    models = as_model(before), as_model(after)
    shared_vocabulary(*models)
    triples = listed_pairs(prompts, chosen=chosen, rejected=rejected)
    found = []
    for model in models:
        parts = []
        for start in range(0, len(triples), batch_size):
            some = triples[start : start + batch_size]
            answers = [[good, bad] for _, good, bad in some]
            parts.append(interp.answer_logprob(model, [x for x, _, _ in some], answers))
        found.append(torch.cat(parts))
    names = [model.name or type(model.module).__name__ for model in models]
    first, second = found
    return Displacement(first, second, meta=dict(zip(("before", "after"), names, strict=True)))
