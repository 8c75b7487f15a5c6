"""From readings to verdicts, shares and profiles by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import InterpError
from interp._errors import nearest
from interp._estimate import Estimate, cluster_mean

if TYPE_CHECKING:
    import pandas as pd

    from probes._forgetting_record import Forgetting

VERDICTS = ("kept", "hidden late", "hidden early", "erased")
ANSWER, DECOY = 0, 1
_WHO = ("answer", "decoy")
# What each kind of evidence is read from, and the readings it has to beat beside its decoy.
_READ: dict[str, tuple[str, tuple[str, ...]]] = {
    "lens": ("tuned_lens", ()),
    "probe": ("tuned_probe", ("shuffled_probe", "random_probe")),
    "patch": ("recover", ()),
}
FEW = 6  # entities: with fewer, no sign test can reach p < .025


def verdicts(
    found: Forgetting, top: int, late: float, evidence: tuple[str, ...], gate: bool
) -> pd.DataFrame:
    """One row a fact; see `Forgetting.verdicts`."""
    import pandas as pd

    if top < 1 or not 0 < late <= 1:
        raise InterpError(f"top={top}, late={late}: expected top >= 1 and 0 < late <= 1")
    known, lost = known_and_lost(found, top)
    by = {one: _last(_holds(found, one, top, gate)) for one in _READ if one in evidence}
    untold = _too_few(found) if gate else torch.zeros_like(lost)
    nobody = torch.full((len(found.facts), 2), float("nan"))
    deepest = torch.stack([nobody, *by.values()]).nan_to_num(nan=-1.0).amax(0)
    says = torch.tensor(found.meta["says"])
    rows = []
    for i, fact in enumerate(found.facts):
        verdict = "unknown" if not known[i] else "kept" if not lost[i] else None
        verdict = "untold" if verdict is None and untold[i] else verdict
        held = float(deepest[i, ANSWER])
        who_held = [name for name, last in by.items() if float(last[i, ANSWER]) == held]
        row: dict[str, object] = {
            "fact": i, "entity": fact.entity, "attribute": fact.attribute, "answer": fact.answer,
            "base_says": found.texts[int(says[i, 0])], "tuned_says": found.texts[int(says[i, 1])],
        }  # fmt: skip
        for side in ("base", "tuned"):
            row[f"{side}_prob"] = float(found.prob[f"{side}_lens"][i, -1, ANSWER])
        for side in ("base", "tuned"):
            row[f"{side}_rank"] = int(found.rank[f"{side}_lens"][i, -1, ANSWER])
        blocks = found.n_layers - 1
        row["verdict"] = verdict or _named(held, blocks, late)
        row["held"] = held if held >= 0 and lost[i] else float("nan")
        row["held_by"] = ", ".join(who_held) if held >= 0 and lost[i] else ""
        null = "untold" if untold[i] else _named(float(deepest[i, DECOY]), blocks, late)
        row["null"] = null if lost[i] else ""
        rows.append(row)
    table = pd.DataFrame(rows)
    names = {"lens": "lens_layer", "probe": "probe_layer", "patch": "recover_layer"}
    for one, last in by.items():
        table[names[one]] = last[:, ANSWER].masked_fill(~lost, float("nan")).numpy()
    for name in ("restore", "restore_other"):
        table[f"{name}_layer"] = _from(found.rank[name][..., ANSWER] <= top).numpy()
    for name in ("destroy", "destroy_other"):
        table[f"{name}_layer"] = _from(found.rank[name][..., ANSWER] > top).numpy()
    whole = [name for name in table if str(name) == "held" or str(name).endswith("_layer")]
    return table.astype(dict.fromkeys(whole, "Int64"))


def shares(
    found: Forgetting, top: int, late: float, evidence: tuple[str, ...], gate: bool, seed: int
) -> pd.DataFrame:
    """Shares of verdicts over entities; see `Forgetting.shares`."""
    import pandas as pd

    table = verdicts(found, top, late, evidence, gate)
    known = table[table["verdict"] != "unknown"]
    lost = known[known["verdict"] != "kept"]
    rows = []
    for of, rows_of, column, names in (
        ("facts", known, "verdict", VERDICTS),
        ("lost", lost, "verdict", VERDICTS[1:]),
        ("decoys", lost, "null", VERDICTS[1:]),
    ):
        untold = ("untold",) if (rows_of[column] == "untold").any() else ()
        for name in (*names, *untold) if len(rows_of) else ():
            hits = (rows_of[column] == name).astype(float).tolist()
            got = cluster_mean(hits, rows_of["entity"].tolist(), seed)
            rows.append({"verdict": name, "of": of, **_columns(got)})
    return pd.DataFrame(rows, columns=["verdict", "of", "mean", "low", "high", "facts", "entities"])


def by_layer(found: Forgetting, of: str, top: int, seed: int) -> pd.DataFrame:
    """Profiles by layer; see `Forgetting.layers`."""
    import pandas as pd

    known, lost = known_and_lost(found, top)
    sets = {"lost": lost, "known": known, "all": torch.ones_like(known)}
    if of not in sets:
        raise InterpError(f"of={of!r}; {nearest(of, sets)}")
    keep = sets[of]
    rows = []
    for name in found.readings:
        rank, prob = found.rank[name], found.prob[name]
        for layer in range(found.n_layers):
            for who, label in enumerate(_WHO):
                here = keep & (rank[:, layer, who] > 0)
                if not bool(here.any()):
                    continue
                entities = [f.entity for f, k in zip(found.facts, here, strict=True) if k]
                hits = (rank[here, layer, who] <= top).float().tolist()
                for quantity, values in (("top", hits), ("prob", prob[here, layer, who].tolist())):
                    # Of a probability the interval may shrink with its spread; of a share not.
                    bounds = (0.0, 1.0) if quantity == "top" else None
                    got = cluster_mean(values, entities, seed, bounds=bounds)
                    rows.append(
                        {"reading": name, "layer": layer, "who": label, "quantity": quantity}
                        | _columns(got)
                    )
    names = ["reading", "layer", "who", "quantity", "mean", "low", "high", "facts", "entities"]
    return pd.DataFrame(rows, columns=names)


def known_and_lost(found: Forgetting, top: int) -> tuple[Bool[Tensor, " f"], Bool[Tensor, " f"]]:
    """Whether the base answers each fact, and whether the tuned model then does not."""
    known = found.rank["base_lens"][:, -1, ANSWER] <= top
    return known, known & (found.rank["tuned_lens"][:, -1, ANSWER] > top)


def gate_of(found: Forgetting, one: str, top: int) -> Bool[Tensor, "fact layer"]:
    """At which layers a kind of evidence beats its controls on a fact's attribute.

    An exact sign test over entities against each control, the decoy among them: of the entities for
    whom the two differ, so many have the answer and not the control that a fair coin would give as
    many with p < .025.
    """
    from scipy.stats import binom

    reading, controls = _READ[one]
    gate = torch.zeros(len(found.facts), found.n_layers, dtype=torch.bool)
    rank = found.rank[reading]
    others = [rank[..., DECOY]]
    others += [found.rank[name][..., ANSWER] for name in controls if name in found.rank]
    for attribute in dict.fromkeys(fact.attribute for fact in found.facts):
        here = torch.tensor([i for i, f in enumerate(found.facts) if f.attribute == attribute])
        names = {name: n for n, name in enumerate({found.facts[int(i)].entity for i in here})}
        index = torch.tensor([names[found.facts[int(i)].entity] for i in here])
        opened = torch.ones(found.n_layers, dtype=torch.bool)
        for other in others:
            one_rank, other_rank = rank[here, :, ANSWER], other[here]
            gap = ((one_rank > 0) & (one_rank <= top)).long()
            gap = gap - ((other_rank > 0) & (other_rank <= top)).long()
            by_entity = torch.zeros(len(names), found.n_layers, dtype=torch.long)
            by_entity.index_add_(0, index, gap * ((one_rank > 0) & (other_rank > 0)).long())
            wins, losses = (by_entity > 0).sum(0).numpy(), (by_entity < 0).sum(0).numpy()
            p = binom.sf(wins - 1, wins + losses, 0.5)  # P(as many wins or more)
            opened &= torch.from_numpy(p < 0.025)
        gate[here] = opened
    return gate


def _too_few(found: Forgetting) -> Bool[Tensor, " fact"]:
    """Facts of attributes with fewer entities than a sign test needs."""
    entities: dict[str, set[str]] = {}
    for fact in found.facts:
        entities.setdefault(fact.attribute, set()).add(fact.entity)
    return torch.tensor([len(entities[fact.attribute]) < FEW for fact in found.facts])


def _holds(found: Forgetting, one: str, top: int, gate: bool) -> Bool[Tensor, "fact layer who"]:
    """Whether a kind of evidence holds answer and decoy at each layer; never at the embedding."""
    rank = found.rank[_READ[one][0]]
    holds = (rank > 0) & (rank <= top)
    if one == "lens":
        holds[:, -1] = False  # the output itself
    if one == "patch":  # the state up to there, from the first block on: no lucky hit above a miss
        holds[:, 1:] = holds[:, 1:].long().cumprod(dim=1).bool()
    if gate:
        holds = holds & gate_of(found, one, top)[..., None]
    holds[:, 0] = False
    return holds


def _last(holds: Bool[Tensor, "fact layer who"]) -> Float[Tensor, "fact who"]:
    """The last layer that holds; NaN where none does."""
    layer = torch.arange(holds.shape[1])[:, None]
    found = torch.where(holds, layer, -1).amax(1).float()
    return found.masked_fill(found < 0, float("nan"))


def _from(true: Bool[Tensor, "fact layer"]) -> Float[Tensor, " fact"]:
    """The first layer from which on it is true up to the last; NaN where it is not at the last."""
    lasting = true.flip(1).long().cumprod(dim=1).sum(dim=1)
    first = (true.shape[1] - lasting).float()
    return first.masked_fill(lasting == 0, float("nan"))


def _named(held: float, blocks: int, late: float) -> str:
    if held < 0:
        return "erased"
    return "hidden late" if held >= late * blocks else "hidden early"


def _columns(got: Estimate) -> dict[str, float | int]:
    return {
        "mean": got.mean, "low": got.low, "high": got.high, "facts": got.n,
        "entities": got.clusters,
    }  # fmt: skip
