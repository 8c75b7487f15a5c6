"""Decoding with several models at once, as logits processors for transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from interp import InterpError, Model
from interp._model import as_model
from probes._decoding_follower import Follower
from probes._vocabulary import shared_vocabulary

ModelLike = Model | nn.Module
Combine = Callable[[Tensor, list[Tensor]], Tensor]


class Decoder(LogitsProcessor):
    """A rule that mixes the generating model's scores with other models' logits.

    Made by `contrastive`, `proxy_tuning` and `logit_sum`; pass it as `logits_processor=[decoder]`
    to `generate`. Greedy search, sampling, beams, several sequences a prompt, caches and left
    padding all work; temperature and top-p act afterwards, on the mixture. The scores it returns
    are log-probabilities.

    Args:
        followers: the other models, each run once a step.
        combine: (scores, each follower's logits) -> scores, all [row vocab].
    """

    def __init__(self, followers: Sequence[Follower], combine: Combine) -> None:
        self._followers, self._combine = list(followers), combine

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [row vocab] of the next token after input_ids [row pos]."""
        if not self._followers:
            return scores
        others = [follower.read(input_ids) for follower in self._followers]
        vocab = min(scores.shape[-1], *(other.shape[-1] for other in others))
        mixed = self._combine(scores[:, :vocab].float(), [other[:, :vocab] for other in others])
        out = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        out[:, :vocab] = mixed.log_softmax(-1)
        return out


def contrastive(
    tuned: ModelLike,
    base: ModelLike,
    *,
    alpha: float = 0.1,
    attention_mask: Tensor | None = None,
) -> Decoder:
    """What the tuned model says and the base would not: softmax(log p_tuned - log p_base) on V.

    V = {v : p_tuned(v) >= alpha max p_tuned} keeps the text plausible; all else has probability
    zero. Generate with `tuned`.

    Args:
        tuned: the model that generates.
        base: what it was before.
        alpha: 0 keeps every token, 1 only the likeliest.
        attention_mask: of the prompts, where leading pad tokens do not tell.

    Raises:
        InterpError: another vocabulary, alpha outside 0 to 1, logits that are not finite.

    Examples:
        >>> base = model                                     # two models in real life
        >>> novel = probes.contrastive(model, base, alpha=0.1)
        >>> model.generate(prompt, max_new_tokens=5, logits_processor=[novel])

    Source: contrastive generative experts (2410.14765, ICLR 2025), whose formula we know from its
    reviews; the plausible set is Li et al. 2023 (contrastive decoding, arXiv 2210.15097). alpha is
    theirs; our specification where the former does not give it.
    """
    if not 0.0 <= alpha <= 1.0:
        raise InterpError(f"alpha={alpha}: expected 0 (every token) to 1 (the likeliest only)")
    first, second = as_model(tuned), as_model(base)
    shared_vocabulary(first, second)

    def combine(scores: Tensor, others: list[Tensor]) -> Tensor:
        ours = scores.log_softmax(-1)
        plausible = ours.exp() >= alpha * ours.exp().amax(-1, keepdim=True)
        # A token that an earlier processor has forbidden stays so, also with alpha = 0.
        gap = ours - others[0].log_softmax(-1)
        return gap.masked_fill(~(plausible & ours.isfinite()), -torch.inf)

    return Decoder([Follower(second, attention_mask)], combine)


def proxy_tuning(
    model: ModelLike,
    tuned: ModelLike | Sequence[ModelLike],
    base: ModelLike | Sequence[ModelLike],
    *,
    weights: float | Sequence[float] = 1.0,
    attention_mask: Tensor | None = None,
) -> Decoder:
    """A large model moved by what tuning did to small ones: log p + sum_i w_i (log q_i - log b_i).

    Renormalised at each token. With w = 0 it is the large model itself, and nothing else is run; a
    negative weight undoes the tuning.

    Args:
        model: the large model, which generates.
        tuned: small tuned models q_i.
        base: what each was before; one serves all.
        weights: w_i; one serves all.
        attention_mask: of the prompts, where leading pad tokens do not tell.

    Raises:
        InterpError: another vocabulary, or lists of different lengths.

    Examples:
        >>> small, tuned_small = model, model                # three models in real life
        >>> proxy = probes.proxy_tuning(model, tuned_small, small, weights=0.5)
        >>> model.generate(prompt, max_new_tokens=5, logits_processor=[proxy])

    Source: emulated fine-tuning (Mitchell et al. 2023, arXiv 2310.12962) and proxy tuning (Liu et
    al. 2024, arXiv 2401.08565).
    """
    first, many = as_model(model), _models(tuned)
    before = _models(base)
    if len(before) == 1:
        before = before * len(many)
    values = _weights(weights, len(many))
    if len(before) != len(many):
        raise InterpError(f"{len(before)} bases for {len(many)} tuned models; give one, or as many")
    net: dict[int, tuple[Model, float]] = {}  # a base that serves several runs once
    for new, old, weight in zip(many, before, values, strict=True):
        shared_vocabulary(first, new)
        shared_vocabulary(new, old)
        for one, signed in ((new, weight), (old, -weight)):
            net[id(one.module)] = one, net.get(id(one.module), (one, 0.0))[1] + signed
    return _weighted(list(net.values()), attention_mask)


def logit_sum(
    model: ModelLike,
    others: ModelLike | Sequence[ModelLike],
    *,
    weights: float | Sequence[float] = 1.0,
    attention_mask: Tensor | None = None,
) -> Decoder:
    """A backbone and small reasoning modules as a product of experts: z + sum_i a_i z_i.

    Args:
        model: the backbone, which generates.
        others: models whose logits are added.
        weights: a_i; one serves all.
        attention_mask: of the prompts, where leading pad tokens do not tell.

    Raises:
        InterpError: another vocabulary, or lists of different lengths.

    Examples:
        >>> reasoner = model                                 # two models in real life
        >>> both = probes.logit_sum(model, [reasoner], weights=[0.5])
        >>> model.generate(prompt, max_new_tokens=5, logits_processor=[both])

    Source: universal reasoner, UniR (2505.19075). Logits and log-probabilities give the same
    mixture, because a constant a row cancels in the softmax.
    """
    first, many = as_model(model), _models(others)
    for one in many:
        shared_vocabulary(first, one)
    pairs = list(zip(many, _weights(weights, len(many)), strict=True))
    return _weighted(pairs, attention_mask)


def _weighted(pairs: list[tuple[Model, float]], attention_mask: Tensor | None) -> Decoder:
    """Scores plus weighted log-probabilities; models of weight zero are not run."""
    pairs = [(model, weight) for model, weight in pairs if weight != 0.0]
    weights = [weight for _, weight in pairs]

    def combine(scores: Tensor, others: list[Tensor]) -> Tensor:
        for weight, other in zip(weights, others, strict=True):
            scores = scores + weight * other.log_softmax(-1)
        return scores

    return Decoder([Follower(model, attention_mask) for model, _ in pairs], combine)


def _models(given: ModelLike | Sequence[ModelLike]) -> list[Model]:
    listed = [given] if isinstance(given, Model | nn.Module) else list(given)
    if not listed:
        raise InterpError("no models to decode with; give at least one")
    return [as_model(one) for one in listed]


def _weights(given: float | Sequence[float], n: int) -> list[float]:
    values = [float(given)] * n if isinstance(given, int | float) else [float(w) for w in given]
    if len(values) != n:
        raise InterpError(f"{len(values)} weights for {n} models; give one, or as many")
    return values
