"""Conjugate prompting: is a skill lost, or only no longer tried on prompts like the new task's?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from interp import InterpError
from interp._batch import several
from interp._estimate import cluster_mean
from probes._brief import brief

if TYPE_CHECKING:
    import pandas as pd

Answer = Callable[[list[str]], list[str]]
Change = Callable[[str], str]


def conjugate(answer: Answer, transform: Change, inverse: Change = str) -> Answer:
    """Ask in another form, and turn the answer back: x -> s^-1(L(s(x))).

    Args:
        answer: L, from prompts to outputs, such as `model.generate`.
        transform: s, keeps the task and leaves the fine-tuning distribution: another language,
            another script, another frame.
        inverse: s^-1, for the output.

    Examples:
        >>> shout = conjugate(lambda prompts: [p + "!" for p in prompts], str.upper, str.lower)
        >>> shout(["two"])
        ['two!']

    Source: Kotha et al. 2023 (arXiv 2309.10105, ICLR 2024).
    """
    return lambda prompts: [inverse(output) for output in answer([transform(p) for p in prompts])]


@dataclass(frozen=True)
class ConjugateCheck:
    """Whether each prompt was answered rightly, before and after, plainly and conjugated.

    Args:
        before: form -> right or wrong for each prompt before training; "plain" is the first form.
        after: the same after.
        groups: the group of each prompt.
        meta: the arguments.
    """

    before: dict[str, list[bool]]
    after: dict[str, list[bool]]
    groups: list[object]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def table(self, *, seed: int = 0) -> pd.DataFrame:
        """One row a form: how much less is forgotten in it than in the plain form.

        Columns `form before after drop drop_low drop_high recovered recovered_low recovered_high
        prompts`. `drop` is before - after; `recovered` is the plain drop minus this form's, paired
        by prompt. Above zero the skill was partly suppressed rather than lost; a form that the
        model never understood has no drop either, so look at `before` first.

        Args:
            seed: of the bootstrap.
        """
        import pandas as pd

        plain = self._drop("plain")
        rows = []
        for form in self.before:
            drop = self._drop(form)
            lost = cluster_mean(drop.tolist(), self.groups, seed, bounds=(-1.0, 1.0))
            gained = cluster_mean((plain - drop).tolist(), self.groups, seed, bounds=(-2.0, 2.0))
            row = {"form": form, "before": float(np.mean(self.before[form]))}
            row |= {"after": float(np.mean(self.after[form]))}
            row |= {"drop": lost.mean, "drop_low": lost.low, "drop_high": lost.high}
            row |= {"recovered": gained.mean, "recovered_low": gained.low}
            rows.append(row | {"recovered_high": gained.high, "prompts": lost.n})
        return pd.DataFrame(rows)

    def _drop(self, form: str) -> np.ndarray:
        return np.asarray(self.before[form], float) - np.asarray(self.after[form], float)


def conjugate_check(
    before: Answer,
    after: Answer,
    prompts: Sequence[str],
    correct: Callable[[int, str], bool],
    forms: Mapping[str, tuple[Change, Change]],
    *,
    groups: Sequence[object] | None = None,
) -> ConjugateCheck:
    """The drop of accuracy from one model to the next on plain prompts and on transformed ones.

    Args:
        before: prompts -> outputs of the model before fine-tuning.
        after: and after.
        prompts: of the old task.
        correct: (number of the prompt, output turned back) -> whether it is right.
        forms: name -> (transform, inverse); "plain" is added.
        groups: the group of each prompt (people, problems); by default each is its own.

    Raises:
        InterpError: one text and no list, no prompts, no forms, or a model that gives another
            number of outputs.

    Examples:
        >>> def ask(prompts):
        ...     return model.generate(prompts, max_new_tokens=3)
        >>> forms = {"upper": (str.upper, str.lower)}
        >>> check = probes.conjugate_check(ask, ask, texts[:2], lambda i, out: "a" in out, forms)
        >>> check.table()[["form", "before", "drop", "recovered"]]

    Source: Kotha et al. 2023 (arXiv 2309.10105, ICLR 2024): after fine-tuning, accuracy falls least
    in the languages that fine-tuning did not use. The paired difference is ours.
    """
    listed = several(prompts, "prompts")
    if not listed or not forms:
        raise InterpError("give at least one prompt and one form to transform them into")
    if "plain" in forms:
        raise InterpError("'plain' names the prompts as they are; call that form something else")
    asked: dict[str, tuple[Change, Change]] = {"plain": (str, str), **forms}
    sides: list[dict[str, list[bool]]] = []
    for answer in (before, after):
        right = {}
        for form, (transform, inverse) in asked.items():
            outputs = conjugate(answer, transform, inverse)(listed)
            if len(outputs) != len(listed):
                raise InterpError(f"{len(outputs)} outputs for {len(listed)} prompts ({form})")
            right[form] = [bool(correct(i, output)) for i, output in enumerate(outputs)]
        sides.append(right)
    members: list[object] = list(range(len(listed))) if groups is None else list(groups)
    return ConjugateCheck(sides[0], sides[1], members, {"forms": list(asked)})
