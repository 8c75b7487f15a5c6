"""Every patch of a plan, run: what changes nothing or everything is not run at all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp._anatomy import Anatomy
from interp._attribute_plan import _width
from interp._attribute_sweep import Score
from interp._errors import InterpError
from interp._patch.metric import scored
from interp._patch.plan import HEADS, Part, Patch, Units
from interp._patch.run import Run, boundary, may_window, windows
from interp._patch.sweep import Write, sweep
from interp._site import Site

_NUMBERS = 2**23  # in one block's matrices at once, on a CPU: what its caches like
_CALL = 64  # what calling a block costs on a CPU, in tokens


@dataclass(frozen=True)
class Donor:
    """What is put into a run.

    Args:
        acts: site -> [prompt pos *unit], at the positions of the run.
        score: of the donor's own run, where a patch that makes the stream equal to the donor's
            ends in it; else None.
    """

    acts: Mapping[Site, Tensor]
    score: Float[Tensor, " prompt"] | None = None


@dataclass(frozen=True, order=True)
class _Row:
    """A patch in a prompt, in the order in which rows are worked: by first position, by layer."""

    first: int
    entry: int
    prompt: int = field(compare=False)
    patch: int = field(compare=False)


def run_patches(
    run: Run,
    donor: Donor,
    patches: Sequence[Patch],
    score: Score,
    unpatched: Tensor,
    tick: Callable[[int], object] = lambda _: None,
) -> Float[Tensor, "prompt patch"]:
    """The metric with each patch in each prompt; NaN where a patch has no position in a prompt.

    Args:
        run: what is patched; prompt i of a part's positions is its prompt i.
        donor: what is put in.
        patches: each on its own.
        score: the metric of last streams.
        unpatched: the metric of the run as it is, [prompt].
        tick: told how many more patches of a prompt are done.
    """
    changed, reached = _Changes(run, donor), partial(_reaches_the_end, run)
    found = torch.full((len(run.ids), len(patches)), float("nan"), dtype=unpatched.dtype)
    rows: list[_Row] = []
    for number, patch in enumerate(patches):
        for prompt in range(len(run.ids)):
            spans = [part.at[prompt] for part in patch.parts]
            if not any(spans):
                continue
            if not any(changed.by(part, prompt) and reached(part, prompt) for part in patch.parts):
                found[prompt, number] = unpatched[prompt]  # the patch is what stands there
            elif donor.score is not None and changed.wholly(patch, prompt):
                found[prompt, number] = donor.score[prompt]  # from here on it is the donor's run
            else:
                first = min(span[0] for span in spans if span)
                rows.append(_Row(first, _entry(patch), prompt, number))
    tick(found.numel() - len(rows))
    masks = _Masks(run)
    for chunk, streams in _sweeps(run, donor, patches, sorted(rows), masks):
        of = torch.tensor([row.prompt for row in chunk])
        values = scored(score, streams, of, run.model.anatomy.d_vocab)
        found[of, torch.tensor([row.patch for row in chunk])] = values.to(found)
        tick(len(chunk))
    return found


def _reaches_the_end(run: Run, part: Part, prompt: int) -> bool:
    """Whether the last logits can see a part: of other positions the top block reads k and v."""
    top = part.site.layer == run.model.anatomy.n_layers - 1
    if not top or part.site.kind in ("resid_pre", "k", "v"):
        return True
    return run.n_tokens - 1 in part.at[prompt]


def _entry(patch: Patch) -> int:
    """The first block that sees the patch."""
    layers = []
    for part in patch.parts:
        below = boundary(part.site)
        layers.append((part.site.layer or 0) if below is None else below)
    return min(layers)


def _sweeps(
    run: Run, donor: Donor, patches: Sequence[Patch], rows: Sequence[_Row], masks: _Masks
) -> Iterator[tuple[list[_Row], Float[Tensor, "row d_model"]]]:
    """Rows that were run together, and their last streams."""
    anatomy = run.model.anatomy
    groups = _by_start(rows, run) if may_window(run) else [(0, list(rows))]
    found = windows(run, [start for start, _ in groups])
    for (_, members), (start, recording) in zip(groups, found, strict=True):
        height = rows_at_once(anatomy, run.n_tokens - start, run.ids.device)
        members = sorted(members, key=lambda row: (row.entry, row.patch, row.prompt))
        for begin in range(0, len(members), height):
            chunk = members[begin : begin + height]
            writes = _writes(chunk, patches, donor, masks)
            prompt = torch.tensor([row.prompt for row in chunk])
            entry = [row.entry for row in chunk]
            streams = sweep(recording, run.ports, writes, entry, prompt, start=start)
            yield chunk, streams[:, -1]


def rows_at_once(anatomy: Anatomy, n_tokens: int, device: torch.device) -> int:
    """How many variants of so many tokens to run together."""
    numbers = _NUMBERS if device.type == "cpu" else 64 * _NUMBERS
    return max(1, numbers // (_width(anatomy) * n_tokens))


def _by_start(rows: Sequence[_Row], run: Run) -> list[tuple[int, list[_Row]]]:
    """Rows by the position from which they are run, which is not after their first.

    A start costs a forward of the tokens that follow the start before it; rows that are run from
    before their first position cost the tokens between. So one is opened when it costs less.
    """
    n_layers = run.model.anatomy.n_layers
    call = _CALL if run.ids.device.type == "cpu" else 256 * _CALL
    groups: list[tuple[int, list[_Row]]] = [(0, [])]
    wasted = 0
    for first, same in groupby(rows, key=lambda row: row.first):
        members = list(same)
        start = groups[-1][0]
        weight = sum(n_layers - row.entry for row in members)
        opening = n_layers * (len(run.ids) * (run.n_tokens - start) + 2 * call)
        if wasted + weight * (first - start) > opening:
            groups.append((first, []))
            start, wasted = first, 0
        groups[-1][1].extend(members)
        wasted += weight * (first - start)
    return [group for group in groups if group[1]]


def _writes(
    chunk: Sequence[_Row], patches: Sequence[Patch], donor: Donor, masks: _Masks
) -> dict[Site, Write]:
    at: dict[Site, tuple[list[int], list[int], list[int], list[int]]] = defaultdict(
        lambda: ([], [], [], [])
    )
    for index, row in enumerate(chunk):
        for part in patches[row.patch].parts:
            span = part.at[row.prompt]
            index_of, positions, prompts, kinds = at[part.site]
            index_of += [index] * len(span)
            positions += span
            prompts += [row.prompt] * len(span)
            kinds += [masks.number(part.site, part.units)] * len(span)
    writes = {}
    for site, (index_of, positions, prompts, kinds) in at.items():
        place = torch.tensor(positions, dtype=torch.long)
        value = donor.acts[site][torch.tensor(prompts, dtype=torch.long), place]
        mask = masks.of(site, kinds)
        writes[site] = Write(torch.tensor(index_of, dtype=torch.long), place, value, mask)
    return writes


class _Masks:
    """Which units of a site take a value, each set of units once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._numbers: dict[Site, dict[Units | None, int]] = defaultdict(dict)

    def number(self, site: Site, units: Units | None) -> int:
        known = self._numbers[site]
        return known.setdefault(units, len(known))

    def of(self, site: Site, kinds: list[int]) -> Bool[Tensor, "entry ..."] | None:
        known = self._numbers[site]
        if set(known) == {None}:
            return None
        acts = self._run.at(site)
        every = torch.stack([unit_mask(acts, site, units) for units in known])
        return every[torch.tensor(kinds, dtype=torch.long)]


def unit_mask(acts: Tensor, site: Site, units: Units | None) -> Bool[Tensor, "..."]:
    """True at the chosen units: [head 1] at heads, [d_mlp] at neurons.

    Raises:
        InterpError: a neuron that there is not.
    """
    if units is not None and units[-1] >= acts.shape[2]:
        raise InterpError(
            f"{site} has {acts.shape[2]} units (0 to {acts.shape[2] - 1}), and {units[-1]} was "
            f"asked for"
        )
    mask = torch.zeros(acts.shape[2], dtype=torch.bool)
    mask[slice(None) if units is None else list(units)] = True
    return mask[:, None] if site.kind in HEADS else mask


class _Changes:
    """Where a run and its donor differ, to the bit."""

    def __init__(self, run: Run, donor: Donor) -> None:
        self._run, self._donor = run, donor
        self._known: dict[tuple[Site, Units | None], list[list[bool]]] = {}

    def by(self, part: Part, prompt: int) -> bool:
        """Whether putting a part in changes anything."""
        where = self._where(part.site, part.units)[prompt]
        return any(where[position] for position in part.at[prompt])

    def wholly(self, patch: Patch, prompt: int) -> bool:
        """Whether a patch of the stream leaves nothing of the run's own in it."""
        if len(patch.parts) != 1 or boundary(patch.parts[0].site) is None:
            return False
        where = self._where(patch.parts[0].site, None)[prompt]
        span = set(patch.parts[0].at[prompt])
        return all(position in span for position, differs in enumerate(where) if differs)

    def _where(self, site: Site, units: Units | None) -> list[list[bool]]:
        key = site, units
        if key not in self._known:
            base = self._run.at(site)
            differs = base != self._donor.acts[site].to(base)
            if units is not None:
                differs = differs & unit_mask(base, site, units).to(base.device)
            self._known[key] = differs.flatten(2).any(-1).tolist()
        return self._known[key]


def n_chunk(anatomy: Anatomy, n_tokens: int, n_sites: int) -> int:
    """How many prompts' runs to hold at once."""
    numbers = (anatomy.n_layers + 1 + 2 * n_sites) * anatomy.d_model * n_tokens
    return max(1, math.floor(2**27 / (4 * numbers)))
