"""What gated edits of heads are held against: LoRA, biases, edits of the stream, and examples."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import interp
import interventions as iv
from interp import Model, Site
from interp._attribute_sweep import _frozen
from interp._selfcheck import evaluating
from interventions._examples import Encoded, answered, batches, completion_loss, encode, mean_loss
from studies._head_edits_price import Priced, dearest
from studies._head_edits_tasks import Question

Hooks = dict[str | Site, Callable[[Tensor, Site], Tensor | None]]
ROWS = 8
GATE_LR = 0.3  # so that gates can close within the steps
OPEN = 2.0  # log alpha of every gate at the start: P(open) = .94
LORA_RANK, STREAM_RANK = 8, 4


@dataclass(frozen=True)
class Learned:
    """A way of tuning after it was trained.

    Args:
        use: the model as tuned, within a context.
        numbers: how many were trained.
        dev: loss on the dev questions, nats a token.
        heads: (layer, head) of those edited, where heads are.
        path: what each price tried came to, where gates have prices; before heads are left out.
    """

    use: Callable[[], AbstractContextManager[Model]]
    numbers: int
    dev: float
    heads: list[tuple[int, int]] | None = None
    path: list[Priced] | None = None


@dataclass(frozen=True)
class Plan:
    """What all ways of tuning share.

    Args:
        train: questions to learn from.
        dev: those whose loss chooses among the states after each epoch.
        steps: of the optimizer, at least; whole epochs.
        lr: the highest rate; it rises over the first tenth of the steps and falls as a cosine.
        prices: of the gates, which only edits of heads have; dev chooses.
        seed: of order and start.
    """

    train: Sequence[Question]
    dev: Sequence[Question]
    steps: int
    lr: float
    prices: Sequence[float]
    seed: int

    @property
    def epochs(self) -> int:
        """Passes over the examples."""
        return math.ceil(self.steps / max(1, len(self.train) // ROWS))


def head_edits(model: Model, plan: Plan) -> Learned:
    """`iv.find_head_edits`: an addition and a factor for each head, behind gates.

    Each price is tried and the dearest taken of those that dev cannot tell from the best; then
    heads that dev does without are left out.
    """
    found = [_priced(model, plan, price) for price in plan.prices]
    at = dearest([priced for _, priced in found])
    numbers = 0  # vectors and gates
    for block in model.anatomy.blocks:
        weight = getattr(block.o_proj, "weight", None)
        if isinstance(weight, Tensor):
            numbers += 2 * (weight.numel() // model.anatomy.d_model + block.n_heads)
    dev = [q.example for q in plan.dev]
    needed = iv.thin_head_edits(model, found[at][0], dev, [q.group for q in plan.dev])
    with needed.edit.applied(model):
        loss = mean_loss(model, encode(model, dev, end=True))
    return Learned(
        partial(_edited, model, needed.edit), numbers, loss, needed.heads,
        [priced for _, priced in found],
    )  # fmt: skip


def _priced(model: Model, plan: Plan, price: float) -> tuple[iv.HeadGates, Priced]:
    dev = [q.example for q in plan.dev]
    gates = iv.find_head_edits(
        model,
        [q.example for q in plan.train],
        dev,
        price=price,
        schedule="rising",
        start=OPEN,
        lr=plan.lr,
        gate_lr=GATE_LR,
        epochs=plan.epochs,
        patience=plan.epochs,
        batch_size=ROWS,
        seed=plan.seed,
        progress=False,
    )
    loss = gates.history[int(gates.meta["best epoch"])]["dev"]
    with gates.edit.applied(model):
        nats = answered(model, encode(model, dev, end=True))[1]
    costs: dict[str, list[float]] = {}
    for question, of_answer in zip(plan.dev, nats, strict=True):
        costs.setdefault(question.group, []).append(-of_answer)
    means = [sum(some) / len(some) for some in costs.values()]
    return gates, Priced(price, float(loss or 0.0), means, gates.heads)


def biases(model: Model, plan: Plan) -> Learned:
    """A vector added to what each attention and each MLP adds: BitFit for models without biases."""
    width = model.anatomy.d_model
    sites = [
        Site(name, i) for i in range(model.anatomy.n_layers) for name in ("attn_out", "mlp_out")
    ]
    added = {site: torch.zeros(width).requires_grad_() for site in sites}

    def add(x: Tensor, site: Site) -> Tensor:
        return x + added[site].to(x)

    hooks: Hooks = dict.fromkeys(sites, add)
    dev = _trained(model, list(added.values()), plan, hooks)
    edit = sum((iv.steer(s, v.detach()) for s, v in added.items()), iv.Edit())
    return Learned(partial(_edited, model, edit), sum(v.numel() for v in added.values()), dev)


def stream_edits(model: Model, plan: Plan) -> Learned:
    """ReFT: h + R^T (W h + b - R h) after each block, R with orthonormal rows, at all positions."""
    width, depth = model.anatomy.d_model, model.anatomy.n_layers
    generator = torch.Generator().manual_seed(plan.seed)
    sites = [Site("resid_post", i) for i in range(depth)]
    parts = {}
    for site in sites:
        r = torch.randn(width, STREAM_RANK, generator=generator)
        w = torch.linalg.qr(r).Q.T.clone()  # W = R at the start: no edit
        parts[site] = tuple(p.requires_grad_() for p in (r, w, torch.zeros(STREAM_RANK)))

    def edit(h: Tensor, site: Site) -> Tensor:
        r, w, b = parts[site]
        rows = torch.linalg.qr(r).Q.to(h)  # [d_model rank]
        return h + (h @ w.T.to(h) + b.to(h) - h @ rows) @ rows.T

    parameters = [p for group in parts.values() for p in group]
    hooks: Hooks = dict.fromkeys(sites, edit)
    dev = _trained(model, parameters, plan, hooks)
    return Learned(partial(_hooked, model, hooks), sum(p.numel() for p in parameters), dev)


def lora(model: Model, plan: Plan) -> Learned:
    """LoRA through peft, rank 8 on every matrix of the blocks."""
    import peft

    config = peft.LoraConfig(
        r=LORA_RANK, lora_alpha=2 * LORA_RANK, lora_dropout=0.0, target_modules="all-linear"
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", FutureWarning)  # peft asks by a name that is going away
        torch.manual_seed(plan.seed)
        tuned = peft.get_peft_model(copy.deepcopy(model.module), config)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    dev = _trained(Model(tuned, model.tokenizer, model.name, check=False), parameters, plan)
    merged = interp.load(tuned.merge_and_unload().eval(), tokenizer=model.tokenizer)
    return Learned(lambda: nullcontext(merged), sum(p.numel() for p in parameters), dev)


METHODS: dict[str, Callable[[Model, Plan], Learned]] = {
    "head edits": head_edits,
    "LoRA": lora,
    "biases": biases,
    "stream edits": stream_edits,
}
# The first, whose dev loss at 50 questions was least over both tasks; or several are tried.
RATES = {
    "head edits": (2e-1, 1e-1, 3e-2),
    "LoRA": (3e-3, 1e-2, 1e-3),
    "biases": (3e-2, 1e-2, 3e-3),
    "stream edits": (1e-2, 3e-2, 3e-3),
}


def with_examples(model: Model, questions: Sequence[Question], shown: Sequence[Question]) -> list:
    """The questions with solved ones before them, each ended as in training."""
    ended = getattr(model.tokenizer, "eos_token", None) or "\n\n"
    before = "".join(f"{q.prompt}{q.answer}{ended}" for q in shown)
    return encode(model, [(before + q.prompt, q.answer) for q in questions], end=True)


def _trained(
    model: Model,
    parameters: Sequence[Tensor],
    plan: Plan,
    hooks: Hooks | None = None,
) -> float:
    """Train in place as `find_head_edits` does, and keep the epoch with the least dev loss."""
    train = encode(model, [q.example for q in plan.train], end=True)
    dev = encode(model, [q.example for q in plan.dev], end=True)
    per_epoch = max(1, len(train) // ROWS)
    steps = plan.epochs * per_epoch
    rising = max(1, steps // 10)
    optimizer = torch.optim.AdamW(parameters, lr=plan.lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, rising=rising, steps=steps))
    best, kept = math.inf, [p.detach().clone() for p in parameters]
    fixed = _frozen(model.module) if hooks else nullcontext()
    with evaluating(model.module), fixed, _hooks(model, hooks):
        for step, some in enumerate(batches(train, ROWS, steps, plan.seed), 1):
            _step(model, optimizer, parameters, some)
            rate.step()
            if step % per_epoch == 0:
                loss = mean_loss(model, dev)
                if loss < best:
                    best, kept = loss, [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return best


def _step(
    model: Model,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    examples: Sequence[Encoded],
) -> None:
    optimizer.zero_grad()
    completion_loss(model, examples).backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def _rate(step: int, rising: int, steps: int) -> float:
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _hooks(model: Model, hooks: Hooks | None) -> AbstractContextManager[None]:
    return interp.hooked(model, hooks) if hooks else nullcontext()


@contextmanager
def _hooked(model: Model, hooks: Hooks) -> Iterator[Model]:
    with interp.hooked(model, hooks):
        yield model


@contextmanager
def _edited(model: Model, edit: iv.Edit) -> Iterator[Model]:
    with edit.applied(model):
        yield model
