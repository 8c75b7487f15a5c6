"""`circuit_scores`: does a set of heads do what the model does, all of it, and nothing idle?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp._capture import Prompts
from interp._errors import InterpError
from interp._model import Model, as_model
from interp._patch.circuit_run import Ablation, Node, describe, mean_outputs, nodes_of
from interp._patch.circuit_scores import CircuitScores
from interp._patch.metric import Metric, bind_metric
from interp._patch.plan import Place
from interp._reading import require_unembed


def circuit_scores(
    model: Model | nn.Module,
    prompts: Prompts,
    circuit: Sequence[tuple[int, int] | Place],
    metric: Metric = "accuracy",
    *,
    reference: Prompts | None = None,
    subsets: int = 10,
    draws: int = 10,
    minimality: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> CircuitScores:
    """Faithfulness, completeness and minimality of a circuit of heads, the rest mean-ablated.

    F(S) is the metric with every head outside S held at its mean over reference prompts, position
    by position. Faithfulness is F(C) / F(M); incompleteness |F(M - K) - F(C - K)| over random
    subsets K of C; minimality of a node v is max over K of (F(C - K) - F(C - K - v)) / F(C),
    K running over the first 0, 1, 2, ... of those 30 % of the other nodes whose loss makes the
    loss of v weigh most.

    Args:
        model: a handle or a bare PreTrainedModel.
        prompts: all of one length, since means are taken by position.
        circuit: (layer, head) pairs, or places such as `Place("z.3", [5], -1)` for heads at some
            positions only.
        metric: as for `interp.patch`; by default the share of prompts whose prediction stays the
            whole model's. For a real task give `interp.Accuracy(answers)`. Differences are what
            is compared, so use one that does not change sign.
        reference: prompts of the same length for the means, such as ones in which the names are
            drawn anew (default: the prompts themselves).
        subsets: how many K for completeness, each node in it with probability one half.
        draws: how many random circuits of the same size and positions, for control.
        minimality: measure it too; needs a run for each pair of nodes.
        seed: of subsets and draws.
        progress: show a bar where it takes more than two seconds.

    Raises:
        InterpError: prompts of several lengths, a node that there is not or twice.

    Examples:
        >>> same = model.batch(["Question: Where does Ann live?", "Question: Where does Bob live?"])
        >>> scores = interp.circuit_scores(model, same, [(2, 0), (3, 1)], draws=2, subsets=2)
        >>> bool(0 <= scores.faithfulness <= 1)
        True

    Source: Wang et al. 2022 (arXiv 2211.00593), Prakash et al. 2024 (arXiv 2402.14811); which K
    minimality runs over is our specification.
    """
    handle = as_model(model)
    require_unembed(handle)
    batch = handle.batch(prompts)
    means = mean_outputs(handle, batch if reference is None else handle.batch(reference))
    lengths = sorted(set(batch.lengths.tolist()))
    width = next(iter(means.values())).shape[0]
    if lengths != [width]:
        raise InterpError(
            f"prompts have {lengths} tokens and the reference {width}; means by position need one "
            f"length, so group the prompts by theirs"
        )
    ids = [row.tolist() for row in batch.input_ids[batch.attention_mask.bool()].split(width)]
    nodes = nodes_of(handle, ids, circuit)
    ablation = Ablation(handle, ids, means, bind_metric(metric, handle, batch))
    every, own = ablation.every_node(), [ablation.of([node]) for node in nodes]
    whole = torch.stack(own).any(0)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(subsets, len(nodes), generator=generator) < 0.5
    removed = [_union(own, pick.nonzero()[:, 0].tolist(), whole) for pick in chosen]
    random = [_random(nodes, ablation, generator) for _ in range(draws)]
    sets = [torch.zeros_like(every), every & ~whole, every]
    sets += [every & ~other for other in random]
    sets += [mask for k in removed for mask in (k, (every & ~whole) | k)]
    found = ablation.scores(sets, progress=progress, desc="circuit")
    return CircuitScores(
        found[0],
        found[1],
        found[2],
        found[3 : 3 + draws],
        found[3 + draws :].unflatten(0, (subsets, 2)),
        _minimality(ablation, every & ~whole, own, minimality, progress),
        [describe(handle, ids[0], node) for node in nodes],
        [pick.nonzero()[:, 0].tolist() for pick in chosen],
        {
            "model": handle.name or type(handle.module).__name__,
            "revision": handle.revision,
            "metric": ablation.metric.name,
            "seed": seed,
            "n_prompts": len(ids),
        },
    )


def _union(
    masks: Sequence[Bool[Tensor, "layer pos head"]], chosen: Sequence[int], like: Tensor
) -> Bool[Tensor, "layer pos head"]:
    out = torch.zeros_like(like)
    for index in chosen:
        out |= masks[index]
    return out


def _random(nodes: Sequence[Node], ablation: Ablation, generator: torch.Generator) -> Tensor:
    """As many heads as the circuit has, drawn anew, at the circuit's positions."""
    heads = ablation.every_node().any(1).nonzero().tolist()  # (layer, head)
    mask = torch.zeros_like(ablation.every_node())
    by_positions: dict[tuple[int, ...], int] = {}
    for _, _, positions in nodes:
        by_positions[positions] = by_positions.get(positions, 0) + 1
    for positions, count in by_positions.items():
        for index in torch.randperm(len(heads), generator=generator)[:count].tolist():
            layer, head = heads[index]
            mask[layer, list(positions), head] = True
    return mask


def _minimality(
    ablation: Ablation,
    outside: Bool[Tensor, "layer pos head"],
    own: Sequence[Bool[Tensor, "layer pos head"]],
    wanted: bool,
    progress: bool,
) -> Float[Tensor, " node"]:
    n = len(own)
    if not wanted:
        return torch.full((n,), float("nan"))

    def means(sets: list[list[int]]) -> Tensor:
        masks = [outside | _union(own, members, outside) for members in sets]
        return ablation.scores(masks, progress=progress, desc="minimality").mean(1)

    pairs = [[i, j] for i in range(n) for j in range(i, n)]
    found = means([[], *pairs])
    full, matrix = found[0], torch.zeros(n, n)
    for (i, j), value in zip(pairs, found[1:], strict=True):
        matrix[i, j] = matrix[j, i] = value  # on the diagonal a node alone
    drop = matrix.diag()[:, None] - matrix  # [partner node]: what the node is worth without it
    drop.fill_diagonal_(float("-inf"))
    most = min(n - 1, max(1, round(0.3 * n))) if n > 1 else 0
    partners = [drop[:, node].topk(most).indices.tolist() for node in range(n)]
    sets = [
        part
        for node in range(n)
        for size in range(most + 1)
        for part in (partners[node][:size], [*partners[node][:size], node])
    ]
    without = means(sets).unflatten(0, (n, most + 1, 2))
    return ((without[..., 0] - without[..., 1]) / full).amax(1)
