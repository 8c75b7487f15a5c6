"""From recorded activations and their baselines to a number for each unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp._attribute_baseline import Baselines
from interp._attribute_sweep import Score, gradients_at, values_at
from interp._attribute_target import BoundTarget
from interp._batch import Batch
from interp._errors import InterpError
from interp._experts import ExpertPort
from interp._model import Model
from interp._ports import Port
from interp._replay import Replay, replay, replay_last
from interp._site import Site

Method = Literal["integrated_gradients", "gradient_x_activation", "ablation"]
UNITS = 256  # ablated in one pass


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
    """Run these prompts once and keep what their last token needs to be run again."""
    prompts = [batch.input_ids[i][batch.attention_mask[i].bool()].tolist() for i in rows.tolist()]
    seen: dict[Site, Tensor] = {}

    def read(tensor: Tensor, site: Site) -> None:
        if tensor.shape[1] == 1:  # the last token, run after its prefix
            seen[site] = tensor[:, 0].detach().clone()

    with ExitStack() as stack:
        for port in ports.values():
            stack.enter_context(port.attach(read, reads=True))
        again = replay if max(map(len, prompts)) == 1 else replay_last
        recording = again(model, model.batch(prompts, padding="left"))
        ids = {s: p.expert_ids[:, 0].clone() for s, p in ports.items() if isinstance(p, ExpertPort)}
    activations = {site: _precise(seen[site]) for site in ports}
    score, tokens = target.score(model.anatomy, rows, recording.logits[:, -1].float())
    prompt = torch.arange(len(rows), device=recording.streams[-1].device)
    return Recorded(
        recording,
        ports,
        activations,
        {s: baselines.of(s, value, rows, ids.get(s)) for s, value in activations.items()},
        ids,
        score,
        score(recording.streams[-1][:, 0], prompt),
        tokens,
    )


def path(method: Method, nodes: int) -> tuple[Tensor, Tensor]:
    """Points on the line from the baseline (0) to the activation (1), and their weights.

    Raises:
        InterpError: fewer than one node.
    """
    if method == "gradient_x_activation":
        return torch.ones(1), torch.ones(1)
    if nodes < 1:
        raise InterpError(f"nodes={nodes}: expected at least 1")
    points, weights = np.polynomial.legendre.leggauss(nodes)  # on [-1, 1]
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)


def along_path(
    of: Recorded, sites: Sequence[Site], points: Tensor, weights: Tensor
) -> tuple[dict[Site, Tensor], dict[Site, Float[Tensor, " prompt"]]]:
    """(a - a') * sum_k weight_k dF/da at a' + point_k (a - a'), and F at a'; one pass for all."""
    variants = {}
    for site in sites:
        start, change = of.baselines[site], of.activations[site] - of.baselines[site]
        # The baseline itself comes along, with no weight: its value is what completeness needs.
        steps = torch.cat([points, points.new_zeros(1)]).to(start)
        steps = steps.view(1, -1, *[1] * (start.ndim - 1))
        variants[site] = start[:, None] + steps * change[:, None]
    found, gradients = gradients_at(of.recording, of.ports, variants, of.score)
    values = {}
    for site, gradient in gradients.items():
        mean = torch.einsum("k,pk...->p...", weights.to(gradient), gradient[:, : len(weights)])
        values[site] = (of.activations[site] - of.baselines[site]) * mean
    return values, {site: scores[:, -1] for site, scores in found.items()}


def one_by_one(of: Recorded, site: Site, *, heads: bool) -> tuple[Tensor, Float[Tensor, " prompt"]]:
    """F - F with one unit (or head) at its baseline, for each, and F with all of them there."""
    activation, baseline = of.activations[site], of.baselines[site]
    unit_shape = activation.shape[1:2] if heads else activation.shape[1:]
    n = unit_shape.numel()
    tail = activation.flatten(1).shape[1] // n
    flat = activation.flatten(1).unflatten(1, (n, tail))
    absent = baseline.flatten(1).unflatten(1, (n, tail))
    effects = []
    for units in torch.arange(n, device=flat.device).split(UNITS):
        left_out = torch.nn.functional.one_hot(units, n).bool()[None, :, :, None]
        variant = torch.where(left_out, absent[:, None], flat[:, None])
        effects.append(_value(of, site, variant.view(len(flat), len(units), *activation.shape[1:])))
    values = of.output[:, None] - torch.cat(effects, dim=1)
    return values.unflatten(1, unit_shape), _value(of, site, baseline[:, None])[:, 0]


def _value(of: Recorded, site: Site, variants: Tensor) -> Float[Tensor, "prompt row"]:
    return values_at(of.recording, of.ports, {site: variants}, of.score)[site]


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
