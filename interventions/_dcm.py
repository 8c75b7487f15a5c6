"""Desiderata-based component masking: learn which heads carry what an answer depends on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

import interp
from interp import InterpError, Model, Site
from interp._answers import Answers, answer_tokens, per_prompt
from interp._attribute_sweep import _frozen
from interp._batch import Batch
from interp._capture import Prompts
from interp._hooked import ports_of
from interp._model import as_model
from interp._reading import require_unembed
from interp._selfcheck import evaluating
from interventions._head_mask import HeadMask

_SHARES = (0.5, 0.25, 0.25)  # to train on, to choose by, to report
_DRAWS = 20


@dataclass(frozen=True)
class Desideratum:
    """What should be answered when the right heads of `base` speak as they do in `source`.

    Args:
        base: prompts that are run.
        source: as many, from which heads are taken; row i belongs to row i.
        targets: the wanted answers after the base prompts: one for all, or one for each. The first
            token counts.
    """

    base: Prompts
    source: Prompts
    targets: Answers


def learn_head_mask(
    model: Model | nn.Module,
    desiderata: Desideratum | Sequence[Desideratum],
    *,
    positions: Any = -1,
    penalty: float = 0.01,
    lr: float = 0.1,
    epochs: int = 2,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> HeadMask:
    """Learn the fewest heads whose outputs, taken from the source prompts, give the wanted answers.

    With w in [0, 1] for each head, its output at the chosen positions of a base prompt becomes
    w * own + (1 - w) * source's; minimise -mean(logit of the target) + penalty * sum(1 - w), by
    Adam from w = 1, clamped after each step. Heads with w rounded to 0 are the mask. Trained on
    half of the prompts; of the epochs the best on a quarter is kept (of equals the one with fewer
    heads), and accuracies are of the last quarter.

    Args:
        model: a handle or a bare PreTrainedModel, left as it is.
        desiderata: one or several; their prompts are shuffled together.
        positions: at which heads are taken: an index or a list (negative from the prompt's end),
            or `"all"`, for which base and source must be equally long.
        penalty: the price of a head, in logits.
        lr: of Adam.
        epochs: through the training half.
        batch_size: prompts a step.
        seed: of the split, the order and the random masks.
        progress: show a bar where it takes more than two seconds.

    Returns:
        HeadMask: `.heads`, `.places` to patch or score them, `.accuracy` beside none, all and 20
        random masks of the same size.

    Raises:
        InterpError: fewer than eight prompts, base and source that do not pair, no heads.

    Examples:
        >>> wanted = iv.Desideratum(texts[:8], texts[8:16], " live")
        >>> mask = iv.learn_head_mask(model, wanted, epochs=1, batch_size=4)
        >>> mask.weight.shape                                       # layer head
        torch.Size([6, 8])

    Source: Davies et al. 2023 (arXiv 2307.03637), in the form of Prakash et al. 2024 (arXiv
    2402.14811).
    """
    handle = as_model(model)
    require_unembed(handle)
    given = [desiderata] if isinstance(desiderata, Desideratum) else list(desiderata)
    # A tensor made in inference mode could not enter a graph.
    with torch.inference_mode(False), evaluating(handle.module), _frozen(handle.module):
        task = _Task(handle, positions, *_collected(handle, given))
        _check(task, epochs)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(task.base), generator=generator)
        train, dev, test = order.split(_sizes(len(order)))
        batches = [
            train[torch.randperm(len(train), generator=generator)].split(batch_size)
            for _ in range(epochs)
        ]
        best, history = _trained(task, batches, dev, penalty, lr, progress=progress)
        chosen = task.rounded(best)
        none, every = task.ones(), torch.where(task.exists, 0.0, 1.0)
        drawn = [_random_like(chosen, task.exists, generator) for _ in range(_DRAWS)]
        found = [task.accuracy(w, test, batch_size) for w in (chosen, none, every, *drawn)]
        weight = torch.where(task.exists, best, float("nan"))
    return HeadMask(
        weight,
        found[0],
        found[1],
        found[2],
        torch.tensor(found[3:]),
        history,
        {
            "model": handle.name or type(handle.module).__name__,
            "revision": handle.revision,
            "positions": "together" if positions == "all" else positions,
            "penalty": penalty,
            "lr": lr,
            "epochs": epochs,
            "batch_size": batch_size,
            "seed": seed,
            "prompts": {"train": len(train), "validation": len(dev), "test": len(test)},
        },
    )


def _trained(
    task: _Task,
    batches: Sequence[Sequence[Int[Tensor, " _"]]],
    dev: Int[Tensor, " prompt"],
    penalty: float,
    lr: float,
    *,
    progress: bool,
) -> tuple[Float[Tensor, "layer head"], list[dict[str, float | int]]]:
    """The weights of the best epoch on `dev`, and how each epoch did there."""
    weight = task.ones().requires_grad_()
    best, best_key = task.ones(), (-1.0, 0)
    history: list[dict[str, float | int]] = []
    optimizer = torch.optim.Adam([weight], lr=lr)
    steps = sum(map(len, batches))
    with tqdm(total=steps, desc="head mask", delay=2, leave=False, disable=not progress) as bar:
        for epoch, some in enumerate(batches):
            for rows in some:
                _step(task, weight, optimizer, rows, penalty)
                bar.update()
            rounded = task.rounded(weight)
            right = task.accuracy(rounded, dev, len(some[0]))
            taken = int((rounded == 0).sum())
            history.append({"epoch": epoch, "accuracy": right, "heads": taken})
            if (right, -taken) > best_key:
                best, best_key = weight.detach().clone(), (right, -taken)
    return best, history


def _check(task: _Task, epochs: int) -> None:
    if len(task.base) < 8:
        raise InterpError(f"{len(task.base)} prompts; a split into three needs at least 8")
    if epochs < 1:
        raise InterpError(f"epochs={epochs}: expected at least 1")
    for index, (base, source) in enumerate(zip(task.base, task.source, strict=True)):
        if task.positions == "all" and len(base) != len(source):
            raise InterpError(
                f"pair {index}: the base has {len(base)} tokens and the source {len(source)}; "
                f"positions='all' needs equal lengths, or name positions such as -1"
            )


def _step(
    task: _Task, weight: Tensor, optimizer: torch.optim.Optimizer, rows: Tensor, penalty: float
) -> None:
    with torch.enable_grad():
        logits = task.logits(weight, rows)
        wanted = logits.gather(1, task.targets[rows, None].to(logits.device))
        loss = -wanted.mean() + penalty * (1 - weight)[task.exists].sum()
        optimizer.zero_grad()
        loss.backward()
    optimizer.step()
    with torch.no_grad():
        weight.clamp_(0, 1)
        weight.masked_fill_(~task.exists, 1.0)


@dataclass(frozen=True)
class _Task:
    """All prompts, and the model with some heads' outputs mixed."""

    model: Model
    positions: Any
    base: list[list[int]]
    source: list[list[int]]
    targets: Int[Tensor, " prompt"]

    @cached_property
    def sites(self) -> list[Site]:
        """The z of every layer that has heads."""
        return list(ports_of(self.model, "z.*"))

    @cached_property
    def exists(self) -> Tensor:
        """Which (layer, head) there are."""
        blocks = self.model.anatomy.blocks
        mask = torch.zeros(len(blocks), max(block.n_heads for block in blocks), dtype=torch.bool)
        for site in self.sites:
            mask[site.layer or 0, : blocks[site.layer or 0].n_heads] = True
        return mask

    def ones(self) -> Float[Tensor, "layer head"]:
        """Every head as it is."""
        return torch.ones(self.exists.shape)

    def rounded(self, weight: Tensor) -> Float[Tensor, "layer head"]:
        """0 for heads that are taken, 1 for all others."""
        return (weight.detach() >= 0.5).float()

    def logits(self, weight: Float[Tensor, "layer head"], rows: Tensor) -> Tensor:
        """Last logits of base prompts with heads mixed: [prompt vocab]."""
        base = self.model.batch([self.base[i] for i in rows.tolist()])
        source = [self.source[i] for i in rows.tolist()]
        with torch.no_grad():
            acts = interp.capture(
                self.model, source, self.sites, positions=self.positions, device=None
            )
        columns, real = base.columns(self.positions)
        row, slot = real.nonzero(as_tuple=True)
        column = columns[row, slot]

        def mix(z: Tensor, site: Site) -> Tensor:
            own = z[row, column]  # [entry head d_head]
            other = acts[site][row, slot].to(own)
            kept = weight[site.layer or 0, : own.shape[1], None].to(own)
            return z.index_put((row, column), kept * own + (1 - kept) * other)

        last = Site("resid_post", self.model.anatomy.n_layers - 1)
        grad = torch.is_grad_enabled()
        with interp.hooked(self.model, dict.fromkeys(self.sites, mix)):
            stream = interp.capture(self.model, base, last, grad=grad, logits=False, device=None)[
                last
            ]
        # With gradients the batch keeps its own layout, without them prompts begin at column 0.
        end = base.columns("last")[0][:, 0] if grad else base.lengths - 1
        return self.model.anatomy.unembed(stream[torch.arange(len(rows)), end.to("cpu")]).float()

    def accuracy(self, weight: Tensor, rows: Tensor, batch_size: int) -> float:
        """Share of prompts whose likeliest token is the wanted one."""
        right = 0
        with torch.no_grad():
            for some in rows.split(batch_size):
                likeliest = self.logits(weight, some).argmax(-1).cpu()
                right += int((likeliest == self.targets[some]).sum())
        return right / len(rows)


def _collected(
    model: Model, given: Sequence[Desideratum]
) -> tuple[list[list[int]], list[list[int]], Tensor]:
    """All desiderata's base ids, source ids and target tokens."""
    base: list[list[int]] = []
    source: list[list[int]] = []
    targets: list[int] = []
    for one in given:
        if not isinstance(one, Desideratum):
            raise InterpError(f"expected a Desideratum, got {type(one).__name__}")
        ours, theirs = model.batch(one.base), model.batch(one.source)
        if len(ours) != len(theirs):
            raise InterpError(
                f"{len(ours)} base and {len(theirs)} source prompts; give one source for each base"
            )
        base += rows_of(ours)
        source += rows_of(theirs)
        wanted = per_prompt(one.targets, len(ours))
        targets += [row[0][0] for row in answer_tokens(model, ours, wanted)]
    return base, source, torch.tensor(targets)


def rows_of(batch: Batch) -> Iterator[list[int]]:
    """Each prompt's token ids, without padding."""
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        yield ids[mask.bool()].tolist()


def _sizes(n: int) -> list[int]:
    dev, test = max(1, round(_SHARES[1] * n)), max(1, round(_SHARES[2] * n))
    return [n - dev - test, dev, test]


def _random_like(chosen: Tensor, exists: Tensor, generator: torch.Generator) -> Tensor:
    heads = exists.nonzero()
    drawn = heads[torch.randperm(len(heads), generator=generator)[: int((chosen == 0).sum())]]
    weight = torch.ones_like(chosen)
    weight[drawn[:, 0], drawn[:, 1]] = 0.0
    return weight
