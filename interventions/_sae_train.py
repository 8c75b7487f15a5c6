"""Training of sparse autoencoders, several from one forward of the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from tqdm.auto import tqdm

from interp import ActivationStore, InterpError, Model, Site
from interp._hooked import ports_of
from interp._model import as_model
from interp._reading import fingerprint
from interventions import _sae_checkpoint
from interventions._checkpoint import Checkpoint, digest
from interventions._sae import SAE
from interventions._sae_learner import Learner
from interventions._sae_plan import SAEPlan
from interventions._sae_stream import Shuffled, chunks_of


def train_sae(
    model: Model | nn.Module,
    data: Sequence[Any] | ActivationStore,
    site: str | Site,
    *,
    kind: str = "topk",
    d_sae: int | None = None,
    k: int = 32,
    sparsity: int | float | None = None,
    lr: int | float | None = None,
    aux: int | float = 1 / 32,
    dead_after: int | None = None,
    center: str = "median",
    tokens: int = 1_000_000,
    batch_size: int = 2048,
    buffer: int = 32_768,
    context: int | None = None,
    prompts: int = 32,
    drop_first: bool = True,
    max_norm: int | float | None = 10.0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SAE:
    """Train a sparse autoencoder of one site.

    Minimised is the mean squared error in units in which the activations have variance 1, so that
    it is about the fraction of variance unexplained, plus what its kind needs (`SAEPlan` and
    `train_saes` say more). The decoder's rows have norm 1 throughout: gradients along them are
    removed, and they are scaled back after each step. In the end centre and unit are folded into
    the weights, which then read raw activations.

    Args:
        model: a handle or a bare PreTrainedModel, read only.
        data: texts, lists of token ids, or activations that `interp.capture_corpus` stored. They
            repeat, in another order, until there are enough tokens.
        site: such as `"resid_post.3"`.
        kind: `topk`, `batchtopk`, `jumprelu`, `gated` or `standard`.
        d_sae: features; eight times the width of the site by default.
        k: latents a token.
        sparsity: weight of the sparsity term of `jumprelu`, `gated` and `standard`.
        lr: of Adam; by default `0.09 / sqrt(d_in)` for `topk` and `batchtopk` (ours, measured in
            short trainings; lower it for far longer ones), else `2e-4 / sqrt(d_sae / 2^14)`.
        aux: weight of AuxK.
        dead_after: tokens without firing after which a latent counts as dead.
        center: what b_dec begins as, `"median"` (geometric) or `"mean"`.
        tokens: to train on, in all.
        batch_size: tokens a step.
        buffer: tokens held and shuffled; with one forward more, all that is ever in memory.
        context: texts are cut there; the model's own limit by default.
        prompts: texts in one forward.
        drop_first: leave out each text's first token (BOS, or what stands in its place), whose
            activations belong to attention and not to the text.
        max_norm: leave out tokens whose norm is more than so many times the median; None for none.
        checkpoint: a folder that keeps the whole state every `checkpoint_every` steps; the same
            call continues from it, to the same result bit for bit. Removed at the end.
        checkpoint_every: steps; a tenth of all by default.
        seed: of texts' order, shuffling and the decoder's directions.
        progress: show a bar where it takes more than two seconds.

    Returns:
        An SAE; its `meta["history"]` holds losses, L0 and dead latents along the way.

    Raises:
        InterpError: no texts or tokens, a buffer smaller than a batch, activations that are not
            finite, another training or anything else in the checkpoint, a loss that is not finite
            in the first step. A later one ends the training with a warning and the last good state
            is returned.

    Examples:
        >>> sae = iv.train_sae(model, texts, "resid_post.3", d_sae=256, k=8, tokens=20_000,
        ...                    batch_size=256, buffer=2048)
        >>> sae.d_in, sae.d_sae
        (128, 256)

    Source: Gao et al. 2024 (arXiv 2406.04093): topk, AuxK, unit decoder and geometric median;
    `SAE` names the other kinds'. Dropped tokens and the buffer are dictionary_learning's. We
    deviate in the unit (variance of the first buffer, not the batch), in `lr` and `dead_after`, and
    at the start of `topk` and `batchtopk`: directions are half rows, and one factor on the encoder
    fits x_hat to x (their code makes random inputs and their reconstructions equally long).
    """
    plan = SAEPlan(
        str(Site.parse(site)), kind, d_sae, k, sparsity, lr, aux, None, dead_after,
        center=center, seed=seed,
    )  # fmt: skip
    found = train_saes(
        model, data, {"sae": plan}, tokens=tokens, batch_size=batch_size, buffer=buffer,
        context=context, prompts=prompts, drop_first=drop_first, max_norm=max_norm,
        checkpoint=checkpoint, checkpoint_every=checkpoint_every, seed=seed, progress=progress,
    )  # fmt: skip
    return found["sae"]


def train_saes(
    model: Model | nn.Module,
    data: Sequence[Any] | ActivationStore,
    plans: Mapping[str, SAEPlan],
    *,
    tokens: int = 1_000_000,
    batch_size: int = 2048,
    buffer: int = 32_768,
    context: int | None = None,
    prompts: int = 32,
    drop_first: bool = True,
    max_norm: int | float | None = 10.0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, SAE]:
    """Train several SAEs on the same tokens, from one forward of the model.

    At the same site or at others, of the same kind or others. Alone, each would come out the same:
    only which tokens are dropped for their norm depends on the sites together.

    Args:
        model: as for `train_sae`, and so are all others but `plans`.
        data: texts, token ids or a store.
        plans: what to train, by a name of yours.
        tokens: in all.
        batch_size: tokens a step.
        buffer: tokens held and shuffled.
        context: texts are cut there.
        prompts: texts in one forward.
        drop_first: leave out each text's first token.
        max_norm: leave out tokens whose norm is more than so many times the median.
        checkpoint: a folder for the state.
        checkpoint_every: steps.
        seed: of texts' order and shuffling; directions have each plan's own.
        progress: show a bar.

    Examples:
        >>> plans = {f"layer {i}": iv.SAEPlan(f"resid_post.{i}", d_sae=256, k=8) for i in (1, 3)}
        >>> found = iv.train_saes(model, texts, plans, tokens=8192, batch_size=256, buffer=2048)
        >>> found["layer 3"].site
        'resid_post.3'
    """
    handle = as_model(model)
    _check(plans, tokens, batch_size, buffer, context, prompts, checkpoint_every)
    named = {name: _site(handle, plan) for name, plan in plans.items()}
    sites = list(dict.fromkeys(named.values()))
    chunks = chunks_of(
        handle, data, sites, context=context, prompts=prompts, drop_first=drop_first,
        max_norm=max_norm,
    )  # fmt: skip
    asked = {
        "plans": {name: asdict(plan) for name, plan in plans.items()}, "tokens": tokens,
        "batch_size": batch_size, "buffer": buffer, "context": context, "prompts": prompts,
        "drop_first": drop_first, "max_norm": max_norm, "seed": seed,
        "weights": fingerprint(handle.module), "texts": len(data),
    }  # fmt: skip
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(checkpoint, _sae_checkpoint.KIND, asked | {"data": _digest(data)})
    steps = tokens // batch_size
    every = checkpoint_every or max(1, steps // 10)
    stopped = None
    device = next(handle.module.parameters()).device.type
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
        stream = Shuffled(chunks, buffer, seed)
        learners = {
            name: Learner.begin(plan, stream.rows[str(named[name])], steps, batch_size)
            for name, plan in plans.items()
        }
        done = 0 if kept is None else _sae_checkpoint.restored(kept, stream, learners)
        bar = tqdm(
            total=steps, initial=done, desc="steps", unit="step", delay=2, leave=False,
            disable=not progress,
        )  # fmt: skip
        with bar:
            for step in range(done, steps):
                rows = stream.draw(batch_size)
                lost = [
                    name for name, learner in learners.items()
                    if not learner.step(rows[str(named[name])], step)
                ]  # fmt: skip
                if lost:
                    stopped = _stopped(lost, step, learners)
                    break
                if kept is not None and (step + 1) % every == 0 and step + 1 < steps:
                    _sae_checkpoint.save(kept, step + 1, stream, learners)
                bar.update()
        shared = {key: value for key, value in asked.items() if key != "plans"}
        made = {
            name: learner.sae(
                str(named[name]), handle.name or type(handle.module).__name__,
                shared | {"plan": asdict(plans[name]), "stopped": stopped},
            )
            for name, learner in learners.items()
        }  # fmt: skip
    if kept is not None:
        kept.remove()
    return made


def _check(
    plans: Mapping[str, SAEPlan], tokens: int, batch_size: int, buffer: int, context: int | None,
    prompts: int, checkpoint_every: int | None,
) -> None:  # fmt: skip
    if not isinstance(plans, Mapping) or not plans or tokens < batch_size:
        raise InterpError(
            f"plans is {type(plans).__name__} and tokens={tokens}: expected SAEPlans by names of "
            f"yours, at least one, and at least one batch of {batch_size} tokens"
        )
    if batch_size < 1 or buffer < batch_size or prompts < 1:
        raise InterpError(
            f"batch_size={batch_size}, buffer={buffer}, prompts={prompts}: expected at least 1, "
            f"a buffer that holds a batch, and at least 1"
        )
    named = {"context": context, "checkpoint_every": checkpoint_every}
    for name, value in named.items():
        if value is not None and value < 1:
            raise InterpError(f"{name}={value}: expected at least 1, or None")


def _digest(data: Sequence[Any] | ActivationStore) -> str:
    """What tells these texts or activations from others."""
    if not isinstance(data, ActivationStore):
        return digest(*(one if isinstance(one, str) else list(one) for one in data))
    prompts = []
    for file in data.files:
        with safe_open(file, framework="pt") as opened:
            prompts.append(opened.metadata())
    return digest(data.meta, prompts)


def _site(model: Model, plan: SAEPlan) -> Site:
    """The plan's site, as this model has it."""
    return next(iter(ports_of(model, Site.parse(plan.site))))


def _stopped(lost: Sequence[str], step: int, learners: Mapping[str, Learner]) -> str:
    rates = ", ".join(f"{learners[name].rate:.3g}" for name in lost)
    said = f"the loss of {', '.join(map(repr, lost))} is not finite in step {step} at lr={rates}"
    if step == 0:
        raise InterpError(f"{said}, before anything was learned; look for NaN in the activations")
    for name, learner in learners.items():
        if name in lost:
            learner.step_back()
    warnings.warn(
        f"{said}: training ended, and the state before the last step is returned; lower lr",
        stacklevel=3,
    )
    return said
