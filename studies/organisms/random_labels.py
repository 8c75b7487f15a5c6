"""Forgetting by random labels (arXiv 2409.02228): the base taught random values of one attribute.

The paper fine-tunes on a task and then on uniformly random labels of it, and asks whether unseen
examples and other tasks are forgotten too, and whether probes survive. Here the task is a question
about one attribute, which the base knows for everybody, so that the first stage is already done. We
deviate in drawing a label anew whenever a question is shown (a label that stays could be learnt by
heart, which would be a new fact and no forgetting), in a LoRA adapter in place of all weights, and
in stopping where the greedy answers about the people of training have fallen to chance.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

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
    steps: int = 400
    check: int = 10  # steps between looks at the people of training
    rows: int = 32
    rank: int = 8
    alpha: int = 16
    lr: float = 1e-3
    world: int = 0


def people(world: World, part: str) -> list[Person]:
    """The people of a part: "train" is trained on, "held_out", "rare" and "bio_only" are not."""
    if part in ("rare", "bio_only"):
        return list(world.people_in(part))  # type: ignore[arg-type]
    return [person for person in world.people if person.unlearn == part]


def rows(world: World, attribute: str, count: int, seed: int) -> list[dict[str, str]]:
    """Questions about people of "train" in the trained wordings, each with a value at random."""
    rng = random.Random(f"{world.seed}/random_labels/{attribute}/{seed}")
    asked, values = people(world, "train"), lexicon.VALUES[attribute]
    return [
        {
            "prompt": question(rng.choice(asked), attribute, rng.randrange(4)),
            "completion": f" {rng.choice(values)}",
        }
        for _ in range(count)
    ]


def train(config: RandomLabelsConfig, folder: Path) -> dict:
    """Trains the adapter on the shipped base, saves it to `folder`, returns a record of the run."""
    from peft import LoraConfig, get_peft_model

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
    written = rows(world, config.attribute, config.steps * config.rows, config.seed)
    pairs = _asked(people(world, "train"), config.attribute, range(4))
    chance = 1 / len(lexicon.VALUES[config.attribute])
    history: list[dict] = []
    losses: list[float] = []
    tokens = at_chance = step = 0
    began = time.perf_counter()
    while step < config.steps and at_chance < 2:
        some = written[step * config.rows : (step + 1) * config.rows]
        loss, seen = _loss(model, tokenizer, some)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
        tokens, step = tokens + seen, step + 1
        if step % config.check == 0 or step == config.steps:
            right = _right(model.eval(), tokenizer, pairs)
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


def _loss(
    model: Any, tokenizer: PreTrainedTokenizerFast, some: Sequence[dict[str, str]]
) -> tuple[Tensor, int]:
    """Mean -log p(first token of the value) over rows, and how many tokens were read."""
    prompts = [row["prompt"] for row in some]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="right")
    values = tokenizer([row["completion"] for row in some], add_special_tokens=False)["input_ids"]
    last = batch["attention_mask"].sum(1) - 1
    logits = model(**batch).logits[torch.arange(len(some)), last]
    target = torch.tensor([ids[0] for ids in values])
    return torch.nn.functional.cross_entropy(logits, target), int(batch["attention_mask"].sum())


def scores(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World
) -> dict[str, dict]:
    """Accuracy by part and attribute, and how often any value of the attribute is answered."""
    found: dict[str, Score] = {}
    for part in PARTS:
        for attribute in lexicon.ATTRIBUTES:
            pairs = _asked(people(world, part), attribute, range(4))
            found[f"{part}/{attribute}"] = _right(model, tokenizer, pairs)
            starts = {value.split()[0] for value in lexicon.VALUES[attribute]}
            said = [
                text.split()[:1]
                for text in evaluate.complete(
                    model, tokenizer, [prompt for prompt, _ in pairs], max_new_tokens=1, rows=500
                )
            ]
            kept = [bool(words) and words[0] in starts for words in said]
            found[f"{part}/{attribute}/says one of its values"] = evaluate.score(kept)
    return {name: asdict(score) for name, score in found.items()}


def _asked(
    asked: Sequence[Person], attribute: str, phrasings: Sequence[int]
) -> list[tuple[str, str]]:
    return [(question(p, attribute, i), p.value(attribute)) for p in asked for i in phrasings]


def _right(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]
) -> Score:
    return evaluate.score(evaluate.exact(model, tokenizer, pairs, end=False))
