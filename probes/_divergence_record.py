"""What two models would say next, beside each other: a record with tables and a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import InterpError
from interp._errors import nearest
from interp._estimate import cluster_mean
from interp._record import load_record, save_record
from probes._brief import brief

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

By = Literal["class", "position", "text", "shift"]
# What each measure can be at least and at most; intervals respect it.
MEASURES: dict[str, tuple[float, float] | None] = {
    "forward": (0.0, math.inf),
    "reverse": (0.0, math.inf),
    "tv": (0.0, 1.0),
    "flip": (0.0, 1.0),
    "shifted": (0.0, 1.0),
    "base_entropy": (0.0, math.inf),
    "tuned_entropy": (0.0, math.inf),
    "log_ratio": None,
}
_AXES = {
    "forward": "KL(base ‖ tuned), nats per token",
    "reverse": "KL(tuned ‖ base), nats per token",
    "tv": "total variation",
    "flip": "share of tokens with another top token",
    "shifted": "share of tokens ranked beyond 3 by the base",
    "base_entropy": "entropy of the base, nats",
    "tuned_entropy": "entropy of the tuned model, nats",
    "log_ratio": "log p_tuned - log p_base, nats per token",
}
_NOT_TENSORS = ("kinds", "tokens", "meta")


@dataclass(frozen=True, eq=False)
class Divergence:
    """Next-token distributions p (base) and q (tuned), compared; `row` runs over (text, position).

    Args:
        forward: KL(p || q) in nats.
        reverse: KL(q || p) in nats.
        tv: total variation, sum_v |p(v) - q(v)| / 2.
        rank: rank of the tuned model's top token under the base; 1 where the top tokens agree.
        base_top: the base's top token.
        tuned_top: the tuned model's.
        base_entropy: of p, in nats.
        tuned_entropy: of q, in nats.
        base_logprob: log p of the token that follows; NaN where the text ends.
        tuned_logprob: log q of it.
        text: index of each row's text.
        position: position of the last token read, in tokens from the text's start.
        token: that token.
        target: the token that follows, -1 where the text ends.
        kind: index into `kinds`: the class of the target.
        kinds: names of the classes.
        tokens: text of every token mentioned.
        meta: models, vocabulary and arguments.
    """

    forward: Float[Tensor, " row"]
    reverse: Float[Tensor, " row"]
    tv: Float[Tensor, " row"]
    rank: Int[Tensor, " row"]
    base_top: Int[Tensor, " row"]
    tuned_top: Int[Tensor, " row"]
    base_entropy: Float[Tensor, " row"]
    tuned_entropy: Float[Tensor, " row"]
    base_logprob: Float[Tensor, " row"]
    tuned_logprob: Float[Tensor, " row"]
    text: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    token: Int[Tensor, " row"]
    target: Int[Tensor, " row"]
    kind: Int[Tensor, " row"]
    kinds: list[str]
    tokens: dict[int, str]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    @property
    def flip(self) -> Bool[Tensor, " row"]:
        """Whether the top tokens differ."""
        return self.base_top != self.tuned_top

    @property
    def log_ratio(self) -> Float[Tensor, " row"]:
        """Log q - log p of the token that follows; its sum over a text scores that text (CGE)."""
        return self.tuned_logprob - self.base_logprob

    def table(self) -> pd.DataFrame:
        """Tidy, one row a position.

        Columns `text position token target class forward reverse tv flip rank shift base_top
        tuned_top base_entropy tuned_entropy base_logprob tuned_logprob log_ratio`; `shift` is
        URIAL's: unshifted (rank 1), marginal (2 and 3), shifted (beyond).
        """
        import pandas as pd

        columns: dict[str, Any] = {"text": self.text.numpy(), "position": self.position.numpy()}
        for name in ("token", "target"):
            columns[name] = self._texts(getattr(self, name))
        columns["class"] = [self.kinds[kind] for kind in self.kind.tolist()]
        for name in ("forward", "reverse", "tv", "flip", "rank"):
            columns[name] = getattr(self, name).numpy()
        columns["shift"] = self._shift()
        for name in ("base_top", "tuned_top"):
            columns[name] = self._texts(getattr(self, name))
        names = ("base_entropy", "tuned_entropy", "base_logprob", "tuned_logprob", "log_ratio")
        return pd.DataFrame(columns | {name: getattr(self, name).numpy() for name in names})

    def summary(self, by: By | None = None, *, seed: int = 0) -> pd.DataFrame:
        """Means over tokens with 95 % intervals in which texts, not tokens, are the evidence.

        Columns (`by`) `measure mean low high tokens texts`; measures are `forward reverse tv flip
        shifted base_entropy tuned_entropy log_ratio`, the last over tokens that have a next one.

        Args:
            by: nothing; `"class"` of the token that follows; `"position"`, counted from the first
                measured one of its text, in bins that double (0, 1, 2-3, 4-7, ...; the column holds
                each bin's first); `"text"`; `"shift"`.
            seed: of the bootstrap.
        """
        import pandas as pd

        rows = []
        for label, where in self._groups(by):
            for name, bounds in MEASURES.items():
                values = self._values(name)[where]
                here = values == values
                if not here.any():
                    continue
                texts = self.text.numpy()[where][here]
                got = cluster_mean(values[here].tolist(), texts.tolist(), seed, bounds=bounds)
                row = {} if by is None else {str(by): label}
                row |= {"measure": name, "mean": got.mean, "low": got.low, "high": got.high}
                rows.append(row | {"tokens": got.n, "texts": got.clusters})
        return pd.DataFrame(rows)

    def plot(
        self, ax: Axes | None = None, *, measure: str = "forward", by: By = "position"
    ) -> Axes:
        """One measure's mean by position (or class, text, shift) with its interval.

        Args:
            ax: where to draw; a new figure by default.
            measure: a measure of `summary`.
            by: what to group by.
        """
        if measure not in MEASURES:
            raise InterpError(f"no measure {measure!r}; {nearest(measure, MEASURES)}")
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(figsize=(6.0, 3.4), layout="constrained")[1]
        found = self.summary(by)
        found = found[found["measure"] == measure].reset_index(drop=True)
        low, high = found["mean"] - found["low"], found["high"] - found["mean"]
        errors = [low.fillna(0).clip(lower=0), high.fillna(0).clip(lower=0)]
        labels = [str(label).replace("$", r"\$") for label in found[by]]
        line = "-" if by == "position" else "none"
        ax.errorbar(
            range(len(found)), found["mean"], yerr=errors, marker="o", capsize=2, linestyle=line
        )
        ax.set_xticks(range(len(found)), labels)
        ax.set(xlabel="position, from" if by == "position" else by, ylabel=_AXES[measure])
        if (bounds := MEASURES[measure]) is not None:
            ax.set_ylim(bottom=bounds[0])
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def save(self, path: str | Path) -> Path:
        """Write a folder that `Divergence.load` reads back, whole or not at all."""
        tensors = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_TENSORS
        }
        tokens = {str(token): text for token, text in self.tokens.items()}
        meta = {"kinds": self.kinds, "tokens": tokens, "divergence": self.meta}
        return save_record(path, "divergence", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> Divergence:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "divergence")
        tokens = {int(token): text for token, text in meta["tokens"].items()}
        return Divergence(**tensors, kinds=meta["kinds"], tokens=tokens, meta=meta["divergence"])

    def _values(self, measure: str) -> np.ndarray:
        if measure == "shifted":
            return (self.rank > 3).double().numpy()
        return getattr(self, measure).double().numpy()

    def _shift(self) -> list[str]:
        names = ("unshifted", "marginal", "shifted")
        return [names[(rank > 1) + (rank > 3)] for rank in self.rank.tolist()]

    def _texts(self, ids: Tensor) -> list[str]:
        return [self.tokens.get(token, "") for token in ids.tolist()]

    def _groups(self, by: By | None) -> list[tuple[Any, np.ndarray]]:
        """(label, mask of its rows), in order."""
        import numpy as np

        if by is None:
            return [(None, np.ones(len(self.text), dtype=bool))]
        if by == "class":
            labels = np.array([self.kinds[kind] for kind in self.kind.tolist()])
        elif by == "shift":
            labels = np.array(self._shift())
        elif by == "text":
            labels = self.text.numpy()
        elif by == "position":
            texts, where = np.unique(self.text.numpy(), return_inverse=True)
            starts = np.full(len(texts), np.iinfo(np.int64).max)
            np.minimum.at(starts, where, self.position.numpy())
            positions = self.position.numpy() - starts[where]
            doubled = 2 ** np.floor(np.log2(np.maximum(positions, 1))).astype(int)
            labels = np.where(positions == 0, 0, doubled)
        else:
            valid = ", ".join(map(repr, ("class", "position", "text", "shift")))
            raise InterpError(f"by={by!r}: expected one of {valid}")
        order = {"unshifted": 0, "marginal": 1, "shifted": 2} if by == "shift" else {}
        unique = sorted(np.unique(labels).tolist(), key=lambda name: order.get(name, name))
        return [(label, labels == label) for label in unique]
