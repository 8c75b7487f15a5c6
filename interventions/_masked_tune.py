"""Tuning of chosen weights only, with optimizer state nowhere else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp import Delta, Edit, InterpError, Model, Sparse
from interp._edit.change import wide
from interp._edit.parameters import named_parameters
from interp._errors import nearest
from interp._model import as_model
from interp._reading import refuse_compiled
from interp._selfcheck import evaluating
from interventions._examples import Encoded, Example, batches, completion_loss, encode, mean_loss
from interventions._prior import Prior
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
    _check(steps, rows, lr, warmup, remask, dev_every, mask)
    drawn = batches(encode(handle, examples, end=end), rows, steps, seed)
    held_out = encode(handle, dev, end=end) if dev else []
    made = mask(handle) if callable(mask) else mask
    lean = Prior.of(handle, prior, made.index, pull) if prior is not None else None
    history: list[dict[str, float | int]] = []
    note: dict[str, Any] = {
        "steps": steps, "rows": rows, "lr": lr, "examples": len(examples), "seed": seed,
        "mask": dict(made.notes), "count": made.count, "history": history, "stopped": None,
        "pull": pull if prior is not None else None,
    }  # fmt: skip
    with torch.inference_mode(False), evaluating(handle.module), _Tuned.of(handle, made) as tuned:
        optimizer = _optimizer(tuned, lr, betas, weight_decay)
        best = _Best(Edit())
        if held_out:
            best.offer(mean_loss(handle, held_out), 0, tuned)
        bar = tqdm(total=steps, desc="steps", delay=2, leave=False, disable=not progress)
        with bar:
            for step, chosen in enumerate(drawn, 1):
                loss = _backward(handle, chosen)
                if not math.isfinite(loss) or not tuned.finite():
                    note["stopped"] = _stopped(step, loss, lr)
                    tuned.step_back()
                    history.pop()
                    break
                history.append({"step": step, "loss": loss})
                if lean is not None:
                    tuned.bend(lean)
                if clip is not None:
                    nn.utils.clip_grad_norm_(list(tuned.values.values()), clip)
                _set_rate(optimizer, lr, step, steps, warmup)
                tuned.remember()
                optimizer.step()
                optimizer.zero_grad()  # an expert that no token reaches next time gets none
                tuned.write()
                if held_out and (step % dev_every == 0 or step == steps):
                    history[-1]["dev"] = best.offer(mean_loss(handle, held_out), step, tuned)
                if remask and callable(mask) and step % remask == 0 and step < steps:
                    tuned.remask(mask(handle), optimizer)
                bar.update()
        edit = best.edit if held_out else tuned.edit()
        note["state bytes"] = _state_bytes(optimizer)
        note["best step"] = best.step if held_out else len(history)
    return Edit(edit.atoms, notes={"masked_tune": note}).on(handle)


@dataclass
class _Tuned:
    """The chosen entries as vectors that are trained, and what they were before."""

    module: nn.Module
    weights: dict[str, Tensor]
    index: dict[str, Int[Tensor, " entry"]]
    values: dict[str, Float[Tensor, " entry"]]
    begun: dict[str, tuple[Tensor, Tensor]]  # of every entry ever chosen: places, stored values
    last: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # places, values
    hooks: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    @contextmanager
    def of(model: Model, mask: WeightMask) -> Iterator[_Tuned]:
        """Only the masked parameters require gradients meanwhile; then every bit is put back."""
        module = model.module
        wanted = {parameter: parameter.requires_grad for parameter in module.parameters()}
        tuned = _Tuned(module, {}, {}, {}, {})
        try:
            for parameter in wanted:
                parameter.requires_grad_(False)
            tuned._choose(mask)
            yield tuned
        finally:
            for hook in tuned.hooks.values():
                hook.remove()
            tuned._restore()
            for parameter, required in wanted.items():
                parameter.requires_grad_(required)

    def finite(self) -> bool:
        """Whether all gradients are numbers."""
        return all(
            bool(v.grad.isfinite().all()) for v in self.values.values() if v.grad is not None
        )

    def bend(self, prior: Prior) -> None:
        """Gradients that lean towards a prior."""
        for name, value in self.values.items():
            if value.grad is not None:
                prior.bend(name, value.grad, self.weights[name], self.index[name])

    def remember(self) -> None:
        """Keep the values as they are, to step back to: a step shows its harm in the next loss."""
        self.last = {n: (self.index[n], v.detach().clone()) for n, v in self.values.items()}

    @torch.no_grad()
    def step_back(self) -> None:
        """The values before the last step."""
        for name, (places, values) in self.last.items():
            self.index[name], self.values[name] = places, nn.Parameter(values)
        self.write()

    @torch.no_grad()
    def write(self) -> None:
        """The vectors into the weights, rounded to their dtype."""
        for name in self.values:
            weight = self.weights[name]
            weight.view(-1)[self.index[name]] = self.values[name].to(weight.dtype)

    @torch.no_grad()
    def edit(self) -> Edit:
        """What has changed so far: the difference to the stored weights, entry by entry."""
        atoms = []
        for name, (places, before) in self.begun.items():
            weight = self.weights[name]
            now = weight.detach().reshape(-1)[places].to(wide(weight.dtype))
            if name in self.values:  # their vectors know more digits than the weights
                now[torch.searchsorted(places, self.index[name])] = self.values[name].detach()
            change = now - before.to(now.dtype)
            moved = change != 0
            if bool(moved.any()):
                sparse = Sparse(places[moved].cpu(), change[moved].cpu(), tuple(weight.shape))
                atoms.append(Delta(name, sparse))
        return Edit(atoms)

    def remask(self, mask: WeightMask, optimizer: torch.optim.Optimizer) -> None:
        """Another choice of entries; those that stay keep their state."""
        before = {name: (self.index[name], self.values[name]) for name in self.index}
        self._choose(mask)
        for group in optimizer.param_groups:
            group["params"] = list(self.values.values())
        for name, (old_places, old) in before.items():
            state = optimizer.state.pop(old, None)
            if not state or name not in self.index:
                continue
            places, new = self.index[name], self.values[name]
            stay = torch.isin(places, old_places)
            at = torch.searchsorted(old_places, places[stay])
            moments = {key: torch.zeros_like(new) for key in ("exp_avg", "exp_avg_sq")}
            for key, moment in moments.items():
                moment[stay] = state[key][at]
            new.data[stay] = old.detach()[at]
            optimizer.state[new] = {"step": state["step"], **moments}

    def _choose(self, mask: WeightMask) -> None:
        named = _checked(self.module, mask)
        for name in self.index.keys() - named.keys():
            self.hooks.pop(name).remove()
            self.weights[name].requires_grad_(False)
            del self.index[name], self.values[name]
        for name in named:
            weight = self.weights[name] = named_parameters(self.module)[name].tensor
            if name not in self.hooks:
                weight.requires_grad_()
                self.hooks[name] = weight.register_post_accumulate_grad_hook(self._taker(name))
            places = mask.index[name].to(weight.device)
            flat = weight.detach().reshape(-1)
            self.index[name] = places
            self.values[name] = nn.Parameter(flat[places].to(wide(weight.dtype)))
            known, stored = self.begun.get(name, (places[:0], flat[:0]))
            new = places[~torch.isin(places, known)]
            merged, order = torch.cat([known, new]).sort()
            self.begun[name] = merged, torch.cat([stored, flat[new]])[order]

    def _taker(self, name: str) -> Callable[[Tensor], None]:
        def take(weight: Tensor) -> None:
            assert weight.grad is not None
            self.values[name].grad = weight.grad.view(-1)[self.index[name]].to(self.values[name])
            weight.grad = None  # the whole gradient lives only until the next layer's is made

        return take

    @torch.no_grad()
    def _restore(self) -> None:
        for name, (places, before) in self.begun.items():
            self.weights[name].view(-1)[places] = before
            self.weights[name].grad = None


@dataclass
class _Best:
    """The state with the least loss on dev."""

    edit: Edit
    loss: float = math.inf
    step: int = 0

    def offer(self, loss: float, step: int, tuned: _Tuned) -> float:
        if loss < self.loss:
            self.loss, self.step, self.edit = loss, step, tuned.edit()
        return loss


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    held = [t for entry in optimizer.state.values() for t in entry.values()]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor))


def _backward(model: Model, examples: Sequence[Encoded]) -> float:
    with torch.enable_grad():
        loss = completion_loss(model, examples)
        loss.backward()
    return float(loss.detach())


def _optimizer(
    tuned: _Tuned, lr: int | float, betas: tuple[float, float], weight_decay: int | float
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        list(tuned.values.values()), lr=lr, betas=betas, weight_decay=weight_decay
    )


def _set_rate(
    optimizer: torch.optim.Optimizer, lr: int | float, step: int, steps: int, warmup: int | float
) -> None:
    rising = max(1, round(warmup * steps))
    scale = min(step / rising, (steps - step + 1) / max(1, steps - rising + 1))
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1.0, scale)


def _stopped(step: int, loss: float, lr: int | float) -> str:
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    said = f"{what} in step {step} at lr={lr}"
    if step == 1:
        raise InterpError(f"{said}, before anything was learned; look for NaN in the weights")
    warnings.warn(
        f"{said}: training ended, and the state before the last step is returned; lower lr",
        stacklevel=3,
    )
    return said


def _checked(module: nn.Module, mask: WeightMask) -> Mapping[str, Tensor]:
    """The masked parameters by name, if they are here to be trained."""
    if not mask.count:
        raise InterpError("the mask chooses no entry, so there is nothing to train")
    parameters = named_parameters(module)
    for name, shape in mask.shapes.items():
        if name not in parameters:
            raise InterpError(f"this model has no parameter {name!r}; {nearest(name, parameters)}")
        parameter = parameters[name]
        if not parameter.in_place:
            raise InterpError(
                f"{name} is quantised or offloaded, so its numbers are not here to be trained; "
                f"load the model whole, or train an adapter"
            )
        if tuple(parameter.tensor.shape) != tuple(shape):
            raise InterpError(
                f"{name} has shape {list(parameter.tensor.shape)} here and {list(shape)} in the "
                f"mask: it was made for another model"
            )
    return mask.index


def _check(
    steps: int,
    rows: int,
    lr: int | float,
    warmup: int | float,
    remask: int | None,
    dev_every: int,
    mask: object,
) -> None:
    if steps < 1 or rows < 1 or dev_every < 1 or not lr > 0 or not 0 <= warmup <= 1:
        raise InterpError(
            f"steps={steps}, rows={rows}, dev_every={dev_every}, lr={lr}, warmup={warmup}: "
            f"expected at least 1, at least 1, at least 1, more than 0, and 0 to 1"
        )
    if remask is not None and (remask < 1 or not callable(mask)):
        raise InterpError(
            "remask makes the mask anew after so many steps: give at least 1, and as mask a "
            "function such as lambda model: iv.principal_mask(model)"
        )
