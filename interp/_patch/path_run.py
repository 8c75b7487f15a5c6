"""The two runs of path patching: what a sender says, and what its receivers make of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp._attribute_sweep import Score
from interp._model import Model
from interp._patch.exact import rows_at_once, unit_mask
from interp._patch.measure import both_ends
from interp._patch.metric import BoundMetric, scored
from interp._patch.pairs import Pairs
from interp._patch.plan import Part
from interp._patch.run import Run, may_window, run_once, windows
from interp._patch.sweep import Write, sweep
from interp._replay import Replay
from interp._site import Site

Head = tuple[int, int]


@dataclass(frozen=True)
class PathJob:
    """Everything that is the same for all prompts."""

    model: Model
    receivers: tuple[Part, ...]
    senders: list[Head]
    metric: BoundMetric

    @property
    def sites(self) -> list[Site]:
        """Every site that is read or written."""
        layers = sorted({layer for layer, _ in self.senders})
        frozen = range(layers[0] + 1, self.model.anatomy.n_layers)
        sites = [Site("z", layer) for layer in layers]
        sites += [Site("attn_out", layer) for layer in frozen]
        return sites + [part.site for part in self.receivers]

    def run(
        self, rows: Int[Tensor, " prompt"], at: int, pairs: Pairs, *, noising: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [prompt sender], of the clean runs, of the corrupted runs."""
        run, given = (
            run_once(self.model, [side[i] for i in rows.tolist()], self.sites)
            for side in (pairs.base, pairs.donor)
        )
        ends, scores = both_ends(self.metric, rows, *((run, given) if noising else (given, run)))
        unpatched, score = (ends[0], scores[0]) if noising else (ends[1], scores[1])
        found = unpatched[:, None].repeat(1, len(self.senders))
        todo = [
            (prompt, number)
            for number, (layer, head) in enumerate(self.senders)
            for prompt in range(len(rows))
            if self._has_path(layer) and _differs(run, given, prompt, at, layer, head)
        ]
        todo.sort(key=lambda one: self.senders[one[1]])
        if todo:
            starts = [at] if may_window(run) else [0]
            ((start, recording),) = windows(run, starts)
            height = rows_at_once(self.model.anatomy, run.n_tokens - start, run.ids.device)
            for begin in range(0, len(todo), height):
                some = todo[begin : begin + height]
                step = _Step(self, run, given, recording, start, at, some)
                values = step.scores(score)
                prompt, number = torch.tensor(some).unbind(1)
                found[prompt, number] = values.to(found)
        return found, ends[0], ends[1]

    def _has_path(self, layer: int) -> bool:
        return not self.receivers or any((p.site.layer or 0) > layer for p in self.receivers)


@dataclass(frozen=True)
class _Step:
    """Some (prompt, sender) pairs, run together."""

    job: PathJob
    run: Run
    given: Run
    recording: Replay
    start: int
    at: int
    todo: list[tuple[int, int]]

    def scores(self, score: Score) -> Float[Tensor, " row"]:
        """The metric of each."""
        prompt = torch.tensor([one for one, _ in self.todo])
        stream, heard = self._say(prompt)
        if self.job.receivers:
            stream = self._hear(prompt, heard)
        return scored(score, stream[:, -1], prompt, self.job.model.anatomy.d_vocab)

    def _say(self, prompt: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
        """With the senders changed and all other heads frozen: last streams, what is received."""
        senders = [self.job.senders[number] for _, number in self.todo]
        layers = [layer for layer, _ in senders]
        heard = {
            part.site: self.run.at(part.site)[prompt, self.at].clone()
            for part in self.job.receivers
        }

        def hear(tensor: Tensor, site: Site) -> None:
            heard[site][: len(tensor)] = tensor[:, self.at - self.start]

        stream = sweep(
            self.recording,
            self.run.ports,
            {**self._sent(prompt, senders), **self._frozen(prompt, layers)},
            layers,
            prompt,
            start=self.start,
            reads=dict.fromkeys(heard, hear),
        )
        return stream, heard

    def _sent(self, prompt: Tensor, senders: Sequence[Head]) -> Mapping[Site, Write]:
        by_layer: dict[int, list[int]] = defaultdict(list)
        for row, (layer, _) in enumerate(senders):
            by_layer[layer].append(row)
        writes = {}
        for layer, rows in by_layer.items():
            site, at = Site("z", layer), torch.tensor(rows)
            acts = self.given.at(site)
            masks = [unit_mask(acts, site, (senders[row][1],)) for row in rows]
            place = torch.full_like(at, self.at)
            writes[site] = Write(at, place, acts[prompt[at], self.at], torch.stack(masks))
        return writes

    def _frozen(self, prompt: Tensor, layers: Sequence[int]) -> Mapping[Site, Write]:
        """What attention adds above each sender stays as it was, there and after."""
        after = torch.arange(max(self.start, self.at), self.run.n_tokens)
        writes = {}
        for layer in range(layers[0] + 1, self.job.model.anatomy.n_layers):
            rows = torch.tensor([row for row, own in enumerate(layers) if own < layer])
            site = Site("attn_out", layer)
            row, place = rows.repeat_interleave(len(after)), after.repeat(len(rows))
            writes[site] = Write(row, place, self.run.at(site)[prompt[row], place])
        return writes

    def _hear(self, prompt: Tensor, heard: Mapping[Site, Tensor]) -> Tensor:
        """The run as it was but for what the receivers read."""
        row = torch.arange(len(prompt))
        place = torch.full_like(row, self.at)
        writes = {}
        for part in self.job.receivers:
            mask = unit_mask(self.run.at(part.site), part.site, part.units)
            writes[part.site] = Write(
                row, place, heard[part.site], mask.expand(len(prompt), -1, -1)
            )
        lowest = min(part.site.layer or 0 for part in self.job.receivers)
        entry = [lowest] * len(prompt)
        return sweep(self.recording, self.run.ports, writes, entry, prompt, start=self.start)


def _differs(run: Run, given: Run, prompt: int, at: int, layer: int, head: int) -> bool:
    site = Site("z", layer)
    return not torch.equal(run.at(site)[prompt, at, head], given.at(site)[prompt, at, head])
