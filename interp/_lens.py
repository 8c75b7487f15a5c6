"""`logit_lens`: what each layer would answer if the model stopped there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interp._anatomy import Anatomy
from interp._answers import (
    Answer,
    Answers,
    answer_tokens,
    gather_streams,
    per_prompt,
    teacher_forced,
    text_of,
)
from interp._batch import Batch, Positions, whole_numbers
from interp._errors import InterpError
from interp._lens_trace import LensTrace
from interp._linear_lens import LinearLens
from interp._model import Model, as_model
from interp._reading import reading, require_unembed
from interp._site import Site

_CHUNK = 2**24  # logits held at once: 64 MiB in float32
_PIECE = 2**19  # logits measured at once on a CPU: what its cache holds


def logit_lens(
    model: Model | nn.Module,
    prompts: Any,
    answers: Answers | None = None,
    *,
    positions: Positions = "last",
    top_k: int = 5,
    lens: LinearLens | None = None,
) -> LensTrace:
    """Each layer's prediction: p_l = softmax(unembed(resid_l)), with the model's own final norm.

    Layer 0 is the embedding, layer l the stream after l blocks, and the last row is the model's
    own output. Never holds layer x pos x vocab; one forward, and one unembedding of all layers.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: a batch, texts or token ids.
        answers: one for all prompts, or one entry (an answer or a list of answers) for each; text
            is tokenized after its prompt and its first token traced. Default: the token that the
            model itself ranks first at each position.
        positions: `"last"`, `"all"`, an index or a list of indices, in real tokens.
        top_k: how many top tokens to keep for each layer.
        lens: a linear map applied before the unembedding (tuned lens, Jacobian lens).

    Returns:
        LensTrace with `prob logprob rank entropy kl top`: rank 1 is the top token, entropy and KL
        are in nats, KL is KL(model's output || lens). For answers of several tokens
        `answer_logprob` is the whole answer read through the lens (positions="last" only).

    Raises:
        InterpError: an answer without tokens, non-finite logits (naming the first bad layer).

    Examples:
        >>> trace = interp.logit_lens(model, "The capital of France is", " Paris")
        >>> trace.table()[["layer", "prob", "rank"]]
        >>> trace.decision_layer()                    # from here on the answer stays on top

    Source: nostalgebraist 2020; the tuned lens is Belrose et al. 2023 (arXiv 2303.08112).
    """
    handle = as_model(model)
    anatomy = handle.anatomy
    require_unembed(handle)
    if not 1 <= top_k <= anatomy.d_vocab:
        raise InterpError(f"top_k={top_k}: expected 1 to {anatomy.d_vocab}, the vocabulary")
    batch = handle.batch(prompts)
    columns, real = batch.columns(positions)
    rows, slots = real.nonzero(as_tuple=True)
    wanted = None if answers is None else per_prompt(answers, len(batch))
    tokens = None if wanted is None else answer_tokens(handle, batch, wanted)
    with reading(handle):
        streams = _streams(handle, batch, rows, columns[rows, slots])
        first = None if tokens is None else _first_tokens(tokens)[rows.cpu()]
        values = _trace(anatomy, streams, first, top_k, lens)
        whole = _whole_answers(handle, batch, tokens, lens, values, positions, len(rows))
    offsets = (columns - batch.starts[:, None])[rows, slots]
    return LensTrace(
        **values,
        answer_logprob=whole,
        prompt=rows.cpu(),
        position=offsets.cpu(),
        token=batch.input_ids[rows, columns[rows, slots]].cpu(),
        answers=_names(handle, wanted, values["answer_token"], rows.tolist()),
        tokens=_vocabulary(handle, batch, values),
        meta={
            "model": handle.name or type(handle.module).__name__,
            "revision": handle.revision,
            "positions": positions
            if isinstance(positions, str | int)
            else whole_numbers(positions),
            "lens": "logit" if lens is None else lens.kind,
            "prompts": list(batch.texts) if batch.texts else None,
        },
    )


def _streams(model: Model, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
    """[layer row d_model]: the embedding's stream, then the stream after each block."""
    n_layers = model.anatomy.n_layers
    sites = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(n_layers))]
    kept = gather_streams(model, batch, sites, rows, columns)
    streams = torch.stack([kept[site] for site in sites])
    finite = streams.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        layer = int((~finite).nonzero()[0])
        where = "the embedding" if layer == 0 else f"block {layer - 1}"
        raise InterpError(
            f"the residual stream holds NaN or infinity after {where}; check the weights, or load "
            f"with dtype=torch.float32 if float16 overflowed"
        )
    return streams


def _chunks(n_layers: int, n_rows: int, d_vocab: int) -> Iterator[tuple[slice, slice]]:
    """(rows, layers) blocks whose logits fit in memory.

    All layers of a few rows share one product, so the unembedding is read once, not once a layer.
    """
    budget = max(1, _CHUNK // d_vocab)
    height = max(1, min(n_rows, budget // n_layers))
    width = max(1, min(n_layers, budget // height))
    for row in range(0, n_rows, height):
        for layer in range(0, n_layers, width):
            yield slice(row, row + height), slice(layer, layer + width)


def _pieces(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """(layers, rows) of a chunk to be measured together.

    On a CPU temporaries of a whole chunk would be fresh memory each time, which costs more than
    the arithmetic; on a GPU one launch for the whole chunk is best.
    """
    n_layers, n_rows, d_vocab = logits.shape
    if logits.device.type != "cpu":
        yield slice(0, n_layers), slice(0, n_rows)
        return
    height = max(1, _PIECE // d_vocab)
    for layer in range(n_layers):
        for row in range(0, n_rows, height):
            yield slice(layer, layer + 1), slice(row, min(row + height, n_rows))


def _lens_logits(
    anatomy: Anatomy, streams: Tensor, layers: slice, lens: LinearLens | None
) -> Tensor:
    """[layer row vocab] in float32; the last row, the model's own output, is never mapped."""
    if lens is not None:
        lens.check(anatomy)
        first = layers.start or 0
        mapped = [
            lens(stream, first + offset) if first + offset < anatomy.n_layers else stream
            for offset, stream in enumerate(streams)
        ]
        streams = torch.stack(mapped)
    logits = anatomy.unembed(streams.flatten(0, 1)).float()
    # The sum shows any NaN or infinity and is one cheap pass; it might overflow, so look closer.
    if not bool(logits.sum(-1).isfinite().all()) and not bool(logits.isfinite().all()):
        raise InterpError(
            "the logits hold NaN or infinity although the residual stream is finite; check the "
            "final norm and the unembedding"
        )
    return logits.unflatten(0, streams.shape[:2])


def _trace(
    anatomy: Anatomy, streams: Tensor, first: Tensor | None, top_k: int, lens: LinearLens | None
) -> dict[str, Tensor]:
    """Every quantity of the lens, each [row layer ...] on the CPU."""
    n_layers, n_rows, _ = streams.shape
    answer = first.to(streams.device) if first is not None else None
    out: dict[str, Tensor] = {}

    def keep(name: str, at: tuple[slice, slice], value: Tensor) -> None:
        value = value.transpose(0, 1)  # [row layer ...]
        if name not in out:
            out[name] = torch.empty(n_rows, n_layers, *value.shape[2:], dtype=value.dtype)
        out[name][at] = value.cpu()

    final = final_probs = streams  # of the rows at hand
    final_rows: slice | None = None
    for rows, layers in _chunks(n_layers, n_rows, anatomy.d_vocab):
        if final_rows != rows:
            own = slice(n_layers - 1, n_layers)
            final = _lens_logits(anatomy, streams[own, rows], own, None)[0].log_softmax(-1)
            final_probs, final_rows = final.exp(), rows
        chosen = final.argmax(-1)[:, None] if answer is None else answer[rows]
        logits = _lens_logits(anatomy, streams[layers, rows], layers, lens)
        for few_layers, few_rows in _pieces(logits):
            logprobs = logits[few_layers, few_rows].log_softmax(-1)
            expected, weights = final[few_rows], final_probs[few_rows]
            index = chosen[few_rows][None].expand(logprobs.shape[0], -1, -1)
            picked = logprobs.gather(-1, index)
            ranks = [_rank(logprobs, index[..., i, None]) for i in range(index.shape[-1])]
            top = logprobs.topk(top_k, dim=-1)
            at = (_within(rows, few_rows), _within(layers, few_layers))
            keep("logprob", at, picked)
            keep("rank", at, torch.stack(ranks, dim=-1))
            keep("entropy", at, -(logprobs.exp() * logprobs).sum(-1))
            keep("kl", at, (weights * (expected - logprobs)).sum(-1).clamp(min=0))
            keep("top_logprob", at, top.values)
            keep("top_token", at, top.indices)
            keep("answer_token", at, index)
        del logits  # before the next chunk is computed: one at a time
    out["answer_token"] = out["answer_token"][:, 0]
    return out


def _rank(logprobs: Tensor, token: Tensor) -> Tensor:
    """1 for the likeliest token; of equally likely ones the lower id comes first."""
    value = logprobs.gather(-1, token)
    before = torch.arange(logprobs.shape[-1], device=logprobs.device) < token
    return ((logprobs > value) | ((logprobs == value) & before)).sum(-1) + 1


def _within(outer: slice, inner: slice) -> slice:
    return slice(outer.start + inner.start, outer.start + inner.stop)


def _first_tokens(tokens: list[list[list[int]]]) -> Tensor:
    return torch.tensor([[answer[0] for answer in row] for row in tokens])


def _whole_answers(
    model: Model,
    batch: Batch,
    tokens: list[list[list[int]]] | None,
    lens: LinearLens | None,
    values: dict[str, Tensor],
    positions: Positions,
    n_rows: int,
) -> Tensor:
    """[row layer answer]: log-prob of whole answers, through the lens at every layer."""
    if tokens is None or all(len(answer) == 1 for row in tokens for answer in row):
        return values["logprob"]
    if positions != "last":
        return torch.full_like(values["logprob"], float("nan"))
    extended, teacher = teacher_forced(model, batch, tokens)
    streams = _streams(model, extended, teacher.rows, teacher.columns)
    traced = _trace(model.anatomy, streams, teacher.tokens[:, None], 1, lens)["logprob"]
    summed = teacher.total(traced[..., 0])  # [prompt*answer layer]
    return summed.unflatten(0, (n_rows, -1)).transpose(1, 2)


def _names(
    model: Model, wanted: list[list[Answer]] | None, tokens: Tensor, rows: list[int]
) -> list[list[str]]:
    """The answers as text, for each row."""
    if wanted is not None:
        return [[text_of(model, answer) for answer in wanted[row]] for row in rows]
    return [[text_of(model, token) for token in row] for row in tokens.tolist()]


def _vocabulary(model: Model, batch: Batch, values: dict[str, Tensor]) -> dict[int, str]:
    """Text of every token that the trace mentions."""
    ids = set(values["top_token"].unique().tolist()) | set(values["answer_token"].unique().tolist())
    ids |= set(batch.input_ids.unique().tolist())
    return {token: text_of(model, token) for token in sorted(ids)}
