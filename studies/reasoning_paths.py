"""Does RL squeeze and SFT expand reasoning paths? Rollouts of several models for the same problems.

Matsutani et al. (arXiv 2509.21128) report that RL compresses incorrect trajectories and steepens
the rank decay of visits, degree and betweenness in a graph of reasoning steps about 2.5 times,
while SFT expands correct trajectories and flattens it to about a third. Here that is measured with
what it needs beside it: equal samples, equal visits and equal length, shuffled transitions,
rollouts dealt out anew between the models, intervals over problems, and the base itself at a lower
temperature.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

import probes
from interp import InterpError, Model
from interp._errors import nearest
from probes import ReasoningGraph, Rollout, Trajectories
from studies import _reasoning_paths_measures as measures
from studies import _reasoning_paths_report as report
from studies._checkpoints import ORGANISM, identity, open_checkpoint
from studies._report import write_report
from studies._rollouts import read_rollouts, sample
from studies._run import Run, digests

if TYPE_CHECKING:
    import pandas as pd

    from studies.organisms.arithmetic import Problem

NAME = "reasoning-paths"
SPELLING = "spelling"  # the reader that needs no model
MANY_NODES = 500  # from here a draw of the topology's null takes seconds
MANY_STEPS = 50_000  # from here building graphs anew for other choices takes minutes


@dataclass(frozen=True)
class ReasoningPaths:
    """Does RL squeeze and SFT expand reasoning paths?"""

    base: str = "organism:base"
    """Where the others started from: a folder, a hub id, or a shipped organism."""
    sft: str = "organism:sft"
    """After supervised fine-tuning."""
    rl: str = "organism:rl"
    """After reinforcement learning."""
    other: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further checkpoints to compare with the base (repeatable)."""
    rollouts: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """JSON lines with problem and text, and model, correct, prompt where known (repeatable). The
    first model named is the base; no checkpoint is sampled then."""
    separator: str | None = None
    """Between steps; default ";" for checkpoints, a newline for files."""
    reader: str | None = None
    """Whose hidden states stand for a step, or "spelling" (TF-IDF of character n-grams); default
    the base's for checkpoints, spelling for files."""
    k: int | None = None
    """Nodes shared by all models; default 100 for checkpoints, 2000 for files."""
    problems: int = 40
    """How many problems to sample for."""
    samples: int = 24
    """Rollouts a problem, model and temperature."""
    temperatures: tuple[float, ...] = (1.0, 0.6)
    """To sample at; the first is compared, the base at the others is the yardstick."""
    max_new_tokens: int = 48
    """Upper limit of a rollout's length."""
    draws: int = 20
    """Matched subsets, and draws of each null."""
    out: Path = Path("runs/reasoning-paths")
    """The run folder; an interrupted run continues there."""
    seed: int = 0
    """Of problems, samples, clusters, nulls and intervals."""
    smoke: bool = False
    """A few problems and draws: that everything runs, in seconds."""

    @property
    def between(self) -> str:
        """The separator, a default by kind of input."""
        return self.separator or ("\n" if self.rollouts else ";")

    @property
    def reading(self) -> str:
        """Who reads steps: a checkpoint, or spelling alone."""
        return self.reader or (SPELLING if self.rollouts else self.base)

    @property
    def nodes(self) -> int:
        """How many nodes are wanted."""
        return self.k or (2000 if self.rollouts else 100)

    @property
    def labels(self) -> dict[str, str]:
        """Checkpoints by label."""
        others = {source.removeprefix(ORGANISM): source for source in self.other}
        return {"base": self.base, "sft": self.sft, "rl": self.rl} | others


def run(config: ReasoningPaths) -> Run:
    """Run the study and write its folder: rollouts, records, tables, figures, report.html."""
    config = _smaller(config) if config.smoke else config
    if config.rollouts:
        given = read_rollouts(config.rollouts)  # before the folder is made: lines may be bad
        reader = {} if config.reading == SPELLING else {config.reading: identity(config.reading)}
        folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=reader)
        rollouts, groups = given, [list(dict.fromkeys(r.model for r in given))]
    else:
        _check(config)
        weights = {s: identity(s) for s in (*config.labels.values(), config.reading)}
        folder = Run.open(config.out, NAME, config, checkpoints=weights)
        rollouts = _sampled(folder, config)
        groups = [[_named(m, t) for m in config.labels] for t in config.temperatures]
    paths, graph = _trajectories(folder, rollouts), _graph(folder, rollouts, config)
    tables = _tables(folder, rollouts, paths, graph, groups, config)
    verdict = _verdict(tables, groups, config)
    sections = report.sections(folder, paths, graph, tables, groups)
    title = "Does RL squeeze and SFT expand reasoning paths?"
    write_report(folder.path / "report.html", title, verdict, sections, folder.meta)
    folder.finish(verdict=verdict)
    return folder


def _sampled(folder: Run, config: ReasoningPaths) -> list[Rollout]:
    """Rollouts of every checkpoint at every temperature, each a step of the run."""
    import pandas as pd

    from studies.organisms.world import World

    problems = World(seed=0).problems(config.problems, "test", seed=config.seed)
    tables = []
    for label, source in config.labels.items():
        model = None
        for t in config.temperatures:
            name = f"rollouts-{label}-{t:g}".replace("/", "-")
            if model is None and not (folder.path / f"{name}.parquet").exists():
                model = open_checkpoint(source)
            tables.append(folder.table(name, partial(_written, model, problems, label, t, config)))
    rows = pd.concat(tables).to_dict("records")
    return [Rollout(**{**row, "correct": bool(row["correct"])}) for row in rows]


def _check(config: ReasoningPaths) -> None:
    """What is mistyped is refused before anything is sampled, not after minutes."""
    from studies import organisms

    if not config.temperatures or min(config.temperatures) <= 0:
        raise InterpError(
            f"temperatures {config.temperatures}: expected one or more, all above 0; without "
            f"chance there is only one rollout a problem"
        )
    if min(config.problems, config.samples) < 1:
        raise InterpError(
            f"{config.problems} problems and {config.samples} samples: expected at least one each"
        )
    for source in config.labels.values():
        name = source.removeprefix(ORGANISM).partition("@")[0]
        if source.startswith(ORGANISM) and name not in organisms.names():
            raise InterpError(f"no organism {name!r}; {nearest(name, organisms.names())}")


def _written(
    model: Model | None,
    problems: Sequence[Problem],
    label: str,
    temperature: float,
    config: ReasoningPaths,
) -> pd.DataFrame:
    import pandas as pd

    from studies.organisms import arithmetic

    assert model is not None  # opened by `_sampled` where anything is still to be written
    texts = sample(
        model,
        [p.prompt for p in problems],
        config.samples,
        temperature=temperature,
        max_new_tokens=config.max_new_tokens,
        # Models that share random numbers would not be independent samples.
        seed=zlib.crc32(f"{config.seed}/{label}/{temperature:g}".encode()),
    )
    name = _named(label, temperature)
    rollouts = [
        Rollout(str(number), name, text, arithmetic.verify(problem, text), problem.prompt)
        for number, (problem, written) in enumerate(zip(problems, texts, strict=True))
        for text in written
    ]
    return pd.DataFrame([asdict(rollout) for rollout in rollouts])


def _trajectories(folder: Run, rollouts: Sequence[Rollout]) -> Trajectories | None:
    """Clusters of outputs; None where somebody's correctness is unknown."""
    if any(rollout.correct is None for rollout in rollouts):
        return None
    path = folder.path / "trajectories"
    if not path.exists():
        probes.trajectories(rollouts).save(path)
    return Trajectories.load(path)


def _graph(folder: Run, rollouts: Sequence[Rollout], config: ReasoningPaths) -> ReasoningGraph:
    path = folder.path / "graph"
    if not path.exists():
        _built(rollouts, config, config.reading, config.nodes).save(path)
    return ReasoningGraph.load(path)


def _built(
    rollouts: Sequence[Rollout], config: ReasoningPaths, reader: str, k: int
) -> ReasoningGraph:
    embed = None if reader == SPELLING else open_checkpoint(reader)
    return probes.reasoning_graph(
        rollouts, separator=config.between, embed=embed, k=k, seed=config.seed
    )


def _tables(
    folder: Run,
    rollouts: Sequence[Rollout],
    paths: Trajectories | None,
    graph: ReasoningGraph,
    groups: Sequence[Sequence[str]],
    config: ReasoningPaths,
) -> dict[str, pd.DataFrame]:
    """Everything measured, by name."""
    import pandas as pd

    first, seed, draws = groups[0], config.seed, config.draws
    yardsticks = [group[0] for group in groups[1:]]

    def behaviour() -> pd.DataFrame:
        visits = graph.rates(per="model", draws=0).drop_duplicates("model").set_index("model")
        steps = (visits["visits"] / visits["rollouts"]).to_dict()
        return measures.behaviour(rollouts, steps, seed)

    def ratios() -> pd.DataFrame:
        pairs = [(group[0], list(group[1:])) for group in groups] + [(first[0], yardsticks)]
        parts = [
            graph.compare(base, models=models, draws=draws, seed=seed).assign(base=base)
            for base, models in pairs
            if models or len(first) == 1
        ]
        return pd.concat(parts, ignore_index=True)

    def clusters() -> pd.DataFrame:
        assert paths is not None
        parts = [paths.compare(g[0], models=g[1:], seed=seed).assign(base=g[0]) for g in groups]
        return pd.concat(parts, ignore_index=True)

    shape_draws = draws if graph.meta["nodes"] <= MANY_NODES else 3
    found = {
        "behaviour": folder.table("behaviour", behaviour),
        "rates": folder.table("rates", lambda: graph.rates(draws=draws, seed=seed)),
        "pooled": folder.table("pooled", lambda: graph.rates(per="model", draws=draws, seed=seed)),
        "ratios": folder.table("ratios", ratios),
        "topology": folder.table("topology", lambda: graph.topology(draws=shape_draws, seed=seed)),
        "difference": folder.table(
            "difference",
            lambda: graph.difference(first[0], models=first[1:], draws=draws, seed=seed),
        ),
        "nodes": folder.table("nodes", graph.table),
    }
    if paths is not None:
        found["clusters"] = folder.table("clusters", clusters)
        found["counts"] = folder.table("counts", paths.table)
    if len(first) > 1 and graph.meta["steps"] <= MANY_STEPS:
        chosen = [r for r in rollouts if r.model in first]
        found["sensitivity"] = folder.table("sensitivity", lambda: _sensitivity(chosen, config))
    return found


def _sensitivity(rollouts: Sequence[Rollout], config: ReasoningPaths) -> pd.DataFrame:
    """The ratios at equal visits for other numbers of nodes and another reader."""
    import pandas as pd

    k = config.nodes
    variants = [(config.reading, k), (config.reading, max(1, k // 2)), (config.reading, 2 * k)]
    if config.reading != SPELLING:
        variants.append((SPELLING, k))
    parts = []
    for reader, nodes in variants:
        graph = _built(rollouts, config, reader, nodes)
        found = graph.compare(rollouts[0].model, draws=min(config.draws, 10), seed=config.seed)
        found = found[found["sampling"] == "visits"].drop(columns=["sampling", "problems"])
        parts.append(found.assign(reader=reader, k=nodes, nodes=graph.meta["nodes"]))
    return pd.concat(parts, ignore_index=True)


def _verdict(
    tables: dict[str, pd.DataFrame], groups: Sequence[Sequence[str]], config: ReasoningPaths
) -> list[str]:
    first = groups[0]
    at = tables["behaviour"].set_index("model")
    lines = []
    if at.loc[list(first), "accuracy"].notna().all():
        shares = (
            f"{model} {row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            for model, row in at.loc[list(first)].iterrows()
        )
        lines.append(f"Correct: {'; '.join(shares)}.")
    if len(first) < 2:
        return [*lines, f"Only {first[0]} is given, so there is nothing to compare it with."]
    ratios = tables["ratios"]
    lines += [
        measures.decay_verdict(ratios[ratios["base"] == first[0]], m, first[0], report.label(m))
        for m in first[1:]
    ]
    lines += [
        measures.sharpening_verdict(ratios[ratios["base"] == first[0]], group[0], first[0])
        for group in groups[1:]
    ]
    if "clusters" in tables:
        lines += [measures.cluster_verdict(tables["clusters"], m, first[0]) for m in first[1:]]
    if config.smoke:
        lines.append("A smoke run: too few problems for any of this to be evidence.")
    return lines


def _named(label: str, temperature: float) -> str:
    return f"{label}, T={temperature:g}"


def _smaller(config: ReasoningPaths) -> ReasoningPaths:
    return replace(config, problems=3, samples=6, draws=3, k=12)
