"""The report of the superficial-edits study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from studies import _superficial_figures as figures
from studies import _superficial_measures as measures
from studies._report import Section
from studies._run import Run
from studies._superficial_edits import located
from studies._superficial_measures import UNEDITED

if TYPE_CHECKING:
    import pandas as pd


def first_lines(
    trace: pd.DataFrame, answers: pd.DataFrame, models: Sequence[str], seed: int
) -> list[str]:
    """What each edit does, before anything is claimed of it."""
    table = measures.behaviour(answers, seed).set_index(["model", "quantity"])
    layers = {p: located(trace, p) for p in ("subject_last", "last")}
    lines = [
        f"On dev people the MLP whose output restores most of the answer is that of layer "
        f"{layers['subject_last']} at the subject's last token and of layer {layers['last']} at "
        f"the prompt's; edits are made there."
    ]
    for model in models:
        parts = [
            f"{quantity} {row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            for quantity, row in table.loc[model].iterrows()
        ]
        lines.append(f"{model}: {', '.join(parts)}.")
    return lines


def sections(
    folder: Run,
    trace: pd.DataFrame,
    answers: pd.DataFrame,
    found: dict[str, pd.DataFrame],
    judged: pd.DataFrame,
    models: Sequence[str],
    seed: int,
) -> list[Section]:
    """The report's sections in order; summaries are tables of the run, too."""
    behaviour = folder.table("behaviour", lambda: measures.behaviour(answers, seed))
    attacked = folder.table("attacks", lambda: measures.attacks(answers, seed))
    undone = folder.table("undone", lambda: measures.reversal_by_layer(found["reversal"], seed))
    parts = folder.table("parts", lambda: measures.modules_by_layer(found["modules"], seed))
    removed = folder.table("removed", lambda: measures.ablations(found["ablation"], seed))
    decoded = folder.table("decoded", lambda: measures.decoding(found["decoding"], seed))
    order = [UNEDITED, *models]

    def draw(name: str, make: Callable[[], object], caption: str) -> tuple[Path, str]:
        return folder.figure(name, make), caption  # type: ignore[arg-type]

    return [
        Section(
            "Claim by claim",
            [
                "Held: the 95 % interval over subjects is above zero. Estimates are differences "
                "from the control named. Here and below only cases whose edit works count, but in "
                "what the edits do."
            ],
            judged,
        ),
        Section(
            "Where the facts stand",
            [
                "Causal tracing on dev people: the subject's embeddings are noised, one clean "
                "state is put back. Bands are 95 % intervals over people."
            ],
            figures=[draw("trace", partial(figures.trace, trace), "Gain in P(answer) by layer.")],
        ),
        Section(
            "What the edits do",
            [
                "Efficacy: the new answer is given to the prompt that was edited; generalisation: "
                "to five other wordings (the unlearned model: two). Locality: other facts of the "
                "same subject, and the same fact of other subjects, are answered as before."
            ],
            behaviour,
        ),
        Section(
            "Attacks",
            [
                "OM: the attack with the old answer brings it back. Beside it: after a text of the "
                "same kind without any value; a decoy, never true, mentioned and then said; the "
                "same on subjects that were not edited. Only the excess over the decoy speaks of "
                "something held, and only the excess over no mention of the mention itself."
            ],
            measures.attacks_side_by_side(attacked),
            [draw("attacks", partial(figures.attacks, attacked, order), "All attacks together.")],
        ),
        Section(
            "Reversal by patching",
            [
                "The stream after one block at one position, from the attack's run into the edit "
                "prompt's. Thin lines: donors whose text mentions no value. At the last layer the "
                "last position is the attack's own answer."
            ],
            figures=[
                draw("reversal", partial(figures.reversal, undone, models), "Gain in P(old)."),
                *(
                    [draw("modules", partial(figures.modules, parts, models),
                          "What attention and MLPs add at the last position.")]
                    if len(parts) else []
                ),
            ],
        ),
        Section(
            "Heads and singular vectors",
            [
                "LOPH: the probability that the lens reads from one head's output alone. Heads are "
                "chosen on even cases (above 0.1, or the best four), reported on odd ones; vectors "
                "are scored on the other attacks and removed under the last one. Random heads and "
                "vectors are as many of the same."
            ],
            removed,
            [
                draw("heads", partial(figures.heads, found["loph"], models), "LOPH by head."),
                draw("ablations", partial(figures.ablations, removed, models),
                     "Change in probability when something is removed."),
            ],
        ),
        Section(
            "What the vectors decode to",
            ["Among the lens's fifteen first tokens, of a vocabulary that is small here."],
            decoded,
        ),
        Section(
            "How this could mislead",
            [
                "An attack that mentions the old answer may be read and copied: the decoy says how "
                "often. An edit that fails in every longer context is brittle, not superficial: "
                "the text without a mention says how often.",
                "Patching the last position in the last layer gives the donor's answer by "
                "construction; what matters is from which layer on.",
                "In a small vocabulary fifteen tokens are a large share, so decoding stands beside "
                "random vectors and another value.",
                "Answers are read by their first token in patches, lens and ablations.",
                "One organism of one seed; its facts are looked up at the last token, which is not "
                "where large models are said to look them up.",
            ],
        ),
    ]  # fmt: skip
