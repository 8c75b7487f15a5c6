"""Does fine-tuning enhance the same circuit? Find it in one checkpoint, ask for it in another.

Prakash et al. (2024, arXiv 2402.14811) find that Llama and models tuned from it track entities with
the same circuit, whose parts do the same, only better. Here the circuit is found by path patching
in each checkpoint, held against random heads, and asked by learnt masks what it carries; then the
tuned model's activations and weights are put into the base: the circuit's beside random heads'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from interp import InterpError, Model
from interp._estimate import share
from studies import _circuit_figures as figures
from studies import _circuit_measures as measures
from studies._checkpoints import ORGANISM, identity, open_checkpoint
from studies._circuit_find import GROUPS, Node, nodes_of, path_effects
from studies._circuit_tasks import Task, from_file, of_scenes
from studies._report import Section, write_report
from studies._run import Run, digests

if TYPE_CHECKING:
    import pandas as pd

NAME = "same-circuit"


@dataclass(frozen=True)
class SameCircuit:
    """Does fine-tuning enhance the same circuit, or build another?"""

    base: str = "organism:boxes@0"
    """The checkpoint before: a folder, a hub id, or a shipped organism."""
    tuned: str = "organism:boxes"
    """The checkpoint after, of the same shapes and vocabulary."""
    prompts: Path | None = None
    """A .jsonl of prompt, corrupted, answer (and told) per line, of one token length; default: the
    organisms' boxes."""
    boxes: int = 4
    """Boxes in the organisms' scenes."""
    find: int = 40
    """Scenes to find the circuit on."""
    test: int = 100
    """Scenes to report on."""
    swaps: int = 160
    """Scenes for each mask; half to learn on, a quarter to choose by and to report on each."""
    epochs: int = 3
    """Epochs of learning a mask."""
    penalty: float = 0.1
    """Price of a head in a mask, in logits (the paper's is 0.01, at which masks are larger)."""
    most: int = 6
    """Heads of a group at most."""
    draws: int = 10
    """Random circuits, subsets and random heads."""
    seed: int = 0
    """Of scenes, draws and bootstraps."""
    out: Path = Path("runs/same-circuit")
    """The run folder; an interrupted run continues there."""
    smoke: bool = False
    """A few scenes: that everything runs, in seconds."""


def run(config: SameCircuit) -> Run:
    """Run the study and write its folder."""
    weights = {source: identity(source) for source in (config.base, config.tuned)}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    study = _Study(folder, config)
    paths = folder.table("paths", study.paths)
    study.circuits = {
        which: nodes_of(paths[paths["model"] == which], study.task) for which in ("base", "tuned")
    }
    circuit = folder.table("circuit", study.circuit)
    worth = folder.table("nodes", lambda: study.nodes(paths))
    masks = folder.table("masks", study.masks) if study.task.swaps else None
    same = folder.table("overlap", lambda: study.overlap(masks))
    activations = measures.shares(folder.table("activations", study.activations), config.seed)
    weighed = measures.shares(folder.table("weights", study.weights), config.seed)
    verdict = _verdict(circuit, same, masks, activations, weighed)
    write_report(
        folder.path / "report.html",
        "Does fine-tuning enhance the same circuit?",
        verdict,
        _sections(folder, paths, circuit, worth, masks, same, activations, weighed),
        folder.meta,
    )
    folder.finish(verdict=verdict)
    return folder


class _Study:
    """The steps of a run; models are opened only if a step is not there yet."""

    circuits: dict[str, list[Node]]

    def __init__(self, folder: Run, config: SameCircuit) -> None:
        self.folder, self.config = folder, config
        self.few = config.smoke

    @cached_property
    def base(self) -> Model:
        return open_checkpoint(self.config.base)

    @cached_property
    def tuned(self) -> Model:
        return open_checkpoint(self.config.tuned)

    def models(self) -> dict[str, Model]:
        return {"base": self.base, "tuned": self.tuned}

    @cached_property
    def task(self) -> Task:
        c = self.config
        if c.prompts is not None:
            return from_file(c.prompts, self.base)
        if not (c.base.startswith(ORGANISM) and c.tuned.startswith(ORGANISM)):
            raise InterpError("these checkpoints need prompts of their own: pass --prompts FILE")
        if self.few:
            return of_scenes(8, 8, 8, 3, c.seed)
        return of_scenes(c.find, c.test, c.swaps, c.boxes, c.seed)

    @property
    def draws(self) -> int:
        return 2 if self.few else self.config.draws

    def paths(self) -> pd.DataFrame:
        most = 2 if self.few else self.config.most
        return _joined(
            path_effects(model, self.task, most).assign(model=which)
            for which, model in self.models().items()
        )

    def circuit(self) -> pd.DataFrame:
        """The base's circuit in both models, and the tuned model's own."""
        tables = []
        for where, whose in (("base", "base"), ("tuned", "base"), ("tuned", "tuned")):
            if self.circuits[whose]:
                table, worth = measures.scores(
                    self.models()[where], self.task, self.circuits[whose], self.draws,
                    self.config.seed, minimality=where == whose,
                )  # fmt: skip
                tables.append(table.assign(model=where, circuit=whose))
                if where == whose:
                    self.folder.table(f"minimality-{where}", partial(_same, worth))
        if not tables:
            raise InterpError(
                "path patching found no head whose loss moves the answer by 2 % for sure, in "
                "neither model; do they answer these prompts at all, and are there enough of them?"
            )
        return _joined(tables)

    def nodes(self, paths: pd.DataFrame) -> pd.DataFrame:
        """One row a node of either circuit: effect, and what it is worth to its circuit."""
        tables = []
        for which, nodes in self.circuits.items():
            if not nodes:
                continue
            worth = self.folder.table(f"minimality-{which}", _missing)
            own = paths[(paths["model"] == which)].set_index(["group", "layer", "head"])
            rows = own.loc[[(n.group, n.layer, n.head) for n in nodes]].reset_index()
            rows["minimality"] = worth["minimality"].to_numpy()
            tables.append(rows.drop(columns="chosen"))
        return _joined(tables)

    def masks(self) -> pd.DataFrame:
        epochs = 1 if self.few else self.config.epochs
        return _joined(
            measures.masks(model, self.task, epochs, self.config.penalty, self.config.seed).assign(
                model=which
            )
            for which, model in self.models().items()
        )

    def overlap(self, masks: pd.DataFrame | None) -> pd.DataFrame:
        """Heads in common: circuit by group, and mask by mask, beside the same sizes by layer."""
        import pandas as pd

        blocks = self.base.anatomy.blocks
        every = [(block.index, head) for block in blocks for head in range(block.n_heads)]
        rows = []
        for group in ("whole circuit", *GROUPS):
            sets = [
                [
                    (n.layer, n.head)
                    for n in self.circuits[which]
                    if group in (n.group, "whole circuit")
                ]
                for which in ("base", "tuned")
            ]
            if any(sets):
                rows.append({"what": group, **measures.overlap(sets[0], sets[1], every)})
        for swap in [] if masks is None else dict.fromkeys(masks["swap"]):
            part = masks[(masks["swap"] == swap) & masks["taken"]]  # type: ignore[index]
            sets = [
                list(zip(own["layer"].astype(int), own["head"].astype(int), strict=True))
                for own in (part[part["model"] == which] for which in ("base", "tuned"))
            ]
            rows.append({"what": f"mask: {swap}", **measures.overlap(sets[0], sets[1], every)})
        return pd.DataFrame(rows)

    def activations(self) -> pd.DataFrame:
        nodes = self.circuits["base"] or self.circuits["tuned"]
        groups = {"circuit": [n.place for n in nodes]}
        groups |= {group: [n.place for n in nodes if n.group == group] for group in GROUPS}
        return measures.across(
            self.base, self.tuned, self.task, groups, self.draws, self.config.seed
        )

    def weights(self) -> pd.DataFrame:
        nodes = self.circuits["base"] or self.circuits["tuned"]
        heads = sorted({(n.layer, n.head) for n in nodes})
        return measures.transplanted(
            self.base, self.tuned, self.task, heads, self.draws, self.config.seed
        )


def _verdict(
    circuit: pd.DataFrame, same: pd.DataFrame, masks: pd.DataFrame | None,
    activations: pd.DataFrame, weights: pd.DataFrame,
) -> list[str]:  # fmt: skip
    """A line a claim: held, did not hold, or could not be tested."""
    at = activations.set_index("what")
    gap = not bool(at["share"].isna().all())
    better = gap and bool(at.loc["tuned", "accuracy"] > at.loc["base", "accuracy"])
    lines = [
        f"The base answers {_span(at.loc['base'])}, the tuned model {_span(at.loc['tuned'])}: "
        + ("tuning improved the task." if better else "tuning made it worse." if gap
           else "no gap beyond chance, so nothing to recover.")
    ]  # fmt: skip
    lines.append(_faithful(circuit))
    whole = same[same["what"] == "whole circuit"]
    if len(whole):
        row = whole.iloc[0]
        word = "Held" if row["p"] < 0.05 else "Did not hold"
        word = "Could not be tested" if row["p"] != row["p"] else word
        lines.append(
            f"{word}: the same heads. {row['common']:.0f} in common of {row['base_heads']:.0f} and "
            f"{row['tuned_heads']:.0f}, Jaccard {row['jaccard']:.2f}; {row['null']:.2f} for random "
            f"heads of the same layers (p = {row['p']:.4f})."
        )
    if masks is not None:
        lines += [_mask_line(masks, same, swap) for swap in dict.fromkeys(masks["swap"])]
    for what, table in (("activations", activations), ("weights", weights)):
        title = f"tuned model's {what} of the circuit's heads"
        lines.append(_recovery(table, "circuit", title, gap=better))
    return lines


def _faithful(circuit: pd.DataFrame) -> str:
    part = circuit[(circuit["model"] == "tuned") & (circuit["circuit"] == "base")]
    if not len(part):
        return "Could not be tested: the base has no circuit to ask the tuned model for."
    at = part.set_index("quantity")
    found, chance = at.loc["recovered"], at.loc["95 % of random circuits: faithfulness"]
    whole = at.loc["faithfulness"]
    held = found["low"] > 0.5 and whole["low"] > chance["high"]
    return (
        f"{'Held' if held else 'Did not hold'}: the base's circuit stands for the tuned model. "
        f"Alone it keeps {_span(whole, 'mean')} of its accuracy (random circuits: "
        f"{_span(chance, 'mean')}), {_span(found, 'mean')} of what heads are needed for."
    )


def _mask_line(masks: pd.DataFrame, same: pd.DataFrame, swap: str) -> str:
    parts = []
    works = True
    for which in ("base", "tuned"):
        row = masks[(masks["swap"] == swap) & (masks["model"] == which)].iloc[0]
        right = share(round(row["accuracy"] * row["n"]), int(row["n"]))
        works &= right.low > max(row["random_high"], row["none"])
        parts.append(
            f"{which} {row['accuracy']:.2f} (no head {row['none']:.2f}, all {row['every']:.2f}, "
            f"random {row['random']:.2f})"
        )
    row = same[same["what"] == f"mask: {swap}"].iloc[0]
    if not works:
        return (
            f"Could not be tested: no heads that carry the {swap} in both models; "
            f"{', '.join(parts)}."
        )
    word = "Held" if row["p"] < 0.05 else "Did not hold"
    return (
        f"{word}: the {swap} is carried by the same heads. Masks' accuracy: {', '.join(parts)}; "
        f"Jaccard {row['jaccard']:.2f} against {row['null']:.2f} by chance (p = {row['p']:.4f})."
    )


def _recovery(table: pd.DataFrame, what: str, title: str, *, gap: bool) -> str:
    at = table.set_index("what")
    if not gap or what not in at.index:
        return f"Could not be tested: whether the {title} lift the base, since there is no gain."
    row, control = at.loc[what], at.loc[f"{what}, random heads"]
    held = row["share_low"] > max(control["share_high"], 0.0)
    shown = "{:.2f} [{:.2f}, {:.2f}]"
    ours, chance = (
        shown.format(r["share"], r["share_low"], r["share_high"]) for r in (row, control)
    )
    return (
        f"{'Held' if held else 'Did not hold'}: the {title} lift the base. They close {ours} of "
        f"the gap, random heads {chance}."
    )


def _span(row: pd.Series, name: str = "accuracy") -> str:
    return f"{row[name]:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _sections(
    folder: Run, paths: pd.DataFrame, circuit: pd.DataFrame, worth: pd.DataFrame,
    masks: pd.DataFrame | None, same: pd.DataFrame, activations: pd.DataFrame,
    weights: pd.DataFrame,
) -> list[Section]:  # fmt: skip
    found = folder.figure("effects", lambda: figures.effects(paths))
    lifted = folder.figure("recovered", lambda: figures.recovered(activations, weights))
    sections = [
        Section(
            "The circuit, from the answer backwards",
            [
                "Relative change of the answer's lead (its logit less another answer's) when one "
                "head's output comes from a counterpart in which everything was drawn anew, all "
                "other heads held still. "
                "Fetchers speak to the logits; askers to the fetchers' queries; tellers to the "
                "fetchers' values (objects) or keys (labels) where the answer was told; readers of "
                "the label to the askers' values where it is asked about. Framed heads are the "
                "circuit: the change is below −2 % with its whole interval.",
                "Minimality is the largest relative loss of the circuit's accuracy when the head "
                "is removed together with some of its partners.",
            ],
            worth,
            [(found, "Rows: base and tuned model; columns: groups.")],
        ),
        Section(
            "Alone",
            [
                "Accuracy on scenes that were not used to find the circuit, with every other head "
                "held at its mean by position. “recovered” leaves out what needs no heads. "
                "Incompleteness is |accuracy of the model without K - of the circuit without K| "
                "over random halves K, with the least and the greatest instead of an interval."
            ],
            circuit,
        ),
        Section(
            "In common",
            [
                "Heads that both models have in a group or a mask. The null draws sets of the same "
                "sizes within each layer."
            ],
            same,
            [] if masks is None else [
                (folder.figure("masks", lambda: figures.taken(masks)),
                 "Heads at the last position that masks take from the source prompt.")
            ],
        ),
    ]  # fmt: skip
    if masks is not None:
        accuracies = masks.drop_duplicates(["model", "swap"])[
            ["model", "swap", "accuracy", "none", "every", "random", "random_high", "n"]
        ]
        sections.append(
            Section(
                "What is carried",
                [
                    "Heads whose output at the last position, taken from a source prompt, makes "
                    "the base prompt's answer follow the source in one thing only: which object, "
                    "which label is asked about, or which place in the list. Accuracy on scenes "
                    "that the mask has not seen, beside no head, all heads, and as many at random."
                ],
                accuracies,
            )
        )
    return [
        *sections,
        Section(
            "The tuned model's activations in the base",
            [
                "Cross-model activation patching: the base runs with some heads' outputs (z, "
                "before the output projection) from the tuned model on the same prompt. The share "
                "is that of the gap in accuracy. What tuning changed in the output projection "
                "itself does not show in z; attention outputs hold it, of all heads of a layer at "
                "once."
            ],
            activations,
            [(lifted, "Accuracy; dashed lines are both models as they are.")],
        ),
        Section(
            "The tuned model's weights in the base",
            ["The same with weights: queries, keys, values and outputs of the circuit's heads."],
            weights,
        ),
        Section(
            "How this could mislead",
            [
                "A circuit is what these counterparts and this template show; where in a sentence "
                "a label stands is fixed, so position and content cannot be told apart everywhere.",
                "Groups are named by what they speak to, not by what they were proven to say.",
                "Where heads share keys and values, weights of a head move those of its group.",
                "A tuned model whose MLPs or embeddings changed can profit through the same heads: "
                "activations show that, weights of the heads do not.",
                "The organisms were helped to the circuit by an attention loss in planted layers, "
                "so that it is there in both says less about models that found it by themselves.",
            ],
        ),
    ]


def _joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(list(tables), ignore_index=True)


def _same(table: pd.DataFrame) -> pd.DataFrame:
    return table


def _missing() -> pd.DataFrame:
    raise InterpError("this run folder is incomplete; delete it and run the study again")
