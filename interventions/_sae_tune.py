"""Tuning with a frozen SAE spliced in: the model learns to be itself around the SAE."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.pytorch_utils import Conv1D

import interp
from interp import Delta, Edit, InterpError, LowRank, Model
from interp._batch import Batch
from interp._edit.applied import adding_to_output
from interp._edit.parameters import Parameter, find
from interp._errors import nearest
from interp._forward import run
from interp._model import as_model
from interp._reading import refuse_compiled
from interp._selfcheck import evaluating
from interventions._choose import Layers, Modules, choose
from interventions._examples import batches
from interventions._sae import SAE
from interventions._sae_splice import GRADS, splice, stands_for
from interventions._sae_stream import token_ids
from interventions._weights import open_weights

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
        modules: which matrices, `q k v o gate up down`, or `attn`, `mlp`.
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
    _check(steps, rows, lr, warmup, rank, dev_every, loss, sae, bool(dev) and score is not None)
    if sae_grad not in GRADS:
        raise InterpError(f"sae_grad={sae_grad!r}; {nearest(sae_grad, GRADS)}")
    train = _encoded(handle, data, context)
    drawn = batches(train, rows, steps, seed)
    held_out = _encoded(handle, dev, context) if dev else []
    history: list[dict[str, float | int]] = []
    note: dict[str, Any] = {
        "steps": steps, "rows": rows, "lr": lr, "rank": rank, "alpha": alpha, "loss": loss,
        "sae_grad": sae_grad, "texts": len(train), "seed": seed, "site": sae.site,
        "sae": {"model": sae.model, "kind": sae.kind, "d_sae": sae.d_sae, "k": sae.k},
        "history": history, "stopped": None,
    }  # fmt: skip
    with torch.inference_mode(False), evaluating(handle.module):
        _must_fire(handle, sae, handle.batch(train[:rows]))
        factors = Factors.begin(handle, layers, modules, rank, alpha / rank, seed)
        optimizer = torch.optim.AdamW(factors.parameters, lr=lr, weight_decay=0.0)

        def look() -> float | None:
            """Greater is better."""
            if score is not None:
                with factors.edit().applied(handle):
                    return float(score(handle))
            return -_mean_kl(handle, sae, factors, held_out, rows) if held_out else None

        best, best_seen, best_step = Edit(), look(), 0
        before = factors.copy()
        bar = tqdm(total=steps, desc="steps", delay=2, leave=False, disable=not progress)
        with bar:
            for step, ids in enumerate(drawn, 1):
                batch = handle.batch(ids)
                teacher = teacher_logits(handle, batch)
                with torch.enable_grad(), factors.on():
                    kl = divergence(handle, sae, batch, teacher, sae_grad)
                    value = _reduced(kl, batch, loss)
                    gradient = torch.autograd.grad(
                        value, factors.parameters, materialize_grads=True
                    )
                if not (value.isfinite() and all(bool(g.isfinite().all()) for g in gradient)):
                    note["stopped"] = _stopped(step, lr)
                    factors.restore(before)
                    history.pop()
                    break
                history.append({"step": step, "loss": float(value.detach())})
                for parameter, one in zip(factors.parameters, gradient, strict=True):
                    parameter.grad = one
                if clip is not None:
                    nn.utils.clip_grad_norm_(factors.parameters, clip)
                rising = max(1, round(warmup * steps))
                share = min(1.0, step / rising, (steps - step + 1) / max(1, steps - rising + 1))
                for group in optimizer.param_groups:
                    group["lr"] = lr * share
                before = factors.copy()
                optimizer.step()
                bar.update()
                if best_seen is not None and (step % dev_every == 0 or step == steps):
                    seen = look()
                    history[-1]["dev"] = -math.inf if seen is None else seen
                    if seen is not None and seen > best_seen:
                        best, best_seen, best_step = factors.edit(), seen, step
        if best_seen is None:
            best, best_step = factors.edit(), len(history)
    note["best step"] = best_step
    return Edit(best.atoms, notes={"tune_with_sae": note}).on(handle)


@dataclass
class Factors:
    """LoRA factors of some matrices while they are learned, added to their modules' output."""

    at: dict[str, Parameter]
    learned: dict[str, tuple[Tensor, Tensor]]  # of the matrix as it is stored
    scale: float

    @staticmethod
    def begin(
        model: Model, layers: Layers, modules: Modules, rank: int, scale: float, seed: int
    ) -> Factors:
        """Random at the input's side, 0 at the output's: no change at first."""
        weights = open_weights(model)
        generator = torch.Generator().manual_seed(seed)
        at: dict[str, Parameter] = {}
        learned: dict[str, tuple[Tensor, Tensor]] = {}
        for name in choose(weights.parameters, layers, modules):
            shape = tuple(weights.parameters[name].source.shape)
            if len(shape) != 2 or not name.endswith("weight"):
                continue
            nothing = LowRank(torch.zeros(shape[0], 1), torch.zeros(1, shape[1]))
            at[name] = find(model.module, name, nothing)
            if not isinstance(at[name].owner, nn.Linear | Conv1D):
                del at[name]
                continue
            inputs = shape[0] if isinstance(at[name].owner, Conv1D) else shape[1]
            outputs = shape[1] if isinstance(at[name].owner, Conv1D) else shape[0]
            home = at[name].tensor.device
            drawn = (2 * torch.rand(rank, inputs, generator=generator) - 1) / inputs**0.5
            zeros = torch.zeros(rank, outputs)
            sides = (drawn.T, zeros) if isinstance(at[name].owner, Conv1D) else (zeros.T, drawn)
            left, right = (s.contiguous().to(home).requires_grad_() for s in sides)
            learned[name] = (left, right)
        if not at:
            raise InterpError("none of the chosen modules is a matrix of its own; choose others")
        return Factors(at, learned, scale)

    @property
    def parameters(self) -> list[Tensor]:
        """All that is learned."""
        return [side for sides in self.learned.values() for side in sides]

    @contextmanager
    def on(self) -> Iterator[None]:
        """The changes on the model, with gradients to the factors."""
        with ExitStack() as stack:
            for name, (left, right) in self.learned.items():
                change = Delta(name, LowRank(self.scale * left, right))
                stack.enter_context(adding_to_output(self.at[name], change))
            yield

    def edit(self) -> Edit:
        """The changes as they are now; matrices that never moved are left out."""
        atoms = []
        for name, (left, right) in self.learned.items():
            kept = (self.scale * left).detach().cpu().clone(), right.detach().cpu().clone()
            if bool(kept[0].any()) and bool(kept[1].any()):
                atoms.append(Delta(name, LowRank(*kept)))
        return Edit(atoms)

    def copy(self) -> list[Tensor]:
        """A copy of all that is learned."""
        return [side.detach().clone() for side in self.parameters]

    @torch.no_grad()
    def restore(self, state: Sequence[Tensor]) -> None:
        """Back to a copy."""
        for side, value in zip(self.parameters, state, strict=True):
            side.copy_(value)


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
def _must_fire(model: Model, sae: SAE, batch: Batch) -> None:
    """Refuse an SAE that is not for this model, or dead on it."""
    found: list[Tensor] = []

    def look(tensor: Tensor, site: interp.Site) -> None:
        rows = sae.flat(tensor, site)
        found.append(sae.encode(rows)[stands_for(sae, rows, batch)])

    with interp.hooked(model, {sae.site or "": look}):
        run(model.module, batch.inputs)
    if not bool((found[0] > 0).any()):
        raise InterpError(
            f"none of the SAE's {sae.d_sae} latents fires at {sae.site} on these texts: it is dead "
            f"or was trained on another model, and there is nothing to learn through it"
        )


def _encoded(model: Model, data: Sequence[Any], context: int | None) -> list[list[int]]:
    if isinstance(data, str) or not len(data):
        raise InterpError("expected a list of texts (or of token ids), at least one")
    return [token_ids(model, one, context or model.anatomy.max_positions) for one in data]


def _stopped(step: int, lr: int | float) -> str:
    said = f"the loss or a gradient is not finite in step {step} at lr={lr}"
    if step == 1:
        raise InterpError(f"{said}, before anything was learned; look for NaN in the weights")
    warnings.warn(
        f"{said}: training ended, and the state before the last step is returned; lower lr",
        stacklevel=3,
    )
    return said


def _check(
    steps: int, rows: int, lr: int | float, warmup: int | float, rank: int, dev_every: int,
    loss: str, sae: SAE, both: bool,
) -> None:  # fmt: skip
    if min(steps, rows, rank, dev_every) < 1 or not lr > 0 or not 0 <= warmup <= 1:
        raise InterpError(
            f"steps={steps}, rows={rows}, rank={rank}, dev_every={dev_every}, lr={lr}, "
            f"warmup={warmup}: expected at least 1 (four times), more than 0, and 0 to 1"
        )
    if loss not in LOSSES:
        raise InterpError(f"loss={loss!r}; {nearest(loss, LOSSES)}")
    if sae.site is None:
        raise InterpError("this SAE does not say where it reads; dataclasses.replace(sae, site=)")
    if both:
        raise InterpError("choose the best state by dev texts or by score, not by both")
