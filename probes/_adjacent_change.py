"""How much the representation changes from one token to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Activations, InterpError
from interp._estimate import Estimate, cluster_mean
from probes._brief import brief

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class AdjacentChange:
    """Relative change of adjacent tokens' representations, and of tokens in random order.

    Args:
        change: ||h_t - h_(t-1)|| / ||h_(t-1)|| by text, step and layer; NaN beyond a text's end.
        shuffled: the same with each text's positions permuted: what any two tokens of it differ by.
        meta: where the activations came from.
    """

    change: Float[Tensor, "batch step layer"]
    shuffled: Float[Tensor, "batch step layer"]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def mean(self, *, shuffled: bool = False, seed: int = 0) -> Estimate:
        """M = mean over layers and steps, with texts as the evidence.

        Args:
            shuffled: the control's instead.
            seed: of the bootstrap.
        """
        values = (self.shuffled if shuffled else self.change).mean(-1)  # [batch step]
        real = ~values.isnan()
        texts = real.nonzero()[:, 0].tolist()
        return cluster_mean(values[real].tolist(), texts, seed, bounds=(0.0, math.inf))

    def table(self) -> pd.DataFrame:
        """One row a text and layer: `text layer change shuffled steps`, means over steps."""
        import pandas as pd

        n_texts, _, n_layers = self.change.shape
        text, layer = torch.meshgrid(torch.arange(n_texts), torch.arange(n_layers), indexing="ij")
        steps = (~self.change.isnan()).sum(1)
        return pd.DataFrame(
            {
                "text": text.flatten().numpy(),
                "layer": layer.flatten().numpy(),
                "change": self.change.nanmean(1).flatten().numpy(),
                "shuffled": self.shuffled.nanmean(1).flatten().numpy(),
                "steps": steps.flatten().numpy(),
            }
        )


def adjacent_change(
    acts: Activations, kind: str = "resid_post", *, seed: int = 0
) -> AdjacentChange:
    """M = (1 / L T) sum_l sum_t ||h_t - h_(t-1)|| / ||h_(t-1)||, over layers and tokens of a text.

    A low value goes with cyclical reasoning. Compare models on texts of one length, and with the
    shuffled control beside it: repeated tokens lower both.

    Args:
        acts: from `capture` or `capture_generation`, at all positions.
        kind: the site, all captured layers of it.
        seed: of the control's permutation.

    Raises:
        InterpError: activations of chosen positions only, or no text of two tokens.

    Examples:
        >>> acts = interp.capture(model, texts[:4], "resid_post.*")
        >>> change = probes.adjacent_change(acts)
        >>> print(change.mean(), change.mean(shuffled=True))

    Source: Shift-FFN (2505.17153), from its reviews; which states the mean runs over, and the
    control, are our specification.
    """
    if acts.meta.get("positions", "all") != "all":
        raise InterpError(
            "these activations hold chosen positions only, which are not adjacent; capture with "
            "positions='all'"
        )
    if acts.tokens.shape[1] < 2 or not bool(acts.mask[:, 1].any()):
        raise InterpError("no text has two tokens, so none are adjacent")
    streams = acts.stack(kind).float().movedim(0, 2)  # [batch pos layer ...]
    streams = streams.flatten(3)
    mask = acts.mask.to(streams.device)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(mask.shape, generator=generator).to(mask.device)
    order = keys.masked_fill(~mask, 2.0).argsort(1)  # real positions first, permuted
    moved = streams.gather(1, order[:, :, None, None].expand_as(streams))
    return AdjacentChange(
        _relative(streams, mask).cpu(), _relative(moved, mask).cpu(), {"kind": kind, **acts.meta}
    )


def _relative(streams: Tensor, mask: Tensor) -> Tensor:
    """[batch step layer], NaN where the later token is not real."""
    change = streams.diff(dim=1).norm(dim=-1) / streams[:, :-1].norm(dim=-1)
    return change.masked_fill(~mask[:, 1:, None], float("nan"))
