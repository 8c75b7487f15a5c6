"""Reinforcement learning of the base (or of an SFT organism): GRPO with a verifiable reward."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from studies.organisms import arithmetic
from studies.organisms.sft import history, keeper
from studies.organisms.world import World


@dataclass(frozen=True)
class RlConfig:
    """Hyper-parameters of reinforcement learning; the defaults made the shipped weights.

    seed: of the problems and the sampling; the world stays that of the base.
    """

    seed: int = 0
    steps: int = 100
    keep: tuple[int, ...] = (5, 10, 25, 50)  # steps after which a checkpoint is kept, too
    rows: int = 256  # completions a step
    generations: int = 8  # of them, for one problem
    lr: float = 1e-4
    schedule: str = "linear"  # of the rate, as transformers names it: constant ones fell back
    warmup: int = 5  # steps over which it rises
    beta: float = 0.0  # weight of the KL term
    max_new_tokens: int = 34
    world: int = 0


def reward(world: World, count: int, seed: int) -> tuple[list[dict[str, str]], Callable]:
    """Problems as prompts, and 1 for a completion whose answer is right, else 0."""
    problems = {p.prompt: p for p in world.problems(count, "train", seed=seed)}

    def verified(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        return [
            float(arithmetic.verify(problems[p], c))
            for p, c in zip(prompts, completions, strict=True)
        ]

    return [{"prompt": prompt} for prompt in problems], verified


def train(
    config: RlConfig,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    keep: Callable[[int, LlamaForCausalLM], None],
) -> dict:
    """Trains all weights of `model` in float32, in place, and returns a record of the run.

    `keep(step, model)` is called at the steps of `config.keep` and at the last one.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=config.steps,
        per_device_train_batch_size=config.rows, num_generations=config.generations,
        max_completion_length=config.max_new_tokens, temperature=1.0, top_p=1.0, top_k=0,
        loss_type="dr_grpo", scale_rewards=False, beta=config.beta, learning_rate=config.lr,
        lr_scheduler_type=config.schedule, warmup_steps=config.warmup, weight_decay=0.0,
        logging_steps=1, save_strategy="no",
        seed=config.seed, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to="none", dataloader_num_workers=0,
    )  # fmt: skip
    count = config.steps * config.rows // config.generations
    prompts, verified = reward(World(config.world), count, config.seed)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=verified,
        args=arguments,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[keeper({*config.keep, config.steps}, keep)],
    )
    began = time.perf_counter()
    trainer.train()
    return {
        "config": asdict(config), "steps": config.steps,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "seconds": time.perf_counter() - began,
        "history": history(trainer, ("reward", "entropy", "completions/mean_length")),
    }  # fmt: skip
