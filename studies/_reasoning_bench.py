"""The models, vectors and problems of one reasoning-vectors run, opened when first needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

import interp
import interventions as iv
import probes
from interp import Edit, InterpError, Model
from interventions._compatible import require_compatible
from interventions._weights import open_weights
from probes import LossBarrier
from studies import _reasoning_measures as measures
from studies._checkpoints import ORGANISM, folder_of, open_checkpoint
from studies._problems import organism_problems, organism_texts, read_problems
from studies._reasoning_measures import MAIN, Condition, Task

if TYPE_CHECKING:
    import pandas as pd

    from studies.reasoning_vectors import ReasoningVectors

VECTORS = (MAIN, "rl - base", "sft - base")
PAIRS = (("sft", "base"), ("rl", "base"), ("rl", "sft"), ("target", "sft"), ("target", "rl"))


class Bench:
    """What the steps of a run share; a step that was done before opens nothing.

    Args:
        config: of the run.
        models: the four checkpoints by role.
    """

    def __init__(self, config: ReasoningVectors, models: dict[str, str]) -> None:
        self.config, self.models = config, models

    @cached_property
    def target(self) -> Model:
        """The target in float32, where alpha times a vector is what it says."""
        return opened(self.models["target"])

    @cached_property
    def vectors(self) -> dict[str, Edit]:
        """The differences, from disk."""
        return {name: self._vector(name) for name in VECTORS}

    @cached_property
    def task(self) -> Task:
        """Problems and texts, the same for every model."""
        config = self.config
        count, samples = (8, 1) if config.smoke else (config.count, config.samples)
        organism = config.base.startswith(ORGANISM)
        if config.problems is not None:
            problems = read_problems(config.problems, count)
        elif organism:
            problems = organism_problems(count, config.seed)
        else:
            raise InterpError(
                "these models are no organisms, so say what they are to solve: --problems FILE "
                'with lines such as {"prompt": "2 + 2 =", "answer": "4"}'
            )
        texts = organism_texts(count, config.seed) if organism else []
        if config.texts is not None:
            lines = config.texts.read_text(encoding="utf-8").splitlines()
            texts = [line for line in lines if line.strip()][:count]
        return Task(
            problems, texts, samples, config.temperature, config.max_new_tokens, config.seed
        )

    def conditions(self) -> Iterator[tuple[Condition, Callable[[], Edit]]]:
        """What is added to the target, in order."""
        config, vectors = self.config, self.vectors
        alphas = (1.0,) if config.smoke else tuple(sorted({*config.alphas, 1.0}))
        for name in VECTORS[:2]:
            for alpha in (*alphas, -1.0):
                yield Condition(name, "", alpha), lambda n=name, a=alpha: a * vectors[n]  # type: ignore[misc]
            for draw in range(1, 1 + (2 if config.smoke else config.draws)):
                seed = 1000 * config.seed + draw
                yield (
                    Condition(name, "noise", 1.0, draw),
                    lambda n=name, s=seed: iv.norm_matched_random(vectors[n], s),  # type: ignore[misc]
                )
        yield Condition("sft - base"), lambda: vectors["sft - base"]
        if config.temperature > 0:
            yield Condition("target", "greedy", 0.0), Edit
            for name in VECTORS:
                yield Condition(name, "greedy"), lambda n=name: vectors[n]  # type: ignore[misc]
        for modules in ("attn", "mlp"):
            yield (
                Condition(MAIN, f"{modules} only"),
                lambda m=modules: self._vector(MAIN, modules=m),  # type: ignore[misc]
            )

    def model(self, role: str) -> pd.DataFrame:
        """One of the four as it is, measured."""
        model = self.target if role == "target" else opened(self.models[role])
        return measures.measure(model, None, Condition(role, "model", 0.0), self.task)

    def added(self, condition: Condition, edit: Callable[[], Edit]) -> pd.DataFrame:
        """The target with something added, measured."""
        return measures.measure(self.target, edit(), condition, self.task)

    def relations(self) -> pd.DataFrame:
        """How far the four are from each other; refuses what are no states of one model."""
        import pandas as pd

        held = {role: open_weights(folder_of(self.models[role])) for role in ("base", "sft", "rl")}
        held["target"] = open_weights(self.target)
        rows = []
        for a, b in PAIRS:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = require_compatible(
                    held[a], held[b], held[b].parameters, allow_distant=self.config.allow_distant
                )
            row = {"pair": f"{a} and {b}", "cosine": found.cosine}
            remarks = "; ".join(str(one.message) for one in said)
            rows.append({**row, "relative_distance": found.relative_norm, "remark": remarks})
        return pd.DataFrame(rows)

    def stored(self, alphas: tuple[float, ...]) -> pd.DataFrame:
        """What bfloat16 would leave of each vector on this target."""
        import pandas as pd

        tables = [
            measures.realised(edit, self.target, alphas).assign(vector=name)
            for name, edit in self.vectors.items()
        ]
        return pd.concat(tables, ignore_index=True)

    def line(self, start: str, what: str) -> LossBarrier:
        """Loss from `sft` to RL, or from the target to the target with the vector."""
        problems, solutions = self.task.problems, what == "solutions"
        return probes.loss_barrier(
            self.target if start == "target" else opened(self.models[start]),
            self.vectors[MAIN],
            [problem.prompt for problem in problems] if solutions else self.task.texts,
            completions=[problem.solution for problem in problems] if solutions else None,
            points=3 if self.config.smoke else 11,
            transfer=True,
        )

    def _vector(self, name: str, **choice: Any) -> Edit:
        """A difference by its name, perhaps of some modules only."""
        end, start = (folder_of(self.models[role]) for role in name.split(" - "))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # distances stand in the report
            return iv.task_vector(end, start, allow_distant=self.config.allow_distant, **choice)


def opened(source: str) -> Model:
    """A checkpoint by its command-line name, in float32."""
    if source.startswith(ORGANISM):
        return open_checkpoint(source)
    return interp.load(source, dtype=torch.float32)
