"""A plan of patches put to pairs of prompts, some pairs at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp._attribute_sweep import Score
from interp._errors import InterpError
from interp._model import Model
from interp._patch.attribution import attribution_patches
from interp._patch.exact import Donor, n_chunk, run_patches
from interp._patch.metric import BoundMetric, scored
from interp._patch.pairs import Pairs
from interp._patch.plan import Patch, Plan, of_prompts
from interp._patch.run import Run, run_once
from interp._reading import reading
from interp._site import Site


@dataclass(frozen=True)
class Question:
    """What is patched into what.

    Args:
        runner: the model that is patched; it runs `pairs.base`.
        giver: where the activations come from; it runs `pairs.donor`.
        pairs: of prompts.
        plan: the patches.
        metric: by which they are measured.
        noising: whether the run that is patched is the clean one.
        noise: what to add to the embeddings of the run that is patched, for each prompt.
    """

    runner: Model
    giver: Model
    pairs: Pairs
    plan: Plan
    metric: BoundMetric
    noising: bool
    noise: list[Tensor] | None = None  # each [pos d_model]


@dataclass(frozen=True)
class Measured:
    """Scores; NaN where a patch has no position in a prompt, or was not run."""

    score: Float[Tensor, "prompt patch"]
    exact: Float[Tensor, "prompt patch"]
    clean: Float[Tensor, " prompt"]
    corrupted: Float[Tensor, " prompt"]


@dataclass(frozen=True)
class _Opened:
    """Some pairs, both sides run."""

    rows: Int[Tensor, " prompt"]
    run: Run
    donor: Donor
    patches: list[Patch]
    score: Score
    unpatched: Float[Tensor, " prompt"]
    clean: Float[Tensor, " prompt"]
    corrupted: Float[Tensor, " prompt"]


def measured(
    question: Question, *, estimate: bool, exact: list[int], progress: bool, desc: str = "patch"
) -> Measured:
    """Put every patch to every pair.

    Args:
        question: what to measure.
        estimate: by attribution, which needs one backward, instead of running each patch.
        exact: which patches to run beside the estimate.
        progress: show a bar where it takes more than two seconds.
        desc: the bar's name.
    """
    n, patches = len(question.pairs.base), len(question.plan.patches)
    double = question.runner.anatomy.embedding_weight.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    found = Measured(
        *(torch.full((n, patches), float("nan"), dtype=dtype) for _ in range(2)),
        *(torch.full((n,), float("nan"), dtype=dtype) for _ in range(2)),
    )
    count = n * (len(exact) if estimate else patches)
    bar = tqdm(total=count, desc=desc, delay=2, leave=False, disable=not progress)
    with reading(question.runner), reading(question.giver), bar:
        for one in _opened(question):
            found.clean[one.rows], found.corrupted[one.rows] = one.clean, one.corrupted
            job = one.run, one.donor
            if estimate:
                scores = attribution_patches(*job, one.patches, one.score, one.unpatched)
                some = [one.patches[i] for i in exact]
                values = run_patches(*job, some, one.score, one.unpatched, bar.update)
                found.exact[one.rows[:, None], torch.tensor(exact, dtype=torch.long)] = values
            else:
                scores = run_patches(*job, one.patches, one.score, one.unpatched, bar.update)
            found.score[one.rows] = scores
    return found


def _opened(question: Question) -> Iterator[_Opened]:
    """Pairs of equal lengths, as many at a time as memory allows."""
    pairs, plan = question.pairs, question.plan
    longest = max(map(len, pairs.base + pairs.donor))
    for rows in pairs.chunks(n_chunk(question.runner.anatomy, longest, len(plan.sites))):
        chosen = rows.tolist()
        noise = None
        if question.noise is not None:
            noise = torch.stack([question.noise[i] for i in chosen])
        run = run_once(question.runner, [pairs.base[i] for i in chosen], plan.sites, noise)
        given = run_once(question.giver, [pairs.donor[i] for i in chosen], plan.sites)
        both = (run, given) if question.noising else (given, run)
        ends, scores = both_ends(question.metric, rows, *both)
        clean, corrupted = ends
        theirs = corrupted if question.noising else clean
        # Where the same blocks go on from the donor's own stream, they give the donor's score.
        same = question.giver is question.runner and run.n_tokens == given.n_tokens
        partner = torch.tensor([pairs.partner[i] for i in chosen])
        yield _Opened(
            rows,
            run,
            Donor(_at_partners(run, given, plan, partner), theirs if same else None),
            of_prompts(plan.patches, chosen),
            scores[0] if question.noising else scores[1],
            clean if question.noising else corrupted,
            clean,
            corrupted,
        )


def both_ends(
    metric: BoundMetric, rows: Int[Tensor, " prompt"], clean: Run, corrupted: Run
) -> tuple[list[Tensor], list[Score]]:
    """The metric of the clean and of the corrupted run, and as a function for each's model.

    Raises:
        InterpError: a metric that is not finite.
    """
    both = clean, corrupted
    logits = [_logits(one) for one in both]
    prompt = torch.arange(len(rows))
    ends, scores = [], []
    for name, one in zip(("clean", "corrupted"), both, strict=True):
        anatomy = one.model.anatomy
        scores.append(metric.score(anatomy, rows, *logits))
        ends.append(scored(scores[-1], one.last, prompt, anatomy.d_vocab).cpu())
        bad = (~ends[-1].isfinite()).nonzero()
        if len(bad):
            raise InterpError(
                f"the metric of the {name} run of prompt {int(rows[int(bad[0])])} is "
                f"{float(ends[-1][bad[0]])}; check the metric, and the model's logits there"
            )
    return ends, scores


def _logits(run: Run) -> Float[Tensor, "prompt vocab"]:
    logits = run.model.anatomy.unembed(run.last)
    return logits if logits.dtype == torch.float64 else logits.float()


def _at_partners(run: Run, given: Run, plan: Plan, partner: Tensor) -> dict[Site, Tensor]:
    """The donor's activations, each where its partner stands in the run."""
    acts = {}
    for site in plan.sites:
        own, values = run.at(site), given.at(site)
        if values.shape[2:] != own.shape[2:] and site.kind != "pattern":
            raise InterpError(
                f"{site} has units {list(values.shape[2:])} in one run and {list(own.shape[2:])} "
                f"in the other; patch between models of equal shapes"
            )
        if run.n_tokens != given.n_tokens:
            if site.kind == "pattern":
                raise InterpError(f"{site}: patterns of prompts of other lengths do not fit")
            prompt = torch.arange(len(values))[:, None]
            values = values[prompt, partner.clamp(min=0)]
        acts[site] = values
    return acts
