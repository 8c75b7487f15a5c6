"""What a patch is measured by: one number for each row, a function of its last logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp._anatomy import Anatomy
from interp._answers import Answers, answer_tokens, per_prompt
from interp._attribute_sweep import Score
from interp._attribute_target import BoundTarget, LogitFunction, Target, bind, of_function, precise
from interp._batch import Batch
from interp._errors import InterpError
from interp._model import Model

_LOGITS = 2**22  # held at once on a CPU: 16 MiB in float32
_NAMES = ("logit_difference", "logit", "prob", "logprob", "accuracy", "kl")


@dataclass(frozen=True)
class Accuracy:
    """1 where the answer's first token is the likeliest, else 0.

    Args:
        answers: one for all prompts, or one for each. Default: what the clean run predicts.
    """

    answers: Answers | None = None


Metric = Target | Accuracy | str | LogitFunction


@dataclass(frozen=True)
class BoundMetric:
    """A metric with its tokens found.

    Args:
        name: of the metric.
        target: for everything that a `Target` can say, and for functions.
        tokens: of an accuracy's answers, or None.
    """

    name: str
    target: BoundTarget | None = None
    tokens: Int[Tensor, " prompt"] | None = None

    @property
    def differentiable(self) -> bool:
        """Whether a gradient says anything."""
        return self.name != "accuracy"

    def repeated(self, times: int) -> BoundMetric:
        """The same where each prompt is repeated so many times, one after the other."""

        def many(tokens: Tensor | None) -> Tensor | None:
            return None if tokens is None else tokens.repeat_interleave(times)

        target = self.target
        if target is not None:
            target = replace(target, tokens=many(target.tokens), versus=many(target.versus))
        return replace(self, target=target, tokens=many(self.tokens))

    def score(
        self,
        anatomy: Anatomy,
        rows: Int[Tensor, " prompt"],
        clean: Float[Tensor, "prompt vocab"],
        corrupted: Float[Tensor, "prompt vocab"],
    ) -> Score:
        """The metric as a function of last streams.

        Args:
            anatomy: of the model that is to be read.
            rows: which prompts of the batch.
            clean: their logits in the clean run, which decide where no token was named.
            corrupted: likewise.

        Raises:
            InterpError: an answer compared with itself.
        """
        if self.target is None:
            tokens = clean.argmax(-1) if self.tokens is None else self.tokens[rows.cpu()]
            return (
                _of_likeliest(anatomy, tokens) if self.name == "accuracy" else _kl(anatomy, clean)
            )
        if self.target.function is not None:
            return of_function(
                anatomy, self.target.function, "the metric", "patch with method='exact'"
            )
        answer = clean.argmax(-1).cpu()
        answer = answer if self.target.tokens is None else self.target.tokens[rows.cpu()]
        versus = None if self.target.versus is None else self.target.versus[rows.cpu()]
        if versus is None and self.name == "logit_difference":
            others = clean.scatter(1, answer.to(clean.device)[:, None], float("-inf")).argmax(-1)
            versus = corrupted.argmax(-1).cpu()
            versus = torch.where(versus == answer, others.cpu(), versus)
        own = BoundTarget(self.target.kind, None, answer, versus)
        return own.score(anatomy, torch.arange(len(rows)), clean)[0]


def bind_metric(metric: Any, model: Model, batch: Batch) -> BoundMetric:
    """The metric for these prompts; text answers are tokenized after them.

    Raises:
        InterpError: an unknown metric, several answers for a prompt.
    """
    if isinstance(metric, Accuracy):
        return BoundMetric("accuracy", None, _first_tokens(model, batch, metric.answers))
    if isinstance(metric, str) and metric in ("accuracy", "kl"):
        return BoundMetric(metric)
    if isinstance(metric, str) and metric not in _NAMES:
        raise InterpError(
            f"metric {metric!r}: expected one of {', '.join(map(repr, _NAMES))}, a Target such as "
            f"interp.Target('prob', ' Paris'), interp.Accuracy(' Paris'), or a function of last "
            f"logits [row vocab] -> [row]"
        )
    if not isinstance(metric, str | Target) and not callable(metric):
        raise InterpError(
            f"metric is a {type(metric).__name__}; expected a name such as 'logit_difference', an "
            f"interp.Target, interp.Accuracy, or a function of last logits [row vocab] -> [row]"
        )
    target = bind(metric, model, batch)
    return BoundMetric(target.kind, target)


def scored(
    score: Score, streams: Float[Tensor, "row d_model"], prompt: Int[Tensor, " row"], n_vocab: int
) -> Float[Tensor, " row"]:
    """The metric of last streams, holding few logits at a time."""
    height = max(1, (_LOGITS if streams.device.type == "cpu" else 16 * _LOGITS) // n_vocab)
    prompt = prompt.to(streams.device)
    parts = [
        score(some, of)
        for some, of in zip(streams.split(height), prompt.split(height), strict=True)
    ]
    return torch.cat(parts) if parts else streams.new_zeros(0, dtype=torch.float32)


def _first_tokens(model: Model, batch: Batch, answers: Answers | None) -> Tensor | None:
    if answers is None:
        return None
    wanted = per_prompt(answers, len(batch))
    if len(wanted[0]) != 1:
        raise InterpError(f"{len(wanted[0])} answers for a prompt; accuracy takes one")
    return torch.tensor([row[0][0] for row in answer_tokens(model, batch, wanted)])


def _of_likeliest(anatomy: Anatomy, tokens: Int[Tensor, " prompt"]) -> Score:
    def score(stream: Tensor, prompt: Tensor) -> Tensor:
        likeliest = anatomy.unembed(stream).argmax(-1)
        return (likeliest == tokens.to(likeliest.device)[prompt.to(likeliest.device)]).float()

    return score


def _kl(anatomy: Anatomy, clean: Float[Tensor, "prompt vocab"]) -> Score:
    """KL(clean || row) in nats."""
    expected = precise(clean).log_softmax(-1)

    def score(stream: Tensor, prompt: Tensor) -> Tensor:
        found = precise(anatomy.unembed(stream)).log_softmax(-1)
        of = expected.to(found.device)[prompt.to(found.device)]
        return (of.exp() * (of - found)).sum(-1).clamp(min=0)

    return score
