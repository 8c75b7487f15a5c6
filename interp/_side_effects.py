"""`side_effects`: what an edit does to a model on texts that it was not meant for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp._anatomy import Anatomy
from interp._batch import Batch, several
from interp._capture import capture
from interp._edit.edit import Edit
from interp._edit.parameters import named_parameters
from interp._errors import InterpError
from interp._hooked import ports_of
from interp._model import Model, as_model, generate_ids
from interp._reading import require_unembed
from interp._side_effects_record import SideEffects
from interp._site import Site

_LOGITS = 2**24  # entries of a chunk of logits
_PROMPTS, _PROMPT_TOKENS = 3, 16


@torch.no_grad()
def side_effects(
    model: Model | nn.Module,
    edit: Edit,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    prompts: Sequence[str] | Sequence[Sequence[int]] | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 8,
    transfer: bool = False,
) -> SideEffects:
    """How far an edit moves a model on unrelated texts: KL per token, perplexity, norms, words.

    `KL(before || after) = sum_v p(v) (log p(v) - log q(v))` at every token, over the whole
    vocabulary, in float32, from the residual stream in chunks: logits of a whole text are never in
    memory. Perplexity is `exp` of the mean negative log-probability of the next token. Norm growth
    is the mean over tokens of `||resid_post after|| / ||resid_post before||`, layer by layer.

    Positions of an edit mean each text as a prompt: "generated" never acts here.

    Args:
        model: a handle or a bare PreTrainedModel.
        edit: what to measure; it is off the model again afterwards.
        texts: unrelated to what the edit is for, at least two tokens each.
        prompts: continued greedily before and after; by default the first 16 tokens of the first
            three texts, where there is a tokenizer.
        max_new_tokens: length of a continuation.
        batch_size: texts in one forward.
        transfer: allow another model of the same shapes than the one the edit was made on.

    Raises:
        InterpError: one text and no list, no texts, one of a single token, an edit that cannot be
            applied.

    Examples:
        >>> edit = interp.Edit([interp.Affine("z.1", (2,), scale=0.0)])
        >>> effects = interp.side_effects(model, edit, texts[:4], max_new_tokens=4)
        >>> effects.kl_per_token.mean > 0
        True
        >>> len(effects.growth) == model.anatomy.n_layers
        True
    """
    handle = as_model(model)
    if not isinstance(edit, Edit):
        raise InterpError(
            f"edit is a {type(edit).__name__}; expected an Edit, which interventions make or "
            f"interp.Edit([...])"
        )
    texts = several(texts)
    require_unembed(handle)
    batches = [handle.batch(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
    _check(batches)
    asked = _prompts(handle, batches[0], prompts)
    before = [_read(handle, batch) for batch in batches]
    spoken = _continued(handle, asked, max_new_tokens)
    unembed = _kept_unembedding(handle, edit)
    kept: dict[str, list[Tensor]] = {"kl": [], "nll_before": [], "nll_after": []}
    norms: list[Tensor] = []
    with _changes_alone(edit).applied(handle, transfer=transfer):
        maps = Edit(edit.affines)
        for batch, (stream, norm) in zip(batches, before, strict=True):
            with maps.applied(handle, prompt_len=batch.lengths):
                edited, norm_after = _read(handle, batch)
            for row, length in enumerate(batch.lengths.tolist()):
                ids = batch.input_ids[row, :length].cpu()
                parts = _compare(
                    unembed, handle.anatomy, stream[row, :length], edited[row, :length], ids
                )
                for found, part in zip(kept.values(), parts, strict=True):
                    found.append(part)
                pair = torch.stack([norm[row, :, :length], norm_after[row, :, :length]])
                norms.append(torch.cat([pair.mean(-1), (pair[1] / pair[0]).mean(-1)[None]]))
        with maps.applied(handle):
            changed = _continued(handle, asked, max_new_tokens)
    return SideEffects(
        **{name: torch.cat(found) for name, found in kept.items()},
        text=torch.repeat_interleave(torch.tensor([len(kl) for kl in kept["kl"]])),
        norm_before=torch.stack(norms)[:, 0],
        norm_after=torch.stack(norms)[:, 1],
        norm_ratio=torch.stack(norms)[:, 2],
        prompts=tuple(asked[1]),
        before=tuple(spoken),
        after=tuple(changed),
        meta={"model": handle.name, "edit": repr(edit), "notes": dict(edit.notes)},
    )


def _changes_alone(edit: Edit) -> Edit:
    """The changes of weights alone, which come first; they know what they were made on."""
    return replace(edit, atoms=edit.deltas)


def _check(batches: Sequence[Batch]) -> None:
    if not batches:
        raise InterpError("no texts to measure side effects on; give a few that are unrelated")
    short = [b.lengths for b in batches if int(b.lengths.min()) < 2]
    if short:
        raise InterpError(
            "a text of one token says nothing of what follows it; give texts of two tokens or more"
        )


def _read(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """The last stream [text pos d_model] and the norm of every layer's [text layer pos]."""
    last = Site("resid_post", model.anatomy.n_layers - 1)
    norms: dict[Site, Tensor] = {}

    def note(stream: Tensor, site: Site) -> None:
        norms[site] = stream.detach().float().norm(dim=-1).cpu()

    with ExitStack() as stack:
        for port in ports_of(model, "resid_post.*").values():
            stack.enter_context(port.attach(note, reads=True))
        stream = capture(model, batch, last)[last]
    return stream, torch.stack(list(norms.values()), dim=1)


def _kept_unembedding(model: Model, edit: Edit) -> Anatomy:
    """The unembedding as it is now, apart from the model's where the edit changes that."""
    anatomy = model.anatomy
    parts = {name: getattr(anatomy, name) for name in ("final_norm", "project_out", "head")}
    own = {id(p) for m in parts.values() if m is not None for p in m.parameters()}
    parameters = named_parameters(model.module)
    touched = (
        id(parameters[delta.parameter].tensor) in own
        for delta in edit.deltas
        if delta.parameter in parameters
    )
    return replace(anatomy, **copy.deepcopy(parts)) if any(touched) else anatomy


def _compare(
    before: Anatomy, after: Anatomy, stream: Tensor, edited: Tensor, ids: Tensor
) -> tuple[Float[Tensor, " pos"], Float[Tensor, " pos"], Float[Tensor, " pos"]]:
    """(KL, -log p, -log q) at each token of one text; the last token has no next one: NaN."""
    following = torch.cat([ids[1:], ids[:1]])
    rows = []
    for chunk in torch.arange(len(ids)).split(max(1, _LOGITS // after.d_vocab)):
        first = before.unembed(stream[chunk]).float().log_softmax(-1)
        second = after.unembed(edited[chunk]).float().log_softmax(-1)
        second = second.to(first.device)
        kl = (first.exp() * (first - second)).sum(-1).clamp(min=0)
        at = following[chunk, None].to(first.device)
        rows.append(torch.stack([kl, -first.gather(1, at)[:, 0], -second.gather(1, at)[:, 0]]))
    kl, nll_before, nll_after = torch.cat(rows, dim=1).cpu()
    nll_before[-1] = nll_after[-1] = float("nan")
    return kl, nll_before, nll_after


def _prompts(model: Model, first: Batch, given: Any) -> tuple[list[Any], list[str]]:
    """(ids of each prompt, how to print it)."""
    if given is None:
        if model.tokenizer is None:
            return [], []
        rows = zip(first.input_ids[:_PROMPTS], first.lengths.tolist(), strict=False)
        ids = [row[: min(length, _PROMPT_TOKENS)].tolist() for row, length in rows]
    else:
        batch = model.batch(given)
        ids = [row[mask.bool()].tolist() for row, mask in _rows(batch)]
    return ids, [_text(model, one) for one in ids]


def _rows(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(batch.input_ids, batch.attention_mask, strict=True)


def _text(model: Model, ids: Sequence[int]) -> str:
    if model.tokenizer is None:
        return " ".join(map(str, ids))
    return str(model.tokenizer.decode(ids, skip_special_tokens=True))


def _continued(model: Model, asked: tuple[list[Any], list[str]], tokens: int) -> list[str]:
    if not asked[0]:
        return []
    sequences, start = generate_ids(model, asked[0], max_new_tokens=tokens)
    return [_text(model, row.tolist()) for row in sequences[:, start:]]
