"""Tuning of chosen weights only, with optimizer state nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp import Edit, InterpError, Model
from interp._model import as_model
from interp._reading import fingerprint, refuse_compiled
from interp._selfcheck import evaluating
from interventions._checkpoint import Checkpoint, digest
from interventions._entries import Entries
from interventions._examples import Encoded, Example, batches, completion_loss, encode, mean_loss
from interventions._prior import Prior
from interventions._training import Course, train
from interventions._weight_mask import WeightMask


def masked_tune(
    model: Model | nn.Module,
    examples: Sequence[Example],
    mask: WeightMask | Callable[[Model], WeightMask],
    *,
    steps: int = 100,
    rows: int = 16,
    lr: int | float = 1e-4,
    warmup: int | float = 0.03,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: int | float = 0.0,
    clip: int | float | None = 1.0,
    remask: int | None = None,
    prior: Edit | None = None,
    pull: int | float = 1.0,
    dev: Sequence[Example] = (),
    dev_every: int = 20,
    end: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> Edit:
    """Fine-tune the weights that a mask chooses and leave the others' bits alone.

    Minimises the mean over the completions' tokens of `-log p(token | prompt, tokens before)` by
    AdamW, which sees a vector of the chosen entries and nothing else: two numbers of state for each
    of them, and one to step back to. Of a gradient only the chosen entries outlive its backward.

    Args:
        model: a handle or a bare PreTrainedModel with a tokenizer; afterwards it is as it was.
        examples: (prompt, completion) pairs.
        mask: what may move; or a function that makes it from the model, for `remask`.
        steps: of the optimizer.
        rows: examples a step.
        lr: of AdamW, rising linearly over the first steps and falling linearly to 0.
        warmup: the share of the steps over which it rises.
        betas: of AdamW.
        weight_decay: of the chosen entries alone.
        clip: largest norm of the chosen entries' gradient; None for no limit.
        remask: make the mask anew after so many steps; entries that stay keep their state, new ones
            start from nothing, and those that left keep the values they had reached.
        prior: a change of weights to lean towards, such as a task vector D. Of each parameter the
            chosen entries' gradient g becomes g - a |g| D / |D|, a = pull (1 + cos(g, D)) / 2, so
            that a step down the gradient moves along +D, the more so where g would undo D.
        pull: how strongly; negative values lead away from D.
        dev: further examples; the state with the least loss on them is returned, the start
            included. Without them it is the last.
        dev_every: steps between looks at them.
        end: also train the tokenizer's EOS after each completion, where it has one.
        seed: of the order.
        checkpoint: a folder that keeps the whole state every `checkpoint_every` steps; the same
            call continues from it, to the same result bit for bit (with `remask`, where the
            function depends on the model alone). Removed at the end.
        checkpoint_every: steps; a tenth of all by default.
        progress: show a bar where it takes more than two seconds.

    Returns:
        An Edit of one sparse Delta a parameter, made on this model; its notes hold the losses, and
        `"state bytes"`, what the optimizer kept at the end.

    Raises:
        InterpError: fewer examples than rows, a mask of another model or of nothing, a prior that
            changes none of the parameters masked, or another model's, weights that are not here to
            be trained (quantised, offloaded), a loss that is not finite before
            anything was learned. A later one ends the training with a warning, and the state before
            the step that led there is returned.

    Examples:
        >>> mask = iv.principal_mask(model, lora_rank=2, rank=16)
        >>> data = [("Question: Where does Mia live? Answer:", " Arlen")] * 4
        >>> edit = iv.masked_tune(model, data, mask, steps=2, rows=4)
        >>> with edit.applied(model):
        ...     logits = model.module(input_ids).logits

    Source: LIFT, Liu et al. 2025 (arXiv 2506.00772), its Algorithm 1: state kept for the mask alone
    and carried over when it is made anew. As there, the bias correction counts steps of the run,
    also for entries that came later. Dropout is off: our specification. The prior is DRIFT's (arXiv
    2510.15050) as its code has it, a = 1 and adaptive; AdamW cancels most of what it does to norms.
    Half fine-tuning (arXiv 2404.18466) is a function that returns `iv.masks.half_mask(model, seed)`
    with another seed each time, and `remask` the length of a round; the lottery tickets of LT-SFT
    (arXiv 2110.07560) are tuned from the start again with `iv.masks.change_mask(model, edit)`,
    where the edit is a tuning of everything.
    """
    handle = as_model(model)
    refuse_compiled(handle.module)
    course = Course(steps, rows, lr, warmup, clip, dev_every, betas, weight_decay)
    _check_remask(remask, mask)
    train_on = encode(handle, examples, end=end)
    drawn = batches(train_on, rows, steps, seed)
    held_out = encode(handle, dev, end=end) if dev else []
    made = mask(handle) if callable(mask) else mask
    lean = Prior.of(handle, prior, made.index, pull) if prior is not None else None
    note: dict[str, Any] = {
        "steps": steps, "rows": rows, "lr": lr, "examples": len(examples), "seed": seed,
        "mask": dict(made.notes), "count": made.count,
        "pull": pull if prior is not None else None,
    }  # fmt: skip
    kept = None
    if checkpoint is not None:
        asked = {"course": asdict(course), "seed": seed, "end": end, "remask": remask, "pull": pull}
        asked |= {"weights": fingerprint(handle.module), "examples": digest(train_on, held_out)}
        asked |= {"mask": digest(made.shapes, *made.index.values()), "prior": _digest(prior)}
        kept = Checkpoint(checkpoint, "masked_tuning", asked)
    with (
        torch.inference_mode(False),
        evaluating(handle.module),
        Entries.of(handle.module, made) as tuned,
    ):

        def backward(chosen: Sequence[Encoded]) -> float:
            with torch.enable_grad():
                loss = completion_loss(handle, chosen)
                loss.backward()
            if lean is not None:
                tuned.bend(lean)
            return float(loss.detach())

        def anew(step: int, optimizer: torch.optim.Optimizer) -> None:
            if remask and callable(mask) and step % remask == 0:
                tuned.remask(mask(handle), optimizer)

        found = train(
            tuned, drawn, backward, course, look=partial(mean_loss, handle, held_out) if dev else
            None, between=anew, kept=kept, checkpoint_every=checkpoint_every, progress=progress,
        )  # fmt: skip
        edit = tuned.edit()
    return Edit(edit.atoms, notes={"masked_tune": note | found.notes}).on(handle)


def _digest(prior: Edit | None) -> str | None:
    if prior is None:
        return None
    return digest(*(tensor for delta in prior.deltas for tensor in delta.change.tensors().values()))


def _check_remask(remask: int | None, mask: object) -> None:
    if remask is not None and (remask < 1 or not callable(mask)):
        raise InterpError(
            "remask makes the mask anew after so many steps: give at least 1, and as mask a "
            "function such as lambda model: iv.principal_mask(model)"
        )
