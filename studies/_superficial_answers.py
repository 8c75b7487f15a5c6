"""What a model answers: whole answers teacher-forced, many prompts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import Model
from interp._answers import answer_tokens
from interp._forward import run
from interp._reading import reading
from studies._superficial_cases import Case

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 64
MENTIONS = ("old", "decoy", "none")
Asked = tuple[str, str, str, str, str]  # kind, probe, mention, prompt, its own answer


def answered(
    model: Model, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> tuple[Float[Tensor, "prompt answer"], Bool[Tensor, "prompt answer"]]:
    """For each prompt and answer: the mean log-prob of its tokens, and whether it is said.

    Said means that greedy decoding of as many tokens as the answer has gives exactly the answer.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(prompts), _ROWS):
        some = slice(start, start + _ROWS)
        found.append(_answered(model, list(prompts[some]), [list(row) for row in answers[some]]))
    return torch.cat([one for one, _ in found]), torch.cat([two for _, two in found])


def _answered(
    model: Model, prompts: list[str], answers: list[list[str]]
) -> tuple[Float[Tensor, "prompt answer"], Bool[Tensor, "prompt answer"]]:
    batch = model.batch(prompts)
    tokens = answer_tokens(model, batch, answers)  # type: ignore[arg-type]
    rows: dict[tuple[int, ...], int] = {}  # answers of one token share the bare prompt
    places: list[tuple[int, int, int, int, int]] = []  # row, column, token, cell, length
    width = len(answers[0])
    for index, of_prompt in enumerate(tokens):
        ids = batch.input_ids[index][batch.attention_mask[index].bool()].tolist()
        for number, answer in enumerate(of_prompt):
            sequence = rows.setdefault((*ids, *answer[:-1]), len(rows))
            places += [
                (sequence, len(ids) - 1 + offset, token, index * width + number, len(answer))
                for offset, token in enumerate(answer)
            ]
    row, column, token, cell, length = torch.tensor(places).unbind(1)
    with reading(model):
        logits = run(model.module, model.batch([list(ids) for ids in rows]).inputs).logits
        logits = logits[row.to(logits.device), column.to(logits.device)].float().cpu()
    logprob = logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
    n = len(prompts) * width
    mean = torch.zeros(n).index_add(0, cell, logprob / length)
    missed = torch.zeros(n).index_add(0, cell, (logits.argmax(-1) != token).float())
    return mean.view(-1, width), (missed == 0).view(-1, width)


def prompts_of(case: Case) -> Iterator[Asked]:
    """Everything that is asked about a case."""
    yield "edit", "", "", case.text, case.old
    for text in case.rephrased:
        yield "rephrased", "", "", text, case.old
    for text, answer in case.others:
        yield "same subject", "", "", text, answer
    for text, answer in case.neighbours:
        yield "neighbour", "", "", text, answer
    for attack in case.attacks:
        for mention in MENTIONS:
            yield "attack", attack.name, mention, attack.text(mention) + case.text, case.old
    for (text, answer), attack in zip(case.neighbours, case.neighbour_attacks, strict=False):
        yield "neighbour attack", attack.name, "decoy", attack.decoy + text, answer


def table_of(model: Model, cases: Sequence[Case]) -> pd.DataFrame:
    """One row a prompt: `case group kind probe mention` and, of each answer, `p_* said_*`.

    `old` is the case's own old answer where the case's fact is asked for, and otherwise the
    prompt's own answer; `new` and `decoy` are the case's.
    """
    import pandas as pd

    asked = [(index, *one) for index, case in enumerate(cases) for one in prompts_of(case)]
    answers = [[own, cases[index].new, cases[index].decoy] for index, *_, own in asked]
    logprob, said = answered(model, [prompt for *_, prompt, _ in asked], answers)
    rows = []
    for (index, kind, probe, mention, _, _), p, s in zip(
        asked, logprob.exp().tolist(), said.tolist(), strict=True
    ):
        row = {"case": index, "group": cases[index].group, "kind": kind, "probe": probe,
               "mention": mention}  # fmt: skip
        row |= {f"p_{name}": value for name, value in zip(("old", "new", "decoy"), p, strict=True)}
        row |= {f"said_{name}": v for name, v in zip(("old", "new", "decoy"), s, strict=True)}
        rows.append(row)
    return pd.DataFrame(rows)
