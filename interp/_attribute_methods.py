"""From recorded activations and their baselines to a number for each unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp._attribute_baseline import Baselines
from interp._attribute_sweep import Score, gradients_at, values_at
from interp._attribute_target import BoundTarget, precise
from interp._batch import Batch
from interp._errors import InterpError
from interp._experts import ExpertPort
from interp._forward import run
from interp._hooks import in_use
from interp._model import Model
from interp._ports import Port
from interp._replay import Replay, replay, replay_last
from interp._site import Site

# For each site: a number for each unit [prompt *unit], and the target at the baseline [prompt].
Found = tuple[dict[Site, Tensor], dict[Site, Tensor]]


@dataclass(frozen=True)
class Recorded:
    """Some prompts' last tokens: where they can be rerun from, and what stands at each site.

    Args:
        recording: keeps the prefix.
        ports: of the sites.
        activations: site -> [prompt *unit].
        baselines: likewise.
        expert_ids: for expert neurons, site -> [prompt k].
        score: the target of last streams.
        output: the target as it is.
        tokens: the answers' tokens, -1 where the target has none.
    """

    recording: Replay
    ports: Mapping[Site, Port]
    activations: dict[Site, Tensor]
    baselines: dict[Site, Tensor]
    expert_ids: dict[Site, Tensor]
    score: Score
    output: Float[Tensor, " prompt"]
    tokens: Int[Tensor, " prompt"]


def record(
    model: Model,
    batch: Batch,
    rows: Int[Tensor, " prompt"],
    ports: Mapping[Site, Port],
    baselines: Baselines,
    target: BoundTarget,
) -> Recorded:
    """Run these prompts once and keep what their last token needs to be run again.

    Raises:
        InterpError: an edit is applied that acts otherwise on a token after its cached prefix.
    """
    prompts = [batch.input_ids[i][batch.attention_mask[i].bool()].tolist() for i in rows.tolist()]
    seen: dict[Site, Tensor] = {}

    def read(tensor: Tensor, site: Site) -> None:
        if tensor.shape[1] == 1:  # the last token, run after its prefix
            seen[site] = tensor[:, 0].detach().clone()

    with ExitStack() as stack:
        for port in ports.values():
            stack.enter_context(port.attach(read, reads=True))
        again = replay if max(map(len, prompts)) == 1 else replay_last
        padded = model.batch(prompts, padding="left")
        recording = again(model, padded)
        ids = {s: p.expert_ids[:, 0].clone() for s, p in ports.items() if isinstance(p, ExpertPort)}
    if in_use(recording.anatomy.module):
        _require_same_as_whole(recording, run(model.module, padded.inputs).logits[:, -1])
    activations = {site: precise(seen[site]) for site in ports}
    score, tokens = target.score(recording.anatomy, rows, recording.logits[:, -1].float())
    prompt = torch.arange(len(rows), device=recording.streams[-1].device)
    return Recorded(
        recording,
        ports,
        activations,
        {s: baselines.of(s, value, rows, ids.get(s)) for s, value in activations.items()},
        ids,
        score,
        score(recording.streams[-1][:, 0], prompt).to(prompt.device),
        tokens,
    )


def _require_same_as_whole(recording: Replay, whole: Float[Tensor, "prompt vocab"]) -> None:
    """Edits may count positions, and the prefix was run without its last token."""
    gap = float((recording.logits[:, -1] - whole).abs().max() / whole.abs().max())
    if not gap <= max(1e-3, 16 * torch.finfo(whole.dtype).eps):
        raise InterpError(
            f"an edit in force gives other logits in one forward than on a last token after its "
            f"cached prefix (off by {gap:.1%}), as edits at counted positions do; attribute with "
            f"edits that act on every position, or bake it into the weights"
        )


@dataclass(frozen=True)
class AlongPath:
    """(a - a') * sum_k weight_k dF/da at a' + point_k (a - a'), and F at a', for all sites at once.

    Args:
        points: on the line from the baseline (0) to the activation (1).
        weights: theirs.
        heads: sum the units of each head.
    """

    points: Float[Tensor, " node"]
    weights: Float[Tensor, " node"]
    heads: bool
    together = True

    @property
    def n_rows(self) -> int:
        """The points, and the baseline itself."""
        return len(self.points) + 1

    def __call__(self, of: Recorded, sites: Sequence[Site]) -> Found:
        # The baseline comes along with no weight: its value is what the parts have to account for.
        points = torch.cat([self.points, self.points.new_zeros(1)])
        variants = {}
        for site in sites:
            start = of.baselines[site][:, None]
            steps = points.to(start).view(1, -1, *[1] * (start.ndim - 2))
            variants[site] = start + steps * (of.activations[site][:, None] - start)
        found, gradients = gradients_at(of.recording, of.ports, variants, of.score)
        values = {}
        for site, gradient in gradients.items():
            mean = torch.einsum("k,pk...->p...", self.weights.to(gradient), gradient[:, :-1])
            value = (of.activations[site] - of.baselines[site]) * mean
            values[site] = value.sum(-1) if self.heads else value
        return values, {site: scores[:, -1] for site, scores in found.items()}


def gauss_legendre(nodes: int, *, heads: bool) -> AlongPath:
    """Integrated gradients: exact for polynomials of degree 2 * nodes - 1.

    Raises:
        InterpError: fewer than one node.
    """
    if nodes < 1:
        raise InterpError(f"nodes={nodes}: expected at least 1")
    points, weights = np.polynomial.legendre.leggauss(nodes)  # on [-1, 1]
    return AlongPath(torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2), heads)


def end_point(*, heads: bool) -> AlongPath:
    """Gradient x activation: the slope where the model is, taken for the whole path."""
    return AlongPath(torch.ones(1), torch.ones(1), heads)


@dataclass(frozen=True)
class OneByOne:
    """F - F with one unit at its baseline, for each, and F with all of them there.

    Args:
        heads: a unit is a whole head.
    """

    heads: bool
    n_rows = 256  # units in one pass
    together = False

    def __call__(self, of: Recorded, sites: Sequence[Site]) -> Found:
        (site,) = sites
        activation, baseline = of.activations[site], of.baselines[site]
        units = activation.shape[1:2] if self.heads else activation.shape[1:]
        present = activation.reshape(len(activation), units.numel(), -1)
        absent = baseline.reshape(present.shape)
        without = []
        for some in torch.arange(units.numel(), device=present.device).split(self.n_rows):
            chosen = nn.functional.one_hot(some, units.numel()).bool()[None, :, :, None]
            variants = torch.where(chosen, absent[:, None], present[:, None])
            shape = (len(activation), len(some), *activation.shape[1:])
            without.append(_value(of, site, variants.reshape(shape)))
        effect = of.output[:, None] - torch.cat(without, dim=1)
        return (
            {site: effect.unflatten(1, units)},
            {site: _value(of, site, baseline[:, None])[:, 0]},
        )


def _value(of: Recorded, site: Site, variants: Tensor) -> Float[Tensor, "prompt row"]:
    return values_at(of.recording, of.ports, {site: variants}, of.score)[site]
