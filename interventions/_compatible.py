"""Whether the weights of two checkpoints may be subtracted or exchanged, checked before any are."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from interp import InterpError
from interp._edit.identity import stable_config
from interp._errors import nearest
from interventions._lineage import Lineage, lineage_of
from interventions._weights import Weights

FAR = 0.2  # relative distance above which one start is worth a doubt (our specification)
STRANGER = 0.5  # cosine below which there was no common start

# What a config may say differently of two checkpoints with one history.
_HARMLESS = {
    "attention_dropout", "attn_pdrop", "classifier_dropout", "dropout", "embd_pdrop",
    "hidden_dropout", "initializer_range", "layerdrop", "layer_dropout", "max_length",
    "max_position_embeddings", "model_max_length", "name_or_path", "pretraining_tp",
    "quantization_config", "resid_pdrop", "residual_dropout", "router_aux_loss_coef",
    "router_jitter_noise", "seq_length", "tie_word_embeddings", "use_sliding_window", "vocab_size",
}  # fmt: skip


def require_compatible(
    other: Weights, base: Weights, chosen: Iterable[str], *, allow_distant: bool
) -> Lineage:
    """Refuse two checkpoints that are not two states of one model.

    Args:
        other: what training made of it, or the giver.
        base: the start, or the receiver.
        chosen: the parameters concerned.
        allow_distant: let another config, other tokens and another lineage pass.

    Returns:
        How far apart they are.

    Raises:
        InterpError: another architecture, tied against untied, missing tensors, other shapes; and,
            unless `allow_distant`, tokens that moved, another config, no common start.
    """
    kinds = [w.checkpoint.config.get("model_type") for w in (other, base)]
    if kinds[0] != kinds[1]:
        raise InterpError(
            f"{other.name} is of type {kinds[0]!r} and {base.name} of type {kinds[1]!r}: give two "
            f"checkpoints of one architecture"
        )
    chosen = list(chosen)
    _refuse_ties(other, base, chosen)
    for name in chosen:
        _refuse_shape(other, base, name)
    if not allow_distant:
        _refuse_config(other, base)
    _check_tokens(other, base, allow_distant)
    found = lineage_of(other, base)
    if found.cosine < STRANGER and not allow_distant:
        raise InterpError(
            f"{other.name} and {base.name} have no common start ({found}): weights of two separate "
            f"trainings do not correspond; give the checkpoint that training started from, or pass "
            f"allow_distant=True"
        )
    if found.relative_norm > FAR:
        warnings.warn(
            f"{other.name} is far from {base.name} ({found}; post-training rarely goes beyond "
            f"{FAR}), so their difference may not carry over",
            stacklevel=3,
        )
    return found


def _refuse_ties(other: Weights, base: Weights, chosen: list[str]) -> None:
    if other.checkpoint.tied == base.checkpoint.tied:
        return
    named = {p.module for name in chosen if name in base.parameters
             for p in base.parameters[name].parts}  # fmt: skip
    if named & {"embed", "head"}:
        tied, free = (other, base) if other.checkpoint.tied else (base, other)
        raise InterpError(
            f"{tied.name} ties its head to its embedding and {free.name} does not, so these two do "
            f"not correspond; leave both out with modules=('attn', 'mlp', 'norm')"
        )


def _refuse_shape(other: Weights, base: Weights, name: str) -> None:
    for lacking, having in ((other, base), (base, other)):
        if name not in lacking.parameters:
            raise InterpError(
                f"{lacking.name} lacks {name}, which {having.name} has; "
                f"{nearest(name, lacking.parameters)}"
            )
    shapes = [tuple(w.parameters[name].source.shape) for w in (other, base)]
    if shapes[0] == shapes[1]:
        return
    module = base.parameters[name].parts[0].module
    if module in ("embed", "head") and shapes[0][1:] == shapes[1][1:]:
        more, fewer = (other, base) if shapes[0] > shapes[1] else (base, other)
        added = sorted(set(more.tokens) - set(fewer.tokens), key=lambda t: more.tokens[t])
        words = f" ({', '.join(map(repr, added[:4]))})" if added else ""
        raise InterpError(
            f"{name} has {shapes[0][0]} rows in {other.name} and {shapes[1][0]} in {base.name}: "
            f"{more.name} has more tokens{words}; leave them out with "
            f"modules=('attn', 'mlp', 'norm')"
        )
    raise InterpError(
        f"{name} is {_times(shapes[0])} in {other.name} and {_times(shapes[1])} in {base.name}: "
        f"these are no two checkpoints of one model"
    )


def _refuse_config(other: Weights, base: Weights) -> None:
    mine, theirs = (_plain_config(w.checkpoint.config) for w in (other, base))
    for key in sorted(set(mine) | set(theirs)):
        if mine.get(key) != theirs.get(key):
            raise InterpError(
                f"the configs differ in {key}: {mine.get(key)!r} in {other.name} and "
                f"{theirs.get(key)!r} in {base.name}, so equal weights would compute different "
                f"things; pass allow_distant=True where that is meant"
            )


def _check_tokens(other: Weights, base: Weights, allow_distant: bool) -> None:
    """Ids must mean the same tokens; tokens that only one side has are pointed out."""
    mine, theirs = other.tokens, base.tokens
    if not mine or not theirs or mine == theirs:
        return
    moved = [token for token, row in theirs.items() if mine.get(token, row) != row]
    if moved and not allow_distant:
        token = moved[0]
        raise InterpError(
            f"the tokenizers disagree on {len(moved)} tokens: {token!r} is {mine[token]} in "
            f"{other.name} and {theirs[token]} in {base.name}; pass allow_distant=True where that "
            f"is meant"
        )
    for more, fewer in ((other, base), (base, other)):
        added = sorted(set(more.tokens) - set(fewer.tokens), key=lambda t: more.tokens[t])
        if added:
            warnings.warn(
                f"{more.name} knows {len(added)} tokens that {fewer.name} does not, such as "
                f"{added[0]!r}: prompts that use them mean nothing to the other",
                stacklevel=4,
            )


def _plain_config(config: Any) -> dict[str, Any]:
    return {k: v for k, v in stable_config(config).items() if k not in _HARMLESS}


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
