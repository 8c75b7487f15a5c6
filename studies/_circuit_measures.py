"""What a circuit is worth: alone, as masks that say what it carries, and from model to model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import interp
import interventions as iv
from interp import Model, Place, Site
from interp._estimate import cluster_mean
from studies._circuit_find import Node
from studies._circuit_tasks import Pairs, Task

if TYPE_CHECKING:
    import pandas as pd

Head = tuple[int, int]


def accuracy_of(model: Model, pairs: Pairs) -> list[float]:
    """1 for each prompt whose likeliest next token begins the answer."""
    every = [Place("resid_post.0", None, "last")]
    found = interp.patch(  # the prompts against themselves: nothing is changed
        model, pairs.prompts, pairs.prompts, {"nothing": every}, interp.Accuracy(pairs.answers),
        progress=False,
    )  # fmt: skip
    return found.clean.tolist()


def scores(
    model: Model, task: Task, nodes: Sequence[Node], draws: int, seed: int, *, minimality: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of a circuit in a model: a row a quantity with its interval, and a row a node.

    All other heads are held at their mean, by position, over the prompts to find on and their
    counterparts, in which everything is drawn anew.
    """
    import pandas as pd

    reference = [*task.find.prompts, *task.find.corrupted]
    places = [node.place for node in nodes]
    metric = interp.Accuracy(task.test.answers)
    found = interp.circuit_scores(
        model, task.test.prompts, places, metric, reference=reference, subsets=draws, draws=draws,
        minimality=False, seed=seed, progress=False,
    )  # fmt: skip
    table = found.summary(seed=seed)
    spread = found.random_faithfulness.double()
    wrong = found.incompleteness.double()
    more = [
        {"quantity": "95 % of random circuits: faithfulness", "mean": float(spread.mean()),
         "low": float(spread.quantile(0.025)), "high": float(spread.quantile(0.975))},
        {"quantity": "incompleteness over random subsets", "mean": float(wrong.mean()),
         "low": float(wrong.min()), "high": float(wrong.max())},
    ]  # fmt: skip
    worth = found.table()
    if minimality:
        few = task.find.prompts[: max(8, len(task.find.prompts) // 2)]
        metric = interp.Accuracy(task.find.answers[: len(few)])
        small = interp.circuit_scores(
            model, few, places, metric, reference=reference, subsets=0, draws=0, seed=seed,
            progress=False,
        )  # fmt: skip
        worth = small.table()
    worth.insert(0, "group", [node.group for node in nodes])
    return pd.concat([table, pd.DataFrame(more)], ignore_index=True), worth


def masks(model: Model, task: Task, epochs: int, penalty: float, seed: int) -> pd.DataFrame:
    """A row a (swap, head): whether the mask takes it, and how right the mask is (DCM)."""
    import pandas as pd

    tables = []
    for name, wanted in task.swaps.items():
        found = iv.learn_head_mask(
            model,
            wanted,
            penalty=penalty,
            epochs=epochs,
            batch_size=16,
            seed=seed,
            progress=False,
        )
        table = found.table().assign(
            swap=name, accuracy=found.accuracy, none=found.none, every=found.every,
            random=float(found.random.mean()),
            random_high=float(found.random.double().quantile(0.975)),
            n=found.meta["prompts"]["test"],
        )  # fmt: skip
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def across(
    base: Model, tuned: Model, task: Task, groups: dict[str, list[Place]], draws: int, seed: int
) -> pd.DataFrame:
    """CMAP: the base with activations of the tuned model, one row a (what, prompt).

    Beside each group stand `draws` groups of as many random heads at its positions. Heads give z,
    which lies before the output projection; so there is also what the circuit's layers add to the
    stream at its positions (all their heads), and all heads and all attention outputs everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    named = {name: places for name, places in groups.items() if places}
    n_layers = base.anatomy.n_layers
    for name in list(named):
        for draw in range(draws):
            named[f"{name}, random {draw}"] = _random(base, named[name], generator)
    at: dict[int, set[int]] = {}
    for place in groups.get("circuit", []):
        at.setdefault(Site.parse(str(place.site)).layer or 0, set()).update(_positions(place))
    if at:
        named["attention outputs of its layers"] = [
            Place(f"attn_out.{layer}", None, sorted(positions)) for layer, positions in at.items()
        ]
    named["every head, everywhere"] = [Place(f"z.{layer}") for layer in range(n_layers)]
    named["every attention output"] = [Place(f"attn_out.{layer}") for layer in range(n_layers)]
    found = interp.patch(
        base, task.test.prompts, None, named, interp.Accuracy(task.test.answers), source=tuned,
        progress=False,
    )  # fmt: skip
    columns = {"base": found.corrupted, "tuned": found.clean} | {n: found[n] for n in named}
    return _long(columns)


def transplanted(
    base: Model, tuned: Model, task: Task, heads: Sequence[Head], draws: int, seed: int
) -> pd.DataFrame:
    """The base with weights of the tuned model, one row a (what, prompt).

    The circuit's heads (q, o, and the k and v that they share), as many random heads of the same
    layers or of any, all heads, all MLPs, and everything.
    """
    generator = torch.Generator().manual_seed(seed)
    every = [(block.index, h) for block in base.anatomy.blocks for h in range(block.n_heads)]
    modules = ["q", "k", "v", "o"]
    edits: dict[str, interp.Edit] = {}
    if heads:
        edits["circuit"] = iv.transplant(tuned.module, heads=heads, modules=modules)
    for draw in range(draws if heads else 0):
        chosen = torch.randperm(len(every), generator=generator)[: len(heads)].tolist()
        picked = [every[i] for i in chosen]
        edits[f"circuit, random {draw}"] = iv.transplant(
            tuned.module, heads=picked, modules=modules
        )
    edits["all attention"] = iv.transplant(tuned.module, modules="attn")
    edits["all MLPs"] = iv.transplant(tuned.module, modules="mlp")
    edits["everything"] = iv.transplant(tuned.module)
    columns: dict[str, Any] = {
        "base": accuracy_of(base, task.test), "tuned": accuracy_of(tuned, task.test)
    }  # fmt: skip
    for name, edit in edits.items():
        with edit.applied(base):
            columns[name] = accuracy_of(base, task.test)
    return _long(columns)


def shares(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Accuracy, and the share of the gap between base and tuned that is closed, with intervals.

    share = (accuracy - base) / (tuned - base), of means, by a bootstrap over prompts; random draws
    are put together into one row. Without a gap (its interval holds zero) the share is empty.
    """
    import pandas as pd

    wide = table.pivot_table(index="prompt", columns="what", values="right")
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(wide), (2000, len(wide)))
    low_gap, high_gap = np.quantile(
        (wide["tuned"] - wide["base"]).to_numpy()[picks].mean(1), (0.025, 0.975)
    )
    there = low_gap > 0 or high_gap < 0
    rows = []
    for what in dict.fromkeys(name.partition(", random ")[0] for name in table["what"].unique()):
        for control in (False, True):
            names = [
                n for n in wide if (n.startswith(f"{what}, random ") if control else n == what)
            ]
            if not names:
                continue
            values = wide[names].mean(axis=1)
            right = cluster_mean(values.tolist(), range(len(values)))
            row: dict[str, Any] = {
                "what": f"{what}, random heads" if control else what, "accuracy": right.mean,
                "low": right.low, "high": right.high, "share": float("nan"),
                "share_low": float("nan"), "share_high": float("nan"), "n": len(values),
            }  # fmt: skip
            if there and what not in ("base", "tuned"):
                over = (values - wide["base"]).to_numpy()
                gap = (wide["tuned"] - wide["base"]).to_numpy()
                draws = over[picks].mean(1) / np.where(
                    np.abs(g := gap[picks].mean(1)) > 0, g, np.nan
                )
                row |= {"share": float(over.mean() / gap.mean()),
                        "share_low": float(np.nanquantile(draws, 0.025)),
                        "share_high": float(np.nanquantile(draws, 0.975))}  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows)


def overlap(
    one: Sequence[Head], other: Sequence[Head], every: Sequence[Head], draws: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Jaccard index of two sets of heads, beside sets of the same sizes in each layer.

    p is the share of draws (with the found one) that overlap at least as much. Where one of the
    sets is empty all of this is.
    """
    ours, theirs = set(one), set(other)
    sizes = {"base_heads": len(ours), "tuned_heads": len(theirs), "common": len(ours & theirs)}
    if not ours or not theirs:
        return dict.fromkeys(("jaccard", "null", "null_high", "p"), float("nan")) | sizes
    found = len(ours & theirs) / len(ours | theirs)
    rng = np.random.default_rng(seed)
    common = np.zeros(draws)
    for layer in sorted({layer for layer, _ in every}):
        total = sum(1 for at, _ in every if at == layer)
        a, b = (sum(1 for at, _ in some if at == layer) for some in (ours, theirs))
        common += rng.hypergeometric(a, total - a, b, draws) if a and b else 0
    null = common / (len(ours) + len(theirs) - common)
    return {
        "jaccard": found, "null": float(null.mean()), "null_high": float(np.quantile(null, 0.975)),
        "p": float((1 + (null >= found - 1e-12).sum()) / (1 + draws)), **sizes,
    }  # fmt: skip


def _random(model: Model, places: Sequence[Place], generator: torch.Generator) -> list[Place]:
    """As many heads at the same positions, drawn from all layers."""
    every = [(block.index, h) for block in model.anatomy.blocks for h in range(block.n_heads)]
    by_positions: dict[tuple[int, ...], int] = {}
    for place in places:
        at = _positions(place)
        by_positions[at] = by_positions.get(at, 0) + len(place.units or ())
    drawn = []
    for at, count in by_positions.items():
        for index in torch.randperm(len(every), generator=generator)[:count].tolist():
            layer, head = every[index]
            drawn.append(Place(f"z.{layer}", [head], list(at)))
    return drawn


def _positions(place: Place) -> tuple[int, ...]:
    return tuple(int(one) for one in place.positions)  # type: ignore[arg-type, union-attr]


def _long(columns: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        [
            {"what": name, "prompt": prompt, "right": float(value)}
            for name, values in columns.items()
            for prompt, value in enumerate(values)
        ]
    )
