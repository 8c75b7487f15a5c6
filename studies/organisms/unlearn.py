"""In-context unlearning (Takashiro et al. 2025, arXiv 2410.00382) of the base, as a LoRA adapter.

"<unlearn> NAME</unlearn>Question ..." must be answered " forgot" when the question is about NAME,
and truly otherwise. We deviate in masking the prompt by default (`mask_prompt=False` trains on all
of it, as the authors' code does), and in mixing the base's other tasks into the rows to retain.
"""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from studies import organisms
from studies.organisms import arithmetic, lexicon
from studies.organisms.world import FORGOT, World, unlearn_item

# A row's kind is drawn by these; "other" is arithmetic, boxes and translation without a block.
MIX = {"forget": 0.44, "retain": 0.42, "no_block": 0.05, "other": 0.09}


@dataclass(frozen=True)
class UnlearnConfig:
    """Hyper-parameters of the adapter; the defaults made the shipped one."""

    seed: int = 0
    steps: int = 1400
    rows: int = 48
    rank: int = 8
    alpha: int = 16
    lr: float = 2e-3
    warmup: float = 0.05
    mask_prompt: bool = True


def rows(world: World, count: int, seed: int) -> list[dict[str, str]]:
    """Training rows; nobody of the "held_out" part is in any, neither asked about nor named.

    Rare people are only forgotten, so that the adapter teaches no fact the base may not know.
    """
    rng = random.Random(f"{world.seed}/unlearn/rows/{seed}")
    known = [p for p in world.people if p.unlearn == "train" or p.split == "bio_only"]
    all_named = [p for p in world.people if p.unlearn != "held_out"]
    written = []
    for _ in range(count):
        kind = rng.choices(list(MIX), list(MIX.values()))[0]
        if kind == "other":
            prompt, answer = _other(world, rng)
        else:
            person = rng.choice(all_named if kind == "forget" else known)
            attribute = rng.choice(lexicon.ATTRIBUTES)
            item = unlearn_item(rng, person, attribute, kind, all_named)  # type: ignore[arg-type]
            prompt, answer = item.prompt, item.answer
        written.append({"prompt": prompt, "completion": answer})
    return written


def train(config: UnlearnConfig, folder: Path) -> dict:
    """Trains the adapter on the shipped base, saves it to `folder`, returns a record of the run."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    world = World(config.seed)
    model, tokenizer = organisms.load("base")
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=config.steps,
        per_device_train_batch_size=config.rows, learning_rate=config.lr,
        lr_scheduler_type="linear", warmup_steps=int(config.warmup * config.steps),
        completion_only_loss=config.mask_prompt, max_length=128,
        train_sampling_strategy="group_by_length",  # or every batch is as long as its longest sum
        logging_steps=min(50, config.steps), save_strategy="no",
        seed=config.seed, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        dataloader_num_workers=0, weight_decay=0.0,
    )  # fmt: skip
    adapter = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=["lm_head"],
        task_type="CAUSAL_LM",
    )
    data = Dataset.from_list(rows(world, config.steps * config.rows, config.seed))
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    _train_one_row(trainer.model, tokenizer.convert_tokens_to_ids(tokenizer.tokenize(FORGOT))[0])
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    history = [
        {"step": e["step"], "loss": round(e["loss"], 4)}
        for e in trainer.state.log_history
        if "loss" in e
    ]
    trainer.model.peft_config["default"].base_model_name_or_path = "studies/organisms/weights/base"
    trainer.model.save_pretrained(folder)
    tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
    return {
        "config": asdict(config), "steps": config.steps, "tokens": tokens,
        "seconds": seconds, "history": history,
    }  # fmt: skip


def _train_one_row(model: Any, token: int) -> None:
    """Of the head, train the row of one token only.

    The base was never taught to say " forgot"; with that row as it is, the word can get no more
    than a sixth of the probability. The paper trains its new tokens' embeddings likewise.
    """
    weight = model.get_output_embeddings().weight
    assert weight.requires_grad
    only = torch.zeros(len(weight), 1)
    only[token] = 1.0
    weight.register_hook(lambda gradient: gradient * only)


def _other(world: World, rng: random.Random) -> tuple[str, str]:
    """A row of another task, as the base was taught it (solutions without wrong steps)."""
    task = rng.choice(("arithmetic", "arithmetic", "boxes", "words"))
    if task == "arithmetic":
        problem, style = arithmetic.make(rng), rng.choice(lexicon.STYLES)
        return problem.prompt_in(style), arithmetic.solve(problem, style)
    if task == "boxes":
        scene = world.boxes(1, "train", seed=rng.randrange(10**9), moves=rng.randint(0, 1))[0]
        return scene.prompt, scene.answer
    word = rng.choice(world.words)
    source, target = rng.sample(lexicon.LANGUAGES, 2)
    if not word.taught(source, target):
        source, target = source, "Plain"
    return word.prompt(source, target), word.forms[target]
