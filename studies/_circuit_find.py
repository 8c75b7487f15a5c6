"""Find a circuit by path patching, from the answer backwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import interp
from interp import InterpError, Model, Place
from interp._estimate import cluster_mean
from studies._circuit_tasks import Task

if TYPE_CHECKING:
    import pandas as pd

# What each group does, in the order in which it is found; Prakash et al. name Llama's four groups
# value fetchers, position transmitters, position detectors and structure readers.
GROUPS = ("fetchers", "askers", "tellers of objects", "tellers of labels", "readers of the label")
LEAST = 0.02  # a head counts if the answer's lead falls by 2 % at least, surely


@dataclass(frozen=True)
class Node:
    """A head at some positions, and the group in which it was found."""

    group: str
    layer: int
    head: int
    positions: tuple[int, ...]

    @property
    def place(self) -> Place:
        """For `interp.patch` and `interp.circuit_scores`."""
        return Place(f"z.{self.layer}", [self.head], list(self.positions))


def path_effects(model: Model, task: Task, most: int) -> pd.DataFrame:
    """One row a (group, head): its direct effect on what the group speaks to.

    effect is mean(lead with the path patched - lead) / mean(lead) over the prompts to find on, with
    its 95 % interval; lead is the answer's logit less that of another prompt's answer (the paper
    takes the probability, in which no head shows where several do the same and it is near 1).
    Chosen are at most `most` heads of a group whose interval lies below -LEAST. A group is found
    from the one that it speaks to: fetchers -> logits at the last position; askers -> queries of
    the fetchers there; tellers -> values or keys of the fetchers where the answer was told; readers
    of the label -> values of the askers where it is asked.
    """
    import pandas as pd

    tables = [_effects(model, task, GROUPS[0], "logits", -1, most)]
    fetchers = _chosen(tables[0])
    hops: list[tuple[str, str, Sequence[tuple[int, int]], object]] = [
        (GROUPS[1], "q", fetchers, -1),
    ]
    if task.find.told is not None:
        at = [[position] for position in task.find.told]
        hops += [(GROUPS[2], "v", fetchers, at), (GROUPS[3], "k", fetchers, at)]
    for group, kind, heads, position in hops:
        tables.append(_onto(model, task, group, kind, heads, position, most))
    if task.asked is not None:
        tables.append(_onto(model, task, GROUPS[4], "v", _chosen(tables[1]), task.asked, most))
    return pd.concat([t for t in tables if len(t)], ignore_index=True)


def nodes_of(effects: pd.DataFrame, task: Task) -> list[Node]:
    """The chosen heads, each at its group's positions; in several groups at one place, once."""
    places = {
        GROUPS[0]: (-1,), GROUPS[1]: (-1,), GROUPS[2]: tuple(task.find.places),
        GROUPS[3]: tuple(task.find.places), GROUPS[4]: (task.asked or -1,),
    }  # fmt: skip
    found: dict[tuple[int, int, tuple[int, ...]], Node] = {}
    for row in effects[effects["chosen"]].itertuples():
        at = places[str(row.group)]
        node = Node(str(row.group), int(row.layer), int(row.head), at)
        found.setdefault((node.layer, node.head, at), node)
    return list(found.values())


def _onto(
    model: Model, task: Task, group: str, kind: str, heads: Sequence[tuple[int, int]],
    position: object, most: int,
) -> pd.DataFrame:  # fmt: skip
    """Effects on the queries, keys or values of some heads; no rows where none lies below them."""
    import pandas as pd

    below = [(layer, head) for layer, head in heads if layer > 0]
    if not below:
        return pd.DataFrame()
    by_layer: dict[int, set[int]] = {}
    for layer, head in below:
        by_layer.setdefault(layer, set()).add(_unit(model, layer, head, kind))
    receivers = [Place(f"{kind}.{layer}", sorted(units)) for layer, units in by_layer.items()]
    receivers = [Place(r.site, r.units, position) for r in receivers]  # type: ignore[arg-type]
    return _effects(model, task, group, receivers, position, most)


def _unit(model: Model, layer: int, head: int, kind: str) -> int:
    """The head of q, or the shared head of k and v that it reads."""
    qkv = model.anatomy.blocks[layer].qkv
    if kind == "q" or qkv is None:
        return head
    return head // (qkv.n_heads // qkv.n_kv_heads)


def _effects(
    model: Model, task: Task, group: str, receivers: object, position: object, most: int
) -> pd.DataFrame:
    import pandas as pd

    metric = interp.Target("logit_difference", task.find.answers, _others(task.find.answers))
    found = interp.path_patch(
        model, task.find.prompts, task.find.corrupted, receivers, metric,  # type: ignore[arg-type]
        position=position, progress=False,  # type: ignore[arg-type]
    )  # fmt: skip
    rows = []
    for site, score in found.score.items():
        for head, values in enumerate(score[:, 0].T):
            relative = ((values - found.clean) / found.clean.mean()).tolist()
            effect = cluster_mean(relative, range(len(relative)), bounds=None)
            rows.append(
                {"group": group, "layer": int(site.split(".")[1]), "head": head,
                 "effect": effect.mean, "low": effect.low, "high": effect.high}
            )  # fmt: skip
    table = pd.DataFrame(rows)
    surely = table[table["high"] < -LEAST].nsmallest(most, "effect").index
    table["chosen"] = table.index.isin(surely)
    return table


def _others(answers: Sequence[str]) -> list[str]:
    """For each prompt the next prompt's answer that is another."""
    if len(set(answers)) < 2:
        raise InterpError(f"all prompts have the answer {answers[0]!r}; a lead needs two answers")
    found = []
    for index, own in enumerate(answers):
        around = [*answers[index:], *answers[:index]]
        found.append(next(other for other in around if other != own))
    return found


def _chosen(table: pd.DataFrame) -> list[tuple[int, int]]:
    if not len(table):
        return []
    rows = table[table["chosen"]]
    return [
        (int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)
    ]
