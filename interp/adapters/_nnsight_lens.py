"""The logit lens in one nnsight trace: the vocabulary stays where the weights are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp._answers import Answers, answer_tokens, per_prompt, teacher_forced
from interp._batch import Batch, Positions, whole_numbers
from interp._capture import Prompts
from interp._errors import InterpError, UnsupportedSite
from interp._lens import _first_tokens, _names, _vocabulary
from interp._lens_trace import LensTrace
from interp._selfcheck import verdicts
from interp.adapters._traced import Traced, open_traced


def logit_lens(
    model: Any,
    prompts: Prompts,
    answers: Answers | None = None,
    *,
    positions: Positions = "last",
    top_k: int = 5,
    remote: bool | str = False,
) -> LensTrace:
    """Each layer's prediction, p_l = softmax(unembed(resid_l)), computed where the weights are.

    `interp.logit_lens` through one nnsight trace (two with answers of several tokens). The final
    norm, the head, softcaps and scales are the model's own; a layer's [row vocab] logits live only
    inside the trace, and what comes back is a few numbers for each row and layer.

    Args:
        model: a hub id or folder, of which no weights are loaded when the trace runs elsewhere; an
            nnsight model, on the meta device or not; or a handle or bare PreTrainedModel, which is
            left as it is.
        prompts: a batch, texts or token ids.
        answers: as for `interp.logit_lens`; by default the model's own top token.
        positions: `"last"`, `"all"`, an index or a list of indices, in real tokens.
        top_k: how many top tokens to keep for each layer.
        remote: passed to nnsight: False here, True on NDIF, `"local"` to try the remote path
            here, or the address of a server.

    Returns:
        LensTrace, equal to `interp.logit_lens` on the same weights.

    Raises:
        InterpError: an answer without tokens, `top_k` outside the vocabulary, non-finite logits.

    Examples:
        >>> trace = interp.adapters.nnsight.logit_lens(       # remote=True: on NDIF
        ...     "path/to/checkpoint", texts, " Paris", remote="local"
        ... )

    Source: nostalgebraist 2020; Fiotto-Kaufman et al. 2024, arXiv 2407.14561.
    """
    traced = open_traced(model, remote)
    handle, anatomy = traced.handle, traced.handle.anatomy
    if handle.check and "unembed" in (distrusted := verdicts(anatomy)):
        raise UnsupportedSite(
            f"no lens on {type(handle.module).__name__}: {distrusted['unembed']}; "
            f"interp.load(..., check=False) uses it anyway"
        )
    if not 1 <= top_k <= anatomy.d_vocab:
        raise InterpError(f"top_k={top_k}: expected 1 to {anatomy.d_vocab}, the vocabulary")
    batch = handle.batch(prompts)
    columns, real = batch.columns(positions)
    rows, slots = real.nonzero(as_tuple=True)
    wanted = None if answers is None else per_prompt(answers, len(batch))
    tokens = None if wanted is None else answer_tokens(handle, batch, wanted)
    first = None if tokens is None else _first_tokens(tokens)[rows.cpu()]
    values = _trace(traced, batch, rows, columns[rows, slots], first, top_k)
    return LensTrace(
        **values,
        answer_logprob=_whole_answers(traced, batch, tokens, values["logprob"], positions),
        prompt=rows.cpu(),
        position=(columns - batch.starts[:, None])[rows, slots].cpu(),
        token=batch.input_ids[rows, columns[rows, slots]].cpu(),
        answers=_names(handle, wanted, values["answer_token"], rows.tolist()),
        tokens=_vocabulary(handle, batch, values),
        meta={
            "model": handle.name or type(handle.module).__name__,
            "revision": handle.revision,
            "positions": positions
            if isinstance(positions, str | int)
            else whole_numbers(positions),
            "lens": "logit",
            "prompts": list(batch.texts) if batch.texts else None,
            "source": "nnsight",
            "remote": remote,
        },
    )


def _whole_answers(
    traced: Traced,
    batch: Batch,
    tokens: list[list[list[int]]] | None,
    logprob: Tensor,
    positions: Positions,
) -> Tensor:
    """[row layer answer]: log-prob of whole answers, through the lens at every layer."""
    if tokens is None or all(len(answer) == 1 for row in tokens for answer in row):
        return logprob
    if positions != "last":
        return torch.full_like(logprob, float("nan"))
    extended, teacher = teacher_forced(traced.handle, batch, tokens)
    found = _trace(traced, extended, teacher.rows, teacher.columns, teacher.tokens[:, None], 1)
    summed = teacher.total(found["logprob"][..., 0])  # [prompt*answer layer]
    return summed.unflatten(0, (len(batch), -1)).transpose(1, 2)


@torch.no_grad()
def _trace(
    traced: Traced, batch: Batch, rows: Tensor, columns: Tensor, answer: Tensor | None, top_k: int
) -> dict[str, Tensor]:
    """Every quantity, [row layer ...]; the block travels as source, so it names plain things."""
    import nnsight

    anatomy, envoy, inputs = traced.handle.anatomy, traced.envoy, traced.inputs(batch)
    plan = traced.reads(["resid_pre.0", "resid_post.*"])
    reads, stoppable = [read for read, _ in plan.values()], traced.stoppable
    modules = (anatomy.final_norm, anatomy.project_out, anatomy.head)
    tail = [path for path in map(traced.path, modules) if path is not None]
    scale, divisor, softcap = anatomy.logit_scales
    values: dict[str, Any] = {}
    with envoy.trace(**inputs) as tracer:
        values = nnsight.save({})
        streams = []
        for path, side in reads:
            value = getattr(envoy.get(path), side)
            value = value[0] if isinstance(value, tuple) else value
            streams.append(value[rows.to(value.device), columns.to(value.device)])
        final, layers = None, []
        for stream in reversed(streams):
            for path in tail:
                stream = stream.to(envoy.get(path).device)
                stream = envoy.get(path)(stream)
            logits = stream * scale / divisor
            if softcap:
                logits = torch.tanh(logits / softcap) * softcap
            logprobs = logits.float().log_softmax(-1)
            if final is None:
                final = logprobs
                chosen = final.argmax(-1, keepdim=True) if answer is None else answer
            tokens = chosen.to(logprobs.device)
            picked = logprobs.gather(-1, tokens)
            ids = torch.arange(logprobs.shape[-1], device=logprobs.device)
            ranks = []
            for i in range(picked.shape[1]):
                value, token = picked[:, i : i + 1], tokens[:, i : i + 1]
                ahead = (logprobs > value) | ((logprobs == value) & (ids < token))
                ranks.append(ahead.sum(-1) + 1)
            top = logprobs.topk(top_k, dim=-1)
            layers.append(
                {
                    "logprob": picked.cpu(),
                    "rank": torch.stack(ranks, dim=-1).cpu(),
                    "entropy": -(logprobs.exp() * logprobs).sum(-1).cpu(),
                    "kl": (final.exp() * (final - logprobs)).sum(-1).clamp(min=0).cpu(),
                    "top_logprob": top.values.cpu(),
                    "top_token": top.indices.cpu(),
                }
            )
        for name in layers[0]:
            values[name] = torch.stack([layer[name] for layer in reversed(layers)], dim=1)
        values["answer_token"] = chosen.cpu()
        if stoppable:
            tracer.stop()
    if not bool(values["entropy"].isfinite().all()):
        layer = int((~values["entropy"].isfinite()).any(0).nonzero()[0])
        raise InterpError(
            f"the lens gives NaN or infinity at layer {layer}; check the weights, or load with "
            f"dtype=torch.float32 if float16 overflowed"
        )
    return values
