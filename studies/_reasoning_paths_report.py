"""The sections of the reasoning-paths report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probes import ReasoningGraph, Trajectories
from studies import _reasoning_paths_figures as figures
from studies import _reasoning_paths_measures as measures
from studies._report import Section
from studies._run import Run

if TYPE_CHECKING:
    import pandas as pd

_HUBS = 5
_RATES = ["beta", "r2", "nodes", "visits", "beta_null", "beta_z", "beta_visits", "beta_length"]


def sections(
    folder: Run,
    paths: Trajectories | None,
    graph: ReasoningGraph,
    tables: dict[str, pd.DataFrame],
    groups: Sequence[Sequence[str]],
) -> list[Section]:
    """What was measured, from whole outputs to single steps."""
    first = list(groups[0])
    everyone = [model for group in groups for model in group]
    found = [_behaviour(tables, graph)]
    found.append(_clusters(folder, paths, tables, first))
    if len(first) > 1:
        found += _decay(folder, tables, groups, first, everyone)
    found += _rests_on(folder, graph, tables, everyone, first)
    if "sensitivity" in tables:
        found.append(_sensitivity(tables["sensitivity"]))
    found += [_topology(tables, first), _hubs(tables["nodes"], first), _misleading()]
    return found


def _behaviour(tables: dict[str, pd.DataFrame], graph: ReasoningGraph) -> Section:
    meta = graph.meta
    return Section(
        "What the models write",
        [
            "Accuracy with its 95 % interval over problems; distinct: share of a problem's outputs "
            "that differ in more than white space; steps: visits an output, steps that stay in "
            "their node counting once.",
            f"A step is read by {meta['embedding']}; {meta['steps']:,} steps of all models "
            f"together make {meta['nodes']} nodes ({meta['clustering']}).",
        ],
        tables["behaviour"],
    )


def _clusters(
    folder: Run, paths: Trajectories | None, tables: dict[str, pd.DataFrame], first: list[str]
) -> Section:
    title = "Trajectories: unique ways to be right, and to be wrong"
    if paths is None:
        return Section(
            title,
            ["Not every rollout says whether it is correct, so there are no two sides to count."],
        )
    drawn = folder.figure("clusters", lambda: figures.clusters(paths, first))
    return Section(
        title,
        [
            "Distinct outputs of a problem in groups of similar ones: symmetrised chrF, average "
            "linkage, cut at 60. At equal samples (rarefaction) fewer incorrect clusters may only "
            "mean fewer incorrect samples. So there is the ratio at equally many samples of that "
            "side too, problem by problem: are there fewer ways of being wrong, given that it is "
            "wrong? The last column: problems behind each of the two ratios."
        ],
        measures.cluster_table(tables["clusters"]) if len(tables["clusters"]) else None,
        [(drawn, "Clusters expected among n samples of a problem, mean over problems.")],
    )


def _decay(
    folder: Run,
    tables: dict[str, pd.DataFrame],
    groups: Sequence[Sequence[str]],
    first: list[str],
    everyone: list[str],
) -> list[Section]:
    ratios = tables["ratios"]
    yardsticks = [group[0] for group in groups[1:]]
    mine = ratios[ratios["base"] == first[0]]
    compared = [*first[1:], *yardsticks]
    forest = folder.figure("ratios", lambda: figures.ratios(mine, compared))
    boxes = folder.figure("rates", lambda: figures.rates(tables["rates"], everyone))
    others = [
        measures.decay_verdict(ratios[ratios["base"] == group[0]], m, group[0], label(m))
        for group in groups[1:]
        for m in group[1:]
    ]
    return [
        Section(
            f"Rank decay relative to {first[0]}",
            [
                "β is the slope of log10 X over rank, X being visits, degree or betweenness of the "
                "nodes in a problem's graph; the ratio is that of means over problems, with its 95 "
                "% interval over problems. Three samplings: all rollouts, equal visits, and equal "
                "visits of walks of equal length. The null deals the two models' rollouts out anew "
                "within each problem. A direction is stated only where, in all three samplings, "
                f"the interval leaves out 1 and |z| ≥ {measures.LEAST_Z:g}. Null, z and the number "
                "of problems are those at equal visits.",
            ],
            measures.ratio_table(mine),
            [(forest, "Ratios of rates. Dotted: what the paper reports, 2.5 and 1/3.")],
        ),
        Section(
            "Problem by problem",
            others,
            measures.ratio_table(ratios[ratios["base"] != first[0]]) if others else None,
            [(boxes, "Rates at equal visits, one value a problem.")],
        ),
    ]


def _rests_on(
    folder: Run,
    graph: ReasoningGraph,
    tables: dict[str, pd.DataFrame],
    everyone: list[str],
    first: list[str],
) -> list[Section]:
    means = tables["rates"].groupby(["model", "quantity"], sort=False)[_RATES].mean().reset_index()
    means = means.set_index("model").loc[everyone].reset_index()
    pooled = tables["pooled"].set_index("model").loc[everyone].reset_index()
    curves = folder.figure("curves", lambda: figures.curves(graph, first))
    return [
        Section(
            "What the rates rest on",
            [
                "Means over problems. R² says how far the law is exponential; where it is not, a "
                "rate falls as more is sampled. beta_null is that of shuffled transitions: every "
                "node keeps its visits and every walk its length, so it says nothing about visits.",
            ],
            means,
        ),
        Section(
            "One graph a model",
            [
                "The same over all problems at once: steeper and flatter here also mean that more "
                "or fewer nodes are shared by problems. No intervals: a bootstrap over problems "
                "would leave nodes out, and so steepen every rate.",
            ],
            pooled[["model", "quantity", *_RATES]],
            [(curves, "By rank over all problems: an exponential law is a straight line.")],
        ),
    ]


def _sensitivity(table: pd.DataFrame) -> Section:
    shown = table.assign(ratio=[measures.interval(row) for _, row in table.iterrows()])
    columns = ["reader", "nodes", "model", "quantity", "ratio", "ratio_null", "z"]
    return Section(
        "Other readers, other numbers of nodes",
        ["The same ratios at equal visits when steps are read or grouped otherwise."],
        shown[columns],
    )


def _topology(tables: dict[str, pd.DataFrame], first: list[str]) -> Section:
    rows = tables["topology"]
    rows = rows[rows["model"].isin(first)]
    wide = rows.pivot(index="metric", columns="model", values=["value", "z"])
    wide = wide.loc[list(dict.fromkeys(rows["metric"]))]
    flat = wide[[(kind, model) for model in first for kind in ("value", "z")]]
    flat.columns = [model if kind == "value" else f"z of {model}" for kind, model in flat.columns]
    lines = [
        "Each model's graph over all problems, undirected, an edge being one hop; z against "
        "shuffled transitions. G3 path, G4 star, G5 cycle, G6 triangle with a tail, G7 cycle with "
        "a chord, G8 clique: shares of the connected subgraphs on four nodes.",
    ]
    for _, row in tables["difference"].iterrows():
        lines.append(
            f"Visits of {row['model']} differ from {first[0]}'s by a sMAPE of {row['smape']:.0f} "
            f"(0 to 200); rollouts dealt out anew differ by {row['null']:.0f} (z {row['z']:.1f})."
        )
    return Section("The shape of the graphs", lines, flat.reset_index())


def _hubs(nodes: pd.DataFrame, first: list[str]) -> Section:
    chosen = nodes[nodes["model"].isin(first)].sort_values("visits", ascending=False)
    top = chosen.groupby("model", sort=False).head(_HUBS)
    top = top.set_index("model").loc[first].reset_index()
    return Section(
        "The most visited steps",
        ["A node is shown by the step that is in it most often."],
        top[["model", "step", "visits", "degree", "betweenness"]],
    )


def _misleading() -> Section:
    return Section(
        "How this could mislead",
        [
            "A rate depends on how much was sampled unless the law is exponential. Ten times "
            "longer outputs visit more nodes and decay more slowly by that alone, which is why "
            "equal visits and equal length stand beside what was sampled.",
            "Sampling the same weights at a lower temperature steepens the decay as well. A model "
            "that became more certain does so without any change of its paths; the yardstick says "
            "how much of a ratio that could be.",
            "Nodes are made by a reader and by K-means: with another reader or number of nodes, "
            "they are others. Graphs mix correct and incorrect outputs, as in the paper.",
            "Hops and not distances are counted, degree is in plus out, and betweenness leaves out "
            "nodes that lie on no shortest path: our specification where the paper could not be "
            "read.",
            "Two models are two training runs. Nothing here says what RL and SFT do in general; "
            "for that, several seeds of each are needed, matched in accuracy.",
        ],
    )


def label(model: str) -> str:
    """The checkpoint's label of a model at a temperature.

    >>> label("rl, T=0.6")
    'rl'
    """
    return model.partition(", T=")[0]
