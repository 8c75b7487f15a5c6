"""The loop behind what is tuned: rates, a step back from harm, the best state on dev, resuming."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp import InterpError
from interventions._checkpoint import Checkpoint, part

T = TypeVar("T")
State = Mapping[str, Tensor]


@runtime_checkable
class Learned(Protocol):
    """What is trained, wherever it is kept."""

    @property
    def named(self) -> Mapping[str, Tensor]:
        """The tensors that the optimizer moves."""

    def write(self) -> None:
        """After a step: put them where the model reads them."""

    def state(self) -> State:
        """A copy of all that was learned."""

    def restore(self, state: State) -> None:
        """Back to such a copy."""


@dataclass(frozen=True)
class Course:
    """How a training goes.

    Args:
        steps: of AdamW.
        rows: examples a step.
        lr: the highest rate: it rises linearly over the first steps and falls linearly to 0.
        warmup: the share of the steps over which it rises.
        clip: largest norm of the gradient; None for no limit.
        dev_every: steps between looks at dev.
        betas: of AdamW.
        weight_decay: of AdamW.
    """

    steps: int
    rows: int
    lr: int | float
    warmup: int | float
    clip: int | float | None
    dev_every: int
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: int | float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.rows, self.dev_every) < 1 or not self.lr > 0:
            raise InterpError(
                f"steps={self.steps}, rows={self.rows}, dev_every={self.dev_every}, lr={self.lr}: "
                f"expected at least 1 (three times), and more than 0"
            )
        if not 0 <= self.warmup <= 1:
            raise InterpError(f"warmup={self.warmup}: expected a share of the steps, 0 to 1")
        if self.clip is not None and not self.clip > 0:
            raise InterpError(f"clip={self.clip}: expected a norm above 0, or None for no limit")
        if not all(0 <= beta < 1 for beta in self.betas) or not self.weight_decay >= 0:
            raise InterpError(
                f"betas={self.betas}, weight_decay={self.weight_decay}: expected two numbers from "
                f"0 to below 1, and at least 0"
            )

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 1."""
        rising = max(1, round(self.warmup * self.steps))
        falling = (self.steps - step + 1) / max(1, self.steps - rising + 1)
        return self.lr * min(1.0, step / rising, falling)


@dataclass
class Training:
    """What happened.

    Args:
        history: a row a step: `step loss`, and `dev` where it was looked at.
        stopped: why it ended early.
        best: the step whose state was kept, 0 for the start.
        seen: what dev said of it.
        start: what dev said of the start.
        state_bytes: of the optimizer at the end.
    """

    history: list[dict[str, float | int]] = field(default_factory=list)
    stopped: str | None = None
    best: int = 0
    seen: float | None = None
    start: float | None = None
    state_bytes: int = 0

    @property
    def notes(self) -> dict[str, Any]:
        """As an edit keeps them."""
        told = {"history": self.history, "stopped": self.stopped, "best step": self.best}
        return told | {"dev at the start": self.start, "state bytes": self.state_bytes}


def train(
    learned: Learned,
    batches: Iterable[T],
    backward: Callable[[T], float],
    course: Course,
    *,
    look: Callable[[], float] | None = None,
    greater: bool = False,
    between: Callable[[int, torch.optim.Optimizer], None] | None = None,
    kept: Checkpoint | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> Training:
    """Train by AdamW, and leave what is learned in its best state, or its last without `look`.

    Args:
        learned: what is trained.
        batches: one a step, the same in every call.
        backward: the loss of a batch; it leaves gradients on what is learned.
        course: how long and how fast.
        look: what dev says of the state as it is; the start is looked at too.
        greater: whether greater is better.
        between: called after each step but the last.
        kept: where the state is saved; a training that ended early there continues.
        checkpoint_every: steps between saves; a tenth of all by default.
        progress: show a bar where it takes more than two seconds.

    Raises:
        InterpError: a loss or gradient that is not finite in the first step. A later one ends the
            training with a warning, in the state before the step that led there.
    """
    if checkpoint_every is not None and checkpoint_every < 1:
        raise InterpError(f"checkpoint_every={checkpoint_every}: expected at least 1 step")
    every = checkpoint_every or max(1, course.steps // 10)
    found = Training()
    done, best, moments = _resumed(kept, learned, found)
    optimizer = _optimizer(learned, course, moments)
    if look is not None and found.seen is None:
        found.seen = found.start = look()
        best = learned.state()
    before = learned.state()
    with tqdm(
        total=course.steps, initial=done, desc="steps", delay=2, leave=False, disable=not progress
    ) as bar:
        for step, batch in islice(enumerate(batches, 1), done, None):
            loss = backward(batch)
            lost = _lost(loss, learned)
            if lost is not None:
                found.stopped = _stopped(f"{lost} in step {step} at lr={course.lr}", step)
                learned.restore(before)
                found.history.pop()
                break
            found.history.append({"step": step, "loss": loss})
            if course.clip is not None:
                nn.utils.clip_grad_norm_(list(learned.named.values()), course.clip)
            for group in optimizer.param_groups:
                group["lr"] = course.rate(step)
            before = learned.state()
            optimizer.step()
            optimizer.zero_grad()  # an expert that no token reaches next time gets none
            learned.write()
            if look is not None and (step % course.dev_every == 0 or step == course.steps):
                seen = found.history[-1]["dev"] = look()
                if _better(seen, found.seen, greater):
                    found.best, found.seen, best = step, seen, learned.state()
            if between is not None and step < course.steps:
                between(step, optimizer)
            if kept is not None and step % every == 0 and step < course.steps:
                _save(kept, step, learned, optimizer, best, found)
            bar.update()
    if look is not None:
        learned.restore(best)
    elif found.stopped is None:  # what the last step did shows in one loss more
        lost = _lost(backward(batch), learned)
        optimizer.zero_grad()
        if lost is not None:
            found.stopped = _stopped(f"{lost} after step {step} at lr={course.lr}", step + 1)
            learned.restore(before)
            found.history.pop()
    if look is None:
        found.best = len(found.history)
    found.state_bytes = sum(t.numel() * t.element_size() for t in _moments(optimizer))
    if kept is not None:
        kept.remove()
    return found


def _better(seen: float, before: float | None, greater: bool) -> bool:
    """Whether a state replaces the best so far; numbers replace what is none."""
    if before is None or math.isnan(before):
        return not math.isnan(seen)
    return seen > before if greater else seen < before


def _lost(loss: float, learned: Learned) -> str | None:
    """What is no number here."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    gradients = [tensor.grad for tensor in learned.named.values() if tensor.grad is not None]
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        return "a gradient is not finite"
    return None


def _stopped(said: str, step: int) -> str:
    if step == 1:
        raise InterpError(f"{said}, before anything was learned; look for NaN in the weights")
    warnings.warn(
        f"{said}: training ended, and the state before the last step is returned; lower lr",
        stacklevel=4,
    )
    return said


def _optimizer(
    learned: Learned, course: Course, moments: Mapping[str, dict[str, Tensor]]
) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(
        list(learned.named.values()), lr=course.lr, betas=course.betas,
        weight_decay=course.weight_decay,
    )  # fmt: skip
    for name, held in moments.items():
        optimizer.state[learned.named[name]] = held
    return optimizer


def _moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [t for held in optimizer.state.values() for t in held.values() if isinstance(t, Tensor)]


def _save(
    kept: Checkpoint, step: int, learned: Learned, optimizer: torch.optim.Optimizer, best: State,
    found: Training,
) -> None:  # fmt: skip
    tensors = {f"learned/{name}": tensor for name, tensor in learned.state().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for name, tensor in learned.named.items():
        held = optimizer.state.get(tensor, {})
        tensors |= {f"moments/{key}/{name}": value for key, value in held.items()}
    kept.save(tensors, step=step, training=asdict(found))


def _resumed(
    kept: Checkpoint | None, learned: Learned, found: Training
) -> tuple[int, State, dict[str, dict[str, Tensor]]]:
    """The steps done, the best state, and the optimizer's moments by name, as they were saved."""
    saved = None if kept is None else kept.restore()
    if saved is None:
        return 0, {}, {}
    tensors, meta = saved
    learned.restore(part(tensors, "learned/"))
    for name, value in meta["training"].items():
        setattr(found, name, value)
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in part(tensors, "moments/").items():
        key, _, name = name.partition("/")
        home = tensor.device if key == "step" else learned.named[name].device
        moments.setdefault(name, {})[key] = tensor.to(home)
    return int(meta["step"]), part(tensors, "best/"), moments
