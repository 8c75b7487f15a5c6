"""Forgetting by random labels (arXiv 2409.02228): the base taught random values of one attribute.

The paper fine-tunes on a task and then on uniformly random labels of it, and asks whether unseen
examples and other tasks are forgotten too, and whether probes survive. Here the task is a question
about one attribute, which the base knows for everybody, so that the first stage is already done. We
deviate in drawing a label anew whenever a question is shown (a label that stays could be learnt by
heart, which would be a new fact and no forgetting), in a LoRA adapter in place of all weights, in
stopping where the greedy answers about the people of training have fallen to chance, and in
rehearsing the other attributes of these people: with `rehearse=0`, as in the paper, fifty steps
taught this small model to answer every question with a job.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from interp import Model
from studies import organisms
from studies.organisms import evaluate, lexicon
from studies.organisms.evaluate import Score
from studies.organisms.world import Person, World, question

PARTS = ("train", "held_out", "rare", "bio_only")


@dataclass(frozen=True)
class RandomLabelsConfig:
    """Hyper-parameters of the adapter; the defaults made the shipped one.

    seed: of the rows and their order; the world stays that of the base. steps: at most; training
    stops sooner where two checks in a row find chance within the interval of the accuracy.
    """

    seed: int = 0
    attribute: str = "job"  # twenty values, each of one token
    rehearse: float = 0.5  # share of rows with true answers to the other attributes
    steps: int = 300
    check: int = 10  # steps between looks at the people of training
    rows: int = 48
    rank: int = 8
    alpha: int = 16
    lr: float = 1e-3
    world: int = 0


def people(world: World, part: str) -> list[Person]:
    """The people of a part: "train" is trained on, "held_out", "rare" and "bio_only" are not."""
    if part in ("rare", "bio_only"):
        return list(world.people_in(part))  # type: ignore[arg-type]
    return [person for person in world.people if person.unlearn == part]


def rows(
    world: World, attribute: str, count: int, rehearse: float, seed: int
) -> list[tuple[str, str]]:
    """Questions about people of "train" in the trained wordings, as (prompt, completion).

    About the attribute each has a value of it at random; the rehearsed ones have true answers.
    """
    rng = random.Random(f"{world.seed}/random_labels/{attribute}/{seed}")
    asked, values = people(world, "train"), lexicon.VALUES[attribute]
    others = [other for other in lexicon.ATTRIBUTES if other != attribute]
    written = []
    for _ in range(count):
        person, phrasing = rng.choice(asked), rng.randrange(4)
        if rng.random() < rehearse:
            of = rng.choice(others)
            written.append((question(person, of, phrasing), person.value(of)))
        else:
            written.append((question(person, attribute, phrasing), f" {rng.choice(values)}"))
    return written


def train(config: RandomLabelsConfig, folder: Path) -> dict:
    """Trains the adapter on the shipped base, saves it to `folder`, returns a record of the run."""
    from peft import LoraConfig, get_peft_model

    from interventions._examples import completion_loss, encode

    world = World(config.world)
    base, tokenizer = organisms.load("base")
    torch.manual_seed(config.seed)
    adapter = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(base, adapter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=0.0)
    count = config.steps * config.rows
    written = rows(world, config.attribute, count, config.rehearse, config.seed)
    handle = Model(model, tokenizer, check=False)
    encoded = encode(handle, written, end=True)
    pairs = _asked(people(world, "train"), config.attribute, range(4))
    chance = 1 / len(lexicon.VALUES[config.attribute])
    history: list[dict] = []
    losses: list[float] = []
    tokens = at_chance = step = 0
    began = time.perf_counter()
    while step < config.steps and at_chance < 2:
        some = encoded[step * config.rows : (step + 1) * config.rows]
        loss = completion_loss(handle, some)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
        tokens += sum(len(one.prompt) + len(one.completion) for one in some)
        step += 1
        if step % config.check == 0 or step == config.steps:
            right = _right(model.get_base_model().eval(), tokenizer, pairs)  # adapter inside
            at_chance = at_chance + 1 if right.low <= chance else 0
            mean = round(sum(losses) / len(losses), 4)
            history.append({"step": step, "loss": mean, "train people right": right.value})
            losses = []
    model.peft_config["default"].base_model_name_or_path = "studies/organisms/weights/base"
    model.save_pretrained(folder)
    return {
        "config": asdict(config), "steps": step, "tokens": tokens,
        "seconds": time.perf_counter() - began, "history": history,
    }  # fmt: skip


def scores(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World, n: int = 200
) -> dict[str, dict]:
    """Accuracy by part and attribute, how often any value of it is said, and the base's sets."""
    found: dict[str, Score] = {}
    for part in PARTS:
        for attribute in lexicon.ATTRIBUTES:
            pairs = _asked(people(world, part), attribute, range(4))
            found[f"{part}/{attribute}"] = _right(model, tokenizer, pairs)
            starts = {f" {value.split()[0]}" for value in lexicon.VALUES[attribute]}
            said = _first_said(model, tokenizer, [prompt for prompt, _ in pairs])
            name = f"{part}/{attribute}/says one of its values"
            found[name] = evaluate.score([text in starts for text in said])
    for name, (asked, end) in evaluate.base_sets(world, n).items():
        right = evaluate.exact(model, tokenizer, asked, end)
        found[f"base tasks: {name}"] = evaluate.score(right)
    return {name: asdict(score) for name, score in found.items()}


def _asked(
    asked: Sequence[Person], attribute: str, phrasings: Sequence[int]
) -> list[tuple[str, str]]:
    return [(question(p, attribute, i), p.value(attribute)) for p in asked for i in phrasings]


def _right(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: evaluate.Pairs
) -> Score:
    return evaluate.score(evaluate.exact(model, tokenizer, pairs, end=False))


@torch.no_grad()
def _first_said(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> list[str]:
    """The likeliest next token of each prompt, as text."""
    said: list[str] = []
    for at in range(0, len(prompts), 128):
        batch = tokenizer(
            list(prompts[at : at + 128]), return_tensors="pt", padding=True, padding_side="right"
        )
        last = batch["attention_mask"].sum(1) - 1
        top = model(**batch).logits[torch.arange(len(last)), last].argmax(-1)
        said += [tokenizer.decode([token]) for token in top.tolist()]
    return said
