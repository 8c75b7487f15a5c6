"""The loss along a straight line in weight space: is there a barrier between its ends?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp import Edit, InterpError, Model
from interp._estimate import Estimate
from interp._model import as_model
from interp._reading import require_unembed
from interp._record import load_record, save_record
from probes._brief import brief
from probes._next_token import target_logprobs
from probes._token_rows import TokenRow, token_rows

if TYPE_CHECKING:
    import pandas as pd

_DRAWS = 2000


@dataclass(frozen=True, eq=False)
class LossBarrier:
    """Loss at points of the line from a model (0) to the model with an edit (1).

    Args:
        point: 0 to 1.
        loss: summed over a text's tokens, in nats.
        tokens: how many tokens of each text were predicted.
    """

    point: Float[Tensor, " point"]
    loss: Float[Tensor, "point text"]
    tokens: Int[Tensor, " text"]

    __repr__ = brief

    @property
    def mean(self) -> Float[Tensor, " point"]:
        """Nats a token at each point."""
        return self.loss.sum(dim=1) / self.tokens.sum()

    @property
    def barrier(self) -> float:
        """Max L between the ends, minus the larger L of the two ends; 0 or less: no barrier."""
        return float(_barrier(self.mean[:, None].double().numpy())[0])

    def estimate(self, seed: int = 0) -> Estimate:
        """The barrier with its 95 % interval: a percentile bootstrap over texts (2000 draws)."""
        n = len(self.tokens)
        if n < 2:
            return Estimate(self.barrier, float("nan"), float("nan"), n, n)
        weights = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=_DRAWS).T
        losses = self.loss.double().numpy() @ weights / (self.tokens.double().numpy() @ weights)
        low, high = np.quantile(_barrier(losses), [0.025, 0.975])
        return Estimate(self.barrier, float(low), float(high), n, n)

    def table(self) -> pd.DataFrame:
        """One row a point and text: `point text loss tokens`, loss in nats a token."""
        import pandas as pd

        points, texts = self.loss.shape
        return pd.DataFrame(
            {
                "point": self.point.repeat_interleave(texts).tolist(),
                "text": list(range(texts)) * points,
                "loss": (self.loss / self.tokens).flatten().tolist(),
                "tokens": self.tokens.tolist() * points,
            }
        )

    def save(self, path: str | Path) -> Path:
        """Write a folder with `tensors.safetensors`, `meta.json` and `table.parquet`."""
        tensors = {"point": self.point, "loss": self.loss, "tokens": self.tokens}
        return save_record(path, "loss_barrier", tensors, {"barrier": self.barrier}, self.table())

    @staticmethod
    def load(path: str | Path) -> LossBarrier:
        """Read what `save` wrote.

        Raises:
            InterpError: nothing there, another kind of record, a damaged file.
        """
        tensors, _ = load_record(path, "loss_barrier")
        return LossBarrier(**tensors)


def loss_barrier(
    model: Model | nn.Module,
    edit: Edit,
    texts: Iterable[Any],
    *,
    completions: Iterable[Any] | None = None,
    points: int = 11,
    transfer: bool = False,
    batch_size: int = 16,
    progress: bool = False,
) -> LossBarrier:
    """Loss on the straight line from a model to the edited model, and its barrier.

    `barrier = max_l L(theta + l * change) - max(L(theta), L(theta + change))` over l strictly
    between 0 and 1, where L is the mean next-token cross-entropy. Two checkpoints A and B of one
    lineage usually have none (linear mode connectivity), which is what lets a task vector be added
    in part: `loss_barrier(A, interventions.task_vector(B, A), texts)`.

    Args:
        model: at the start of the line; load it in float32.
        edit: of weights; applied l times as large, and taken off again.
        texts: texts or lists of token ids.
        completions: what follows each; then only their tokens are predicted.
        points: on the line, ends included, evenly spread.
        transfer: allow a model that the edit was not made on.
        batch_size: texts a forward.
        progress: show a bar.

    Returns:
        LossBarrier, with `.barrier`, `.estimate()` and `.table()`.

    Raises:
        InterpError: no texts, fewer than three points, logits that are not finite.

    Examples:
        >>> edit = interp.Edit([interp.Affine("mlp_out.2", scale=0.0)])
        >>> line = probes.loss_barrier(model, edit, texts[:4], points=3)
        >>> line.mean.shape
        torch.Size([3])

    Source: Frankle et al. 2020 (arXiv 1912.05671), with max(L_A, L_B) instead of their mean, as in
    2509.01363.
    """
    if points < 3:
        raise InterpError(f"points={points}: a line with a middle has at least 3")
    handle = as_model(model)
    require_unembed(handle)
    vocab = handle.anatomy.d_vocab
    rows = list(token_rows([handle], texts, completions, vocab=vocab))
    if not rows:
        raise InterpError("no texts, so no loss; give at least one")
    line = torch.linspace(0, 1, points, dtype=torch.float64)
    losses = []
    for share in tqdm(line.tolist(), desc="loss barrier", disable=not progress):
        with (share * edit).applied(handle, transfer=transfer):
            losses.append(_losses(handle, rows, vocab, batch_size))
    tokens = losses[0].isfinite().sum(dim=1)
    return LossBarrier(line, torch.stack([each.nansum(dim=1) for each in losses]), tokens)


def _losses(
    model: Model, rows: list[TokenRow], vocab: int, batch_size: int
) -> Float[Tensor, "text token"]:
    """-log p of every token that follows, NaN behind the end of a text."""
    found: list[Tensor] = []
    for start in range(0, len(rows), batch_size):
        found += target_logprobs(model, rows[start : start + batch_size], vocab=vocab)
    return -torch.nn.utils.rnn.pad_sequence(found, True, float("nan")).double()


def _barrier(losses: np.ndarray) -> np.ndarray:
    """Of columns: max between the ends minus the larger end."""
    return losses[1:-1].max(axis=0) - np.maximum(losses[0], losses[-1])
