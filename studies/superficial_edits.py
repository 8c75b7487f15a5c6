"""Is an edited fact gone, or only covered? Attacks, patches, heads and vectors after each edit.

Xie et al. (arXiv 2505.12636) find that edited models give the old answer again when the prompt
mentions it, that early states of the subject and late attention heads bring it back, and that a few
singular vectors of those heads carry it. Here that is measured with what the claims need beside
them: the same attack with a value that was never true, the same kind of text without any value, the
model before the edit, subjects that were not edited, random heads and random vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import interventions as iv
from interp import Edit, InterpError, Model
from studies import _superficial_ablation as ablation
from studies import _superficial_edits as edits
from studies import _superficial_measures as measures
from studies import _superficial_report as report
from studies import _superficial_reversal as reversal
from studies._checkpoints import ORGANISM, identity, only_organisms, open_checkpoint
from studies._report import write_report
from studies._run import Run, digests
from studies._superficial_answers import table_of
from studies._superficial_cases import Case, organism_cases, read_cases, unlearned_cases
from studies._superficial_edits import SUBSTRATES
from studies._superficial_measures import UNEDITED, UNLEARNED

if TYPE_CHECKING:
    import pandas as pd

NAME = "superficial-edits"
_Measure = Callable[[Model, list[Case], list[int]], "pd.DataFrame"]
TABLES = ("reversal", "modules", "loph", "ablation", "decoding")


@dataclass(frozen=True)
class SuperficialEdits:
    """Does an edited or unlearned model still hold the old answer, and where?"""

    base: str = "organism:base"
    """The model to edit: a folder, a hub id, or a shipped organism."""
    unlearned: str | None = "organism:unlearn"
    """A model made to forget, measured in the same way; only with the organism's world."""
    facts: Path | None = None
    """JSON lines of cases (docs/studies/superficial-edits.md); default: the organism's people."""
    texts: Path | None = None
    """Ordinary text, one document a line, for the keys' covariance; default: the organism's."""
    drift_prompt: str = "This is {}."
    """A prompt about the subject on which the next token should stay as it is."""
    people: int = 36
    """People of the organism whose facts are edited and reported on."""
    inside: int = 20
    """Cases of each kind of edit whose insides are read: patches, heads, vectors (of the unlearned
    model all)."""
    dev: int = 12
    """Further people, on whom the layers are chosen."""
    documents: int = 300
    """Documents of the organism's world for the covariance."""
    draws: int = 5
    """Random heads and random vectors for each control."""
    seed: int = 0
    """For people, values, contexts and draws."""
    out: Path = Path("runs/superficial-edits")
    """The run folder; an interrupted run continues there."""
    smoke: bool = False
    """A few people and two kinds of edit: that everything runs, in seconds."""


def run(config: SuperficialEdits) -> Run:
    """Run the study and write its folder: edits, tables, figures, report.html."""
    if config.facts is None and config.unlearned is not None:
        only_organisms(
            (config.unlearned,),
            "leave it out with --unlearned None",
        )
    sources = [source for source in (config.base, config.unlearned) if source is not None]
    weights = {source: identity(source) for source in sources}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    bench = _Bench(folder, config)
    parts = [bench.unedited(), *(bench.edited(name) for name in bench.substrates)]
    if config.unlearned is not None and config.facts is None:
        parts.append(bench.unlearned())
    answers = _joined(parts)
    models = [name for name in dict.fromkeys(answers["model"]) if name != UNEDITED]
    found = {kind: _joined([bench.table(kind, name) for name in models]) for kind in TABLES}
    passing = {
        name: ablation.chosen_heads(part)[1] for name, part in found["loph"].groupby("model")
    }
    found |= {
        kind: measures.of_working(table, answers)
        for kind, table in found.items()
        if kind != "loph"  # heads were chosen on all of it
    }
    judged = folder.table(
        "claims",
        lambda: measures.claims(
            answers, found["reversal"], found["modules"], found["ablation"], found["decoding"],
            passing, config.seed,
        ),
    )  # fmt: skip
    lines = report.first_lines(bench.trace(), answers, models, config.seed)
    lines += measures.verdict_lines(judged, models)
    write_report(
        folder.path / "report.html",
        "Are edited facts gone, or only covered?",
        lines,
        report.sections(folder, bench.trace(), answers, found, judged, models, config.seed),
        folder.meta,
    )
    folder.finish(verdict=lines)
    return folder


class _Bench:
    """What the parts share; the model is opened, and each table made, only if one is missing."""

    def __init__(self, folder: Run, config: SuperficialEdits) -> None:
        self.folder, self.config = folder, config
        self._base: Model | None = None
        self._cases: dict[str, list[Case]] = {}
        smoke = ("ROME, last token", "fine-tuning")
        self.substrates: Sequence[str] = smoke if config.smoke else SUBSTRATES

    @property
    def base(self) -> Model:
        """The model to edit."""
        if self._base is None:
            self._base = open_checkpoint(self.config.base)
        return self._base

    def cases(self, split: str) -> list[Case]:
        """Dev or test cases whose old answer the model gives."""
        if not self._cases:
            config = self.config
            if config.facts is not None:
                given = read_cases(config.facts)
            elif config.base.startswith(ORGANISM):
                people = (3, 6) if config.smoke else (config.dev, config.people)
                given = organism_cases(config.seed, *people)
            else:
                raise InterpError(
                    "this model needs facts of its own: pass --facts FILE (see "
                    "docs/studies/superficial-edits.md) and --texts FILE"
                )
            edits.first_token_clash(self.base, given)
            kept = edits.known(self.base, given)
            for name in ("dev", "test"):
                self._cases[name] = [case for case in kept if case.split == name]
                if not self._cases[name]:
                    raise InterpError(
                        f"the model gives the old answer of none of the {name} cases, so there is "
                        f"nothing to edit; spell prompts and answers as it continues them"
                    )
        return self._cases[split]

    def trace(self) -> pd.DataFrame:
        """Causal tracing on dev cases."""
        few = self.config.smoke
        return self.folder.table(
            "trace",
            lambda: edits.traced(self.base, self.cases("dev"), 2 if few else 5, self.config.seed),
        )

    def unedited(self) -> pd.DataFrame:
        """The answers of the model as it is."""
        return self.folder.table(
            f"answers-{UNEDITED}",
            lambda: table_of(self.base, self.cases("test")).assign(model=UNEDITED),
        )

    def edited(self, name: str) -> pd.DataFrame:
        """The answers after one kind of edit, and the tables of what is inside."""
        return self._measured(
            name, lambda: self.base, lambda: self.cases("test"), self._edits, self.config.inside
        )

    def unlearned(self) -> pd.DataFrame:
        """The same for the model that was made to forget."""
        opened: list[Model] = []
        people = 6 if self.config.smoke else self.config.people

        def model() -> Model:
            if not opened:
                opened.append(open_checkpoint(self.config.unlearned or ""))
            return opened[0]

        return self._measured(
            UNLEARNED, model, lambda: unlearned_cases(self.config.seed, people),
            lambda _: [Edit()], None
        )  # fmt: skip

    def table(self, kind: str, name: str) -> pd.DataFrame:
        """A table of an edited model that was made before."""
        return self.folder.table(f"{kind}-{_file(name)}", _missing)

    def _measured(
        self,
        name: str,
        model: Callable[[], Model],
        cases: Callable[[], list[Case]],
        make: Callable[[str], list[Edit]],
        inside: int | None,
    ) -> pd.DataFrame:
        def each(measure: _Measure, most: int | None = inside) -> pd.DataFrame:
            """A measurement of the first cases, each under its edit."""
            parts = []
            every = cases()
            for edit, indices in edits.groups_of(make(name), len(every)):
                if chosen := [i for i in indices if most is None or i < most]:
                    with edit.applied(model()):
                        parts.append(measure(model(), [every[i] for i in chosen], chosen))
            return _joined(parts).assign(model=name)

        def answers(handle: Model, some: list[Case], indices: list[int]) -> pd.DataFrame:
            made = table_of(handle, some)
            return made.assign(case=made["case"].map(dict(enumerate(indices))))

        seed, file = self.config.seed, _file(name)
        said = self.folder.table(f"answers-{file}", lambda: each(answers, None))
        self.folder.table(
            f"reversal-{file}", lambda: each(lambda m, c, i: reversal.reversal(m, c, i, seed))
        )
        self.folder.table(f"modules-{file}", lambda: each(reversal.module_effects))
        loph = self.folder.table(f"loph-{file}", lambda: each(ablation.loph_table))
        heads, _ = ablation.chosen_heads(loph)
        read: list[pd.DataFrame] = []

        def both(handle: Model, some: list[Case], indices: list[int]) -> pd.DataFrame:
            draws = 1 if self.config.smoke else self.config.draws
            one, two = ablation.ablation_tables(handle, some, indices, heads, draws, seed)
            read.append(two.assign(model=name))
            return one

        def decoding() -> pd.DataFrame:
            if not read:
                each(both)
            return _joined(read)

        self.folder.table(f"ablation-{file}", lambda: each(both))
        self.folder.table(f"decoding-{file}", decoding)
        return said

    def _edits(self, name: str) -> list[Edit]:
        """The edits of one kind, from the run folder if they are there."""
        path = self.folder.path / f"edits-{_file(name)}"
        if not path.exists():
            texts = self._texts()
            layers = edits.layers_needed(self.trace(), self.base.anatomy.n_layers)
            covariance = iv.key_covariance(
                self.base, texts, layers, cache=self.folder.path / "covariance", progress=False
            )
            contexts = edits.contexts_from(texts, self.config.seed)
            made = edits.make_edits(
                name, self.base, self.cases("test"), self.trace(), covariance, contexts,
                self.config.drift_prompt, self.config.seed,
            )  # fmt: skip
            edits.joined(made).save(path)
        return edits.apart(Edit.load(path))

    def _texts(self) -> list[str]:
        if self.config.texts is not None:
            lines = self.config.texts.read_text(encoding="utf-8").splitlines()
            return [line for line in lines if line.strip()]
        if not self.config.base.startswith(ORGANISM):
            raise InterpError(
                "edits need ordinary text to leave alone: pass --texts FILE, one document a line"
            )
        return edits.organism_texts(60 if self.config.smoke else self.config.documents, 0)


def _file(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-").lower()


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([part for part in parts if len(part)] or list(parts), ignore_index=True)


def _missing() -> pd.DataFrame:
    raise InterpError("this run folder is incomplete; delete it and run the study again")
