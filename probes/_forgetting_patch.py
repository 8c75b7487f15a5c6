"""What one model makes of the other's streams, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import InterpError, Model, Replay, replay, replay_last
from interp._reading import reading

PATCHES = ("restore", "restore_other", "destroy", "destroy_other", "recover")


@dataclass(frozen=True)
class Patched:
    """Every patch's rank and probability of [answer, decoy]: patch -> [fact layer who].

    Args:
        rank: 1 for the likeliest token of the vocabulary.
        prob: of the token.
        moved: ||tuned - base|| / ||base|| of the stream over all positions; 0 where no bit differs.
        says: the likeliest token of [base, tuned].
    """

    rank: dict[str, Int[Tensor, "fact layer who"]]
    prob: dict[str, Float[Tensor, "fact layer who"]]
    moved: Float[Tensor, "fact layer"]
    says: Int[Tensor, "fact model"]


def patched(
    base: Model,
    tuned: Model,
    prompts: list[str],
    wanted: Int[Tensor, "fact who"],
    last: Mapping[str, Float[Tensor, "prompt layer d_model"]],
    other: Int[Tensor, " fact"],
    batch_size: int,
    tick: Callable[[int], object],
) -> Patched:
    """Put streams of one model into the other, at each layer from the embedding to the last.

    Args:
        base: the model before.
        tuned: the model after.
        prompts: of the facts.
        wanted: the tokens of answer and decoy.
        last: of "base" and "tuned", last-position streams of the facts' prompts, which come first.
        other: the fact whose prompt gives the control's stream.
        batch_size: prompts a forward.
        tick: told how many prompts are done.
    """
    ranks: dict[str, list[Tensor]] = {name: [] for name in PATCHES}
    probs: dict[str, list[Tensor]] = {name: [] for name in PATCHES}
    moved, says = [], []
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        which = torch.arange(start, start + len(some))
        tokens = wanted[which]
        with reading(base), reading(tuned):
            short, whole = _recorded(base, tuned, some)
            foreign = last["base"][other[which]]
            jobs = {
                "restore": (short[1], last["base"][which]),
                "restore_other": (short[1], foreign),
                "destroy": (short[0], last["tuned"][which]),
                "destroy_other": (short[0], foreign),
            }
            for name, (runner, streams) in jobs.items():
                logits = _last_token(runner, streams)
                _keep(ranks[name], probs[name], logits, tokens)
            columns = base.batch(some).columns("last")[0][:, 0]
            _keep(ranks["recover"], probs["recover"], _streams(*whole, columns), tokens)
            moved.append(_moved(*whole, base.batch(some).attention_mask))
            says.append(_says(*whole, columns))
        tick(2 * len(some))
    return Patched(
        {name: torch.cat(parts) for name, parts in ranks.items()},
        {name: torch.cat(parts) for name, parts in probs.items()},
        torch.cat(moved),
        torch.cat(says),
    )


def _recorded(
    base: Model, tuned: Model, prompts: list[str]
) -> tuple[tuple[Replay, Replay], tuple[Replay, Replay]]:
    """Both models' runs: of the last token over its prefix, and of whole prompts."""
    batch = base.batch(prompts)
    if int(batch.lengths.min()) < 2:
        row = int(batch.lengths.argmin())
        raise InterpError(
            f"the prompt {prompts[row]!r} is one token, so nothing stands before its last "
            f"position; give a longer prompt"
        )
    both = base, tuned
    return (
        (replay_last(both[0], prompts), replay_last(both[1], prompts)),
        (replay(both[0], batch), replay(both[1], tuned.batch(prompts))),
    )


def _last_token(runner: Replay, streams: Tensor) -> Tensor:
    """Logits [fact layer vocab] with the last position's stream at each layer from elsewhere."""
    out = []
    for layer, own in enumerate(runner.streams):
        put = streams[:, layer, None].to(own)
        out.append(runner.unembed(runner.run(layer, put))[:, -1])
    return torch.stack(out, dim=1)


def _streams(runner: Replay, giver: Replay, columns: Tensor) -> Tensor:
    """Logits [fact layer vocab] with the whole stream at each layer from another model."""
    out = []
    rows = torch.arange(len(columns), device=columns.device)
    for layer, stream in enumerate(giver.streams):
        final = runner.run(layer, stream.to(runner.streams[layer]))
        out.append(runner.unembed(final[rows, columns][:, None])[:, -1])
    return torch.stack(out, dim=1)


def _moved(base: Replay, tuned: Replay, mask: Tensor) -> Tensor:
    """[fact layer] in float32, over real positions only."""
    out = []
    for old, new in zip(base.streams, tuned.streams, strict=True):
        real = mask.to(old.device)[..., None].float()
        one, two = old.float() * real, new.to(old).float() * real
        out.append((two - one).flatten(1).norm(dim=1) / one.flatten(1).norm(dim=1))
    return torch.stack(out, dim=1).cpu()


def _says(base: Replay, tuned: Replay, columns: Tensor) -> Tensor:
    rows = torch.arange(len(columns), device=columns.device)
    return torch.stack([one.logits[rows, columns].argmax(-1).cpu() for one in (base, tuned)], dim=1)


def _keep(ranks: list[Tensor], probs: list[Tensor], logits: Tensor, tokens: Tensor) -> None:
    rank, prob = rank_and_prob(logits, tokens)
    ranks.append(rank)
    probs.append(prob)


def rank_and_prob(
    logits: Float[Tensor, "fact layer vocab"], tokens: Int[Tensor, "fact who"]
) -> tuple[Int[Tensor, "fact layer who"], Float[Tensor, "fact layer who"]]:
    """Rank (of equal logits the lower index comes first) and probability, on the CPU."""
    logprobs = logits.float().log_softmax(-1)
    index = tokens.to(logits.device)[:, None].expand(-1, logits.shape[1], -1)
    picked = logprobs.gather(-1, index)
    order = torch.arange(logits.shape[-1], device=logits.device)
    ranks = []
    for who in range(tokens.shape[1]):
        value, at = picked[..., who, None], index[..., who, None]
        ahead = (logprobs > value) | ((logprobs == value) & (order < at))
        ranks.append(ahead.sum(-1) + 1)
    return torch.stack(ranks, dim=-1).cpu(), picked.exp().cpu()
