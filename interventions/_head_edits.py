"""Learn which heads to edit and how: an addition and a factor for each head, behind gates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from tqdm.auto import tqdm

import interp
from interp import Edit, InterpError, Model
from interp._attribute_sweep import _frozen
from interp._errors import nearest
from interp._model import as_model
from interp._selfcheck import evaluating
from interventions._examples import Encoded, Example, batches, completion_loss, encode, mean_loss
from interventions._gated_heads import GatedHeads
from interventions._head_gates import HeadGates

# At a step: the price of the additive gates, and of the multiplicative ones.
Schedule = Callable[[int], tuple[float, float]]
SCHEDULES: dict[str, Callable[[float, float, int], tuple[float, float]]] = {
    "constant": lambda price, _share, _step: (price, price),
    "rising": lambda price, share, _step: (price * min(1.0, share / RISE),) * 2,
    # Three of the four in the paper's code, which weigh one kind against the other.
    "exponential": lambda _price, _share, step: _against(0.1 * math.exp(-0.01 * step)),
    "linear": lambda _price, _share, step: _against(min(0.2, 0.2 * step / 500)),
    "cyclic": lambda _price, _share, step: _against(0.5 + 0.5 * math.sin(2 * math.pi * step / 20)),
}
RISE = 0.7  # of all steps, in which a rising price rises
CLOSED = -2.398  # log alpha at and below which a gate ends at 0


def learn_head_edits(
    model: Model | nn.Module,
    examples: Sequence[Example],
    dev: Sequence[Example] = (),
    *,
    price: int | float = 0.05,
    schedule: str | Schedule = "constant",
    lr: int | float = 5e-3,
    gate_lr: int | float = 0.1,
    epochs: int = 20,
    batch_size: int = 8,
    warmup: int = 50,
    patience: int = 2,
    spread: int | float = 0.0,
    start: int | float | None = None,
    end: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """The edit of `find_head_edits`, which says what the arguments are.

    Examples:
        >>> data = [("Question: Where does Mia live? Answer:", " Arlen")] * 8
        >>> edit = iv.learn_head_edits(model, data, epochs=20, gate_lr=0.5)
        >>> with edit.applied(model):
        ...     logits = model.module(input_ids).logits
    """
    return find_head_edits(
        model, examples, dev, price=price, schedule=schedule, lr=lr, gate_lr=gate_lr,
        epochs=epochs, batch_size=batch_size, warmup=warmup, patience=patience, spread=spread,
        start=start, end=end, seed=seed, progress=progress,
    ).edit  # fmt: skip


def find_head_edits(
    model: Model | nn.Module,
    examples: Sequence[Example],
    dev: Sequence[Example] = (),
    *,
    price: int | float = 0.05,
    schedule: str | Schedule = "constant",
    lr: int | float = 5e-3,
    gate_lr: int | float = 0.1,
    epochs: int = 20,
    batch_size: int = 8,
    warmup: int = 50,
    patience: int = 2,
    spread: int | float = 0.0,
    start: int | float | None = None,
    end: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> HeadGates:
    """Learn which heads to edit, and an additive and a multiplicative edit for each of them.

    Every head's output becomes `z' = (1 + g_m a) * z + g_a v` before the output projection, at all
    positions, with vectors a, v [d_head] and HardConcrete gates g_m, g_a in [0, 1]. Minimised are
    the mean -log p of the completions' tokens + price_a mean_h P(g_a != 0) + price_m mean_h
    P(g_m != 0), means over all heads, by AdamW. Gates that end at 0 leave no atom behind, so the
    edit names the heads that it needs, and bakes into plain weights.

    Args:
        model: a handle or a bare PreTrainedModel with a tokenizer; left as it is.
        examples: (prompt, completion) pairs to learn from.
        dev: further pairs: training ends where their loss has not fallen for `patience` epochs, and
            the best epoch is kept. Without them the last. While a price rises no epoch is chosen or
            counted, for the best of them would be one with its gates still open.
        price: of the gates, in nats for all heads of a kind; the paper's schedules have their own.
        schedule: `"constant"`; `"rising"`, from 0 to the price in a straight line over the first
            0.7 of the steps, so that a head is priced after it was learned; `"exponential"`,
            `"linear"` or `"cyclic"`, as the paper's code has them (their prices are divided by the
            number of heads once more, as there); or a function of the step that gives both prices.
        lr: of AdamW, rising over `warmup` steps, then falling as a cosine.
        gate_lr: of the gates. AdamW moves a number by about its rate a step, and a gate closes at
            log alpha = -2.4: of the order of 5 / gate_lr steps from the start. A warning says where
            the rates of all steps do not add up to that.
        epochs: over the examples, at most.
        batch_size: examples a step.
        warmup: steps; at most a tenth of all.
        patience: epochs.
        spread: standard deviation of a and v at the start; at 0 the edit begins as no edit.
        start: log alpha of every gate at the start: at 2 nearly all are open, so that what a head
            is worth is seen before gates close. None draws it at random around 0, as the paper's
            code does; chance then decides which of two heads that can do the same stays open.
        end: also train the tokenizer's EOS after each completion, where it has one.
        seed: of order, gates and start.
        progress: show a bar where it takes more than two seconds.

    Returns:
        HeadGates: `.edit`, gates of every head, `.table()`, `.plot()`.

    Raises:
        InterpError: fewer examples than a batch, an unknown schedule or one that gives no two
            prices, a loss that is not finite in the first epoch. A later one ends the training with
            a warning, and the best epoch before it is returned; `meta["stopped"]` keeps why.

    Examples:
        >>> data = [("Question: Where does Mia live? Answer:", " Arlen")] * 8
        >>> found = iv.find_head_edits(model, data, epochs=20, gate_lr=0.5)
        >>> found.additive.shape      # layer head
        torch.Size([6, 8])

    Source: JoLA, Lai et al. 2025 (arXiv 2502.01179) and its code, whose start has a spread of 1e-3
    and whose default schedule is the exponential one: it makes additive gates free in the end and
    keeps the multiplicative ones priced; its gates have no rate of their own, and at 5e-3 over 500
    steps of a cosine none can close. Constant and rising prices, vectors that
    start at nothing, and `start`, are ours.
    """
    handle = as_model(model)
    _check(schedule, price)
    if epochs < 1 or patience < 1 or batch_size < 1 or not lr > 0 or not gate_lr > 0:
        raise InterpError(
            f"epochs={epochs}, patience={patience}, batch_size={batch_size}, lr={lr}, "
            f"gate_lr={gate_lr}: expected at least 1, 1 and 1, and rates above 0"
        )
    train = encode(handle, examples, end=end)
    held_out = encode(handle, dev, end=end) if dev else []
    per_epoch = max(1, len(train) // batch_size)
    drawn = list(batches(train, batch_size, epochs * per_epoch, seed))
    prices = _schedule(schedule, price, handle, len(drawn))
    risen = RISE * len(drawn) if schedule == "rising" else 0.0
    rising = min(warmup, max(1, len(drawn) // 10))
    rates = [_cosine(step, rising, len(drawn)) for step in range(len(drawn))]
    if price > 0 or schedule not in ("constant", "rising"):
        _warn_if_too_slow(gate_lr * sum(rates), 0.0 if start is None else float(start), len(drawn))
    generator = torch.Generator().manual_seed(seed)
    history: list[dict[str, float | int | None]] = []
    stopped = None
    with torch.inference_mode(False), evaluating(handle.module), _frozen(handle.module):
        gated = GatedHeads.on(handle, drawn[0], spread, generator, start)
        optimizer = torch.optim.AdamW(gated.groups(lr, gate_lr), weight_decay=0.0)
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(_cosine, rising=rising, steps=len(drawn))
        )
        best, best_loss, best_epoch = gated.state(), math.inf, -1
        before = mean_loss_under(handle, gated, held_out) if held_out else None
        with tqdm(
            total=len(drawn), desc="steps", delay=2, leave=False, disable=not progress
        ) as bar:
            for epoch in range(epochs):
                losses = []
                for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
                    losses.append(_step(handle, gated, optimizer, drawn[step], prices(step)))
                    if not math.isfinite(losses[-1]):
                        break
                    rate.step()
                    bar.update()
                finite = math.isfinite(losses[-1])
                seen = mean_loss_under(handle, gated, held_out) if held_out and finite else None
                if not finite:
                    stopped = f"the loss or its gradient is not finite in step {step + 1}"
                    break
                if seen is not None and not math.isfinite(seen):
                    stopped = f"the loss on dev is not finite after step {step + 1}"
                    break
                history.append(
                    {"epoch": epoch, "loss": sum(losses) / len(losses), "dev": seen} | gated.open()
                )
                chosen = seen if (epoch + 1) * per_epoch >= risen else None
                if chosen is None or chosen < best_loss:
                    best, best_epoch = gated.state(), epoch
                    best_loss = math.inf if chosen is None else chosen
                elif epoch - best_epoch >= patience:
                    break
        if not history:
            raise InterpError(
                f"{stopped}, in the first epoch, at lr={lr}; lower lr, or look for NaN in the "
                f"weights"
            )
        if stopped is not None:
            warnings.warn(
                f"{stopped} at lr={lr}: training ended, and epoch {best_epoch} is returned; "
                f"lower lr",
                stacklevel=2,
            )
        gated.restore(best)
    meta = {
        "model": handle.name or type(handle.module).__name__, "price": price,
        "schedule": schedule if isinstance(schedule, str) else "given", "start": start, "lr": lr,
        "gate_lr": gate_lr,
        "batch_size": batch_size, "examples": len(examples), "dev": len(dev), "seed": seed,
        "best epoch": best_epoch, "dev at the start": before, "stopped": stopped,
    }  # fmt: skip
    additive, multiplicative = gated.gates()
    edit = Edit(gated.atoms(), notes={"head_edits": meta}).on(handle)
    return HeadGates(edit, additive, multiplicative, history, meta)


@torch.no_grad()
def mean_loss_under(model: Model, gated: GatedHeads, encoded: Sequence[Encoded]) -> float:
    """The completions' loss with the gates as they will be in the edit."""
    with interp.hooked(model, dict.fromkeys(gated.layers, gated.settled)):
        return mean_loss(model, encoded)


def _step(
    model: Model,
    gated: GatedHeads,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Encoded],
    prices: tuple[float, float],
) -> float:
    """One step of the optimizer; the loss without the prices."""
    with torch.enable_grad(), interp.hooked(model, dict.fromkeys(gated.layers, gated.noisy)):
        loss = completion_loss(model, examples)
        additive, multiplicative = gated.prices()
        optimizer.zero_grad()
        (loss + prices[0] * additive + prices[1] * multiplicative).backward()
    norm = nn.utils.clip_grad_norm_(gated.parameters, 1.0)
    if not bool(loss.isfinite() & norm.isfinite()):
        return math.nan
    optimizer.step()
    return float(loss.detach())


def _check(schedule: object, price: int | float) -> None:
    if not callable(schedule) and schedule not in SCHEDULES:
        raise InterpError(
            f"schedule={schedule!r}; {nearest(str(schedule), SCHEDULES)}, or a function of the step"
        )
    if price < 0:
        raise InterpError(f"price={price}: expected 0 or more")


def _warn_if_too_slow(reach: float, start: float, steps: int) -> None:
    if reach < start - CLOSED:
        warnings.warn(
            f"the gates' rates add up to {reach:.2g} over {steps} steps, and a gate closes after "
            f"{start - CLOSED:.2g}: few or none will, whatever the price; raise gate_lr or epochs",
            stacklevel=3,
        )


def _schedule(schedule: str | Schedule, price: int | float, model: Model, steps: int) -> Schedule:
    if callable(schedule):
        return partial(_pair, schedule)
    ours = schedule in ("constant", "rising")
    each = 1.0 if ours else 1 / max(block.n_heads for block in model.anatomy.blocks)

    def prices(step: int) -> tuple[float, float]:
        additive, multiplicative = SCHEDULES[schedule](float(price), step / steps, step)
        return each * additive, each * multiplicative

    return prices


def _pair(schedule: Schedule, step: int) -> tuple[float, float]:
    given = schedule(step)
    try:
        additive, multiplicative = (float(one) for one in given)
    except (TypeError, ValueError):
        raise InterpError(
            f"the schedule gave {given!r} at step {step}; expected two prices, of the additive and "
            f"of the multiplicative gates"
        ) from None
    return additive, multiplicative


def _against(share: float) -> tuple[float, float]:
    return share, 1 - share


def _cosine(step: int, rising: int, steps: int) -> float:
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
