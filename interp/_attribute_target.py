"""What is attributed: one number for each prompt, a function of its last logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp._anatomy import Anatomy
from interp._answers import Answers, answer_tokens, per_prompt
from interp._attribute_sweep import Score
from interp._batch import Batch
from interp._errors import InterpError
from interp._model import Model

KINDS = ("prob", "logprob", "logit", "logit_difference")
LogitFunction = Callable[[Tensor], Tensor]  # [row vocab] -> [row], each row on its own


@dataclass(frozen=True)
class Target:
    """One number for each prompt: a probability, log-probability, logit or difference of logits.

    Args:
        kind: `"prob"`, `"logprob"` (nats), `"logit"` (the model's own: softcap and scale
            included) or `"logit_difference"`.
        answers: one for all prompts, or one for each; the first token counts. Default: the token
            that the model predicts.
        versus: what it is compared with in a logit difference. Default: the likeliest other token.

    Examples:
        >>> interp.Target("logit_difference", " Paris", " Rome")
        Target(kind='logit_difference', answers=' Paris', versus=' Rome')
    """

    kind: str
    answers: Answers | None = None
    versus: Answers | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InterpError(
                f"target {self.kind!r}: expected one of {', '.join(map(repr, KINDS))} (for a given "
                f"answer as in Target('prob', ' Paris')), or a function of logits"
            )
        if self.versus is not None and self.kind != "logit_difference":
            raise InterpError(f"target {self.kind!r} takes no versus; use 'logit_difference'")


@dataclass(frozen=True)
class BoundTarget:
    """A target with its tokens found for a batch.

    Args:
        kind: of the target, or `"function"`.
        function: where the target is a function.
        tokens: each prompt's answer, or None where the model's own prediction decides.
        versus: what it is compared with, likewise.
    """

    kind: str
    function: LogitFunction | None = None
    tokens: Int[Tensor, " prompt"] | None = None
    versus: Int[Tensor, " prompt"] | None = None

    def score(
        self,
        anatomy: Anatomy,
        rows: Int[Tensor, " prompt"],
        logits: Float[Tensor, "prompt vocab"],
    ) -> tuple[Score, Int[Tensor, " prompt"]]:
        """The target of last streams, and the answers' tokens (-1 where there are none).

        Args:
            anatomy: the model's.
            rows: which prompts of the batch.
            logits: their last logits, which decide where no token was named.

        Raises:
            InterpError: an answer compared with itself.
        """
        if self.function is not None:
            remedy = "use method='ablation'"
            score = of_function(anatomy, self.function, "the target function", remedy)
            return score, torch.full_like(rows, -1)
        rows = rows.to(logits.device)
        answer = logits.argmax(-1) if self.tokens is None else self.tokens.to(rows)[rows]
        if self.kind in ("prob", "logprob"):
            return _of_distribution(anatomy, answer, self.kind), answer
        if self.kind == "logit":
            return _of_logits(anatomy, answer[:, None]), answer
        others = logits.scatter(1, answer[:, None], float("-inf")).argmax(-1)
        versus = others if self.versus is None else self.versus.to(rows)[rows]
        if bool((same := answer == versus).any()):
            raise InterpError(
                f"prompt {int(rows[same][0])}: the answer and what it is compared with start with "
                f"the same token ({int(answer[same][0])}), so their difference is 0; only first "
                f"tokens count here"
            )
        return _of_logits(anatomy, torch.stack([answer, versus], dim=1)), answer


def bind(target: Any, model: Model, batch: Batch) -> BoundTarget:
    """The target for this batch.

    Raises:
        InterpError: an unknown target, several answers for a prompt.
    """
    if callable(target):
        return BoundTarget("function", target)
    if isinstance(target, str):
        target = Target(target)
    if not isinstance(target, Target):
        raise InterpError(
            f"target is a {type(target).__name__}; expected 'prob', 'logprob', 'logit', "
            f"'logit_difference', a Target such as Target('prob', ' Paris'), or a function of "
            f"logits [row vocab] -> [row]"
        )
    return BoundTarget(
        target.kind,
        None,
        _first_tokens(model, batch, target.answers),
        _first_tokens(model, batch, target.versus),
    )


def _first_tokens(model: Model, batch: Batch, answers: Answers | None) -> Tensor | None:
    if answers is None:
        return None
    wanted = per_prompt(answers, len(batch))
    if len(wanted[0]) != 1:
        raise InterpError(
            f"{len(wanted[0])} answers for a prompt; attribute one at a time, or compare two with "
            f"Target('logit_difference', answer, versus)"
        )
    return torch.tensor([row[0][0] for row in answer_tokens(model, batch, wanted)])


def _of_distribution(anatomy: Anatomy, answer: Tensor, kind: str) -> Score:
    def score(stream: Tensor, prompt: Tensor) -> Tensor:
        logits = precise(anatomy.unembed(stream))
        token = answer.to(logits.device)[prompt.to(logits.device)]
        logprob = torch.as_tensor(_LogProb.apply(logits, token))
        return logprob.exp() if kind == "prob" else logprob

    return score


class _LogProb(torch.autograd.Function):
    """log softmax(logits)[token]; its backward goes over the vocabulary once, not five times."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token: Tensor) -> Tensor:
        peak = logits.amax(-1, keepdim=True)
        weights = (logits - peak).exp_()
        total = weights.sum(-1, keepdim=True)
        ctx.save_for_backward(weights, total, token[:, None])
        return (logits.gather(-1, token[:, None]) - peak - total.log())[:, 0]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        weights, total, token = ctx.saved_tensors
        slope = slopes[0][:, None]
        return (weights * (-slope / total)).scatter_add_(-1, token, slope), None


def _of_logits(anatomy: Anatomy, tokens: Int[Tensor, "prompt k"]) -> Score:
    """The first token's logit, less the second's: without the rest of the vocabulary."""

    def score(stream: Tensor, prompt: Tensor) -> Tensor:
        logits = precise(_some_logits(anatomy, stream, tokens[prompt.to(tokens.device)]))
        return logits[:, 0] - logits[:, 1] if logits.shape[1] == 2 else logits[:, 0]

    return score


def _some_logits(anatomy: Anatomy, stream: Tensor, tokens: Int[Tensor, "row k"]) -> Tensor:
    head: Any = anatomy.head
    if type(head) is not nn.Linear or head.weight.is_meta:  # adapted, quantised or offloaded
        logits = anatomy.unembed(stream)
        return logits.gather(-1, tokens.to(logits.device))
    x = stream.to(anatomy.head_home)
    x = x if anatomy.final_norm is None else anatomy.final_norm(x)
    x = x if anatomy.project_out is None else anatomy.project_out(x)
    tokens = tokens.to(x.device)
    logits = torch.einsum("rd,rkd->rk", x, head.weight[tokens])
    return anatomy.scaled(logits if head.bias is None else logits + head.bias[tokens])


def of_function(anatomy: Anatomy, function: LogitFunction, called: str, remedy: str) -> Score:
    """A function of the last logits as a score of the last stream.

    Args:
        anatomy: of the model.
        function: [row vocab] to [row].
        called: what messages call it.
        remedy: what to do where it has no gradient.
    """

    def score(stream: Tensor, _prompt: Tensor) -> Tensor:
        logits = precise(anatomy.unembed(stream))
        value = function(logits)
        if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
            given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InterpError(
                f"{called} returned {given} for logits {list(logits.shape)}; expected one number a "
                f"row, shape {list(logits.shape[:1])}"
            )
        if logits.requires_grad and not value.requires_grad:
            raise InterpError(
                f"{called}'s result has no gradient in the logits; compute it with differentiable "
                f"torch operations (no argmax, item or detach), or {remedy}"
            )
        return value if value.is_floating_point() else value.float()

    return score


def precise(logits: Tensor) -> Tensor:
    """Logits in float32, or as they are in float64."""
    return logits if logits.dtype == torch.float64 else logits.float()
