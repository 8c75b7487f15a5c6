"""Where facts stand, by causal tracing on dev cases, and the edits made there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

import interp
import interventions as iv
from interp import Edit, InterpError, Model
from interventions import KeyCovariance, ValueSearch
from interventions.knowledge import rome_each
from studies._superficial_cases import Case

if TYPE_CHECKING:
    import pandas as pd

SUBSTRATES = ("ROME", "ROME, last token", "MEMIT", "fine-tuning")
# Chosen on dev people of the organism's world, on whom nothing is reported.
_CONTEXTS = 6
_DAMPING = 0.01
_WEIGHT = 10.0  # of MEMIT; its keys are 384 wide and not 6400
_TUNING = {"lr": 2e-3, "epochs": 30, "batch_size": 8}
_WINDOW = {"mlp_out": 1, "attn_out": 1}  # six layers, so one at a time


def traced(model: Model, cases: Sequence[Case], samples: int, seed: int) -> pd.DataFrame:
    """Causal tracing of the old answers: `site layer position effect low high`.

    The effect is P(old) with one clean state put back less P(old) with the subject made
    unreadable, at the subject's last token and at the prompt's.
    """
    import pandas as pd

    texts = [case.text for case in cases]
    subjects = interp.token_positions(model, texts, [case.subject for case in cases])
    effects = interp.causal_trace(
        model,
        texts,
        subjects,
        interp.Target("prob", [case.old for case in cases]),
        window=_WINDOW,
        samples=samples,
        positions={"subject_last": [[where[-1]] for where in subjects], "last": -1},
        seed=seed,
        progress=False,
    )
    from studies._stats import cluster_mean

    groups = [case.group for case in cases]
    rows = []
    for kind in ("resid_post", "mlp_out", "attn_out"):
        gained = effects.stack(kind) - effects.corrupted[None, :, None]
        for layer in range(len(gained)):
            for span, position in enumerate(effects.spans):
                found = cluster_mean(gained[layer, :, span].tolist(), groups, seed, bounds=None)
                rows.append(
                    {"site": kind, "layer": layer, "position": position, "effect": found.mean,
                     "low": found.low, "high": found.high}
                )  # fmt: skip
    return pd.DataFrame(rows)


def located(trace: pd.DataFrame, position: str) -> int:
    """The layer whose MLP, put back at a position, restores most of the answer."""
    at = trace[(trace["site"] == "mlp_out") & (trace["position"] == position)]
    return int(at.sort_values("effect")["layer"].iloc[-1])


def make_edits(
    name: str,
    model: Model,
    cases: Sequence[Case],
    trace: pd.DataFrame,
    covariance: KeyCovariance,
    contexts: Sequence[str],
    drift_prompt: str | None,
    seed: int,
) -> list[Edit]:
    """One edit for each case, or a single one for all of them together."""
    rewrites = [case.rewrite for case in cases]
    early, late = (located(trace, position) for position in ("subject_last", "last"))
    early = min(early, model.anatomy.n_layers - 3)  # two layers of MEMIT, and one that reads them
    if name.startswith("ROME"):
        last = name != "ROME"
        return rome_each(
            model,
            rewrites,
            late if last else early,
            covariance,
            position="last" if last else "subject_last",
            contexts=contexts,
            search=ValueSearch(drift_prompt=drift_prompt),
            damping=_DAMPING,
            seed=seed,
        )
    if name == "MEMIT":
        search = ValueSearch(steps=25, clamp=2.0, drift_prompt=drift_prompt)
        layers = [early, early + 1]
        options = {"weight": _WEIGHT, "contexts": contexts, "search": search, "seed": seed}
        return [iv.memit(model, rewrites, layers, covariance, **options)]  # type: ignore[arg-type]
    if name == "fine-tuning":
        return [
            iv.localised_finetuning(model, rewrites, late, seed=seed, progress=False, **_TUNING)  # type: ignore[arg-type]
        ]
    raise InterpError(f"no way of editing is called {name!r}; expected one of {SUBSTRATES}")


def layers_needed(trace: pd.DataFrame, n_layers: int) -> list[int]:
    """The layers whose keys' covariance the edits need."""
    early = min(located(trace, "subject_last"), n_layers - 3)
    return sorted({early, early + 1, located(trace, "last")})


def contexts_from(texts: Sequence[str], seed: int) -> list[str]:
    """Beginnings of ordinary texts, some words long, to put before prompts."""
    rng = random.Random(f"contexts/{seed}")
    found = []
    for text in rng.sample(list(texts), min(_CONTEXTS, len(texts))):
        words = text.split(" ")
        found.append(" ".join(words[: rng.randint(4, 10)]))
    return found


def groups_of(edits: Sequence[Edit], count: int) -> list[tuple[Edit, list[int]]]:
    """Which cases are measured under which edit."""
    if len(edits) == count and count > 1:
        return [(edit, [index]) for index, edit in enumerate(edits)]
    return [(edits[0], list(range(count)))]


def joined(edits: Sequence[Edit]) -> Edit:
    """Several edits as one to be saved; `apart` undoes it."""
    notes = {"edits": [len(edit) for edit in edits], "each": [dict(e.notes) for e in edits]}
    return Edit([atom for edit in edits for atom in edit], edits[0].made_on, notes)


def apart(edit: Edit) -> list[Edit]:
    """The edits that `joined` put together."""
    found, start = [], 0
    for size, notes in zip(edit.notes["edits"], edit.notes["each"], strict=True):
        found.append(Edit(edit.atoms[start : start + size], edit.made_on, notes))
        start += size
    return found


def organism_texts(count: int, seed: int) -> list[str]:
    """Documents such as the organism was trained on."""
    from studies.organisms.documents import write
    from studies.organisms.world import World

    world, rng = World(seed=0), random.Random(f"superficial/texts/{seed}")
    tasks = ("biography", "question", "names", "biography", "question", "arithmetic", "dictionary")
    return [write(world, tasks[i % len(tasks)], rng).text for i in range(count)]


def known(model: Model, cases: Sequence[Case]) -> list[Case]:
    """The cases whose old answer the model gives, and whose new one it does not."""
    from studies._superficial_answers import answered

    _, said = answered(model, [c.text for c in cases], [[c.old, c.new] for c in cases])
    return [case for case, (old, new) in zip(cases, said.tolist(), strict=True) if old and not new]


def first_token_clash(model: Model, cases: Sequence[Case]) -> None:
    """Refuse answers that begin alike: the lens and the patches read first tokens.

    Raises:
        InterpError: naming the case.
    """
    from studies._superficial_heads import first_tokens

    texts = [case.text for case in cases]
    columns = [
        first_tokens(model, texts, [getattr(case, name) for case in cases])
        for name in ("old", "new", "decoy")
    ]
    tokens = torch.stack(columns, dim=1)
    for case, row in zip(cases, tokens.tolist(), strict=True):
        if len(set(row)) < 3:
            raise InterpError(
                f"two of {case.old!r}, {case.new!r} and {case.decoy!r} begin with the same token, "
                f"so the lens cannot tell them apart; leave out the prompt {case.text[:60]!r}"
            )
