"""What dev data say while a model is tuned: problems solved, and its words with the SAE there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

import interp
from interp import Model
from interp._estimate import Estimate, cluster_mean
from interp._forward import run
from interp._selfcheck import evaluating
from interventions import SAE
from interventions._sae_card import interval
from interventions._sae_splice import splice
from studies import _reasoning_measures as measures
from studies._reasoning_measures import Condition, Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

SOLVED, KL, KL_WITH, LOSS, LOSS_WITH, ENTROPY = (
    "solved", "kl", "kl with SAE", "loss", "loss with SAE", "entropy",
)  # fmt: skip
_ROWS = 32  # texts a forward


class Looks:
    """Looks at a model while it is tuned; called with it, gives the share of dev samples solved.

    The first look is at the model as it is. What was seen is a table of one row a problem or a
    text and quantity, `look kind texts group value tokens`. Of a text the quantities are sums over
    its tokens in nats: `kl` of the model as it was to the model now, the same to the model `with
    SAE` in place now, `loss` of the next token alike, and the model's `entropy`.

    Args:
        sae: what stands in the model while it is tuned; None if nothing does.
        task: dev problems.
        texts: by kind, such as `bare` and `worked`.
        first: the dev problems answered by the model as it is, which need no second answer.
    """

    def __init__(
        self, sae: SAE | None, task: Task, texts: dict[str, list[str]], first: pd.DataFrame
    ) -> None:
        self.sae, self.task, self.texts, self.first = sae, task, texts, first
        self.scores: list[float] = []
        self.choosing = self.measuring = 0.0  # seconds of process time
        self._rows: list[dict[str, Any]] = []
        self._before: list[Tensor] = []

    def __call__(self, model: Model) -> float:
        begun = time.process_time()
        look = len(self.scores)
        solved = measures.measure(model, None, Condition("dev"), self.task) if look else self.first
        self.scores.append(float(solved["value"].mean()))
        chosen = time.process_time()
        found: list[dict[str, Any]] = [
            {"kind": SOLVED, "texts": "", "group": group, "value": value, "tokens": 1}
            for group, value in zip(solved["group"], solved["value"], strict=True)
        ]
        with torch.no_grad(), evaluating(model.module):
            found += self._texts(model)
        self._rows += [{"look": look} | row for row in found]
        self.choosing += chosen - begun
        self.measuring += time.process_time() - chosen
        return self.scores[-1]

    @property
    def best(self) -> int:
        """The look with the greatest score, the first of several."""
        return self.scores.index(max(self.scores))

    def table(self) -> pd.DataFrame:
        """All that was seen."""
        import pandas as pd

        return pd.DataFrame(self._rows)

    def _texts(self, model: Model) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        number = 0
        for name, texts in self.texts.items():
            for start in range(0, len(texts), _ROWS):
                batch = model.batch(list(texts[start : start + _ROWS]))
                now = run(model.module, batch.inputs).logits.float().log_softmax(-1)
                if len(self.scores) == 1:
                    self._before.append(now)
                before, real = self._before[number], batch.attention_mask.bool()
                number += 1
                quantities = {
                    KL: _kl(before, now).where(real, 0.0),
                    LOSS: _nll(now, batch.input_ids, real),
                    ENTROPY: -(now.exp() * now).sum(-1).where(real, 0.0),
                }
                if self.sae is not None:
                    spliced = splice(self.sae, batch, "none")
                    with interp.hooked(model, {self.sae.site or "": spliced}):
                        there = run(model.module, batch.inputs).logits.float().log_softmax(-1)
                    quantities |= {
                        KL_WITH: _kl(before, there).where(real, 0.0),
                        LOSS_WITH: _nll(there, batch.input_ids, real),
                    }
                for kind, values in quantities.items():
                    for row, value in enumerate(values.double().sum(1).tolist()):
                        tokens = int(real[row].sum()) - (kind in (LOSS, LOSS_WITH))
                        found.append({
                            "kind": kind, "texts": name, "group": f"{name} {start + row}",
                            "value": value, "tokens": tokens,
                        })  # fmt: skip
        return found


def per_token(rows: pd.DataFrame, look: int, kind: str, texts: str) -> float:
    """Nats a token at a look."""
    chosen = _chosen(rows, look, kind, texts)
    return float(chosen["value"].sum() / chosen["tokens"].sum())


def closed(rows: pd.DataFrame, look: int, texts: str, seed: int) -> tuple[float, float, float]:
    """Share of the KL that the SAE costs at the start which tuning has closed, over texts."""
    start = _by_group(rows, 0, KL_WITH, texts)
    now = _by_group(rows, look, KL_WITH, texts)
    return interval((start - now.loc[start.index]).tolist(), start.tolist(), seed)


def recovered(rows: pd.DataFrame, look: int, texts: str, seed: int) -> tuple[float, float, float]:
    """Share of the loss that the SAE adds at the start which tuning has won back, over texts."""
    start, now = (_by_group(rows, at, LOSS_WITH, texts) for at in (0, look))
    own = _by_group(rows, 0, LOSS, texts)
    return interval((start - now).tolist(), (start - own).tolist(), seed)


def gained(rows: pd.DataFrame, look: int, seed: int) -> Estimate:
    """Dev accuracy at a look minus that at the start, problem by problem."""
    start, now = (
        _chosen(rows, at, SOLVED, "").groupby("group")["value"].mean() for at in (0, look)
    )
    paired = now - start
    return cluster_mean(paired.tolist(), paired.index.tolist(), seed, bounds=(-1.0, 1.0))


def _chosen(rows: pd.DataFrame, look: int, kind: str, texts: str) -> pd.DataFrame:
    return rows[(rows["look"] == look) & (rows["kind"] == kind) & (rows["texts"] == texts)]


def _by_group(rows: pd.DataFrame, look: int, kind: str, texts: str) -> pd.Series:
    """The mean over seeds, where there are several."""
    return _chosen(rows, look, kind, texts).groupby("group")["value"].mean()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def _nll(logprobs: Tensor, ids: Tensor, real: Tensor) -> Tensor:
    following = -logprobs[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    return following * (real[:, 1:] & real[:, :-1])
