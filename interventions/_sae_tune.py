"""Tuning with a frozen SAE spliced in: the model learns to be itself around the SAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import interp
from interp import Edit, InterpError, Model
from interp._batch import Batch
from interp._errors import nearest
from interp._forward import run
from interp._model import as_model
from interp._reading import fingerprint, refuse_compiled
from interp._selfcheck import evaluating
from interventions._checkpoint import Checkpoint, digest
from interventions._choose import Layers, Modules
from interventions._examples import batches
from interventions._factors import Factors
from interventions._sae import SAE
from interventions._sae_splice import GRADS, splice, stands_for
from interventions._sae_stream import token_ids
from interventions._training import Course, train

LOSSES = ("token", "sum")


def tune_with_sae(
    model: Model | nn.Module,
    sae: SAE,
    data: Sequence[Any],
    *,
    rank: int = 32,
    alpha: int | float = 128,
    layers: Layers = None,
    modules: Modules = ("attn", "mlp"),
    sae_grad: str = "full",
    loss: str = "token",
    steps: int = 200,
    rows: int = 8,
    lr: int | float = 1e-4,
    warmup: int | float = 0.03,
    clip: int | float | None = 1.0,
    dev: Sequence[Any] = (),
    score: Callable[[Model], float] | None = None,
    dev_every: int = 50,
    context: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> Edit:
    """Learn low-rank changes with which the model predicts as before, an SAE spliced in.

    Minimised over LoRA factors is `KL(p || q)` at every token, p the model as it is and q the model
    with the changes and with `x_hat` in place of the SAE's site. What is returned are the changes
    alone: at use, the SAE is gone.

    The SAE may come from another model than this one (the paper's source, of which it is to carry
    something over), if it reads as many numbers a token.

    Args:
        model: the target: a handle or a bare PreTrainedModel; left as it is.
        sae: frozen; its `site` says where. First and massive tokens pass by if it never saw any.
        data: texts or lists of token ids.
        rank: of the changes.
        alpha: they are multiplied by `alpha / rank`.
        layers: which blocks change; None for all.
        modules: which matrices, `q k v o gate up down`, or `attn`, `mlp`; of a fused matrix the
            part named. What is no matrix of a module of its own, such as experts, is left as it is
            and named in the notes under `"skipped"`.
        sae_grad: what flows back through the SAE: `"full"` (its own gradient), `"ste"` (as if it
            were the identity), or `"none"`, as in the released code: then nothing up to the SAE's
            layer is ever trained.
        loss: `"token"`, the mean over all tokens, or `"sum"`, the sum over a text's tokens and the
            mean over texts, as in the released code.
        steps: of AdamW.
        rows: texts a step.
        lr: of AdamW, rising over the first steps and falling linearly to 0.
        warmup: the share of the steps over which it rises.
        clip: largest norm of the gradient; None for no limit.
        dev: further texts: the state with the least mean KL a token on them is returned, the start
            included.
        score: instead of `dev`, a function of the model with the changes on it and without the
            SAE, such as accuracy on dev problems: the state with the greatest is returned.
        dev_every: steps between looks.
        context: texts are cut there; the model's own limit by default.
        seed: of order and factors.
        checkpoint: a folder that keeps the whole state every `checkpoint_every` steps; the same
            call continues from it, to the same result bit for bit. Removed at the end.
        checkpoint_every: steps; a tenth of all by default.
        progress: show a bar where it takes more than two seconds.

    Returns:
        An Edit of one low-rank Delta a matrix that was trained, made on this model; its notes hold
        the losses. Without `dev` and `score`, the last state.

    Raises:
        InterpError: fewer texts than rows, an SAE of another width or without a site, one whose
            latents never fire on this model, a loss that is not finite in the first step. A later
            one ends the training with a warning, and the state before that step is returned.

    Examples:
        >>> sae = iv.sae.random(d_in=128, d_sae=512, k=64, site="resid_post.3")
        >>> edit = iv.tune_with_sae(model, sae, texts, rank=2, steps=2, rows=2)
        >>> with edit.applied(model):
        ...     logits = model.module(input_ids).logits

    Source: Resa, Wang et al. 2025 (arXiv 2506.09967), and its code, which stops gradients at the
    SAE without saying so and chooses its checkpoint by the test score. Dropout is off: our
    specification.
    """
    handle = as_model(model)
    refuse_compiled(handle.module)
    course = Course(steps, rows, lr, warmup, clip, dev_every)
    _check(rank, alpha, context, loss, sae_grad, sae, bool(dev) and score is not None)
    texts = _encoded(handle, data, context)
    drawn = batches(texts, rows, steps, seed)
    held_out = _encoded(handle, dev, context) if dev else []
    note: dict[str, Any] = {
        "steps": steps, "rows": rows, "lr": lr, "rank": rank, "alpha": alpha, "loss": loss,
        "sae_grad": sae_grad, "texts": len(texts), "seed": seed, "site": sae.site,
        "sae": {"model": sae.model, "kind": sae.kind, "d_sae": sae.d_sae, "k": sae.k},
    }  # fmt: skip
    with torch.inference_mode(False), evaluating(handle.module):
        _must_fire(handle, sae, texts, rows)
        factors = Factors.begin(handle, layers, modules, rank, alpha / rank, seed)
        note["skipped"] = factors.skipped
        kept = None
        if checkpoint is not None:
            asked = {"course": asdict(course), "note": note, "weights": fingerprint(handle.module)}
            asked |= {"texts": digest(texts, held_out), "SAE": digest(*sae.tensors.values())}
            asked |= {"matrices": list(factors.at)}
            kept = Checkpoint(checkpoint, "sae_tuning", asked)

        def backward(ids: Sequence[list[int]]) -> float:
            batch = handle.batch(ids)
            teacher = teacher_logits(handle, batch)
            with torch.enable_grad(), factors.on():
                kl = divergence(handle, sae, batch, teacher, sae_grad)
                value = _reduced(kl, batch, loss)
                gradient = torch.autograd.grad(value, factors.sides, materialize_grads=True)
            for side, one in zip(factors.sides, gradient, strict=True):
                side.grad = one
            return float(value.detach())

        def scored() -> float:
            assert score is not None
            with torch.no_grad(), factors.edit().applied(handle):
                return float(score(handle))

        def mean_kl() -> float:
            return _mean_kl(handle, sae, factors, held_out, rows)

        found = train(
            factors, drawn, backward, course,
            look=scored if score is not None else mean_kl if dev else None,
            greater=score is not None, kept=kept, checkpoint_every=checkpoint_every,
            progress=progress,
        )  # fmt: skip
        edit = factors.edit()
    return Edit(edit.atoms, notes={"tune_with_sae": note | found.notes}).on(handle)


@torch.no_grad()
def teacher_logits(model: Model, batch: Batch) -> Float[Tensor, "batch pos vocab"]:
    """What the model as it is says."""
    return run(model.module, batch.inputs).logits.float()


def divergence(
    model: Model, sae: SAE, batch: Batch, teacher: Float[Tensor, "batch pos vocab"], grad: str
) -> Float[Tensor, "batch pos"]:
    """`KL(teacher || model with the SAE spliced in)` at every token, 0 where padded."""
    with interp.hooked(model, {sae.site or "": splice(sae, batch, grad)}):
        student = run(model.module, batch.inputs).logits.float()
    p = teacher.log_softmax(-1)
    kl = (p.exp() * (p - student.log_softmax(-1))).sum(-1)
    return kl * batch.attention_mask.to(kl)


def _reduced(kl: Float[Tensor, "batch pos"], batch: Batch, loss: str) -> Tensor:
    return kl.sum() / (len(batch) if loss == "sum" else int(batch.attention_mask.sum()))


@torch.no_grad()
def _mean_kl(
    model: Model, sae: SAE, factors: Factors, texts: Sequence[list[int]], rows: int
) -> float:
    """A token's, over all texts."""
    total, count = 0.0, 0
    for start in range(0, len(texts), rows):
        batch = model.batch(texts[start : start + rows])
        teacher = teacher_logits(model, batch)
        with factors.on():
            total += float(divergence(model, sae, batch, teacher, "none").sum())
        count += int(batch.attention_mask.sum())
    return total / count


@torch.no_grad()
def _must_fire(model: Model, sae: SAE, texts: Sequence[list[int]], rows: int) -> None:
    """Refuse an SAE that is not for this model, or dead on it."""
    found: list[bool] = []

    def look(tensor: Tensor, site: interp.Site) -> None:
        flat = sae.flat(tensor, site)
        latents = sae.encode(flat)[stands_for(sae, flat, batch)]
        found.append(bool((latents > 0).any()))

    for start in range(0, len(texts), rows):
        batch = model.batch(texts[start : start + rows])
        with interp.hooked(model, {sae.site or "": look}):
            run(model.module, batch.inputs)
        if found[-1]:
            return
    raise InterpError(
        f"none of the SAE's {sae.d_sae} latents fires at {sae.site} on these texts: it is dead or "
        f"was trained on another model, and there is nothing to learn through it"
    )


def _encoded(model: Model, data: Sequence[Any], context: int | None) -> list[list[int]]:
    if isinstance(data, str) or not len(data):
        raise InterpError("expected a list of texts (or of token ids), at least one")
    return [token_ids(model, one, context or model.anatomy.max_positions) for one in data]


def _check(
    rank: int, alpha: int | float, context: int | None, loss: str, grad: str, sae: SAE, both: bool
) -> None:
    if rank < 1 or not alpha > 0 or (context is not None and context < 1):
        raise InterpError(
            f"rank={rank}, alpha={alpha}, context={context}: expected at least 1, more than 0, and "
            f"at least 1 token, or None for the model's own limit"
        )
    if loss not in LOSSES:
        raise InterpError(f"loss={loss!r}; {nearest(loss, LOSSES)}")
    if grad not in GRADS:
        raise InterpError(f"sae_grad={grad!r}; {nearest(grad, GRADS)}")
    if sae.site is None:
        raise InterpError("this SAE does not say where it reads; dataclasses.replace(sae, site=)")
    if both:
        raise InterpError("choose the best state by dev texts or by score, not by both")
