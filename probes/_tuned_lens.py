"""A tuned lens: for each layer the affine map whose reading best agrees with the model's output."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

import interp
from interp import InterpError, LinearLens, Model
from interp._batch import several
from probes._brief import brief

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class TunedLens:
    """A fitted lens and how well it reads texts that it was not fitted on.

    Args:
        lens: pass it as `interp.logit_lens(..., lens=fit.lens)`.
        raw_kl: held-out KL(model's output || raw lens) in nats per token, by layer.
        tuned_kl: the same through the fitted lens.
        meta: the model and the arguments.
    """

    lens: LinearLens
    raw_kl: Float[Tensor, " layer"]
    tuned_kl: Float[Tensor, " layer"]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """One row a layer: `layer raw_kl tuned_kl`, nats per held-out token."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": range(len(self.raw_kl)),
                "raw_kl": self.raw_kl.numpy(),
                "tuned_kl": self.tuned_kl.numpy(),
            }
        )

    def save(self, path: str | Path) -> Path:
        """Write the lens as a folder that `LinearLens.load` reads."""
        return self.lens.save(path)


def tuned_lens(
    model: Model | nn.Module,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    steps: int = 100,
    batch_size: int = 16,
    tokens_per_step: int = 512,
    lr: float = 3e-3,
    held_out: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> TunedLens:
    """Fit W_l, b_l to minimise KL(model's output || unembed(W_l h_l + b_l)), layer by layer.

    Each layer starts from the ridge regression of the last stream on its own, in closed form, and
    is then trained on the KL with Adam and a linear decay. Memory holds one batch, and the logits
    of `tokens_per_step` positions at every layer.

    Args:
        model: a handle or a bare PreTrainedModel; it stays as it is.
        texts: ordinary text (or token ids) of the kind the lens will read; some are held out.
        steps: optimiser steps after the closed form.
        batch_size: texts a step.
        tokens_per_step: positions drawn from each batch.
        lr: Adam's learning rate at the start.
        held_out: share of the texts kept for the reported KL.
        seed: for the split and the order.
        progress: show a bar.

    Raises:
        InterpError: one text and no list, fewer than ten, or a loss that is not finite.

    Examples:
        >>> fit = probes.tuned_lens(model, texts)
        >>> interp.logit_lens(model, prompt, " Paris", lens=fit.lens)

    Source: Belrose et al. 2023 (arXiv 2303.08112). The ridge start is ours; they start from the
    identity and train 250 steps of 2^18 tokens by SGD.
    """
    handle = model if isinstance(model, Model) else Model(module=model)
    order = several(texts)
    if len(order) < 10:
        raise InterpError(f"{len(order)} texts: a lens needs at least ten, some of them held out")
    random.Random(seed).shuffle(order)
    n_held = max(2, round(held_out * len(order)))
    held, fit = order[:n_held], order[n_held:]
    sampler = _Sampler(handle, fit, batch_size, tokens_per_step, seed)
    weight, bias = _ridge(sampler, rounds=max(4, min(16, len(fit) // batch_size)))
    parameters = [tensor.requires_grad_() for tensor in (weight, bias)]
    optimiser = torch.optim.Adam(parameters, lr=lr, amsgrad=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, max(1, steps))
    for _ in tqdm(range(steps), desc="tuned lens", disable=not progress):
        loss = _loss(handle, sampler.streams(), weight, bias)
        if not bool(loss.isfinite()):
            raise InterpError("the lens diverged (loss is not finite); try a smaller lr")
        # Not loss.backward(): that would leave gradients on the model's own parameters.
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        schedule.step()
    lens = LinearLens(weight.detach(), bias.detach(), "tuned")
    meta = {"model": handle.name, "steps": steps, "seed": seed, "lr": lr, "texts": len(order)}
    return TunedLens(lens, _held_out_kl(handle, held, None), _held_out_kl(handle, held, lens), meta)


class _Sampler:
    """Endless [layer token d_model] streams at random positions of random texts."""

    def __init__(self, model: Model, texts: list[Any], size: int, tokens: int, seed: int) -> None:
        self.model, self.texts, self.size, self.tokens = model, texts, size, tokens
        self.order = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def streams(self) -> Tensor:
        chosen = self.order.sample(self.texts, min(self.size, len(self.texts)))
        acts = interp.capture(self.model, chosen, ["resid_pre.0", "resid_post.*"])
        layers = torch.cat([acts.stack("resid_pre"), acts.stack("resid_post")])[:, acts.mask]
        picked = torch.randperm(layers.shape[1], generator=self.generator)[: self.tokens]
        return layers[:, picked].to(self.model.anatomy.head_home).float()


def _ridge(sampler: _Sampler, rounds: int) -> tuple[Tensor, Tensor]:
    """W, b of the ridge regression of the last stream on each layer's, in float64."""
    moments = None
    for _ in range(rounds):
        streams = sampler.streams().double()
        ones = torch.ones_like(streams[:-1, :, :1])
        inputs = torch.cat([streams[:-1], ones], dim=-1)
        gram = inputs.mT @ inputs
        cross = inputs.mT @ streams[-1]
        moments = (gram, cross) if moments is None else (moments[0] + gram, moments[1] + cross)
    assert moments is not None
    gram, cross = moments
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    solution = torch.linalg.solve(gram + 1e-4 * scale * eye, cross).float()
    return solution[:, :-1].mT.contiguous(), solution[:, -1].contiguous()


def _loss(model: Model, streams: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mean over layers and tokens of KL(model's output || lens)."""
    unembed, dtype = model.anatomy.unembed, model.anatomy.embedding_weight.dtype
    with torch.no_grad():
        final = unembed(streams[-1].to(dtype)).float().log_softmax(-1)
    mapped = torch.baddbmm(bias[:, None], streams[:-1], weight.mT)
    logprobs = unembed(mapped.to(dtype)).float().log_softmax(-1)
    return (final.exp() * (final - logprobs)).sum(-1).mean()


def _held_out_kl(model: Model, texts: list[Any], lens: LinearLens | None) -> Tensor:
    """KL by layer over every position of texts the lens was not fitted on."""
    total, count = torch.zeros(()), 0
    for start in range(0, len(texts), 16):
        chunk = texts[start : start + 16]
        trace = interp.logit_lens(model, chunk, positions="all", top_k=1, lens=lens)
        total = total + trace.kl.sum(0)
        count += len(trace.kl)
    return total[:-1] / count
