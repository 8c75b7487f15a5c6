"""Supervised fine-tuning of the base on a teacher's correct solutions in one written style."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from studies.organisms import arithmetic, frozen
from studies.organisms.frozen import Trained
from studies.organisms.world import World


@dataclass(frozen=True)
class SftConfig:
    """Hyper-parameters of supervised fine-tuning; the defaults made the shipped weights.

    seed: of the problems and their order; the world stays that of the base.
    """

    seed: int = 0
    steps: int = 160
    keep: tuple[int, ...] = (10, 20, 40, 80)  # steps after which a checkpoint is kept, too
    rows: int = 64
    lr: float = 1e-4
    style: str = "running"  # of the three, the one the base writes least when free to choose
    train: Trained = "all"  # which weights
    world: int = 0


def rows(world: World, style: str, count: int, seed: int) -> list[dict[str, str]]:
    """Problems that leave the style open, each with its correct solution in one style."""
    problems = world.problems(count, "train", seed=seed)
    return [{"prompt": p.prompt, "completion": arithmetic.solve(p, style)} for p in problems]


def train(
    config: SftConfig,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    keep: Callable[[int, LlamaForCausalLM], None],
) -> dict:
    """Trains in float32, in place, the weights `config.train` names; returns a record of the run.

    `keep(step, model)` is called at the steps of `config.keep` and at the last one.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=config.steps,
        per_device_train_batch_size=config.rows, learning_rate=config.lr,
        lr_scheduler_type="constant", weight_decay=0.0, completion_only_loss=True, max_length=128,
        logging_steps=min(10, config.steps), save_strategy="no", seed=config.seed, use_cpu=True,
        bf16=False, gradient_checkpointing=False, report_to="none", dataloader_num_workers=0,
    )  # fmt: skip
    count = config.steps * config.rows
    data = Dataset.from_list(rows(World(config.world), config.style, count, config.seed))
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[keeper({*config.keep, config.steps}, keep)],
    )
    began = time.perf_counter()
    with frozen.only(model, config.train):
        trainer.train()
    return {
        "config": asdict(config), "steps": config.steps,
        "tokens": sum(len(ids) for ids in trainer.train_dataset["input_ids"]),
        "seconds": time.perf_counter() - began,
        "history": history(trainer, ("loss",)),
    }  # fmt: skip


def keeper(steps: set[int], keep: Callable[[int, LlamaForCausalLM], None]) -> Any:
    """A trainer's callback that hands the model over after some optimizer steps."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        def on_step_end(self, _args: Any, state: Any, _control: Any, **kwargs: Any) -> None:
            if state.global_step in steps:
                keep(state.global_step, kwargs["model"])

    return Keeper()


def history(trainer: Any, names: tuple[str, ...]) -> list[dict]:
    """The logged values of a trainer, by step."""
    return [
        {"step": entry["step"]} | {name: round(entry[name], 4) for name in names}
        for entry in trainer.state.log_history
        if all(name in entry for name in names)
    ]
