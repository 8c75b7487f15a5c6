"""Does tuning around a frozen SAE carry over what RL taught another model? With controls.

Resa (arXiv 2506.09967) trains an SAE on an RL-tuned model, splices it into the untrained one, tunes
low-rank changes so that the model says what it said before, takes the SAE out, and reports nearly
all of RL's gain at a fraction of its cost. Its report has no control; here they stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from studies import _sae_recipes as recipes
from studies import _sae_tables as tables
from studies._checkpoints import identity
from studies._report import write_report
from studies._run import Run, digests
from studies._sae_bench import Bench, Tuned
from studies._sae_report import Found, grpo_seconds, sections, verdict

if TYPE_CHECKING:
    import pandas as pd

NAME = "sae-tuning"


@dataclass(frozen=True)
class SaeTuning:
    """Does tuning around a frozen SAE of an RL model carry RL's gain to its base?"""

    source: str = "organism:rl"
    """The model the SAE is trained on: a folder, a hub id, or a shipped organism."""
    target: str = "organism:base"
    """The model that is tuned; the source was trained from it."""
    train: Path | None = None
    """JSON lines with prompt and answer to tune on; default: the organisms' train problems."""
    problems: Path | None = None
    """JSON lines to test on, the last of them for choosing; default: the organisms'."""
    out: Path = Path("runs/sae-tuning")
    """The run folder; an interrupted run continues there."""
    layer: int | None = None
    """Where the SAE stands; default: the middle."""
    d_sae: int = 512
    """Features."""
    k: int = 32
    """Of them, at a token."""
    sae_tokens: int = 150_000
    """Tokens each SAE is trained on."""
    steps: int = 90
    """Of a tuning."""
    rows: int = 8
    """Texts a step."""
    rank: int = 16
    """Of the low-rank changes."""
    lr: float = 5e-4
    """Of the tuning; of SFT too."""
    count: int = 100
    """Test problems, and texts on which the model should stay as it was."""
    samples: int = 2
    """Completions of each problem."""
    dev: int = 100
    """Dev problems, by which the state of a tuning is chosen, one completion each."""
    temperature: float = 1.0
    """Of the completions."""
    max_new_tokens: int = 40
    """Of a completion."""
    markers: tuple[str, str] = ("Solution:", "answer")
    """Where reasoning begins and ends in a prompt, for the layer scan."""
    full: bool = False
    """Three seeds of SAEs and tunings, other settings and every layer: five times as long."""
    seed: int = 0
    """Of SAEs, tunings, problems, samples and intervals."""
    smoke: bool = False
    """A few problems and steps, that everything runs, in seconds."""


def run(config: SaeTuning) -> Run:
    """Run the study and write its folder: tables, figures, report.html."""
    weights = {source: identity(source) for source in (config.source, config.target)}
    folder = Run.open(config.out, NAME, config, files=digests(config), checkpoints=weights)
    bench = Bench(config)
    for name in ("answers", "looks"):
        (folder.path / name).mkdir(exist_ok=True)
    main = recipes.main(config, bench.layer)
    known = {
        role: folder.table(f"answers/{role}", partial(bench.model, role))
        for role in ("target", "source")
    }
    both = folder.table("looks/models", bench.look_at_both)
    card = folder.table("sae", lambda: _cards(bench, main))
    answers, looks = _conditions(folder, bench, config)
    scan = folder.table("reasoning_features", lambda: bench.reasoning_features(main))
    found = Found(
        models=tables.models(known, both, config),
        conditions=tables.conditions(answers, looks, known, config.seed),
        tuning=tables.tuning(looks, config.seed),
        card=card,
        scan=scan,
        settings=tables.settings(_settings(folder, bench, config), scan, config.seed)
        if config.full
        else None,
        seeds=3 if config.full else 1,
        grpo=grpo_seconds(config.source),
        markers=config.markers,
    )
    said = verdict(found)
    write_report(
        folder.path / "report.html",
        "Does tuning around a frozen SAE carry RL's gain to another model?",
        said,
        sections(folder, found),
        folder.meta,
    )
    folder.finish(verdict=said)
    return folder


def _cards(bench: Bench, main: recipes.Recipe) -> pd.DataFrame:
    import pandas as pd

    bench.first_look("dev")
    both = [bench.card(recipe) for recipe in (main, replace(main, sae="target"))]
    return pd.concat(both, ignore_index=True).assign(first_look=bench.seconds["first look, dev"])


def _conditions(folder: Run, bench: Bench, config: SaeTuning) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every condition and seed: answers to the test problems, and what dev data said before."""
    import pandas as pd

    seeds = range(config.seed, config.seed + (3 if config.full else 1))
    asked = recipes.conditions(config, bench.layer)
    answers, looks = [], []
    todo = [(name, seed) for seed in seeds for name in asked]
    for name, seed in tqdm(todo, desc="tunings", delay=2):
        tuned = cache(partial(bench.tuned, asked[name], seed))
        slug = f"{_slug(name)}-{seed}"
        answered = partial(_answered, bench, tuned, name, seed)
        answers.append(folder.table(f"answers/{slug}", answered))
        seen = folder.table(f"looks/{slug}", partial(_looks, tuned))
        looks.append(seen.assign(condition=name, seed=seed))
    return pd.concat(answers, ignore_index=True), pd.concat(looks, ignore_index=True)


def _settings(folder: Run, bench: Bench, config: SaeTuning) -> pd.DataFrame:
    """What dev data said of other settings and layers: the test problems have no part in it."""
    import pandas as pd

    asked = recipes.settings(config, bench.layer, bench.target.anatomy.n_layers)
    found = []
    for name, recipe in tqdm(asked.items(), desc="settings", delay=2):
        tuned = partial(bench.tuned, recipe, config.seed, "more dev", times=1)
        seen = folder.table(f"looks/{_slug(name)}", partial(_looks, tuned))
        found.append(seen.assign(setting=name, layer=recipe.layer))
    return pd.concat(found, ignore_index=True)


def _answered(bench: Bench, tuned: Callable[[], Tuned], name: str, seed: int) -> pd.DataFrame:
    done = tuned()
    rows = bench.changed(name, done.edit, seed)
    return rows.assign(state=done.state, changes=len(done.edit), **done.seconds)


def _looks(tuned: Callable[[], Tuned]) -> pd.DataFrame:
    return tuned().looks


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
