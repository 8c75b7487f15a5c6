"""CHES: which preference pairs will push their own preferred answer down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp import InterpError, Model, Site
from interp._anatomy import Anatomy
from interp._answers import Answer, answer_tokens, gather_streams, teacher_forced
from interp._model import as_model
from interp._reading import reading
from probes._brief import brief
from probes._token_rows import listed_pairs

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Ches:
    """Centred hidden embedding similarities of preference pairs; higher warns of displacement.

    Args:
        score: <S+, S-> - ||S+||^2.
        normalised: <S+, S-> / (|y+| |y-|) - ||S+||^2 / |y+|^2.
        inner: <S+, S->.
        square: ||S+||^2.
        chosen_tokens: |y+|.
        rejected_tokens: |y-|.
        meta: the model.
    """

    score: Float[Tensor, " pair"]
    normalised: Float[Tensor, " pair"]
    inner: Float[Tensor, " pair"]
    square: Float[Tensor, " pair"]
    chosen_tokens: Int[Tensor, " pair"]
    rejected_tokens: Int[Tensor, " pair"]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """One row a pair.

        Columns `pair ches ches_normalised inner square chosen_tokens rejected_tokens`.
        """
        import pandas as pd

        columns = {"ches": self.score, "ches_normalised": self.normalised, "inner": self.inner}
        columns |= {"square": self.square, "chosen_tokens": self.chosen_tokens}
        columns |= {"rejected_tokens": self.rejected_tokens}
        values = {name: tensor.numpy() for name, tensor in columns.items()}
        return pd.DataFrame({"pair": range(len(self.score)), **values})


def ches(
    model: Model | nn.Module,
    prompts: Any,
    chosen: Any,
    rejected: Any,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> Ches:
    """CHES = <S(y+), S(y-)> - ||S(y+)||^2 with S(y) = sum_k h(x, y_<k), for each preference pair.

    h is what the unembedding multiplies: the last stream after the final norm, at the positions
    that predict y, from the prompt's last token to the answer's last but one. Training on pairs of
    a high score tends to lower p(y+) itself (likelihood displacement). Sums are in float64, and
    neither padding nor batching moves them.

    Args:
        model: the model before preference training.
        prompts: texts or token ids.
        chosen: y+ of each prompt: a text, or a list of token ids.
        rejected: y- of each.
        batch_size: pairs a forward.
        progress: show a bar.

    Raises:
        InterpError: lists of different lengths, no pairs, an answer without tokens, states that
            are not finite.

    Examples:
        >>> got = probes.ches(model, [prompt, prompt], [" Bridge.", " Here."], [" Bank.", " No."])
        >>> got.table()[["ches", "ches_normalised"]]

    Source: Razin et al. 2024 (arXiv 2410.08847, ICLR 2025). Their code is right for left padding
    and batches of one; right padding there adds the pads' states.
    """
    handle = as_model(model)
    triples = listed_pairs(prompts, chosen=chosen, rejected=rejected)
    parts = []
    for start in tqdm(range(0, len(triples), batch_size), desc="ches", disable=not progress):
        x, good, bad = zip(*triples[start : start + batch_size], strict=True)
        parts.append(_sums(handle, list(x), list(good), list(bad)))
    sums = torch.cat([part[0] for part in parts])  # [pair, (chosen, rejected), d_model]
    counts = torch.cat([part[1] for part in parts])
    if not bool(sums.isfinite().all()):
        pair = int((~sums.isfinite().flatten(1).all(1)).nonzero()[0])
        raise InterpError(f"the hidden states of pair {pair} are not finite; check the weights")
    inner, square = (sums[:, 0] * sums[:, 1]).sum(-1), sums[:, 0].square().sum(-1)
    mine, other = counts.double().unbind(1)
    return Ches(
        score=inner - square,
        normalised=inner / (mine * other) - square / mine.square(),
        inner=inner,
        square=square,
        chosen_tokens=counts[:, 0],
        rejected_tokens=counts[:, 1],
        meta={"model": handle.name or type(handle.module).__name__, "pairs": len(sums)},
    )


def _sums(
    model: Model, prompts: list[Any], chosen: list[Answer], rejected: list[Answer]
) -> tuple[Tensor, Tensor]:
    """S of both answers of each pair [pair 2 d_model] in float64, and their lengths [pair 2]."""
    batch = model.batch(prompts)
    tokens = answer_tokens(
        model, batch, [list(pair) for pair in zip(chosen, rejected, strict=True)]
    )
    extended, where = teacher_forced(model, batch, tokens)
    site = Site("resid_post", model.anatomy.n_layers - 1)
    stream = gather_streams(model, extended, [site], where.rows, where.columns)[site]
    with reading(model):
        states = _head_input(model.anatomy, stream).double().cpu()
    lengths = torch.tensor([[len(answer) for answer in pair] for pair in tokens])
    return where.total(states).unflatten(0, (len(prompts), 2)), lengths


def _head_input(anatomy: Anatomy, stream: Tensor) -> Tensor:
    """What the unembedding multiplies."""
    if anatomy.final_norm is not None:
        stream = anatomy.final_norm(stream)
    return stream if anatomy.project_out is None else anatomy.project_out(stream)
