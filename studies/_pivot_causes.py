"""Is the pivot used? Its direction is taken out of the stream, or exchanged, beside controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import interp
from interp import Model, Site
from interp._logit_attribution import _linear_logit
from studies._pivot_measures import Asked
from studies._stats import cluster_mean
from studies._word_pairs import WordPair

if TYPE_CHECKING:
    import pandas as pd

CONDITIONS = ("pivot", "random pivot", "random direction")
EVERYWHERE = "everywhere"


def effects(model: Model, pairs: Sequence[WordPair], asked: Asked, seed: int) -> pd.DataFrame:
    """One row a pair, site and condition: what ablating and exchanging do, in nats.

    The pivot's direction is what its logit reads from the stream, less what the target's (and its
    partner's target's) logit reads: taking it out cannot lower the target's logit by itself. It is
    taken out at all positions. Controls: another pair's pivot, cleaned alike, and as large a change
    in a random direction. Exchanged, the component along the pivot is put along the partner's
    pivot, and what counts is whether the partner's target gains; the controls put it along yet
    another pair's pivot, and along a random direction.
    """
    import pandas as pd

    anatomy = model.anatomy
    batch = model.batch([pair.prompt for pair in pairs])
    partner = torch.tensor(asked.partner)
    last = Site("resid_post", anatomy.n_layers - 1)
    stream = interp.capture(model, batch, [last], positions="last")[last][:, 0]
    pivots = asked.tokens[:, 1 : 1 + asked.pivots]
    targets = torch.stack([asked.tokens[:, 0], asked.tokens[partner, 0]], dim=1)
    other = asked.tokens[:, asked.control(0)]
    with torch.no_grad():
        read = {
            name: _linear_logit(anatomy, stream, tokens)[0].float()
            for name, tokens in (
                ("targets", targets), ("pivot", pivots), ("partner", pivots[partner]),
                ("random pivot", other),
            )
        }  # fmt: skip
    away = torch.linalg.qr(read.pop("targets").transpose(1, 2)).Q
    bases = {name: _cleaned(directions, away) for name, directions in read.items()}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(bases["pivot"].shape, generator=generator).transpose(1, 2)
    bases["noise"] = _cleaned(noise, away)
    maps: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
        "ablated": {
            "pivot": lambda h: h - _along(h, bases["pivot"], bases["pivot"]),
            "random pivot": lambda h: h - _along(h, bases["random pivot"], bases["random pivot"]),
            "random direction": lambda h: h - _along(h, bases["pivot"], bases["noise"]),
        },
        "exchanged": {
            "pivot": lambda h: h + _along(h, bases["pivot"], bases["partner"] - bases["pivot"]),
            "random pivot": lambda h: (
                h + _along(h, bases["pivot"], bases["random pivot"] - bases["pivot"])
            ),
            "random direction": lambda h: (
                h + _along(h, bases["pivot"], bases["noise"] - bases["pivot"])
            ),
        },
    }
    before = _logprobs(model, batch, targets, {})
    sites = ["resid_pre.0", *(f"resid_post.{i}" for i in range(anatomy.n_layers - 1))]
    parts = []
    for what, conditions in maps.items():
        for condition, change in conditions.items():
            for where in (*sites, EVERYWHERE):
                at = sites if where == EVERYWHERE else [where]
                after = _logprobs(model, batch, targets, {s: _hook(change) for s in at})
                effect = (after - before)[:, 0 if what == "ablated" else 1]
                parts.append(
                    pd.DataFrame(
                        {
                            "group": [pair.group for pair in pairs],
                            "split": [pair.split for pair in pairs],
                            "pair": range(len(pairs)), "what": what, "condition": condition,
                            "site": where, "effect": effect.double().numpy(),
                        }
                    )
                )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def summary(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean effects with intervals over concepts, and the pivot's less each control's, pair by pair.

    The differences are the rows whose condition is `pivot - <control>`.
    """
    import pandas as pd

    out = []
    for keys, part in rows.groupby(["model", "split", "what", "site"], sort=False):
        wide = part.pivot_table(index=["pair", "group"], columns="condition", values="effect")
        groups = list(wide.index.get_level_values("group"))
        columns = {name: wide[name] for name in CONDITIONS}
        columns |= {f"pivot - {name}": wide["pivot"] - wide[name] for name in CONDITIONS[1:]}
        for name, values in columns.items():
            found = cluster_mean(values.tolist(), groups, seed, bounds=None)
            names = dict(zip(("model", "split", "what", "site"), keys, strict=True))
            out.append(
                {**names, "condition": name, "mean": found.mean, "low": found.low,
                 "high": found.high, "concepts": found.clusters, "n": found.n}
            )  # fmt: skip
    return pd.DataFrame(out)


def _cleaned(directions: Tensor, away: Tensor) -> Tensor:
    """Orthonormal columns [row d_model k] that span the directions less the subspace `away`."""
    columns = directions.transpose(1, 2)
    left = columns - away @ (away.transpose(1, 2) @ columns)
    found = torch.linalg.qr(left)
    signs = found.R.diagonal(dim1=1, dim2=2).sign()  # QR may turn a column round
    return found.Q * signs[:, None]


def _along(stream: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The component along the source's columns, put along the target's: [row pos d_model]."""
    return (stream.float() @ source) @ target.transpose(1, 2)


def _hook(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Site], Tensor]:
    return lambda stream, _site: change(stream).to(stream.dtype)


def _logprobs(model: Model, batch: interp.Batch, tokens: Tensor, hooks: dict) -> Tensor:
    """[row 2]: of the target and of the partner's target, at the end of the prompt."""
    answers = [[int(token) for token in row] for row in tokens]
    with interp.hooked(model, hooks):
        return interp.logit_lens(model, batch, answers, top_k=1).logprob[:, -1]
