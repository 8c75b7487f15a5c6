"""`attribute`: what each unit adds to a target at the last position, and exact references."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp._answers import text_of
from interp._attribute_baseline import Baseline, find_baselines, n_experts, refuse_zero
from interp._attribute_methods import (
    AlongPath,
    OneByOne,
    Recorded,
    end_point,
    gauss_legendre,
    record,
)
from interp._attribute_plan import prompt_chunks, site_groups
from interp._attribute_target import LogitFunction, Target, bind
from interp._attribution import Attribution
from interp._capture import Prompts
from interp._errors import InterpError, UnsupportedSite
from interp._hooked import ports_of
from interp._model import Model, as_model
from interp._ports import Port
from interp._reading import reading, require_unembed
from interp._site import KINDS, Site

Method = Literal["integrated_gradients", "gradient_x_activation", "ablation"]
_KINDS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")
_ALLOWED = 0.01  # completeness error


def attribute(
    model: Model | nn.Module,
    prompts: Prompts,
    target: Target | str | LogitFunction = "prob",
    site: str | Site | Iterable[str | Site] = "mlp_post",
    *,
    method: Method = "integrated_gradients",
    baseline: Baseline | None = None,
    reference: Prompts | None = None,
    nodes: int = 16,
    by: Literal["unit", "head"] = "unit",
    check: bool = True,
    progress: bool = True,
) -> Attribution:
    """What each unit of a site adds to a target at the last position, for every layer at once.

    Integrated gradients along the straight line from a baseline a' to the activation a of one
    site, at the prompt's last position, everything before it as it is:
    IG_j = (a_j - a'_j) * int_0^1 dF/da_j (a' + t (a - a')) dt, by Gauss-Legendre nodes. A site's
    parts sum to F(a) - F(a'); how far they miss is `completeness`. The other two methods are
    references: `"gradient_x_activation"` is (a - a') * dF/da at a, and `"ablation"` is exactly
    F(a) - F(a with unit j at a'_j), unit by unit.

    A last-position target depends on one token's stream alone, so the prefix is run once and the
    nodes of all layers go up together, each layer's joining at its own: one pass, one backward.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: a batch, texts or token ids.
        target: `"prob"` (default), `"logprob"`, `"logit"` or `"logit_difference"` of the predicted
            token; a `Target` for a given answer; or a function of last logits [row vocab] -> [row]
            that treats rows apart. Rows are nodes of all prompts. Where a probability is nearly 1
            its gradient vanishes, and a logit difference says more.
        site: `"mlp_post"`, `"z.*"`, `"resid_mid.3"`, ... or a list: any of resid_pre, z, attn_out,
            resid_mid, mlp_post, mlp_out, resid_post.
        method: `"integrated_gradients"`, `"gradient_x_activation"` or `"ablation"`.
        baseline: `"zero"`, `"mean"` (of last positions), a tensor that broadcasts to
            [batch *unit], or a mapping from site to such tensors ([expert d_mlp] for expert
            neurons). Default: zero, but the mean where a norm reads only the direction of what
            would be scaled: residual sites, and z and mlp_post before a post-norm.
        reference: prompts for the mean (default: `prompts` themselves).
        nodes: of the quadrature.
        by: `"head"` gives one number for each head of z: parts summed, or heads ablated whole.
        check: refuse integrated gradients whose completeness error exceeds 1 %.
        progress: show a bar where it takes more than two seconds.

    Returns:
        Attribution: `attr["mlp_post.3"]` is [batch d_mlp], `.table()`, `.top(k)`, `.mean()`.

    Raises:
        InterpError: a completeness error above 1 %, a zero baseline where it means nothing, a
            target or baseline that cannot be used.
        UnsupportedSite: a site that this architecture does not have, or that is none of the above.

    Examples:
        >>> attr = interp.attribute(model, texts[:2], "logprob", "mlp_post")
        >>> attr.top(5)                                   # the neurons that matter most
        >>> float(attr.completeness.max()) < 0.01
        True
        >>> heads = interp.attribute(model, texts[:2], site="z", by="head")["z.3"]

    Source: integrated gradients, Sundararajan et al. 2017 (arXiv 1703.01365); on neurons at the
    last position, arXiv 2507.09185, of which we read the description and not the formula: path,
    baseline and target are our specification.
    """
    handle = as_model(model)
    require_unembed(handle)
    anatomy = handle.anatomy
    batch = handle.batch(prompts)
    ports = _ports(handle, site, by)
    find = _method(method, nodes, heads=by == "head")
    bound = bind(target, handle, batch)
    baselines = find_baselines(handle, batch, ports, baseline, reference)
    if method == "integrated_gradients":
        refuse_zero(anatomy, baselines)
    groups = [[one] for one in ports]
    if find.together:
        longest = int(batch.lengths.max())
        groups = site_groups(anatomy, list(ports), longest, find.n_rows)
    chunks = prompt_chunks(anatomy, groups, batch.lengths, find.n_rows)
    meta = {
        "model": handle.name or type(handle.module).__name__,
        "revision": handle.revision,
        "method": method,
        "target": bound.kind,
        "baseline": {str(site): name for site, name in baselines.names.items()},
        "nodes": nodes,
        "by": by,
        "n_layers": anatomy.n_layers,
    }
    parts = []
    bar = tqdm(total=len(batch) * len(ports), desc="attribute", delay=2, disable=not progress)
    # Tensors made in inference mode could not enter a graph.
    with torch.inference_mode(False), reading(handle), bar:
        for rows in chunks:
            of = record(handle, batch, rows, ports, baselines, bound)
            values: dict[Site, Tensor] = {}
            starts: dict[Site, Tensor] = {}
            for group in groups:
                found = find(of, group)
                values |= found[0]
                starts |= found[1]
                bar.update(len(rows) * len(group))
            parts.append(_as_record(handle, of, values, starts, meta))
            if check and method == "integrated_gradients":
                _require_complete(handle, parts[-1], rows)
    return _joined(parts, torch.cat(chunks))


def _method(method: str, nodes: int, *, heads: bool) -> AlongPath | OneByOne:
    if method == "integrated_gradients":
        return gauss_legendre(nodes, heads=heads)
    if method == "gradient_x_activation":
        return end_point(heads=heads)
    if method == "ablation":
        return OneByOne(heads)
    raise InterpError(f"method={method!r}: expected one of {', '.join(get_args(Method))}")


def _ports(model: Model, site: str | Site | Iterable[str | Site], by: str) -> dict[Site, Port]:
    """In the order in which a forward meets them."""
    ports = ports_of(model, site)
    for found in ports:
        if found.kind not in _KINDS:
            raise UnsupportedSite(
                f"{found} cannot be attributed: expected one of {', '.join(_KINDS)}, where the "
                f"last position's value alone is what the rest of the model goes on with"
            )
        if by == "head" and found.kind != "z":
            raise InterpError(f"by='head' is for z, and {found} has no heads; use by='unit'")
    if by not in ("unit", "head"):
        raise InterpError(f"by={by!r}: expected 'unit' or 'head'")
    order = sorted(ports, key=lambda site: (site.layer or 0, KINDS.index(site.kind)))
    return {site: ports[site] for site in order}


def _as_record(
    model: Model,
    of: Recorded,
    values: dict[Site, Tensor],
    starts: dict[Site, Tensor],
    meta: dict[str, Any],
) -> Attribution:
    tokens = of.tokens.tolist()
    return Attribution(
        {site: values[site].cpu() for site in of.ports},
        of.output.cpu(),
        torch.stack([starts[site].cpu() for site in of.ports], dim=1),
        [text_of(model, token) if token >= 0 else "" for token in tokens],
        {site: ids.cpu() for site, ids in of.expert_ids.items()},
        meta
        | {
            "n_experts": {str(site): n_experts(model, site) for site in of.expert_ids},
            "eps": torch.finfo(of.recording.streams[0].dtype).eps,
        },
    )


def _require_complete(model: Model, part: Attribution, rows: Int[Tensor, " prompt"]) -> None:
    error = part.completeness.nan_to_num(nan=float("inf"))
    if bool((error <= _ALLOWED).all()):
        return
    row, column = divmod(int(error.argmax()), error.shape[1])
    site = part.sites[column]
    change = float(part.output[row] - part.baseline_output[row, column])
    advice = f"use more nodes than {part.meta['nodes']}, a nearer baseline such as 'mean'"
    if any(block.experts is not None for block in model.anatomy.blocks):
        advice = "experts may switch along the path, which no gradient sees: use method='ablation'"
    if part.meta["eps"] > 1e-4:
        advice = f"load the model in float32, or {advice}"
    raise InterpError(
        f"prompt {int(rows[row])}, {site}: the parts sum to {float(part[site][row].sum()):.4g} "
        f"where the target changes by {change:.4g}, off by {float(error[row, column]):.1%} and "
        f"over the 1 % allowed; {advice}, or check=False to have the values with their error"
    )


def _joined(parts: list[Attribution], rows: Int[Tensor, " batch"]) -> Attribution:
    """The chunks as one record, prompts in the order in which they were given."""
    order = rows.argsort()

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[order]

    answers = [answer for part in parts for answer in part.answers]
    return Attribution(
        {site: join([part.values[site] for part in parts]) for site in parts[0].values},
        join([part.output for part in parts]),
        join([part.baseline_output for part in parts]),
        [answers[index] for index in order.tolist()],
        {s: join([part.expert_ids[s] for part in parts]) for s in parts[0].expert_ids},
        parts[0].meta,
    )
