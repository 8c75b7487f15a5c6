"""`path_patch`: what one head says to others directly, every other head held still."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp._capture import Prompts
from interp._errors import InterpError
from interp._hooked import ports_of
from interp._model import Model, as_model
from interp._patch.effects import PatchEffects
from interp._patch.exact import n_chunk
from interp._patch.metric import Metric, bind_metric
from interp._patch.pairs import Pairs, make_pairs
from interp._patch.path_run import Head, PathJob
from interp._patch.plan import Part, Place, n_heads, parts_of
from interp._patch.spans import Span, find_spans
from interp._reading import reading, require_unembed
from interp._site import Site


def path_patch(
    model: Model | nn.Module,
    clean: Prompts,
    corrupted: Prompts,
    receivers: Literal["logits"] | Place | Sequence[Place] = "logits",
    metric: Metric = "logit_difference",
    *,
    senders: Iterable[Head] | None = None,
    position: int | Sequence[Sequence[int]] = -1,
    direction: Literal["noising", "denoising"] = "noising",
    progress: bool = True,
) -> PatchEffects:
    """Path patching: the effect of a head on others' queries, keys or values, or on the logits.

    For each sender: run the prompt with the sender's output taken from the other prompt and every
    other head's frozen as it was, so that the change goes through MLPs and norms alone; record
    what the receivers would read; then run the prompt again with only that put into the receivers.
    Sender and receivers are at one position. Noising, the default, runs the clean prompt.

    Args:
        model: a handle or a bare PreTrainedModel.
        clean: prompts with the behaviour.
        corrupted: as many without it, of the same lengths.
        receivers: `"logits"`, or places of q, k or v such as `Place("q.4", [1, 3])`, all patched
            together.
        metric: as for `interp.patch`.
        senders: (layer, head) pairs; by default every head below the highest receiver.
        position: of sender and receivers: an index (negative from the end), or a list with one
            index for each prompt, such as `token_positions` gives. For `"logits"` the last.
        direction: `"noising"` or `"denoising"`.
        progress: show a bar where it takes more than two seconds.

    Returns:
        PatchEffects with z of the senders' layers: `eff["z.2"]` is [prompt 1 head], NaN for heads
        that were not senders; a sender at or above all receivers has no path and scores as the run.

    Raises:
        InterpError: receivers other than q, k and v, a head that there is not, logits read
            elsewhere than from the last position, pairs of different length.

    Examples:
        >>> pair = "Question: Where does Ann live?", "Question: Where does Bob live?"
        >>> direct = interp.path_patch(model, *pair, "logits").normalised
        >>> onto = interp.path_patch(model, *pair, interp.Place("q.4", [1]), senders=[(2, 0)])

    Source: Wang et al. 2022 (arXiv 2211.00593); at a position, as Prakash et al. 2024 (arXiv
    2402.14811) do.
    """
    handle = as_model(model)
    require_unembed(handle)
    if direction not in ("noising", "denoising"):
        raise InterpError(f"direction={direction!r}: expected 'noising' or 'denoising'")
    batch, other = handle.batch(clean), handle.batch(corrupted)
    noising = direction == "noising"
    pairs = make_pairs(batch, other, None, run_clean=noising)
    at = _one_position(position, pairs)
    parts = _receivers(handle, receivers, pairs)
    if not parts:
        _require_last(at, pairs)
    job = PathJob(
        handle, parts, _senders(handle, senders, parts), bind_metric(metric, handle, batch)
    )
    layers = sorted({layer for layer, _ in job.senders})
    nan = float("nan")
    scores = {
        f"z.{layer}": torch.full((len(batch), 1, n_heads(handle, Site("z", layer))), nan)
        for layer in layers
    }
    ends = torch.full((2, len(batch)), nan)
    total = len(batch) * len(job.senders)
    bar = tqdm(total=total, desc="path patch", delay=2, leave=False, disable=not progress)
    with reading(handle), bar:
        for rows, start in _chunks(handle, pairs, at, len(job.sites)):
            found, *both = job.run(rows, start, pairs, noising=noising)
            ends[:, rows] = torch.stack(both).to(ends)
            for number, (layer, head) in enumerate(job.senders):
                scores[f"z.{layer}"][rows, 0, head] = found[:, number].to(ends)
            bar.update(found.numel())
    return _as_record(handle, job, scores, ends, pairs, at, direction)


def _one_position(position: Any, pairs: Pairs) -> list[int]:
    spans: list[Span] = find_spans({"position": position}, pairs.partner).at[0]
    for index, span in enumerate(spans):
        if len(span) != 1:
            raise InterpError(
                f"sender and receivers are at one position, and prompt {index} is given "
                f"{list(span)}; run other positions apart"
            )
    return [span[0] for span in spans]


def _receivers(model: Model, receivers: Any, pairs: Pairs) -> tuple[Part, ...]:
    if isinstance(receivers, str):
        if receivers != "logits":
            raise InterpError(f"receivers={receivers!r}: expected 'logits', or interp.Place(...)")
        return ()
    places = [receivers] if isinstance(receivers, Place) else list(receivers)
    if not places or not all(isinstance(place, Place) for place in places):
        raise InterpError(
            "receivers: expected 'logits', or places such as interp.Place('q.4', [1])"
        )
    parts = parts_of(model, places, pairs.partner)
    for part in parts:
        if part.site.kind not in ("q", "k", "v"):
            raise InterpError(f"a receiver reads q, k or v, and {part.site} is none of them")
    sites = [part.site for part in parts]
    if len(set(sites)) < len(sites):
        raise InterpError(f"receivers name {sites[0]} twice; put its heads into one place")
    return parts


def _senders(model: Model, senders: Iterable[Head] | None, parts: tuple[Part, ...]) -> list[Head]:
    top = max((part.site.layer or 0 for part in parts), default=model.anatomy.n_layers)
    if senders is None:
        sites = [site for site in ports_of(model, "z.*") if (site.layer or 0) < top]
        found = [(site.layer or 0, h) for site in sites for h in range(n_heads(model, site))]
    else:
        found = sorted({(int(layer), int(head)) for layer, head in senders})
        for layer, head in found:
            ports_of(model, Site("z", layer))  # refuses layers that there are not
            if not 0 <= head < n_heads(model, Site("z", layer)):
                raise InterpError(
                    f"sender {(layer, head)}: layer {layer} has heads 0 to "
                    f"{n_heads(model, Site('z', layer)) - 1}"
                )
    if not found:
        raise InterpError("no head lies below the receivers, so there is no path to patch")
    return found


def _require_last(at: Sequence[int], pairs: Pairs) -> None:
    for index, (position, ids) in enumerate(zip(at, pairs.base, strict=True)):
        if position != len(ids) - 1:
            raise InterpError(
                f"prompt {index}: with all other heads frozen, position {position} has no path to "
                f"the last logits; use position=-1, or name receivers"
            )


def _chunks(
    model: Model, pairs: Pairs, at: Sequence[int], n_sites: int
) -> Iterable[tuple[Int[Tensor, " prompt"], int]]:
    """Prompts of one length with one position."""
    longest = max(map(len, pairs.base))
    for rows in pairs.chunks(n_chunk(model.anatomy, longest, n_sites)):
        by_position: dict[int, list[int]] = defaultdict(list)
        for row in rows.tolist():
            by_position[at[row]].append(row)
        for position, members in by_position.items():
            yield torch.tensor(members), position


def _as_record(
    model: Model,
    job: PathJob,
    scores: dict[str, Tensor],
    ends: Tensor,
    pairs: Pairs,
    at: Sequence[int],
    direction: str,
) -> PatchEffects:
    from interp._patch.patch import token_texts

    named = [
        str(part.site) + ("" if part.units is None else " heads " + " ".join(map(str, part.units)))
        for part in job.receivers
    ]
    return PatchEffects(
        scores,
        ends[0],
        ends[1],
        ["position"],
        [[[position]] for position in at],
        {name: [[head] for head in range(score.shape[2])] for name, score in scores.items()},
        token_texts(model, pairs),
        meta={
            "model": model.name or type(model.module).__name__,
            "revision": model.revision,
            "metric": job.metric.name,
            "direction": direction,
            "method": "path",
            "receivers": named or ["logits"],
            "n_layers": model.anatomy.n_layers,
        },
    )
