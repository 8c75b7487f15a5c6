"""What the reasoning-vectors study measures, and by which rule it says what it found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp import Edit, Model
from interp._edit.parameters import named_parameters
from interp._estimate import Estimate, cluster_mean
from probes._next_token import target_logprobs
from probes._token_rows import token_rows
from studies._problems import Problem

if TYPE_CHECKING:
    import pandas as pd

MAIN = "rl - sft"
_ROWS = 200  # completions a forward
_TEXTS = 16


@dataclass(frozen=True)
class Condition:
    """A model to be measured: one of the four, or the target with a vector added.

    Args:
        vector: `rl - sft` and the like; the model's name where nothing is added.
        control: what is measured in place of the vector: `noise`, `attn only`, ...; `greedy` for
            greedy decoding; `model` for one of the four as it is.
        alpha: how much of it is added; -1 is the sign flip.
        draw: of the noise.
    """

    vector: str
    control: str = ""
    alpha: int | float = 1.0
    draw: int = 0

    @property
    def slug(self) -> str:
        """A file name of its own."""
        words = f"{self.vector} {self.control} {self.alpha:g} {self.draw}"
        return "".join(c if c.isalnum() or c in "-." else "_" for c in words)


@dataclass(frozen=True)
class Task:
    """What every condition is measured on, in the same way."""

    problems: Sequence[Problem]
    texts: Sequence[str]
    samples: int
    temperature: float
    max_new_tokens: int
    seed: int


def measure(model: Model, edit: Edit | None, condition: Condition, task: Task) -> pd.DataFrame:
    """One row a (problem, sample), whether it is solved, and one a text, its nats and tokens."""
    import pandas as pd

    if condition.control == "greedy":
        task = replace(task, samples=1, temperature=0.0)
    applied = nullcontext() if edit is None else edit.applied(model, transfer=True)
    with applied:
        rows: list[dict[str, Any]] = [
            {"kind": "problem", "group": problem.group, "value": float(solved), "tokens": 1}
            for problem, solved in _solved(model, task)
        ]
        rows += [
            {"kind": "text", "group": str(number), "value": nats, "tokens": tokens}
            for number, (nats, tokens) in enumerate(_losses(model, task.texts))
        ]
    return pd.DataFrame(rows).assign(
        vector=condition.vector,
        control=condition.control,
        alpha=float(condition.alpha),
        draw=condition.draw,
    )


def _solved(model: Model, task: Task) -> list[tuple[Problem, bool]]:
    """Each problem with each of its samples; the same random numbers in every condition."""
    asked = [problem for problem in task.problems for _ in range(task.samples)]
    sampling: dict[str, Any] = {}
    if task.temperature > 0:
        sampling = {"do_sample": True, "temperature": task.temperature, "top_k": 0, "top_p": 1.0}
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        for start in range(0, len(asked), _ROWS):
            some = asked[start : start + _ROWS]
            written = model.generate(
                [problem.prompt for problem in some],
                max_new_tokens=task.max_new_tokens,
                **sampling,
            )
            found += [(p, p.solved(text)) for p, text in zip(some, written, strict=True)]
    return found


def _losses(model: Model, texts: Sequence[str]) -> list[tuple[float, int]]:
    """Nats and predicted tokens of each text."""
    vocab = model.anatomy.d_vocab
    rows = list(token_rows([model], texts, vocab=vocab))
    found: list[tuple[float, int]] = []
    for start in range(0, len(rows), _TEXTS):
        for logprobs in target_logprobs(model, rows[start : start + _TEXTS], vocab=vocab):
            counted = logprobs[logprobs.isfinite()]
            found.append((-float(counted.double().sum()), len(counted)))
    return found


def select(
    answers: pd.DataFrame, vector: str, control: str = "", alpha: float = 1.0, draw: int = 0
) -> pd.DataFrame:
    """The rows of one condition."""
    same = (answers["vector"] == vector) & (answers["control"] == control)
    return answers[same & (answers["alpha"] == alpha) & (answers["draw"] == draw)]


def accuracy(rows: pd.DataFrame, seed: int) -> Estimate:
    """Share of samples that solve their problem, over groups of problems."""
    solved = rows[rows["kind"] == "problem"]
    return cluster_mean(solved["value"].tolist(), solved["group"].tolist(), seed)


def text_loss(rows: pd.DataFrame) -> float:
    """Nats a token on the texts."""
    texts = rows[rows["kind"] == "text"]
    return float(texts["value"].sum() / texts["tokens"].sum()) if len(texts) else math.nan


def difference(rows: pd.DataFrame, others: Sequence[pd.DataFrame], seed: int) -> Estimate:
    """Accuracy minus the mean accuracy of others, problem by problem."""
    mine = _by_group(rows)
    theirs = sum(_by_group(other) for other in others) / len(others)
    paired = mine - theirs
    return cluster_mean(paired.tolist(), paired.index.tolist(), seed, bounds=(-1.0, 1.0))


def _by_group(rows: pd.DataFrame) -> pd.Series:
    solved = rows[rows["kind"] == "problem"]
    return solved.groupby("group")["value"].mean()


def next_draw(values: Sequence[float]) -> tuple[float, float]:
    """Where one more draw would lie with 95 % probability (Student's prediction interval)."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    half = t.ppf(0.975, n - 1) * np.std(values, ddof=1) * math.sqrt(1 + 1 / n)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def effects(answers: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row a condition on the target: accuracy, gain over it, and gain over noise, in intervals.

    Columns `<quantity> <quantity>_low <quantity>_high`; `gain` is over the target as it is, decoded
    in the same way, and `over_noise` over the mean of the draws of noise of the same norm.
    """
    import pandas as pd

    keys = ["vector", "control", "alpha", "draw"]
    added = answers[(answers["control"] != "model") & (answers["vector"] != "target")]
    rows = []
    for key, group in added.groupby(keys, sort=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        how = "greedy" if row["control"] == "greedy" else "model"
        target = select(answers, "target", how, 0.0)
        row |= _columns("accuracy", accuracy(group, seed))
        row |= _columns("gain", difference(group, [target], seed))
        noise = _noise(answers, row["vector"], row["alpha"])
        if noise and row["control"] == "":
            row |= _columns("over_noise", difference(group, noise, seed))
        row["text_loss"] = text_loss(group)
        rows.append(row)
    return pd.DataFrame(rows)


def _noise(answers: pd.DataFrame, vector: str, alpha: float) -> list[pd.DataFrame]:
    noise = answers[
        (answers["vector"] == vector)
        & (answers["control"] == "noise")
        & (answers["alpha"] == alpha)
    ]
    return [group for _, group in noise.groupby("draw")]


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


@dataclass(frozen=True)
class Outcome:
    """Whether a vector carries its ability over, and what that rests on."""

    held: bool
    gain: Estimate
    over_noise: Estimate
    noise: tuple[float, float]  # where the accuracy of one more draw of noise would lie

    def __str__(self) -> str:
        harm = self.gain.high < 0 and self.over_noise.high < 0
        return "held" if self.held else f"did not hold{' (it does harm)' if harm else ''}"


def outcome(answers: pd.DataFrame, vector: str, seed: int) -> Outcome:
    """Whether the whole vector (alpha 1, which nobody chose by looking) carries an ability over.

    It must gain over the target and over noise, both by the interval over problems, and solve more
    than one more draw of noise would.
    """
    target = select(answers, "target", "model", 0.0)
    mine, noise = select(answers, vector), _noise(answers, vector, 1.0)
    gain, over = difference(mine, [target], seed), difference(mine, noise, seed)
    likely = next_draw([accuracy(draw, seed).mean for draw in noise])
    # With too few draws for a prediction (nan) the comparison is false, and so is the claim.
    held = gain.low > 0 and over.low > 0 and accuracy(mine, seed).mean > likely[1]
    return Outcome(bool(held), gain, over, likely)


def realised(edit: Edit, model: Model, alphas: Sequence[float]) -> pd.DataFrame:
    """What of `alpha * edit` would be left if the target were stored in bfloat16.

    Norm of the realised change relative to the one asked for, their cosine, and the share of
    weights that should move and do not.
    """
    import pandas as pd

    found = named_parameters(model.module)
    rows = []
    for alpha in alphas:
        asked_sq = got_sq = inner = 0.0
        moving = still = 0
        for delta in (alpha * edit).deltas:
            stored = found[delta.parameter].tensor.detach().to(torch.bfloat16)
            before = stored.float()
            asked = (delta.change.applied_to(before) - before).double()
            got = ((before + asked.float()).to(torch.bfloat16).float() - before).double()
            asked_sq += float(asked.square().sum())
            got_sq += float(got.square().sum())
            inner += float((asked * got).sum())
            moving += int((asked != 0).sum())
            still += int(((asked != 0) & (got == 0)).sum())
        rows.append(
            {
                "alpha": float(alpha),
                "norm_ratio": math.sqrt(got_sq / asked_sq) if asked_sq else math.nan,
                "cosine": inner / math.sqrt(got_sq * asked_sq) if got_sq * asked_sq else math.nan,
                "unmoved": still / moving if moving else math.nan,
            }
        )
    return pd.DataFrame(rows)
