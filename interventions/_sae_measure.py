"""Measuring an SAE on texts: reconstruction, the model with it spliced in, where features fire."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

import interp
from interp import InterpError, Model, Site
from interp._batch import Batch
from interp._forward import run
from interp._model import as_model
from interp._ports import SiteFn
from interp._reading import reading
from interventions._sae import SAE, random_sae
from interventions._sae_card import RANDOM, Quantity, SAECard, interval
from interventions._sae_splice import splice, stands_for
from interventions._sae_stream import token_ids

BEFORE, AFTER = 12, 6  # tokens shown around a top activation


def sae_card(
    model: Model | nn.Module,
    sae: SAE,
    texts: Sequence[Any],
    *,
    top: int = 5,
    context: int | None = None,
    prompts: int = 8,
    seed: int = 0,
) -> SAECard:
    """Measure an SAE on texts that it was not trained on, beside a random one of the same size.

    Reconstruction and L0 are over the tokens that it stands for (its own training left out others);
    loss and KL are over all tokens, with those spliced in. The control has random unit directions,
    read and written, the same k (or L0, rounded) and the mean activation as b_dec. Intervals are
    over texts.

    Args:
        model: that it belongs to, read only.
        sae: the SAE; its `site` says where.
        texts: texts or lists of token ids, at least two tokens each.
        top: for each feature, texts in which it fires most.
        context: texts are cut there; the model's own limit by default.
        prompts: texts in one forward.
        seed: of the control and the intervals.

    Returns:
        SAECard: `.table()`, `.features()`, `.plot()`; `sae.save(path, card)` writes it too.

    Raises:
        InterpError: no texts, an SAE of another width, or one without a site.

    Examples:
        >>> sae = iv.sae.random(d_in=128, d_sae=512, k=64, site="resid_post.3")
        >>> card = iv.sae_card(model, sae, texts[:6])
        >>> 0 < card.value("fvu")
        True

    Source: the measures of SAEBench (Karvonen et al. 2025, arXiv 2503.09532) and SAELens; loss
    recovered over the mean is ours: zeros at a residual site are far from anything it ever holds,
    and nearly any SAE recovers much of that loss.
    """
    handle = as_model(model)
    if sae.site is None:
        raise InterpError("this SAE does not say where it reads; dataclasses.replace(sae, site=)")
    if isinstance(texts, str) or not len(texts):
        raise InterpError("no texts to measure the SAE on; give a list of some")
    limit = context or handle.anatomy.max_positions
    ids = [token_ids(handle, one, limit) for one in texts]
    if (context is not None and context < 2) or prompts < 1:
        raise InterpError(f"context={context}, prompts={prompts}: expected at least 2, and 1")
    short = [number for number, one in enumerate(ids) if len(one) < 2]
    if short:
        raise InterpError(
            f"text {short[0]} has {len(ids[short[0]])} tokens and so no next one to predict; leave "
            f"out texts of fewer than two ({len(short)} of {len(ids)})"
        )
    batches = [handle.batch(ids[i : i + prompts]) for i in range(0, len(ids), prompts)]
    with reading(handle):
        centre = _mean(handle, sae, batches)
        fired = _Fired.of(sae, top)
        mine = _Sums(centre)
        for number, batch in enumerate(batches):
            _measure(handle, sae, batch, mine, fired, number * prompts)
        k = sae.k if sae.kind == "topk" else max(1, round(sum(mine.l0) / max(1, sum(mine.tokens))))
        control = random_sae(sae.d_in, sae.d_sae, min(k or 1, sae.d_sae), sae.site, seed, centre)
        control = replace(control, meta=sae.meta).to(sae.W_enc.device)
        theirs, counted = _Sums(centre), _Fired.of(control, 0)
        for batch in batches:
            _measure(handle, control, batch, theirs, counted, 0)
    count = int(sum(mine.tokens))
    quantities = _quantities("trained", mine, fired, count, seed)
    quantities += _quantities(RANDOM, theirs, counted, count, seed)
    meta = {
        "model": handle.name or type(handle.module).__name__, "site": sae.site, "kind": sae.kind,
        "d_sae": sae.d_sae, "k": sae.k, "texts": len(ids), "tokens": count, "seed": seed,
    }  # fmt: skip
    never = fired.count == 0
    mean = torch.where(never, torch.nan, fired.total / fired.count.clamp(min=1))
    return SAECard(
        tuple(quantities), fired.count / max(1, count), mean.float(), fired.maximum.float(),
        tuple(fired.shown(handle, ids)), meta,
    )  # fmt: skip


@dataclass
class _Sums:
    """Sums a text."""

    centre: Float[Tensor, " d_in"]
    error: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    l0: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    kl: list[float] = field(default_factory=list)
    all_tokens: list[int] = field(default_factory=list)
    residual: Tensor | None = None  # sum of x - x_hat


@dataclass
class _Fired:
    """What features did at the tokens seen so far."""

    count: Float[Tensor, " feature"]
    total: Float[Tensor, " feature"]
    maximum: Float[Tensor, " feature"]
    value: Float[Tensor, "feature top"]
    text: Tensor
    position: Tensor

    @staticmethod
    def of(sae: SAE, top: int) -> _Fired:
        zeros = torch.zeros(sae.d_sae)
        empty = torch.zeros(sae.d_sae, top)
        return _Fired(
            zeros.clone(), zeros.double(), zeros.clone(), empty, empty.long(), empty.long()
        )

    def see(self, latents: Float[Tensor, "batch pos feature"], first: int) -> None:
        """Latents, 0 where the SAE stands for nothing."""
        latents = latents.float().cpu()
        self.count += (latents > 0).sum((0, 1))
        self.total += latents.double().sum((0, 1))
        best, position = latents.max(1)  # one place a text: [batch feature]
        self.maximum = torch.maximum(self.maximum, best.max(0).values)
        top = self.value.shape[1]
        text = torch.arange(first, first + len(best))[None].expand(best.shape[1], -1)
        value = torch.cat([self.value, best.T], 1)
        order = value.topk(top, dim=1).indices
        self.value = value.gather(1, order)
        self.text = torch.cat([self.text, text], 1).gather(1, order)
        self.position = torch.cat([self.position, position.T], 1).gather(1, order)

    def shown(self, model: Model, ids: Sequence[list[int]]) -> Iterator[dict[str, Any]]:
        """The texts around each feature's greatest values."""
        for feature in self.count.nonzero()[:, 0].tolist():
            for rank in range(self.value.shape[1]):
                if (value := float(self.value[feature, rank])) <= 0:
                    break
                text, at = int(self.text[feature, rank]), int(self.position[feature, rank])
                words = ids[text]
                cuts = (max(0, at - BEFORE), at, at + 1, at + 1 + AFTER)
                parts = [words[a:b] for a, b in pairwise(cuts)]
                before, token, after = (_spelled(model, part) for part in parts)
                yield {
                    "feature": feature, "rank": rank, "value": value, "text": text,
                    "before": before, "token": token, "after": after,
                }  # fmt: skip


def _spelled(model: Model, ids: list[int]) -> str:
    if model.tokenizer is None:
        return "".join(f" {token}" for token in ids)
    return str(model.tokenizer.decode(ids)) if ids else ""


def _rows(model: Model, sae: SAE, batch: Batch) -> tuple[Tensor, Bool[Tensor, "batch pos"]]:
    """The activations as the batch lies, and where the SAE stands for them."""
    found: list[Tensor] = []

    def look(tensor: Tensor, site: Site) -> None:
        found.append(sae.flat(tensor, site).float())

    with interp.hooked(model, {sae.site or "": look}):
        run(model.module, batch.inputs)
    return found[0], stands_for(sae, found[0], batch)


def _mean(model: Model, sae: SAE, batches: Sequence[Batch]) -> Float[Tensor, " d_in"]:
    total, count = torch.zeros(sae.d_in, dtype=torch.float64), 0
    for batch in batches:
        rows, stands = _rows(model, sae, batch)
        if not bool(rows[batch.attention_mask.bool().to(rows.device)].isfinite().all()):
            raise InterpError(f"activations at {sae.site} are not finite; look for NaN in weights")
        total += rows[stands].double().sum(0).cpu()
        count += int(stands.sum())
    if not count:
        raise InterpError("no tokens are left to measure on: texts of two tokens or more, please")
    return (total / count).float()


def _measure(model: Model, sae: SAE, batch: Batch, sums: _Sums, fired: _Fired, first: int) -> None:
    rows, stands = _rows(model, sae, batch)
    latents = sae.encode(rows) * stands[..., None]
    fired.see(latents, first)
    error = (rows - sae.decode(latents)).double() * stands[..., None]
    centre = sums.centre.to(rows)
    spread = (rows - centre).double().square().sum(-1) * stands
    sums.error += error.square().sum((1, 2)).tolist()
    sums.spread += spread.sum(1).tolist()
    sums.tokens += stands.sum(1).tolist()
    sums.l0 += (latents > 0).sum((1, 2)).tolist()
    residual = error.sum((0, 1)).cpu()
    sums.residual = residual if sums.residual is None else sums.residual + residual
    mask = batch.attention_mask.bool()
    clean = run(model.module, batch.inputs).logits.float().log_softmax(-1)
    ways: dict[str, SiteFn] = {
        "sae": splice(sae, batch), "zero": _constant(sae, batch, torch.zeros_like(centre)),
        "mean": _constant(sae, batch, centre),
    }  # fmt: skip
    _add_loss(sums, "model", clean, batch)
    for name, function in ways.items():
        with interp.hooked(model, {sae.site or "": function}):
            other = run(model.module, batch.inputs).logits.float().log_softmax(-1)
        _add_loss(sums, name, other, batch)
        if name == "sae":
            kl = (clean.exp() * (clean - other)).sum(-1).clamp(min=0) * mask.to(clean.device)
            sums.kl += kl.sum(1).tolist()
    sums.all_tokens += mask.sum(1).tolist()
    sums.predicted += (mask[:, 1:] & mask[:, :-1]).sum(1).tolist()


def _add_loss(sums: _Sums, name: str, logprobs: Tensor, batch: Batch) -> None:
    """Of the next token, summed a text."""
    following = batch.input_ids[:, 1:, None].to(logprobs.device)
    nll = -logprobs[:, :-1].gather(2, following)[..., 0]
    mask = batch.attention_mask.bool()
    pairs = (mask[:, 1:] & mask[:, :-1]).to(nll.device)
    sums.losses.setdefault(name, []).extend((nll * pairs).sum(1).tolist())


def _constant(sae: SAE, batch: Batch, value: Float[Tensor, " d_in"]) -> SiteFn:
    """The same vector at all tokens that the SAE stands for."""

    def replaced(tensor: Tensor, site: Site) -> Tensor:
        rows = sae.flat(tensor, site)
        stands = stands_for(sae, rows, batch)
        return torch.where(stands[..., None], value.to(rows), rows).view(tensor.shape)

    return replaced


def _quantities(who: str, sums: _Sums, fired: _Fired, count: int, seed: int) -> list[Quantity]:
    assert sums.residual is not None
    losses = sums.losses

    def ratio(
        above: Sequence[int | float], below: Sequence[int | float]
    ) -> tuple[float, float, float]:
        return interval(above, below, seed)

    def difference(a: str, b: str) -> list[float]:
        return [x - y for x, y in zip(losses[a], losses[b], strict=True)]

    fvu = ratio(sums.error, sums.spread)
    forgiven = float(sums.residual.square().sum()) / count / sum(sums.spread)
    nan = float("nan")
    found = {
        "fvu": fvu,
        "explained variance": (1 - fvu[0] + forgiven, 1 - fvu[2] + forgiven, 1 - fvu[1] + forgiven),
        "l0": ratio(sums.l0, sums.tokens),
        "dead share": (float((fired.count == 0).float().mean()), nan, nan),
        "loss": ratio(losses["model"], sums.predicted),
        "loss with sae": ratio(losses["sae"], sums.predicted),
        "loss recovered over zero": ratio(difference("zero", "sae"), difference("zero", "model")),
        "loss recovered over mean": ratio(difference("mean", "sae"), difference("mean", "model")),
        "kl": ratio(sums.kl, sums.all_tokens),
    }
    return [Quantity(who, name, *values) for name, values in found.items()]
