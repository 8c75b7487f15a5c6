"""Models, data, SAEs and tunings of one sae-tuning run, made when first needed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

import torch

import interp
import interventions as iv
from interp import Edit, InterpError, Model
from studies import _reasoning_measures as measures
from studies._checkpoints import ORGANISM, open_checkpoint
from studies._problems import Problem, organism_problems, organism_texts, read_problems
from studies._reasoning_measures import Condition, Task
from studies._sae_looks import Looks
from studies._sae_recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from studies.sae_tuning import SaeTuning

TEXTS = 32  # dev texts on which the SAE's cost is looked at


@dataclass(frozen=True)
class Tuned:
    """A tuning that was done.

    Args:
        edit: the state chosen.
        looks: what dev data said of every state looked at, the start the first: `Looks.rows`.
        state: which of them was chosen.
        seconds: of process time: `tuning`, `choosing` (dev problems solved), `measuring`.
    """

    edit: Edit
    looks: pd.DataFrame
    state: int
    seconds: dict[str, float]


class Bench:
    """What the steps of a run share; a step that was done before opens nothing.

    Args:
        config: of the run.
    """

    def __init__(self, config: SaeTuning) -> None:
        self.config = config
        self.seconds: dict[str, float] = {}
        self._saes: dict[tuple[object, ...], iv.SAE] = {}

    @cached_property
    def source(self) -> Model:
        """Whose activations the SAE is trained on."""
        return _opened(self.config.source)

    @cached_property
    def target(self) -> Model:
        """What is tuned."""
        return _opened(self.config.target)

    @cached_property
    def layer(self) -> int:
        """Where the SAE is spliced in: the middle unless said otherwise."""
        layers = self.target.anatomy.n_layers
        layer = layers // 2 if self.config.layer is None else self.config.layer
        if not 0 <= layer < layers:
            raise InterpError(f"layer={layer}: the target has layers 0 to {layers - 1}")
        return layer

    def examples(self, texts: str = "bare") -> list[tuple[str, str]]:
        """Train problems, with their bare answers (as the paper) or, `worked`, with steps too."""
        config = self.config
        if config.train is not None:
            problems = read_problems(config.train, 10**9)
            return [(p.prompt, p.solution) for p in problems]
        if not config.target.startswith(ORGANISM):
            raise InterpError(
                "these models are no organisms, so say what they are tuned on and tested with: "
                '--train FILE --problems FILE, with lines such as {"prompt": "2 + 2 =", '
                '"answer": "4"}'
            )
        return [
            (p.prompt, p.solution if texts == "worked" else bare)
            for p, bare in _drawn(64 if config.smoke else 1500, config.seed + 7)
        ]

    def task(self, part: str) -> Task:
        """Problems to test on; `dev` problems, or `more dev`, for choosing."""
        config = self.config
        count = config.count if part == "test" else config.dev * (2 if part == "more dev" else 1)
        count = min(count, 8) if config.smoke else count
        if config.problems is not None:
            given = read_problems(config.problems, config.count + config.dev)
            cut = max(1, len(given) - config.dev)
            problems = given[:cut][:count] if part == "test" else given[cut:]
            texts: list[str] = []
        else:
            dev = [problem for problem, _ in _drawn(count, 9001)]
            problems = organism_problems(count, config.seed) if part == "test" else dev
            texts = organism_texts(count, config.seed) if part == "test" else []
        samples = config.samples if part == "test" and not config.smoke else 1
        return Task(
            problems, texts, samples, config.temperature, config.max_new_tokens, config.seed
        )

    @cached_property
    def dev_texts(self) -> dict[str, list[str]]:
        """Dev problems, answered as the tuning's texts are, and worked as the model would."""
        worked = [p.prompt + p.solution for p in self.task("dev").problems[:TEXTS]]
        if self.config.problems is not None:
            return {"worked": worked}
        count = len(worked)
        return {"bare": [p.prompt + bare for p, bare in _drawn(count, 9001)], "worked": worked}

    @cache  # noqa: B019 - a run's bench lives as long as the run
    def first_look(self, part: str) -> pd.DataFrame:
        """The dev problems by the target as it is: the start of every tuning."""
        begun = time.process_time()
        rows = measures.measure(self.target, None, Condition("dev"), self.task(part))
        self.seconds[f"first look, {part}"] = time.process_time() - begun
        return rows

    def look_at_both(self) -> pd.DataFrame:
        """What dev data say of the target (look 0) and of the source (look 1)."""
        looks = Looks(None, self.task("dev"), self.dev_texts, self.first_look("dev"))
        looks(self.target)
        looks(self.source)
        return looks.table()

    def sae(self, recipe: Recipe, seed: int) -> iv.SAE:
        """The SAE of a recipe; trained ones are kept."""
        site = f"resid_post.{recipe.layer}"
        if recipe.sae == "identity":
            return iv.sae.identity(self.target.anatomy.d_model, site)
        if recipe.sae == "random":
            own = self.sae(replace(recipe, sae="source"), seed)
            made = iv.sae.random(own.d_in, own.d_sae, own.k or 1, own.site, seed, own.b_dec)
            return replace(made, meta=own.meta)
        key = (*recipe.of_sae, seed)
        if key not in self._saes:
            begun = time.process_time()
            self._saes[key] = self._trained(recipe, [recipe.layer], seed)[recipe.layer]
            self.seconds[f"SAE {recipe.sae}"] = time.process_time() - begun
        return self._saes[key]

    def saes(self, recipe: Recipe) -> list[iv.SAE]:
        """The recipe's at every layer; all but the recipe's own from one pass over the texts."""
        layers, seed = range(self.source.anatomy.n_layers), self.config.seed
        self.sae(recipe, seed)
        at = {layer: replace(recipe, layer=layer) for layer in layers}
        if missing := [n for n in layers if (*at[n].of_sae, seed) not in self._saes]:
            for layer, sae in self._trained(recipe, missing, seed).items():
                self._saes[(*at[layer].of_sae, seed)] = sae
        return [self._saes[(*at[layer].of_sae, seed)] for layer in layers]

    def _trained(self, recipe: Recipe, layers: Sequence[int], seed: int) -> dict[int, iv.SAE]:
        plans = {
            str(n): iv.SAEPlan(
                f"resid_post.{n}", d_sae=recipe.d_sae, k=recipe.k, lr=2e-3, seed=seed
            )
            for n in layers
        }
        found = iv.train_saes(
            self.source if recipe.sae == "source" else self.target, self._texts(recipe), plans,
            tokens=4096 if self.config.smoke else recipe.sae_tokens, batch_size=512, buffer=4096,
            seed=seed, progress=False,
        )  # fmt: skip
        return {n: found[str(n)] for n in layers}

    def card(self, recipe: Recipe) -> pd.DataFrame:
        """Report card of a recipe's SAE, measured on the target, because that is where it stands.

        On dev problems with worked solutions, as the model writes them.
        """
        texts = [problem.prompt + problem.solution for problem in self.task("dev").problems]
        sae = self.sae(recipe, self.config.seed)
        card = iv.sae_card(self.target, sae, texts, top=0, seed=self.config.seed)
        return card.table().assign(sae=recipe.sae, seconds=self.seconds[f"SAE {recipe.sae}"])

    def reasoning_features(self, recipe: Recipe) -> pd.DataFrame:
        """Latents that fire at both markers and at no other token: `layer features null null_95`.

        As the paper, from one prompt alone and an SAE a layer. The null takes all other pairs of
        tokens of the same prompt in place of the markers.
        """
        import pandas as pd

        opening, closing = self.config.markers
        prompt, answer = self.examples()[0]
        text = prompt + answer
        rows = []
        for layer, sae in enumerate(self.saes(recipe)):
            acts = interp.capture(self.source, [text], sae.site or "")
            tokens = acts.tokens[0].tolist()
            at = [_place(self.source, tokens, marker) for marker in (opening, closing)]
            on = (sae.encode(acts[sae.site or ""][0]) > 0)[1:]  # the first token is not its own
            pairs = {
                (i, j): int((on[i] & on[j] & (on.sum(0) == 2)).sum())
                for i in range(len(on)) for j in range(i + 1, len(on))
            }  # fmt: skip
            mine = (at[0] - 1, at[1] - 1)
            others = sorted(count for pair, count in pairs.items() if pair != mine)
            rows.append({
                "layer": layer, "features": pairs[mine],
                "null": sum(others) / len(others), "null_95": others[int(0.95 * len(others))],
            })  # fmt: skip
        return pd.DataFrame(rows)

    def tuned(self, recipe: Recipe, seed: int, part: str = "dev", times: int = 2) -> Tuned:
        """The target tuned by a recipe, its state chosen by the dev problems solved.

        Args:
            recipe: how.
            seed: of the SAE and the tuning.
            part: which dev problems.
            times: how often it is looked at, at even distances; the start is, too.
        """
        sae = self.sae(recipe, seed) if recipe.sae else None
        looks = Looks(sae, self.task(part), self.dev_texts, self.first_look(part))
        begun = time.process_time()
        if sae is None:
            edit = self._sft(recipe, seed, looks)
        else:
            edit = self._around(sae, recipe, seed, looks, times)
        total = time.process_time() - begun
        seconds = {"tuning": total - looks.choosing - looks.measuring}
        seconds |= {"choosing": looks.choosing, "measuring": looks.measuring}
        return Tuned(edit, looks.table(), looks.best, seconds)

    def model(self, role: str) -> pd.DataFrame:
        """Source or target as it is, measured."""
        return _measured(getattr(self, role), None, role, 0, self.task("test"))

    def changed(self, name: str, edit: Edit, seed: int) -> pd.DataFrame:
        """The target with an edit, measured."""
        return _measured(self.target, edit, name, seed, self.task("test"))

    def _texts(self, recipe: Recipe) -> list[str]:
        return [prompt + answer for prompt, answer in self.examples(recipe.texts)]

    def _around(self, sae: iv.SAE, recipe: Recipe, seed: int, looks: Looks, times: int) -> Edit:
        steps = 2 if self.config.smoke else recipe.steps
        return iv.tune_with_sae(
            self.target, sae, self._texts(recipe), rank=self.config.rank,
            alpha=4 * self.config.rank, sae_grad=recipe.grad, loss=recipe.loss, steps=steps,
            rows=self.config.rows, lr=recipe.lr, score=looks, dev_every=max(1, steps // times),
            seed=seed, progress=False,
        )  # fmt: skip

    def _sft(self, recipe: Recipe, seed: int, looks: Looks) -> Edit:
        """All weights of the matrices that LoRA changes elsewhere.

        Its states are the start and the ends of runs of half and of all of the steps.
        """
        steps = 2 if self.config.smoke else recipe.steps
        looks(self.target)
        states = [Edit()]
        for length in sorted({max(1, steps // 2), steps}):
            edit = iv.masked_tune(
                self.target, self.examples(recipe.texts),
                iv.masks.module_mask(self.target, modules=("attn", "mlp")),
                steps=length, rows=self.config.rows, lr=recipe.lr, end=False, seed=seed,
                progress=False,
            )  # fmt: skip
            with edit.applied(self.target):
                looks(self.target)
            states.append(edit)
        return states[looks.best]


def _drawn(count: int, seed: int) -> Iterator[tuple[Problem, str]]:
    """Train problems with a worked solution, in each style in turn, and the bare answer."""
    from studies.organisms import arithmetic, lexicon
    from studies.organisms.world import World

    for i, problem in enumerate(World(seed=0).problems(count, "train", seed=seed)):
        worked = arithmetic.solve(problem, lexicon.STYLES[i % len(lexicon.STYLES)])
        verified = partial(arithmetic.verify, problem)
        yield Problem(problem.prompt, worked, str(i), verified), f" answer{problem.answer}"


def _measured(model: Model, edit: Edit | None, name: str, seed: int, task: Task) -> pd.DataFrame:
    import pandas as pd

    sampled = measures.measure(model, edit, Condition(name), task)
    greedy = measures.measure(model, edit, Condition(name, "greedy"), replace(task, texts=[]))
    return pd.concat([sampled, greedy], ignore_index=True).assign(condition=name, seed=seed)


def _place(model: Model, tokens: Sequence[int], marker: str) -> int:
    """The token at which a marker ends, its last occurrence.

    Raises:
        InterpError: it is not in the prompt.
    """
    for end in range(len(tokens), 1, -1):
        if str(model.tokenizer.decode(tokens[1:end])).rstrip().endswith(marker.strip()):
            return end - 1
    raise InterpError(f"the marker {marker!r} is not in the prompt; choose others with --markers")


def _opened(source: str) -> Model:
    model = open_checkpoint(source)
    return Model(model.module.to(torch.float32), model.tokenizer, model.name)
