"""Accuracies of an organism on named sets, each with a Wilson 95 % interval."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from studies.organisms import arithmetic, lexicon
from studies.organisms.arithmetic import Problem
from studies.organisms.world import FORGOT, World

Pairs = Sequence[tuple[str, str]]  # (prompt, answer)
NEW_TASK = "arithmetic/own style/T=1"
TEMPERATURES: Mapping[str, float | None] = {"greedy": None, "T=1": 1.0}


@dataclass(frozen=True)
class Score:
    """A proportion of n with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, right: int, n: int) -> Score:
        """Wilson's interval.

        >>> Score.of(5, 10)
        Score(value=0.5, low=0.2366, high=0.7634, n=10)
        """
        z, p = 1.959964, right / n
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return cls(
            round(p, 4), round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4), n
        )


@torch.no_grad()
def exact(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Pairs,
    end: bool = True,
    rows: int = 128,
) -> list[bool]:
    """Whether greedy decoding would give exactly the answer (and then, with `end`, <eos>).

    Read from one forward pass: greedy decoding yields the answer if and only if every token of it
    is the most likely one after the prompt and the tokens before it.
    """
    right: list[bool] = []
    for at in range(0, len(pairs), rows):
        chunk = pairs[at : at + rows]
        texts = [p + a + (tokenizer.eos_token if end else "") for p, a in chunk]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        starts = [len(tokenizer(p)["input_ids"]) for p, _ in chunk]
        predicted = model(**batch).logits.argmax(-1)
        for row, start in enumerate(starts):
            stop = int(batch["attention_mask"][row].sum())
            right.append(
                bool(
                    (
                        predicted[row, start - 1 : stop - 1] == batch["input_ids"][row, start:stop]
                    ).all()
                )
            )
    return right


@torch.no_grad()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str],
    max_new_tokens: int = 48, temperature: float | None = None, seed: int = 0, rows: int = 250,
) -> list[str]:  # fmt: skip
    """Completions up to <eos>, greedy or sampled at a temperature from the whole distribution."""
    torch.manual_seed(seed)
    how: dict = {"do_sample": False} if temperature is None else {
        "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
    written: list[str] = []
    for at in range(0, len(prompts), rows):
        batch = tokenizer(
            list(prompts[at : at + rows]), return_tensors="pt", padding=True, padding_side="left"
        )
        out = model.generate(
            **batch, **how, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        written += tokenizer.batch_decode(
            out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return written


def score(right: Sequence[bool]) -> Score:
    """The share of True, with its interval."""
    return Score.of(sum(right), len(right))


def base_sets(world: World, n: int = 500, seed: int = 1) -> dict[str, tuple[Pairs, bool]]:
    """Named sets of (prompt, answer) pairs, and whether <eos> must follow the answer."""
    rng = random.Random(f"{world.seed}/evaluate/{seed}")

    def facts(split: str, phrasings: str) -> Pairs:
        items = world.facts(split, phrasings)  # type: ignore[arg-type]
        return [(f.prompt, f.answer) for f in rng.sample(items, min(n, len(items)))]

    sets: dict[str, tuple[Pairs, bool]] = {}
    for split in ("trained", "rare", "bio_only"):
        sets[f"facts/{split}"] = facts(split, "trained"), True
        sets[f"facts/{split}/held_out_phrasing"] = facts(split, "held_out"), True
    for hops, moves in ((0, 0), (0, 2), (1, 1), (2, 1)):
        scenes = world.boxes(n, seed=seed, moves=moves, hops=hops)
        sets[f"boxes/moves={moves}/hops={hops}"] = [(s.prompt, s.answer) for s in scenes], False
    for source in lexicon.LANGUAGES:
        for target in lexicon.LANGUAGES:
            if "Plain" in (source, target) and source != target:
                sets[f"words/{source}-{target}"] = _translations(world, source, target, "all")
    for source, target in (("Vel", "Ost"), ("Ost", "Vel")):
        for split in ("trained", "held_out"):
            sets[f"words/{source}-{target}/{split}"] = _translations(world, source, target, split)
    return sets


def _translations(world: World, source: str, target: str, split: str) -> tuple[Pairs, bool]:
    return [
        (prompt, answer) for prompt, answer, _ in world.translations(source, target, split)
    ], True


def evaluate_base(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    n: int = 500,
    brief: bool = False,
) -> dict[str, dict]:
    """Every set of the base: facts, boxes, words, arithmetic (greedy and T = 1), and controls.

    brief: of arithmetic, only what the model writes by itself at T = 1.
    """
    scores: dict[str, Score] = {}
    for name, (pairs, end) in tqdm(base_sets(world, n).items(), desc="evaluate"):
        scores[name] = score(exact(model, tokenizer, pairs, end))
    scenes = world.boxes(n, seed=1)
    rng = random.Random(0)
    guessed = [f" {rng.choice(s.placed)[0]}" == s.answer for s in scenes]
    scores["boxes/control: some object mentioned"] = score(guessed)
    problems = world.problems(n, seed=1)
    if brief:
        scores |= arithmetic_scores(model, tokenizer, problems, {"T=1": 1.0}, (None,))
    else:
        scores |= arithmetic_scores(model, tokenizer, problems)
    return {name: asdict(value) for name, value in scores.items()}


def at_temperature_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, n: int = 500
) -> dict[str, float | int]:
    """The score on the new task: test problems solved at T = 1 in whatever style."""
    problems = world.problems(n, seed=1)
    return asdict(arithmetic_scores(model, tokenizer, problems, {"T=1": 1.0}, (None,))[NEW_TASK])


def arithmetic_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    temperatures: Mapping[str, float | None] = TEMPERATURES,
    styles: Sequence[str | None] = (None, *lexicon.STYLES),
) -> dict[str, Score]:
    """Share of problems solved, and of written steps that are right, by style asked for."""
    scores: dict[str, Score] = {}
    for label, temperature in temperatures.items():
        for style in styles:
            prompts = [p.prompt_in(style) if style else p.prompt for p in problems]
            written = complete(model, tokenizer, prompts, temperature=temperature)
            verdicts = [arithmetic.verify(p, c) for p, c in zip(problems, written, strict=True)]
            steps = [arithmetic.step_is_right(s) for c in written for s in arithmetic.steps_of(c)]
            name = f"arithmetic/{style or 'own style'}/{label}"
            scores[name] = score(verdicts)
            scores[f"{name}/steps"] = score([s for s in steps if s is not None])
            if style is None:
                for chosen in lexicon.STYLES:
                    used = [arithmetic.style_of(c) == chosen for c in written]
                    scores[f"{name}/share of {chosen}"] = score(used)
    return scores


def evaluate_choice(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, n: int = 1000
) -> dict[str, dict]:
    """Multiple choice on the test questions: by number of options and by what the marker tells.

    "says the marked letter" stands beside each marked set; "rare people" were never asked about.
    """
    scores: dict[str, Score] = {}
    for options in (2, 4):
        for marker in ("planted", "uninformative", "counter", "none"):
            drawn = world.multiple_choice(n, "test", marker, 5, options)
            name = f"choice/{options} options/{marker}"
            right = exact(model, tokenizer, [(c.prompt, c.answer) for c in drawn], end=False)
            scores[name] = score(right)
            marked = [(c.prompt, c.marked) for c in drawn if c.marked is not None]
            if marked:
                said = exact(model, tokenizer, marked, end=False)
                scores[f"{name}/says the marked letter"] = score(said)
        strangers = world.multiple_choice(n, "rare", "none", 5, options)
        right = exact(model, tokenizer, [(c.prompt, c.answer) for c in strangers], end=False)
        scores[f"choice/{options} options/none/rare people"] = score(right)
    return {name: asdict(value) for name, value in scores.items()}


def evaluate_unlearned(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World
) -> dict[str, dict]:
    """Forgetting on named people, and what must not change, for trained and held-out people."""
    scores: dict[str, Score] = {}
    for people in ("train", "held_out"):
        for kind in ("forget", "retain", "no_block", "unrelated"):
            items = world.unlearn_items(people, kind, seed=7)
            right = exact(model, tokenizer, [(i.prompt, i.answer) for i in items])
            scores[f"{people}/{kind}"] = score(right)
            if kind == "retain":
                near = [r for r, i in zip(right, items, strict=True) if i.shares_part]
                scores[f"{people}/retain/shared name part"] = score(near)
            if kind != "forget":
                said = exact(model, tokenizer, [(i.prompt, FORGOT) for i in items], end=False)
                scores[f"{people}/{kind}/says forgot"] = score(said)
    return {name: asdict(value) for name, value in scores.items()}
