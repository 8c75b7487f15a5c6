"""`causal_trace`: which states bring an answer back after its subject was made unreadable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from interp._batch import Batch
from interp._capture import Prompts, capture
from interp._errors import InterpError
from interp._model import Model, as_model
from interp._patch.effects import PatchEffects
from interp._patch.measure import Measured, Question, measured
from interp._patch.metric import Metric, bind_metric
from interp._patch.pairs import make_pairs, repeated
from interp._patch.patch import as_record
from interp._patch.plan import grid, of_prompts
from interp._patch.spans import PatchPositions, find_spans
from interp._patch.tokens import token_positions
from interp._reading import require_unembed
from interp._site import Site

Subjects = str | Sequence[str] | Sequence[Sequence[int]]
_WINDOW = {"attn_out": 10, "mlp_out": 10}


def causal_trace(
    model: Model | nn.Module,
    prompts: Prompts,
    subjects: Subjects,
    metric: Metric = "prob",
    *,
    sites: str | Site | Iterable[str | Site] = ("resid_post", "mlp_out", "attn_out"),
    positions: PatchPositions = "each",
    window: Mapping[str, int] | None = None,
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> PatchEffects:
    """Causal tracing: noise on the subject's embeddings, then one clean state put back at a time.

    The corrupted run adds N(0, (noise * s)^2) to the embeddings of the subject's tokens, s being
    the standard deviation of all subject tokens' embeddings. Scores are means over the samples;
    `corrupted` is the paper's low score, `clean` its high score, and score - corrupted the
    indirect effect. A state is put back at one position in a window of layers around its own.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: texts, a batch or token ids.
        subjects: a text to be found in every prompt, one for each prompt, or the positions of each
            prompt's subject.
        metric: as for `interp.patch`; by default the probability of the clean prediction.
        sites: any of those that `interp.patch` takes.
        positions: as for `interp.patch`.
        window: kind of site -> layers put back together; by default 10 for attn_out and mlp_out
            and 1 for all else. In a model of few layers ten are all of them: give smaller ones.
        noise: in standard deviations.
        samples: of the noise; the same for every prompt, so that a prompt's result does not
            depend on what stands beside it.
        seed: of the noise.
        progress: show a bar where it takes more than two seconds.

    Returns:
        PatchEffects with means over samples; `meta` holds `noise_std`.

    Raises:
        InterpError: a subject that is not in its prompt, fewer than one sample.

    Examples:
        >>> trace = interp.causal_trace(
        ...     model, "Question: Where does Ann live?", "Ann", window={"mlp_out": 3}, samples=2
        ... )
        >>> trace.stack("mlp_out", normalised=True).shape[0]
        6

    Source: Meng et al. 2022 (arXiv 2202.05262). Where a subject occurs several times all of it is
    noised (our specification); the paper takes the first.
    """
    handle = as_model(model)
    require_unembed(handle)
    if samples < 1:
        raise InterpError(f"samples={samples}: expected at least 1")
    batch = handle.batch(prompts)
    where = _subjects(handle, batch, subjects)
    pairs = make_pairs(batch, batch, None, run_clean=False)
    spans = find_spans(positions, pairs.partner)
    plan = grid(handle, sites, spans, None, {**_WINDOW, **(window or {})})
    added, std = _noise(handle, batch, where, noise, samples, seed)
    many = [index for index in range(len(batch)) for _ in range(samples)]
    question = Question(
        handle,
        handle,
        repeated(pairs, samples),
        plan.with_patches(of_prompts(plan.patches, many)),
        bind_metric(metric, handle, batch).repeated(samples),
        noising=False,
        noise=added,
    )
    found = measured(question, estimate=False, exact=[], progress=progress, desc="causal trace")

    def mean(values: Tensor) -> Tensor:
        # In double precision, so that equal samples have exactly their own mean.
        return values.double().unflatten(0, (len(batch), samples)).mean(1).to(values.dtype)

    means = Measured(mean(found.score), mean(found.exact), mean(found.clean), mean(found.corrupted))
    meta = {
        "model": handle.name or type(handle.module).__name__,
        "revision": handle.revision,
        "metric": question.metric.name,
        "direction": "denoising",
        "method": "causal_trace",
        "noise": noise,
        "noise_std": std,
        "samples": samples,
        "seed": seed,
        "window": {**_WINDOW, **(window or {})},
        "subjects": where,
        "n_layers": handle.anatomy.n_layers,
    }
    return as_record(handle, pairs, plan, means, meta)


def _subjects(model: Model, batch: Batch, subjects: Subjects) -> list[list[int]]:
    """Each prompt's subject as positions."""
    if isinstance(subjects, str) or all(isinstance(one, str) for one in subjects):
        return token_positions(model, batch, subjects)  # type: ignore[arg-type]
    listed = [list(map(int, one)) for one in subjects if not isinstance(one, str | int)]
    if len(listed) != len(batch) or not all(listed):
        raise InterpError(
            f"subjects={subjects!r}: expected a text, one text for each of the {len(batch)} "
            f"prompts, or a list of positions for each"
        )
    for index, (one, length) in enumerate(zip(listed, batch.lengths.tolist(), strict=True)):
        if not 0 <= min(one) <= max(one) < length:
            raise InterpError(
                f"the subject of prompt {index} is at {one}, and the prompt has {length} tokens "
                f"(0 to {length - 1})"
            )
    return listed


def _noise(
    model: Model, batch: Batch, where: list[list[int]], noise: float, samples: int, seed: int
) -> tuple[list[Tensor], float]:
    """What to add to each repeated prompt's embeddings, and its standard deviation."""
    embedded = capture(model, batch, "embed")["embed"].float()
    std = noise * float(torch.cat([embedded[i, at] for i, at in enumerate(where)]).std())
    added = []
    for at, length in zip(where, batch.lengths.tolist(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        drawn = std * torch.randn(samples, len(at), embedded.shape[-1], generator=generator)
        for one in drawn:
            whole = embedded.new_zeros(length, embedded.shape[-1])
            whole[at] = one
            added.append(whole)
    return added, std
