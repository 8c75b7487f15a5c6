"""`patch`: what the rest of the model makes of an activation taken from another run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from interp._answers import text_of
from interp._capture import Prompts
from interp._errors import InterpError
from interp._model import Model, as_model
from interp._patch.effects import PatchEffects
from interp._patch.measure import Measured, Question, measured
from interp._patch.metric import Metric, bind_metric
from interp._patch.pairs import Align, Pairs, make_pairs
from interp._patch.plan import Groups, Place, Plan, grid, joint
from interp._patch.source import check_source
from interp._patch.spans import PatchPositions, find_spans
from interp._reading import require_unembed
from interp._site import Site

Direction = Literal["denoising", "noising"]
Method = Literal["exact", "attribution"]
Sites = str | Site | Iterable[str | Site] | Mapping[str, Sequence[Place]]


def patch(
    model: Model | nn.Module,
    clean: Prompts,
    corrupted: Prompts | None = None,
    sites: Sites = "resid_post",
    metric: Metric = "logit_difference",
    *,
    source: Model | nn.Module | None = None,
    positions: PatchPositions = "each",
    groups: Groups | None = None,
    direction: Direction = "denoising",
    method: Method = "exact",
    compare: bool | int = False,
    align: Align = None,
    seed: int = 0,
    progress: bool = True,
) -> PatchEffects:
    """Activation patching: the metric of a run with one activation put in from another run.

    Denoising runs the corrupted prompt and puts the clean activation in: what it restores is
    enough. Noising runs the clean prompt and puts the corrupted activation in: what it breaks was
    needed. Beside each score stands its normalised form, (score - corrupted) / (clean - corrupted).

    A patch at layer l and position p leaves everything below l and before p as it was, so only
    the rest is run: all patches of a layer in one batch, from their layer up, over the cached
    prefix where that pays, and only the logits that the metric needs. Patches that change no bit
    are not run and score as the run itself; ones of the stream that leave nothing else are the
    other run.

    Args:
        model: in which patches are put.
        clean: prompts with the behaviour: a batch, texts or token ids.
        corrupted: as many prompts without it, token for token alike; with `source` they may be
            left out and are then the clean ones.
        sites: any of resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, pattern, z and
            mlp_post, or a mapping from a name to places that are patched together under it.
        metric: of the last position: `"logit_difference"`, `"logit"`, `"prob"`, `"logprob"` (of the
            clean run's prediction, against the corrupted run's), `"accuracy"`, `"kl"` (KL(clean ||
            patched), in nats); an `interp.Target` or `interp.Accuracy` for given answers; or a
            function of last logits [row vocab] -> [row] that treats rows apart.
        source: another checkpoint of the same architecture and vocabulary, which runs the clean
            prompts: cross-model activation patching.
        positions: `"each"` (one patch each), `"together"` (all in one patch), `"last"`, an index or
            indices (one patch each), or a mapping from a name to positions patched together (for
            all prompts, or a list for each). In real tokens of the prompt that is run.
        groups: heads or neurons that are patched together, for all such sites or by site; by
            default each head on its own and the neurons of a layer together.
        direction: `"denoising"` or `"noising"`.
        method: `"exact"`, or `"attribution"`: the linear estimate
            score + <gradient, donor - own>, from one forward and one backward of the run.
        compare: with attribution, run exactly too: all patches, or so many drawn at random;
            `.agreement()` then says how well they match.
        align: pairs of different length are refused; `"ends"` patches the tokens that both begin
            with and those that both end in.
        seed: of the draw for `compare`.
        progress: show a bar where it takes more than two seconds.

    Returns:
        PatchEffects: `eff["resid_post.3"]` is [prompt span], `eff["z.3"]` [prompt span head];
        `.normalised`, `.table()`, `.summary()`, `.plot()`.

    Raises:
        InterpError: pairs that do not fit, an unknown metric or one of the wrong shape, a source
            with another vocabulary or other shapes, NaN activations.
        UnsupportedSite: a site that cannot be patched, or that this architecture does not have.

    Examples:
        >>> pair = "Question: Where does Ann live?", "Question: Where does Bob live?"
        >>> eff = interp.patch(model, *pair, ["resid_pre.0", "resid_post"])
        >>> eff["resid_pre.0"].shape == (1, len(eff.tokens[0]))
        True
        >>> heads = interp.patch(model, *pair, "z", positions="together").stack("z")
        >>> fast = interp.patch(model, *pair, "z", method="attribution", compare=20).agreement()

    Source: Vig et al. 2020 (arXiv 2004.12265), Meng et al. 2022 (arXiv 2202.05262), Zhang and Nanda
    2023 (arXiv 2309.16042); attribution patching is Nanda 2023 and Syed et al. 2023 (arXiv
    2310.10348); across models, Prakash et al. 2024 (arXiv 2402.14811).
    """
    handle = as_model(model)
    other = handle if source is None else as_model(source)
    _check_words(direction, method, compare)
    for one in (handle, other):
        require_unembed(one)
    if source is not None:
        check_source(handle, other)
    if corrupted is None and source is None:
        raise InterpError(
            "no corrupted prompts; give some, or source= another checkpoint to take the "
            "activations from on the same prompts"
        )
    # A tensor made in inference mode could not enter a graph.
    with torch.inference_mode(False):
        reader = handle if other.tokenizer is None else other  # of one vocabulary
        batches = reader.batch(clean), reader.batch(clean if corrupted is None else corrupted)
        noising = direction == "noising"
        pairs = make_pairs(*batches, align, run_clean=noising)
        runner, giver = (other, handle) if noising else (handle, other)
        bound = bind_metric(metric, reader, batches[0])
        if method == "attribution" and not bound.differentiable:
            raise InterpError("accuracy has no gradient; attribute 'prob' or 'logit_difference'")
        if isinstance(sites, Mapping):
            plan = joint(runner, sites, pairs.partner)
        else:
            plan = grid(runner, sites, find_spans(positions, pairs.partner), groups)
        found = measured(
            Question(runner, giver, pairs, plan, bound, noising),
            estimate=method == "attribution",
            exact=_drawn(len(plan.patches), compare, seed),
            progress=progress,
        )
    meta = {
        "model": handle.name or type(handle.module).__name__,
        "revision": handle.revision,
        "source": None if source is None else other.name or type(other.module).__name__,
        "metric": bound.name,
        "direction": direction,
        "method": method,
        "joint": isinstance(sites, Mapping),
        "n_layers": handle.anatomy.n_layers,
        "seed": seed if compare else None,
    }
    return as_record(runner, pairs, plan, found, meta)


def _check_words(direction: Any, method: Any, compare: bool | int) -> None:
    if direction not in get_args(Direction):
        raise InterpError(f"direction={direction!r}: expected 'denoising' or 'noising'")
    if method not in get_args(Method):
        raise InterpError(f"method={method!r}: expected 'exact' or 'attribution'")
    if compare and method == "exact":
        raise InterpError(
            "compare= sets attribution beside exact patches: use method='attribution'"
        )
    if compare < 0:
        raise InterpError(f"compare={compare}: expected True, or how many patches to compare")


def _drawn(n_patches: int, compare: bool | int, seed: int) -> list[int]:
    """Which patches to run exactly beside the linear estimate."""
    if compare is True or compare >= n_patches:
        return list(range(n_patches))
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(n_patches, generator=generator)[: int(compare)].tolist())


def as_record(
    runner: Model, pairs: Pairs, plan: Plan, found: Measured, meta: dict[str, Any]
) -> PatchEffects:
    """Scores in the order of a plan's patches, by site, span and unit."""

    def by_name(values: Tensor) -> dict[str, Tensor]:
        sizes = [spans * units for spans, units in plan.shape.values()]
        parts = values.split(sizes, dim=1)
        return {
            name: part.unflatten(1, shape).contiguous()
            for (name, shape), part in zip(plan.shape.items(), parts, strict=True)
        }

    return PatchEffects(
        by_name(found.score),
        found.clean,
        found.corrupted,
        plan.spans.names,
        [[list(span[prompt]) for span in plan.spans.at] for prompt in range(len(pairs.base))],
        {name: [list(unit) for unit in units] for name, units in plan.units.items()},
        token_texts(runner, pairs),
        by_name(found.exact) if bool(found.exact.isfinite().any()) else {},
        meta,
    )


def token_texts(model: Model, pairs: Pairs) -> list[list[str]]:
    """The tokens of the prompts that are run, as text."""
    names = {token: text_of(model, token) for token in {t for ids in pairs.base for t in ids}}
    return [[names[token] for token in ids] for ids in pairs.base]
