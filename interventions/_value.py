"""The search for a value: what must stand at one token for the model to give another answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

import interp
from interp import InterpError, Model
from interp._attribute_sweep import _frozen
from interp._selfcheck import evaluating
from interventions._projection import Projection
from interventions._rewrite import Request, Row

_ROWS = 512  # sequences at once


@dataclass(frozen=True)
class ValueSearch:
    """How a value is searched: by Adam, on what is added at one token (delta).

    The loss of a fact, averaged over its contexts, is `-(1/|o|) log P(o | context, prompt)
    + drift KL + decay |delta| / |v0|^2`, with v0 what stood there before; `|delta|` is projected
    onto `clamp |v0|` after each step. KL is KL(with delta || without) of the next token on
    `drift_prompt` at the subject: the direction that ROME's code has. `|delta|` to the first power
    over `|v0|` squared is the code's, too.

    Args:
        steps: of Adam, at most.
        lr: of Adam.
        stop_below: a fact whose loss is below this is done.
        clamp: times |v0|: the longest delta.
        decay: weight of its length.
        drift: weight of the KL term.
        drift_prompt: with `{}` for the subject; None leaves the term out.
    """

    steps: int = 20
    lr: int | float = 0.5
    stop_below: int | float = 0.05
    clamp: int | float = 4.0
    decay: int | float = 0.5
    drift: int | float = 0.0625
    drift_prompt: str | None = "{} is a"

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "clamp"):
            if not getattr(self, name) > 0:
                raise InterpError(f"{name}={getattr(self, name)}: expected more than 0")
        if self.drift_prompt is not None and self.drift_prompt.count("{}") != 1:
            raise InterpError(
                f"drift_prompt={self.drift_prompt!r}: expected one {{}} where the subject stands, "
                f"or None"
            )


@dataclass(frozen=True)
class Value:
    """What a search found for one fact.

    Args:
        start: what stood at the bare prompt's token before.
        change: what is to be added.
        loss: at each step.
    """

    start: Float[Tensor, " d_model"]
    change: Float[Tensor, " d_model"]
    loss: tuple[float, ...]


def search_values(
    model: Model,
    requests: Sequence[Request],
    drifts: Sequence[Row | None],
    layer: int,
    inside: Projection | None,
    search: ValueSearch,
) -> list[Value]:
    """The value of each fact, many facts at once; each is searched as if alone.

    Args:
        model: a handle.
        requests: facts in tokens.
        drifts: for each the prompt on which nothing should change, or None.
        layer: where the change is added.
        inside: to this projection's output; None adds it to the stream after the block.
        search: the settings.

    Raises:
        InterpError: a position that nothing later reads; a loss that is not finite.
    """
    last = layer == model.anatomy.n_layers - 1
    for request in requests:
        if last and request.rows[0].at < len(request.rows[0].ids) - 1:
            raise InterpError(
                f"layer {layer} is the last: what it writes at the subject's token is read by "
                f"nothing after it; choose an earlier layer, or position='last'"
            )
    found: list[Value] = []
    size = max(1, _ROWS // (1 + max(len(request.rows) for request in requests)))
    for start in range(0, len(requests), size):
        some = slice(start, start + size)
        # A tensor made in inference mode could not enter a graph.
        with torch.inference_mode(False), ExitStack() as stack:
            stack.enter_context(evaluating(model.module))
            stack.enter_context(_frozen(model.module))
            found += _Search(model, requests[some], drifts[some], layer, inside, search).run()
    return found


class _Search:
    """Some facts in one batch: each one's contexts with its answer, then its drift prompt."""

    def __init__(
        self,
        model: Model,
        requests: Sequence[Request],
        drifts: Sequence[Row | None],
        layer: int,
        inside: Projection | None,
        search: ValueSearch,
    ) -> None:
        self.layer, self.inside, self.search, self.requests = layer, inside, search, requests
        sequences: list[list[int]] = []
        at: list[int] = []
        fact: list[int] = []
        first: list[int] = []  # each fact's bare prompt
        predicted: list[tuple[int, int, int, float, int]] = []  # row, column, token, weight, fact
        drifting: list[tuple[int, int, int]] = []  # row, column, fact
        for index, (request, drift) in enumerate(zip(requests, drifts, strict=True)):
            first.append(len(sequences))
            share = 1 / (len(request.rows) * len(request.answer))
            for row in request.rows:
                for offset, token in enumerate(request.answer):
                    column = len(row.ids) - 1 + offset
                    predicted.append((len(sequences), column, token, share, index))
                sequences.append([*row.ids, *request.answer[:-1]])
                at.append(row.at)
                fact.append(index)
            if drift is not None and search.drift:
                drifting.append((len(sequences), drift.at, index))
                sequences.append(list(drift.ids))
                at.append(drift.at)
                fact.append(index)
        self.again = interp.replay(model, sequences)
        home = self.again.streams[0].device
        self.rows = torch.arange(len(sequences), device=home)
        self.at, self.fact = torch.tensor(at, device=home), torch.tensor(fact, device=home)
        self.first = torch.tensor(first, device=home)
        self.row, self.column, self.token, self.weight, self.of = (
            torch.tensor(column, device=home) for column in zip(*predicted, strict=True)
        )
        self.drifting = torch.tensor(drifting, dtype=torch.long, device=home).view(-1, 3).unbind(1)

    def run(self) -> list[Value]:
        """Adam on all facts at once; a fact that is done no longer moves."""
        settings = self.search
        with torch.no_grad():
            start = self._start()
            before = self._drift_logprobs(self._streams(torch.zeros_like(start)))
        length = start.norm(dim=1)
        change = torch.zeros_like(start).requires_grad_()
        optimizer = torch.optim.Adam([change], lr=settings.lr)
        active = torch.ones(len(start), dtype=torch.bool, device=start.device)
        history: list[Tensor] = []
        for step in range(settings.steps + 1):
            with torch.enable_grad():
                loss = self._loss(change, before, length)
            self._check(loss.detach(), step)
            history.append(loss.detach().masked_fill(~active, float("nan")).cpu())
            active = active & (loss.detach() >= settings.stop_below)
            if step == settings.steps or not bool(active.any()):
                break
            kept = change.detach().clone()
            (change.grad,) = torch.autograd.grad(loss[active].sum(), [change])
            optimizer.step()
            with torch.no_grad():
                most = settings.clamp * length
                factor = (most / change.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)
                change.mul_(factor[:, None])
                change.copy_(torch.where(active[:, None], change, kept))
        curves = torch.stack(history, dim=1)
        return [
            Value(v.double().cpu(), d.double().cpu(), tuple(c[~c.isnan()].tolist()))
            for v, d, c in zip(start, change.detach(), curves, strict=True)
        ]

    def _loss(self, change: Tensor, before: Tensor, length: Tensor) -> Float[Tensor, " fact"]:
        streams = self._streams(change)
        logits = self.again.unembed(streams[self.row, self.column])
        logprob = _precise(logits).log_softmax(-1).gather(1, self.token[:, None])[:, 0]
        loss = self.search.decay * _norms(change) / length.square()
        loss = loss.index_add(0, self.of, (-self.weight * logprob).to(loss))
        if len(before):
            now = self._drift_logprobs(streams)
            kl = (now.exp() * (now - before)).sum(-1)
            loss = loss.index_add(0, self.drifting[2], (self.search.drift * kl).to(loss))
        return loss

    def _drift_logprobs(self, streams: Tensor) -> Tensor:
        row, column, _ = self.drifting
        return _precise(self.again.unembed(streams[row, column])).log_softmax(-1)

    def _streams(self, change: Tensor) -> Tensor:
        """The last streams with each fact's change at its rows' tokens."""
        added = change[self.fact]
        if self.inside is None:
            stream = self.again.streams[self.layer + 1]
            return self.again.run(self.layer + 1, self._plus(stream, added))
        with self.inside.output.attach(lambda out, _: self._plus(out, added), reads=False):
            return self.again.run(self.layer, self.again.streams[self.layer])

    def _plus(self, values: Tensor, added: Tensor) -> Tensor:
        where = self.rows, self.at
        return values.index_put(where, values[where] + added.to(values))

    def _start(self) -> Float[Tensor, "fact d_model"]:
        where = self.first, self.at[self.first]
        if self.inside is None:
            return _precise(self.again.streams[self.layer + 1][where])
        seen: list[Tensor] = []
        with self.inside.output.attach(lambda out, _: seen.append(out[where]), reads=True):
            self.again.run(self.layer, self.again.streams[self.layer], until=self.layer + 1)
        return _precise(seen[0])

    def _check(self, loss: Tensor, step: int) -> None:
        bad = (~loss.isfinite()).nonzero()
        if len(bad):
            index = int(bad[0])
            raise InterpError(
                f"the loss of {self.requests[index].name} is {float(loss[index])} at step {step} "
                f"of the search for its value; lower lr={self.search.lr}, or look for NaN in the "
                f"model's weights"
            )


def _norms(change: Tensor) -> Float[Tensor, " fact"]:
    """Lengths whose gradient at zero is zero."""
    square = change.square().sum(dim=1)
    return torch.where(square > 0, square.clamp(min=1e-30).sqrt(), square)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
