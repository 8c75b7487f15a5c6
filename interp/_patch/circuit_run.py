"""A metric with many sets of heads held at their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp._answers import text_of
from interp._batch import Batch
from interp._errors import InterpError
from interp._model import Model
from interp._patch.exact import n_chunk, rows_at_once
from interp._patch.metric import BoundMetric, scored
from interp._patch.plan import n_heads
from interp._patch.run import Run, run_once
from interp._patch.sweep import Write, sweep
from interp._reading import reading
from interp._site import Site

Node = tuple[int, int, tuple[int, ...]]  # layer, head, positions


@dataclass(frozen=True)
class Ablation:
    """Heads of a model that can be held at their mean over reference prompts, position by position.

    Args:
        model: the handle.
        prompts: token ids, all of one length.
        means: z's site -> [pos head d_head].
        metric: with its tokens found.
    """

    model: Model
    prompts: list[list[int]]
    means: dict[Site, Float[Tensor, "pos head d_head"]]
    metric: BoundMetric

    @property
    def sites(self) -> list[Site]:
        """The z of every layer that has heads."""
        return list(self.means)

    def every_node(self) -> Bool[Tensor, "layer pos head"]:
        """All heads at all positions: True where a layer has such a head."""
        height = self.model.anatomy.n_layers
        width = max(mean.shape[1] for mean in self.means.values())
        mask = torch.zeros(height, len(self.prompts[0]), width, dtype=torch.bool)
        for site, mean in self.means.items():
            mask[site.layer or 0, :, : mean.shape[1]] = True
        return mask

    def of(self, nodes: Sequence[Node]) -> Bool[Tensor, "layer pos head"]:
        """These nodes as a mask."""
        mask = torch.zeros_like(self.every_node())
        for layer, head, positions in nodes:
            mask[layer, list(positions), head] = True
        return mask

    def scores(
        self, ablated: Sequence[Bool[Tensor, "layer pos head"]], *, progress: bool, desc: str
    ) -> Float[Tensor, "variant prompt"]:
        """The metric of every prompt with each set of nodes at its mean."""
        found = torch.full((len(ablated), len(self.prompts)), float("nan"))
        bar = tqdm(total=found.numel(), desc=desc, delay=2, leave=False, disable=not progress)
        prompts = torch.arange(len(self.prompts))
        n_tokens = len(self.prompts[0])
        order = sorted(range(len(ablated)), key=lambda index: _lowest(ablated[index]))
        with reading(self.model), bar:
            for rows in prompts.split(n_chunk(self.model.anatomy, n_tokens, len(self.means))):
                run = run_once(self.model, [self.prompts[i] for i in rows.tolist()], self.sites)
                logits = self.model.anatomy.unembed(run.last).float()
                score = self.metric.score(self.model.anatomy, rows, logits, logits)
                height = rows_at_once(self.model.anatomy, n_tokens, run.ids.device)
                pairs = torch.tensor([(v, p) for v in order for p in range(len(rows))])
                for some in pairs.split(height):
                    stream = self._run(run, ablated, some)
                    values = scored(score, stream, some[:, 1], self.model.anatomy.d_vocab)
                    found[some[:, 0], rows[some[:, 1]]] = values.to(found)
                    bar.update(len(some))
        return found

    def _run(
        self,
        run: Run,
        ablated: Sequence[Bool[Tensor, "layer pos head"]],
        pairs: Int[Tensor, "row 2"],
    ) -> Float[Tensor, "row d_model"]:
        """Last streams of (variant, prompt) pairs, whose variants are in the order of layers."""
        masks = torch.stack([ablated[v] for v in pairs[:, 0].tolist()])  # [row layer pos head]
        writes = {}
        for site, mean in self.means.items():
            mask = masks[:, site.layer or 0, :, : mean.shape[1]]
            row, place = mask.any(-1).nonzero(as_tuple=True)
            if len(row):
                writes[site] = Write(row, place, mean[place], mask[row, place][..., None])
        top = self.model.anatomy.n_layers
        entry = [min(_lowest(ablated[v]), top) for v in pairs[:, 0].tolist()]
        return sweep(run.whole, run.ports, writes, entry, pairs[:, 1])[:, -1]


def _lowest(ablated: Bool[Tensor, "layer pos head"]) -> int:
    """The first layer with a node in a set; beyond the last for an empty one."""
    layers = ablated.flatten(1).any(1).nonzero()
    return int(layers[0]) if len(layers) else len(ablated)


def mean_outputs(model: Model, batch: Batch) -> dict[Site, Float[Tensor, "pos head d_head"]]:
    """The mean of every head's z at each position of prompts of one length."""
    lengths = sorted(set(batch.lengths.tolist()))
    if len(lengths) > 1:
        raise InterpError(
            f"means by position need reference prompts of one length, and these have {lengths[0]} "
            f"to {lengths[-1]} tokens; group them by length"
        )
    from interp._hooked import ports_of

    sites = list(ports_of(model, "z.*"))
    ids = [row.tolist() for row in batch.input_ids[batch.attention_mask.bool()].split(lengths[0])]
    sums: dict[Site, Tensor] = {}
    with reading(model):
        for rows in torch.arange(len(ids)).split(n_chunk(model.anatomy, lengths[0], len(sites))):
            run = run_once(model, [ids[i] for i in rows.tolist()], sites)
            for site in sites:
                part = run.at(site).double().sum(0)
                sums[site] = sums[site] + part if site in sums else part
    return {site: (total / len(ids)).to(run.at(site)) for site, total in sums.items()}


def describe(model: Model, prompt: Sequence[int], node: Node) -> str:
    """A node in words: `2.5` (layer.head), with positions where they are not all."""
    layer, head, positions = node
    if len(positions) == len(prompt):
        return f"{layer}.{head}"
    where = " ".join(map(str, positions))
    shown = f" ({text_of(model, prompt[positions[0]])!r})" if len(positions) == 1 else ""
    return f"{layer}.{head} at {where}{shown}"


def nodes_of(model: Model, prompts: list[list[int]], heads: Sequence[object]) -> list[Node]:
    """Heads, or places of z, as nodes.

    Raises:
        InterpError: something else, a head that there is not, one named twice.
    """
    from interp._patch.plan import Place, parts_of

    n_tokens = len(prompts[0])
    nodes: list[Node] = []
    for one in heads:
        if isinstance(one, Place):
            (part,) = parts_of(model, [one], [list(range(n_tokens))])
            if part.site.kind != "z":
                raise InterpError(f"a circuit is made of heads (z), and {part.site} is no z")
            layer = part.site.layer or 0
            units = part.units or tuple(range(n_heads(model, part.site)))
            nodes += [(layer, head, part.at[0]) for head in units]
        elif isinstance(one, Sequence) and len(one) == 2 and all(isinstance(i, int) for i in one):
            (part,) = parts_of(model, [Place(f"z.{one[0]}", [one[1]])], [list(range(n_tokens))])
            nodes.append((part.site.layer or 0, one[1], part.at[0]))
        else:
            raise InterpError(
                f"a circuit is made of (layer, head) pairs or places such as "
                f"interp.Place('z.3', [5], -1); got {one!r}"
            )
    taken: set[tuple[int, int, int]] = set()
    for layer, head, positions in nodes:
        cells = {(layer, head, position) for position in positions}
        if cells & taken:
            raise InterpError(f"head {head} of layer {layer} stands in the circuit twice")
        taken |= cells
    if not nodes:
        raise InterpError("the circuit is empty; name at least one head")
    return nodes
