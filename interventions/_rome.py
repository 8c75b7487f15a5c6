"""ROME: one fact written into one MLP as a rank-one change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp import Delta, Edit, Model
from interp._model import as_model
from interventions._key_covariance import KeyCovariance, Solver, moment_for
from interventions._projection import Projection, keys_and_outputs, projection
from interventions._rewrite import Request, Rewrite, Row, prompt_row, requests_of
from interventions._value import Value, ValueSearch, search_values

CONTEXTS = ((10, 5), (10, 10))  # (how many, of how many tokens)


def rome(
    model: Model | nn.Module,
    rewrite: Rewrite,
    layer: int,
    covariance: KeyCovariance | Float[Tensor, "d_mlp d_mlp"] | None = None,
    *,
    position: str = "subject_last",
    contexts: Sequence[str] | None = None,
    search: ValueSearch | None = None,
    damping: int | float = 0.0,
    seed: int = 0,
) -> Edit:
    """Write one fact into a layer's down projection: `W + (v* - W k) (C^-1 k)^T / (k^T C^-1 k)`.

    That is the smallest change, measured by how much it moves what W gives for the keys of
    ordinary text (`tr(D C D^T)`), after which the key k gives the value v*. k is the input of the
    projection at one token, averaged over contexts, the same average wherever k stands (r-ROME).
    v* is W's mean output there plus what `ValueSearch` finds to be needed for the new answer.

    Args:
        model: a handle or a bare PreTrainedModel with a tokenizer; left as it is.
        rewrite: the prompt, its subject, the new answer.
        layer: whose MLP is changed. `interp.causal_trace` says where states matter, which is not
            where edits work best (Hase et al. 2023): try layers on facts you do not report.
        covariance: from `iv.key_covariance`; a tensor is taken without asking whose it is; None is
            the identity, which leaves only orthogonal keys alone.
        position: the token whose key is taken: `"subject_last"`, or `"last"`, of the prompt. With
            `"last"`, an answer's later tokens are predicted at other tokens than the edited one.
        contexts: texts put before the prompt as they stand, beside the bare prompt; by default 10
            of 5 and 10 of 10 tokens drawn from the model.
        search: how the value is searched.
        damping: times the mean of C's diagonal, added to it.
        seed: of the contexts.

    Returns:
        An Edit of one rank-one Delta, made on this model.

    Raises:
        InterpError: a subject that is not in the prompt, an answer that the model gives already, a
            covariance of another model or without inverse, a mixture of experts, NaN.

    Examples:
        >>> fact = iv.Rewrite("Question: Where does {} live? Answer:", "Mia Stone", " Arlen")
        >>> covariance = iv.key_covariance(model, texts, 1)
        >>> search = iv.ValueSearch(drift_prompt="Meet {}.")
        >>> edit = iv.rome(model, fact, 1, covariance, damping=0.1, search=search)
        >>> with edit.applied(model):
        ...     answer = model.generate(fact.text, max_new_tokens=1)

    Source: Meng et al. 2022 (arXiv 2202.05262) and its code; the averaged key is r-ROME's, Gupta et
    al. 2024 (arXiv 2403.07175), where the original divides by one prompt's key. What the random
    contexts begin with is our specification.
    """
    return rome_each(
        model,
        [rewrite],
        layer,
        covariance,
        position=position,
        contexts=contexts,
        search=search,
        damping=damping,
        seed=seed,
    )[0]


def rome_each(
    model: Model | nn.Module,
    rewrites: Sequence[Rewrite],
    layer: int,
    covariance: KeyCovariance | Float[Tensor, "d_mlp d_mlp"] | None = None,
    *,
    position: str = "subject_last",
    contexts: Sequence[str] | None = None,
    search: ValueSearch | None = None,
    damping: int | float = 0.0,
    seed: int = 0,
) -> list[Edit]:
    """The edit that `rome` gives for each fact alone, all searched in one batch.

    Arguments as for `rome`. Added together these edits are not ROME one after another, which
    measures each key on the model that the edits before have changed; for many facts at once use
    `memit`.

    Examples:
        >>> facts = [
        ...     iv.Rewrite("Question: Where does {} live? Answer:", name, " Arlen")
        ...     for name in ("Mia Stone", "Ada Marsh")
        ... ]
        >>> search = iv.ValueSearch(steps=2, drift_prompt=None)
        >>> edits = iv.knowledge.rome_each(model, facts, 1, contexts=[], search=search)
    """
    handle = as_model(model)
    chosen = search or ValueSearch()
    at = projection(handle, layer)
    facts = list(rewrites)
    requests = requests_of(handle, facts, position, contexts, CONTEXTS, seed)
    found = associations(handle, facts, requests, at, chosen, position)
    solve = Solver(moment_for(handle, covariance, at.layer, len(found[0].key)), damping, at.layer)
    made_on = Edit().on(handle).made_on
    return [
        Edit([one.delta(at, solve)], made_on, {"rome": _note(rewrite, at, one)})
        for rewrite, one in zip(facts, found, strict=True)
    ]


@dataclass(frozen=True)
class Association:
    """A key and the value it is to have.

    Args:
        key: [d_mlp], the mean over contexts.
        output: [d_model], what the projection gives for it now.
        value: [d_model], what it is to give.
        search: how the value was found.
    """

    key: Float[Tensor, " d_mlp"]
    output: Float[Tensor, " d_model"]
    value: Float[Tensor, " d_model"]
    search: Value

    def delta(self, at: Projection, solve: Solver) -> Delta:
        """The rank-one change: what the value lacks, times a row that the key meets with 1."""
        direction = solve(self.key[:, None])[:, 0]
        row = direction / (self.key @ direction)
        return at.delta((self.value - self.output)[:, None], row[None])


def associations(
    model: Model,
    rewrites: Sequence[Rewrite],
    requests: Sequence[Request],
    at: Projection,
    search: ValueSearch,
    position: str,
) -> list[Association]:
    """Each fact's averaged key and output, and the value searched for."""
    drifts = drift_rows(model, rewrites, search, position)
    values = search_values(model, requests, drifts, at.layer, at, search)
    rows = [row for request in requests for row in request.rows]
    keys, outputs = keys_and_outputs(model, at, rows)
    sizes = [len(request.rows) for request in requests]
    found = []
    for some, out, value in zip(keys.split(sizes), outputs.split(sizes), values, strict=True):
        output = out.mean(0)
        found.append(Association(some.mean(0), output, output + value.change, value))
    return found


def drift_rows(
    model: Model, rewrites: Sequence[Rewrite], search: ValueSearch, position: str
) -> list[Row | None]:
    """For each subject the prompt on which the next token should stay as it is."""
    if search.drift_prompt is None or not search.drift:
        return [None] * len(rewrites)
    rows = [prompt_row(model, search.drift_prompt, rewrite.subject) for rewrite in rewrites]
    if position == "last":  # there the value is added, so there it would do harm
        rows = [Row(row.ids, len(row.ids) - 1) for row in rows]
    return list(rows)


def _note(rewrite: Rewrite, at: Projection, found: Association) -> dict[str, object]:
    change, start = found.search.change, found.search.start
    return {
        "prompt": rewrite.text,
        "subject": rewrite.subject,
        "answer": rewrite.answer if isinstance(rewrite.answer, str | int) else [*rewrite.answer],
        "layer": at.layer,
        "loss": list(found.search.loss),
        "value_norm": float(torch.linalg.vector_norm(change) / torch.linalg.vector_norm(start)),
    }
