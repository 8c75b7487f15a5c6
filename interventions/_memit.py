"""MEMIT: many facts at once, spread over the MLPs of several layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp import Delta, Edit, InterpError, Model, Site
from interp._answers import gather_streams
from interp._model import as_model
from interventions._key_covariance import KeyCovariance, cholesky, damped, moment_for
from interventions._projection import Projection, keys_and_outputs, projection
from interventions._rewrite import Request, Rewrite, requests_of
from interventions._rome import drift_rows
from interventions._value import ValueSearch, search_values

CONTEXTS = ((5, 10),)  # (how many, of how many tokens)
SEARCH = ValueSearch(steps=25, clamp=0.75)


def memit(
    model: Model | nn.Module,
    rewrites: Sequence[Rewrite],
    layers: Sequence[int],
    covariance: KeyCovariance | Float[Tensor, "d_mlp d_mlp"] | None = None,
    *,
    weight: int | float = 20_000,
    position: str = "subject_last",
    contexts: Sequence[str] | None = None,
    search: ValueSearch | None = None,
    damping: int | float = 0.0,
    seed: int = 0,
) -> Edit:
    """Write many facts at once: in each layer `W + R K^T (weight C + K K^T)^-1`, in float64.

    That minimises `|D K - R|^2 + weight tr(D C D^T)`. K are the keys of all facts (means over
    contexts, at one token). R is what the stream after the last of the layers still lacks there,
    divided by the number of layers left; keys and R are measured anew after each layer. What the
    stream should be (z) is searched as in ROME, added after the last layer's block.

    Args:
        model: a handle or a bare PreTrainedModel with a tokenizer; left as it is.
        rewrites: facts, in any order.
        layers: ascending; blocks without a norm after the MLP.
        covariance: as for `rome`, for all of the layers.
        weight: how many tokens of ordinary text count against the facts. 20,000 is the code's for
            GPT-2 XL; a smaller model's keys may call for another: choose it on other facts.
        position: as for `rome`.
        contexts: as for `rome`; by default 5 of 10 tokens.
        search: how z is searched; by default 25 steps and a clamp of 0.75.
        damping: times the mean of C's diagonal, added to it.
        seed: of the contexts.

    Returns:
        An Edit of one Delta a layer, of a rank of at most the number of facts.

    Raises:
        InterpError: as for `rome`; layers out of order; a norm between the MLP and the stream.

    Examples:
        >>> facts = [
        ...     iv.Rewrite("Question: Where does {} live? Answer:", name, " Arlen")
        ...     for name in ("Mia Stone", "Ada Marsh")
        ... ]
        >>> search = iv.ValueSearch(steps=5, drift_prompt="Meet {}.")
        >>> covariance = iv.key_covariance(model, texts, [1, 2])
        >>> options = {"weight": 10, "damping": 0.1, "search": search}
        >>> edit = iv.memit(model, facts, [1, 2], covariance, **options)
        >>> [delta.parameter for delta in edit]
        ['model.layers.1.mlp.down_proj.weight', 'model.layers.2.mlp.down_proj.weight']

    Source: Meng et al. 2023 (arXiv 2210.07229) and its code.
    """
    handle = as_model(model)
    chosen = search or SEARCH
    places = _places(handle, layers)
    facts = list(rewrites)
    requests = requests_of(handle, facts, position, contexts, CONTEXTS, seed)
    last = places[-1].layer
    drifts = drift_rows(handle, facts, chosen, position)
    values = search_values(handle, requests, drifts, last, None, chosen)
    wanted = torch.stack([value.start + value.change for value in values])
    done: list[Delta] = []
    missing: list[float] = []
    for index, at in enumerate(places):
        with Edit(done).applied(handle):
            keys = _keys(handle, at, requests)
            lacking = wanted - _streams(handle, last, requests)
        missing.append(float(lacking.norm(dim=1).mean()))
        rest = lacking / (len(places) - index) / at.block.multiplier
        moment = damped(moment_for(handle, covariance, at.layer, keys.shape[1]), damping)
        done.append(at.delta(*spread(keys.T, rest.T, moment, weight, at.layer)))
    note = {
        "facts": len(facts),
        "layers": [at.layer for at in places],
        "weight": weight,
        "loss": [value.loss[-1] for value in values],
        "lacking": missing,
    }
    return Edit(done, notes={"memit": note}).on(handle)


def spread(
    keys: Float[Tensor, "d_mlp n"],
    rest: Float[Tensor, "d_model n"],
    moment: Float[Tensor, "d_mlp d_mlp"],
    weight: int | float,
    layer: int = 0,
) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "rank d_mlp"]]:
    """Factors of `R K^T (weight C + K K^T)^-1`: R, and the solution's transpose."""
    if not weight > 0:
        raise InterpError(f"weight={weight}: expected more than 0")
    factor = cholesky(weight * moment.double() + keys @ keys.T)
    if factor is None:
        raise InterpError(
            f"the covariance of layer {layer} has no inverse beside these {keys.shape[1]} facts; "
            f"measure it over more texts, or pass damping=0.01"
        )
    return rest, torch.cholesky_solve(keys, factor).T


def _places(model: Model, layers: Sequence[int]) -> list[Projection]:
    listed = [layers] if isinstance(layers, int) else list(layers)
    if not listed:
        raise InterpError("no layers to write into; name at least one")
    places = [projection(model, layer) for layer in listed]
    numbers = [at.layer for at in places]
    if numbers != sorted(set(numbers)):
        raise InterpError(f"layers={listed}: expected each once, in ascending order")
    for at in places:
        if at.block.post_mlp_norm is not None:
            raise InterpError(
                f"layer {at.layer} norms its MLP's output before adding it to the stream, so what "
                f"the stream lacks is no change of the projection's output; use iv.rome, which "
                f"searches its value before the norm"
            )
    return places


def _keys(model: Model, at: Projection, requests: Sequence[Request]) -> Float[Tensor, "n d_mlp"]:
    """Each fact's key, averaged over its contexts."""
    keys, _ = keys_and_outputs(model, at, [row for r in requests for row in r.rows])
    sizes = [len(request.rows) for request in requests]
    return torch.stack([some.mean(0) for some in keys.split(sizes)])


def _streams(model: Model, layer: int, requests: Sequence[Request]) -> Float[Tensor, "n d_model"]:
    """The stream after a block at each bare prompt's token."""
    site = Site("resid_post", layer)
    found = []
    for start in range(0, len(requests), 64):
        rows = [request.rows[0] for request in requests[start : start + 64]]
        batch = model.batch([list(row.ids) for row in rows])
        at = torch.arange(len(rows)), torch.tensor([row.at for row in rows])
        found.append(gather_streams(model, batch, [site], *at)[site].cpu().double())
    return torch.cat(found)
