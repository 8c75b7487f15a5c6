"""What `forgetting` returns: every reading by fact and layer, and the verdicts that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import InterpError
from interp._errors import nearest
from interp._record import load_record, save_record
from probes._forgetting_fact import Fact

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Forgetting:
    """Readings of facts in a base and a tuned model; layer 0 is the embedding.

    Args:
        rank: reading -> rank of [answer, decoy], 1 for the likeliest; of probes among the
            attribute's answers, 0 where it could not be told; else in the vocabulary.
        prob: reading -> their probability.
        moved: ||tuned - base|| / ||base|| of the stream at all positions, 0 where no bit differs.
        token: first tokens of answer and decoy.
        other: for each fact the one that its decoy and its foreign streams come from, by its
            number among the facts that were measured.
        facts: as given.
        texts: text of every token mentioned.
        meta: models, arguments, and the token that each model says.
    """

    rank: dict[str, Int[Tensor, "fact layer who"]]
    prob: dict[str, Float[Tensor, "fact layer who"]]
    moved: Float[Tensor, "fact layer"]
    token: Int[Tensor, "fact who"]
    other: Int[Tensor, " fact"]
    facts: list[Fact]
    texts: dict[int, str]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def readings(self) -> list[str]:
        """Names of what was read: `base_lens tuned_lens restore ... recover tuned_probe ...`."""
        return list(self.rank)

    @property
    def n_layers(self) -> int:
        """Layers of a reading: blocks + 1, the embedding first."""
        return int(self.moved.shape[1])

    def verdicts(
        self,
        *,
        top: int = 1,
        late: float = 0.5,
        evidence: Sequence[str] = ("lens", "probe", "patch"),
        gate: bool = True,
    ) -> pd.DataFrame:
        """One row a fact: kept, hidden late, hidden early, erased, or unknown (to the base).

        A fact is *unknown* where the base does not rank the answer within `top`, *kept* where the
        tuned model does too, and else *lost*. Of a lost fact, `held` is the last layer l of the L
        blocks (1 <= l <= L; never the embedding) at which any of the evidence still holds the
        answer within `top`: the tuned lens (below the output, l < L), a probe of the tuned stream,
        or the base going on from the whole tuned stream (`recover`, at l and at every layer from 1
        up to it). *Hidden late*: held >= late L. *Hidden early*: held below that. *Erased*: held
        nowhere. `null` is the same rule's verdict on the decoy.

        A kind of evidence counts only at layers where, on the attribute's facts, it beats its
        controls: the decoy, and for probes shuffled labels and the untrained model (exact sign
        tests over entities, p < .025 each). No test can say so of fewer than six entities, whose
        lost facts are *untold*.

        Columns: `fact entity attribute answer base_says tuned_says base_prob tuned_prob base_rank
        tuned_rank verdict held held_by null`, and the last layer by each evidence
        (`lens_layer probe_layer recover_layer`), `restore_layer` (from here up the base's
        last-position stream makes the tuned model answer), `destroy_layer` (from here up the tuned
        one makes the base fail) and both for the other fact's stream (`restore_other_layer
        destroy_other_layer`). Empty where there is none.

        Args:
            top: the greatest rank that counts.
            late: share of the depth from which on hidden is late.
            evidence: what may hold a fact.
            gate: whether evidence has to beat its controls.
        """
        from probes._forgetting_verdict import verdicts

        return verdicts(self, top, late, self._check(evidence), gate)

    def shares(
        self,
        *,
        top: int = 1,
        late: float = 0.5,
        evidence: Sequence[str] = ("lens", "probe", "patch"),
        gate: bool = True,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Share of each verdict with its 95 % interval over entities: `verdict of mean low high`.

        `of` is "facts" (of those the base knows), "lost" (of the lost ones) or "decoys" (the same
        rule on the decoys of the lost ones: what chance gives). Besides `facts entities`.
        """
        from probes._forgetting_verdict import shares

        return shares(self, top, late, self._check(evidence), gate, seed)

    def layers(self, of: str = "lost", *, top: int = 1, seed: int = 0) -> pd.DataFrame:
        """By layer and reading, how often answer and decoy are within `top`, and their mean prob.

        Columns `reading layer who quantity mean low high facts entities`, `quantity` being "top" or
        "prob"; 95 % intervals over entities. Empty if there are no such facts.

        Args:
            of: "lost" facts (the base ranks the answer within `top`, the tuned model does not),
                those "known" to the base, or "all".
            top: the greatest rank that counts.
            seed: of the bootstrap.
        """
        from probes._forgetting_verdict import by_layer

        return by_layer(self, of, top, seed)

    def select(self, rows: Sequence[int]) -> Forgetting:
        """The same readings of some of the facts, by index; gates and intervals are then theirs.

        Args:
            rows: which facts, such as those of one attribute.

        Raises:
            InterpError: none.
        """
        if len(rows) == 0:
            raise InterpError("no facts selected; give the index of one at least")
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return replace(
            self,
            rank={name: value[index] for name, value in self.rank.items()},
            prob={name: value[index] for name, value in self.prob.items()},
            moved=self.moved[index],
            token=self.token[index],
            other=self.other[index],
            facts=[self.facts[int(i)] for i in index],
            meta=self.meta | {"says": [self.meta["says"][int(i)] for i in index]},
        )

    def table(self) -> pd.DataFrame:
        """Tidy, a row for each fact, layer, reading and who.

        Columns `fact entity attribute layer reading who rank prob`; `who` is "answer" or "decoy".
        """
        import numpy as np
        import pandas as pd

        n, layers = self.moved.shape
        fact, layer, who = (axis.ravel() for axis in np.indices((n, layers, 2)))
        parts = [
            pd.DataFrame(
                {
                    "fact": fact,
                    "entity": [self.facts[i].entity for i in fact],
                    "attribute": [self.facts[i].attribute for i in fact],
                    "layer": layer,
                    "reading": name,
                    "who": np.array(["answer", "decoy"])[who],
                    "rank": self.rank[name].flatten().numpy(),
                    "prob": self.prob[name].flatten().numpy(),
                }
            )
            for name in self.readings
        ]
        return pd.concat(parts, ignore_index=True)

    def plot(self, ax: Axes | None = None, *, of: str = "lost", top: int = 1) -> Axes:
        """By layer, the share of facts that each reading holds, with intervals over entities.

        Args:
            ax: where to draw; a new figure by default.
            of: which facts, as in `layers`.
            top: the greatest rank that counts.
        """
        from probes._forgetting_plot import draw

        return draw(self, ax, of, top)

    def save(self, path: str | Path) -> Path:
        """Write a folder that `Forgetting.load` reads back, whole or not at all."""
        tensors = {f"rank:{name}": value for name, value in self.rank.items()}
        tensors |= {f"prob:{name}": value for name, value in self.prob.items()}
        tensors |= {"moved": self.moved, "token": self.token, "other": self.other}
        meta = {
            "readings": self.readings,
            "facts": [asdict(fact) for fact in self.facts],
            "texts": {str(token): text for token, text in self.texts.items()},
            "forgetting": self.meta,
        }
        return save_record(path, "forgetting", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> Forgetting:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "forgetting")
        names = meta["readings"]
        return Forgetting(
            {name: tensors[f"rank:{name}"] for name in names},
            {name: tensors[f"prob:{name}"] for name in names},
            tensors["moved"],
            tensors["token"],
            tensors["other"],
            [Fact(**fact) for fact in meta["facts"]],
            {int(token): text for token, text in meta["texts"].items()},
            meta["forgetting"],
        )

    def __repr__(self) -> str:
        return (
            f"Forgetting({self.meta.get('base')} -> {self.meta.get('tuned')}; {len(self.facts)} "
            f"facts, {self.n_layers} layers, {', '.join(self.readings)})"
        )

    def _check(self, evidence: Sequence[str]) -> tuple[str, ...]:
        valid = ("lens", "probe", "patch")
        given = (evidence,) if isinstance(evidence, str) else tuple(evidence)
        for one in given:
            if one not in valid:
                raise InterpError(f"evidence {one!r}; {nearest(one, valid)}")
        return tuple(one for one in given if one != "probe" or "tuned_probe" in self.rank)
