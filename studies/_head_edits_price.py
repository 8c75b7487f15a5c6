"""The price of the gates, chosen on dev: the dearest that is as good as the best."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Priced:
    """What one price of the gates came to.

    Args:
        price: of the gates, in nats for all heads.
        dev: loss on the dev questions, nats a token.
        costs: mean nats an answer of each group of dev questions.
        heads: (layer, head) of those edited.
    """

    price: float
    dev: float
    costs: Sequence[float]
    heads: Sequence[tuple[int, int]]

    @property
    def cost(self) -> float:
        """Mean over groups, nats an answer."""
        return statistics.fmean(self.costs)

    @property
    def error(self) -> float:
        """Standard error of that mean; 0 of a single group."""
        if len(self.costs) < 2:
            return 0.0
        return statistics.stdev(self.costs) / len(self.costs) ** 0.5


def dearest(path: Sequence[Priced]) -> int:
    """Which of some prices: the highest whose cost is within one standard error of the least.

    The rule by which a lasso's penalty is commonly chosen (Hastie, Tibshirani and Friedman, The
    Elements of Statistical Learning, 7.10): of models that dev cannot tell apart the sparsest. The
    standard error is the best price's, over groups; of folds, as there, we have but one.
    """
    best = min(path, key=lambda priced: priced.cost)
    good = [i for i, p in enumerate(path) if p.cost <= best.cost + best.error]
    return max(good, key=lambda i: path[i].price)
