"""What a tune-what-matters study needs: examples, questions, the ways there are, the noise test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import interventions as iv
from interp import InterpError, Model
from studies import _tune_noise as noise
from studies import _who_forgets_measures as measures
from studies._checkpoints import ORGANISM, folder_of
from studies._problems import organism_texts
from studies._tune_ways import WAYS, Tuner
from studies._who_forgets_bench import Bench
from studies.who_forgets import WhoForgets

if TYPE_CHECKING:
    import pandas as pd

    from interventions._examples import Example
    from studies.tune_what_matters import TuneWhatMatters

DRIFT = "organism:rl"  # the only other checkpoint here, and of the same new task
_EXAMPLE = '{"prompt": "2 + 2 =", "completion": " 4"}'
_TEXTS = 128  # of the old tasks, for CorDA


class TuneBench:
    """The model, what it learns, and what it is asked; each is opened when first needed.

    Args:
        config: of the run.
    """

    def __init__(self, config: TuneWhatMatters) -> None:
        self.config = config
        asked = WhoForgets(
            base=config.base, tasks=config.tasks, problems=config.problems, items=config.items,
            count=config.count, samples=config.samples, seed=config.seed,
        )  # fmt: skip
        self.old = Bench(asked, config.out)

    @cached_property
    def tuner(self) -> Tuner:
        """Every way of tuning, on this run's examples."""
        config, model = self.config, self.old.base
        dev = [] if config.only_noise else self._train(-1)[:64]
        return Tuner(
            model, self._train, dev, config.steps, config.rows, config.rank,
            model.anatomy.n_layers // 2, self._kept, self._direction,
        )  # fmt: skip

    @property
    def _organism(self) -> bool:
        return self.config.base.startswith(ORGANISM)

    @property
    def _kept(self) -> Callable[[], list[str]] | None:
        if self.config.texts is not None:
            return partial(noise.read_texts, self.config.texts)
        return partial(organism_texts, _TEXTS, self.config.seed) if self._organism else None

    @property
    def _direction(self) -> Callable[[], iv.Edit] | None:
        source = self.config.prior or (DRIFT if self._organism else None)
        if source is None:
            return None
        return lambda: iv.task_vector(str(folder_of(source)), self.old.base)

    @property
    def missing(self) -> dict[str, str]:
        """Ways that this run has nothing for, and the option that would give it."""
        there = {"kept": self._kept, "direction": self._direction, None: True}
        option = {"kept": "--texts", "direction": "--prior"}
        return {
            way: option[str(WAYS[way].needs)]
            for way in self.config.ways
            if there[WAYS[way].needs] is None
        }

    @property
    def ways(self) -> list[str]:
        """Those asked for that can be taken."""
        return [way for way in self.config.ways if way not in self.missing]

    def _train(self, seed: int) -> Sequence[Example]:
        """Examples by seed; those of -1 are for choosing rates and in no other's."""
        config = self.config
        if config.examples is not None:
            found = _read_examples(config.examples)
            held, rest = found[: len(found) // 5], found[len(found) // 5 :]
            return held if seed < 0 else rest
        from studies.organisms import sft
        from studies.organisms.world import World

        rows = sft.rows(World(0), sft.SftConfig().style, config.steps * config.rows + 64, seed + 7)
        return [(row["prompt"], row["completion"]) for row in rows][: None if seed < 0 else -64]

    def rates(self) -> pd.DataFrame:
        """Dev loss on the new task of the rates tried, first seed."""
        import pandas as pd

        rows = []
        for way in self.ways:
            tried = WAYS[way].rates[: max(1, self.config.tried)]
            tried = tried if self.config.lr is None else [self.config.lr]
            if len(tried) == 1:
                rows.append({"way": way, "lr": tried[0], "dev": 0.0})
                continue
            for lr in tried:
                rows.append({"way": way, "lr": lr, "dev": self.tuner.tune(way, 0, lr).dev})
        return pd.DataFrame(rows)

    def noise_on_tasks(self, base: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
        """What the old tasks lose when noise is added to each mask's weights, draw by draw."""

        def measure(model: Model) -> dict[str, float]:
            after = self.old.answers(model, tasks)
            lost = measures.forgotten(measures.lost(base, after), self.config.seed)
            return {"lost nats": lost["lost_nats"], "lost accuracy": lost["lost_accuracy"]}

        return self._noise_test.table(measure)

    def noise_on_texts(self) -> pd.DataFrame:
        """What a token of the texts costs more."""
        assert self.config.texts is not None
        texts = noise.read_texts(self.config.texts)
        before = noise.text_loss(self.old.base, texts)
        return self._noise_test.table(
            lambda model: {"lost nats": noise.text_loss(model, texts) - before}
        )

    @property
    def _noise_test(self) -> noise.NoiseTest:
        config, tuner = self.config, self.tuner
        ranks = config.noise_ranks or (config.rank,)
        return noise.NoiseTest(tuner.model, tuner.share, ranks, config.noise, config.draws)


def _read_examples(path: Path) -> Sequence[Example]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.append((str(row["prompt"]), str(row["completion"])))
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise InterpError(
                f"{path} line {number} is no example ({error!r}); expected an object such as "
                f"{_EXAMPLE}"
            ) from error
    return found
