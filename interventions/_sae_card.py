"""An SAE's report card: what it keeps of the activations and of the model, beside a random SAE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from interp import InterpError
from interp._errors import nearest
from interp._record import provenance
from interventions._sae_card_html import card_html

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RANDOM = "random"  # the control's name


@dataclass(frozen=True)
class Quantity:
    """One number of a card with its 95 % interval over texts; NaN where there is none."""

    sae: str
    quantity: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class SAECard:
    """What an SAE keeps, and when its features fire; `sae_card` makes it.

    Args:
        quantities: of the SAE, and of a random SAE of the same size as a control.
        density: [feature], the share of tokens at which it fires.
        mean: [feature], its mean where it fires; NaN if never.
        maximum: [feature].
        top: for each feature some dicts `feature rank value text before token after`.
        meta: model, site, texts, tokens.
    """

    quantities: tuple[Quantity, ...]
    density: Float[Tensor, " feature"]
    mean: Float[Tensor, " feature"]
    maximum: Float[Tensor, " feature"]
    top: tuple[dict[str, Any], ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        held = {q.quantity: q.value for q in self.quantities if q.sae != RANDOM}
        names = ("fvu", "l0", "dead share", "loss recovered over mean", "kl")
        said = ", ".join(f"{name} {held[name]:.3g}" for name in names if name in held)
        return f"SAECard({len(self.density)} features of {self.meta.get('site')}: {said})"

    def value(self, quantity: str, sae: str = "trained") -> float:
        """One number by its name, such as `card.value("fvu")`."""
        found = {(q.sae, q.quantity): q.value for q in self.quantities}
        if (sae, quantity) not in found:
            known = [name for which, name in found if which == sae] or [which for which, _ in found]
            raise InterpError(
                f"this card has no {quantity!r} of {sae!r}; {nearest(quantity, known)}"
            )
        return found[(sae, quantity)]

    def table(self) -> pd.DataFrame:
        """One row a quantity: `quantity value low high random`, the last that of the control.

        `fvu`: sum |x - x_hat|^2 / sum |x - mean|^2. `explained variance`: the same with the mean
        error forgiven, from 1. `l0`: latents a token. `dead share`: features that never fired on
        these texts. `loss`, `loss with sae`: nats a token. `loss recovered`: how far the loss with
        the SAE lies from that with zeros (`over zero`) or the mean (`over mean`) in its place,
        1 being the model's own. `kl`: KL(model || model with the SAE), nats a token.
        """
        import pandas as pd

        table = pd.DataFrame([vars(q) for q in self.quantities])
        mine = table[table["sae"] != RANDOM].drop(columns="sae")
        control = table[table["sae"] == RANDOM].set_index("quantity")["value"]
        return mine.assign(random=mine["quantity"].map(control)).reset_index(drop=True)

    def features(self) -> pd.DataFrame:
        """A row a feature and text: `feature density mean max rank value text before token after`.

        Features that never fired have one row without a text.
        """
        import pandas as pd

        columns = {"density": self.density, "mean": self.mean, "max": self.maximum}
        own = pd.DataFrame({name: tensor.tolist() for name, tensor in columns.items()})
        own.insert(0, "feature", range(len(own)))
        names = ["feature", "rank", "value", "text", "before", "token", "after"]
        return own.merge(pd.DataFrame(self.top, columns=names), on="feature", how="left")

    def plot(self, ax: Axes | None = None) -> Axes:
        """How often features fire: a histogram of log10 density, the dead ones counted above it."""
        import matplotlib.pyplot as plt

        axes = plt.subplots(figsize=(5, 3.2))[1] if ax is None else ax
        alive = self.density[self.density > 0]
        axes.hist(alive.log10().tolist(), bins=40, color="tab:blue")
        axes.set_xlabel("log10 of the share of tokens")
        axes.set_ylabel("features")
        never = int((self.density == 0).sum())
        axes.set_title(f"{len(alive)} features fire, {never} never do", fontsize=10)
        return axes

    def figure(self) -> Figure:
        """What is kept beside the random control, and the histogram of densities."""
        import matplotlib.pyplot as plt

        names = ["explained variance", "loss recovered over mean", "dead share"]
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        held = {(q.sae, q.quantity): q for q in self.quantities}
        for offset, who, colour in ((0.2, "trained", "tab:blue"), (-0.2, RANDOM, "0.6")):
            for row, name in enumerate(names):
                one = held[(who, name)]
                shown = max(one.value, -0.1)  # a random SAE may be far worse than the mean
                left.barh(row + offset, shown, 0.38, color=colour, label=None if row else who)
                if one.low == one.low and one.value >= -0.1:
                    left.plot([max(one.low, -0.1), one.high], [row + offset] * 2, "k-", lw=1)
                left.text(1.03, row + offset, f"{one.value:.2f}", va="center", fontsize=8)
        left.set_yticks(range(len(names)), names)
        left.set_xlim(-0.12, 1.2)
        left.axvline(0, color="k", lw=0.5)
        left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=2)
        self.plot(right)
        return figure

    def write_into(self, folder: Path) -> None:
        """`card.json`, `features.parquet`, `card.png` and `card.html`, beside an SAE's weights."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        held = {"table": self.table().to_dict("records"), "meta": self.meta} | provenance()
        text = json.dumps(held, indent=1, default=str).replace("NaN", "null")
        (folder / "card.json").write_text(text, encoding="utf-8")
        self.features().to_parquet(folder / "features.parquet")
        figure = self.figure()
        figure.savefig(folder / "card.png", dpi=150)
        plt.close(figure)
        page = card_html(self.table(), self.top, self.density, self.meta)
        (folder / "card.html").write_text(page, encoding="utf-8")


def interval(
    above: Sequence[int | float], below: Sequence[int | float], seed: int, draws: int = 1000
) -> tuple[float, float, float]:
    """A ratio of sums over texts, with a percentile bootstrap over texts.

    There is no interval (NaN) for one text, nor where the lower sum may as well be 0: where more
    than 2.5 % of the draws have it of another sign, the ratio could be anything.
    """
    import numpy as np

    top, bottom = np.asarray(above, float), np.asarray(below, float)
    total = float(bottom.sum())
    ratio = float(top.sum()) / total if total else float("nan")
    if len(top) < 2 or not total:
        return ratio, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    at = rng.integers(len(top), size=(draws, len(top)))
    drawn = bottom[at].sum(1)
    same = drawn * total > 0
    if same.mean() < 0.975:
        return ratio, float("nan"), float("nan")
    low, high = np.percentile(top[at].sum(1)[same] / drawn[same], [2.5, 97.5])
    return ratio, float(low), float(high)
