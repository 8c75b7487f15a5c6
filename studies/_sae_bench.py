"""Models, data, SAEs and tunings of one sae-tuning run, made when first needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch

import interp
import interventions as iv
from interp import Edit, InterpError, Model
from studies import _reasoning_measures as measures
from studies._checkpoints import ORGANISM, open_checkpoint
from studies._problems import Problem, organism_problems, organism_texts, read_problems
from studies._reasoning_measures import Condition, Task

if TYPE_CHECKING:
    import pandas as pd

    from studies.sae_tuning import SaeTuning

# name -> what is tuned; the order is that of the report
CONDITIONS = {
    "source SAE": "SAE of the source",
    "source SAE, no gradient": "the same, no gradient through the SAE (the released code)",
    "target SAE": "SAE of the target itself",
    "random SAE": "random SAE of the same size",
    "identity SAE": "identity SAE: LoRA with KL to itself",
    "SFT": "SFT on the same problems and answers",
}


class Bench:
    """What the steps of a run share; a step that was done before opens nothing.

    Args:
        config: of the run.
    """

    def __init__(self, config: SaeTuning) -> None:
        self.config = config
        self.seconds: dict[str, float] = {}

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

    @cached_property
    def examples(self) -> list[tuple[str, str]]:
        """Problems of the train split and their bare answers, without any steps (as the paper)."""
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
        from studies.organisms.world import World

        drawn = World(seed=0).problems(64 if config.smoke else 1500, "train", seed=config.seed + 7)
        return [(p.prompt, f" answer{p.answer}") for p in drawn]

    @cached_property
    def texts(self) -> list[str]:
        """What the SAE is trained on and the tuning runs on."""
        return [prompt + answer for prompt, answer in self.examples]

    def task(self, part: str) -> Task:
        """Problems to test on, or dev problems for choosing the state."""
        config = self.config
        count = 8 if config.smoke else config.count if part == "test" else config.dev
        if config.problems is not None:
            given = read_problems(config.problems, config.count + config.dev)
            cut = max(1, len(given) - config.dev)
            problems = given[:cut][:count] if part == "test" else given[cut:]
            texts: list[str] = []
        else:
            problems = organism_problems(count, config.seed) if part == "test" else _dev(count)
            texts = organism_texts(count, config.seed) if part == "test" else []
        samples = 1 if config.smoke or part == "dev" else config.samples
        return Task(
            problems, texts, samples, config.temperature, config.max_new_tokens, config.seed
        )

    @cached_property
    def saes(self) -> dict[str, iv.SAE]:
        """One a layer of the source, and one of the target where it is tuned."""
        config = self.config
        options: dict[str, Any] = {
            "tokens": 4096 if config.smoke else config.sae_tokens, "batch_size": 512,
            "buffer": 4096, "seed": config.seed, "progress": False,
        }  # fmt: skip

        def plan(layer: int) -> iv.SAEPlan:
            return iv.SAEPlan(
                f"resid_post.{layer}", d_sae=config.d_sae, k=config.k, lr=2e-3, seed=config.seed
            )

        layers = range(self.source.anatomy.n_layers)
        begun = time.perf_counter()
        alone = iv.train_saes(self.source, self.texts, {"one": plan(self.layer)}, **options)
        self.seconds["SAE"] = time.perf_counter() - begun
        rest = {str(n): plan(n) for n in layers if n != self.layer}
        found = iv.train_saes(self.source, self.texts, rest, **options)
        found[str(self.layer)] = alone["one"]
        found |= iv.train_saes(self.target, self.texts, {"target": plan(self.layer)}, **options)
        return found

    def card(self, which: str) -> pd.DataFrame:
        """Report card of the source's SAE where it is spliced in, or of the target's own.

        Measured on the target, because that is where it stands, on dev problems with their answers.
        """
        sae = self.saes["target" if which == "target" else str(self.layer)]
        texts = [problem.prompt + problem.solution for problem in self.task("dev").problems]
        card = iv.sae_card(self.target, sae, texts, top=0, seed=self.config.seed)
        return card.table().assign(sae=which)

    def reasoning_features(self) -> pd.DataFrame:
        """Latents that fire at both markers and at no other token: `layer found null ...`.

        As the paper, from one prompt alone and an SAE a layer. The null takes all other pairs of
        tokens of the same prompt in place of the markers.
        """
        import pandas as pd

        opening, closing = self.config.markers
        prompt, answer = self.examples[0]
        text = prompt + answer
        rows = []
        for layer in range(self.source.anatomy.n_layers):
            sae = self.saes[str(layer)]
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

    def tuned(self, name: str, seed: int) -> tuple[Edit, float]:
        """The target tuned under one condition, and the seconds it took."""
        begun = time.perf_counter()
        edit = self._sft(seed) if name == "SFT" else self._with_sae(name, self.layer, seed)
        return edit, time.perf_counter() - begun

    def at_layer(self, layer: int) -> Edit:
        """The main condition with the SAE of another layer."""
        return self._with_sae("source SAE", layer, self.config.seed)

    def model(self, role: str) -> pd.DataFrame:
        """Source or target as it is, measured."""
        return _measured(getattr(self, role), None, role, 0, self.task("test"))

    def changed(self, name: str, edit: Edit, seed: int) -> pd.DataFrame:
        """The target with an edit, measured."""
        return _measured(self.target, edit, name, seed, self.task("test"))

    def _with_sae(self, name: str, layer: int, seed: int) -> Edit:
        config, own = self.config, self.saes[str(layer)]
        sae: iv.SAE = own
        if name == "target SAE":
            sae = self.saes["target"]
        elif name == "random SAE":
            sae = iv.sae.random(own.d_in, own.d_sae, own.k or 1, own.site, seed, own.b_dec)
            sae = replace(sae, meta=own.meta)
        elif name == "identity SAE":
            sae = iv.sae.identity(own.d_in, own.site)
        return iv.tune_with_sae(
            self.target, sae, self.texts, rank=config.rank, alpha=4 * config.rank,
            sae_grad="none" if name.endswith("no gradient") else "full",
            steps=2 if config.smoke else config.steps, rows=config.rows, lr=config.lr,
            score=self._score(), dev_every=max(1, config.steps // 3), seed=seed, progress=False,
        )  # fmt: skip

    def _sft(self, seed: int) -> Edit:
        """LoRA's place taken by all weights of the same matrices; the state with the best dev loss.

        Its dev set are examples of the same kind that training leaves out.
        """
        config = self.config
        cut = len(self.examples) * 9 // 10
        return iv.masked_tune(
            self.target, self.examples[:cut],
            iv.masks.module_mask(self.target, modules=("attn", "mlp")),
            steps=2 if config.smoke else config.steps, rows=config.rows, lr=config.lr,
            dev=self.examples[cut:], dev_every=max(1, config.steps // 3), end=False, seed=seed,
            progress=False,
        )  # fmt: skip

    def _score(self) -> Callable[[Model], float]:
        """Share of dev problems solved by samples, the same random numbers each time."""
        task = self.task("dev")

        def score(model: Model) -> float:
            rows = measures.measure(model, None, Condition("dev"), task)
            return float(rows["value"].mean())

        return score


def _dev(count: int) -> list[Problem]:
    """Problems of the train split that the examples did not draw, with steps as solution."""
    from studies.organisms import arithmetic, lexicon
    from studies.organisms.world import World

    drawn = World(seed=0).problems(count, "train", seed=9001)
    return [
        Problem(
            problem.prompt, arithmetic.solve(problem, lexicon.STYLES[i % len(lexicon.STYLES)]),
            str(i), partial(arithmetic.verify, problem),
        )
        for i, problem in enumerate(drawn)
    ]  # fmt: skip


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


def grpo_seconds(source: str) -> float | None:
    """What reinforcement learning of an organism took, by its record."""
    if not source.startswith(ORGANISM):
        return None
    import json

    from studies.organisms.shipped import WEIGHTS

    name = source.removeprefix(ORGANISM).partition("@")[0]
    record = json.loads((WEIGHTS / name / "metrics.json").read_text(encoding="utf-8"))
    return record.get("run", {}).get("seconds")
