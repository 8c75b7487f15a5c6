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
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    steps: int = 600
    check: int = 20  # steps between looks at the people of training
    rows: int = 48
    rank: int = 8
    alpha: int = 16
    lr: float = 5e-4
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
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    world = World(config.world)
    model, tokenizer = organisms.load("base")
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=config.steps,
        per_device_train_batch_size=config.rows, learning_rate=config.lr,
        lr_scheduler_type="constant", weight_decay=0.0, completion_only_loss=True, max_length=64,
        logging_steps=min(config.check, config.steps), save_strategy="no", seed=config.seed,
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        dataloader_num_workers=0,
    )  # fmt: skip
    adapter = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    written = rows(world, config.attribute, config.steps * config.rows, config.seed)
    stopper = _stopper(config, world, tokenizer)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(written),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[stopper],
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    accuracy = dict(stopper.seen)
    history = [
        {"step": e["step"], "loss": round(e["loss"], 4), "train people right": accuracy[e["step"]]}
        for e in trainer.state.log_history
        if "loss" in e and e["step"] in accuracy
    ]
    trainer.model.peft_config["default"].base_model_name_or_path = "studies/organisms/weights/base"
    trainer.model.save_pretrained(folder)
    steps = trainer.state.global_step
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    tokens = round(sum(lengths) / len(lengths) * steps * config.rows)
    return {
        "config": asdict(config), "steps": steps, "tokens": tokens, "seconds": seconds,
        "history": history,
    }  # fmt: skip


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


def _stopper(config: RandomLabelsConfig, world: World, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A trainer's callback that looks at the people of training and stops at chance."""
    from transformers import TrainerCallback

    pairs = _asked(people(world, "train"), config.attribute, range(4))
    chance = 1 / len(lexicon.VALUES[config.attribute])

    class Stopper(TrainerCallback):
        def __init__(self) -> None:
            self.seen: dict[int, float] = {}
            self.at_chance = 0

        def on_step_end(self, _args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % config.check and state.global_step != config.steps:
                return
            model = kwargs["model"]
            was = model.training
            right = _right(model.eval(), tokenizer, pairs)
            model.train(was)
            self.seen[state.global_step] = right.value
            self.at_chance = self.at_chance + 1 if right.low <= chance else 0
            if self.at_chance == 2:
                control.should_training_stop = True
                control.should_log = True

    return Stopper()
