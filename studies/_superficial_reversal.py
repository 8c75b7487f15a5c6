"""Where an attack undoes an edit: its states put into the run of the edit prompt, and the lens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import interp
from interp import Model, Target, UnsupportedSite
from interp._hooked import ports_of
from studies._superficial_cases import Case
from studies._superficial_heads import first_tokens, lens, of_tokens

if TYPE_CHECKING:
    import pandas as pd


def reversal(
    model: Model, cases: Sequence[Case], indices: Sequence[int], seed: int
) -> pd.DataFrame:
    """Residual reversal patching: block outputs of an attack's run, in the edit prompt's run.

    One row a (case, attack, mention, layer, position): P(old) and P(new), first tokens, with the
    patch; `base_*` without it and `donor_*` of the attack's own run. `mention` is `old`, or `none`:
    a donor of the same kind that mentions no value, the control.
    """
    import pandas as pd

    positions = _positions(model, cases, seed)
    asked = [
        (row, attack, mention)
        for row, case in enumerate(cases)
        for attack in case.attacks
        for mention in ("old", "none")
    ]
    texts = [cases[row].text for row, _, _ in asked]
    donors = [a.text(mention) + text for (_, a, mention), text in zip(asked, texts, strict=True)]
    where = {name: [[at[row]] for row, _, _ in asked] for name, at in positions.items()}
    effects = {
        name: interp.patch(
            model, donors, texts, "resid_post",
            Target("prob", [getattr(cases[row], name) for row, _, _ in asked]),
            positions=where, align="ends", progress=False,
        )
        for name in _WHO
    }  # fmt: skip
    stacks = {name: effect.stack("resid_post") for name, effect in effects.items()}
    return pd.DataFrame(
        {"case": indices[row], "group": cases[row].group, "probe": attack.name,
         "mention": mention, "layer": layer, "position": position}
        | {f"p_{n}": float(stack[layer, number, span]) for n, stack in stacks.items()}
        | {f"base_{n}": float(e.corrupted[number]) for n, e in effects.items()}
        | {f"donor_{n}": float(e.clean[number]) for n, e in effects.items()}
        for number, (row, attack, mention) in enumerate(asked)
        for layer in range(len(stacks["old"]))
        for span, position in enumerate(positions)
    )  # fmt: skip


def module_effects(model: Model, cases: Sequence[Case], indices: Sequence[int]) -> pd.DataFrame:
    """What each module adds to the lens's P(old) and P(new) at the last position of attacks.

    `p_old` is the lens's probability after the module less before it. Empty where attention and MLP
    read the same stream in parallel.
    """
    import pandas as pd

    try:
        ports_of(model, "resid_mid.0")
    except UnsupportedSite:
        return pd.DataFrame()
    rows = []
    sites = ["resid_pre.*", "resid_mid.*", "resid_post.*"]
    for number in range(min(len(case.attacks) for case in cases)):
        prompts = [case.attacks[number].old + case.text for case in cases]
        acts = interp.capture(model, prompts, sites, positions="last")
        tokens = {n: first_tokens(model, prompts, [getattr(c, n) for c in cases]) for n in _WHO}

        def read(site: str, acts: interp.Activations = acts, tokens: dict = tokens) -> dict:
            logprob = lens(model, acts[site][:, 0])
            return {name: of_tokens(logprob, token) for name, token in tokens.items()}

        for layer in range(model.anatomy.n_layers):
            points = [read(f"{kind}.{layer}") for kind in ("resid_pre", "resid_mid", "resid_post")]
            for module, before, after in (("attention", 0, 1), ("MLP", 1, 2)):
                for row, case in enumerate(cases):
                    rows.append(
                        {"case": indices[row], "group": case.group, "layer": layer,
                         "module": module, "probe": case.attacks[number].name}
                        | {f"p_{n}": float(points[after][n][row] - points[before][n][row])
                           for n in _WHO}
                    )  # fmt: skip
    return pd.DataFrame(rows)


_WHO = ("old", "new")


def _positions(model: Model, cases: Sequence[Case], seed: int) -> dict[str, list[int]]:
    """The subject's last token, the prompt's, one drawn between, and the first if they share it."""
    texts = [case.text for case in cases]
    found = interp.token_positions(model, texts, [case.subject for case in cases])
    subject = [where[-1] for where in found]
    batch = model.batch(texts)
    last = (batch.lengths - 1).tolist()
    drawn = [
        random.Random(f"reversal/{seed}/{text}").choice([i for i in range(1, end) if i != at])
        for text, at, end in zip(texts, subject, last, strict=True)
    ]
    chosen = {"subject_last": subject, "last": last, "random": drawn}
    if _shared_start(model, cases, batch.input_ids[:, 0]):
        chosen["first"] = [0] * len(cases)
    return chosen


def _shared_start(model: Model, cases: Sequence[Case], own: Tensor) -> bool:
    donors = [a.text(m) + c.text for c in cases for a in c.attacks for m in ("old", "none")]
    starts = model.batch(donors).input_ids[:, 0]
    return bool((torch.cat([starts, own]) == own[0]).all())
