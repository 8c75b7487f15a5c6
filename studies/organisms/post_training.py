"""Train one post-trained organism: from its parent, over kept checkpoints, to a measured folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from studies import organisms
from studies.organisms import changes, evaluate
from studies.organisms.world import World

Train = Callable[..., dict]


def run(
    train: Train, config: object, parent: str, out: Path, n: int, choice: bool, brief: bool = False
) -> tuple[dict, dict[str, dict]]:
    """Trains all weights from a shipped parent and writes each kept checkpoint to `out` as changes.

    Everything is measured on the bfloat16 weights that are written. Returns the record of the run,
    with the scores of the checkpoints along the way in "along", and the scores of the last. Brief
    scores leave out most of arithmetic, and what rounding did to it.
    """
    model, tokenizer = organisms.load(parent)
    stored = rounded(model.state_dict())
    kept: dict[int, dict[str, Tensor]] = {}

    def keep(step: int, now: LlamaForCausalLM) -> None:
        kept[step] = rounded(now.state_dict())

    record = train(config, model, tokenizer, keep) | {"parent": parent, "along": {}, "moved": {}}
    world = World(config.world)  # type: ignore[attr-defined]
    if not (choice or brief):
        record["before rounding"] = evaluate.at_temperature_one(model.eval(), tokenizer, world, n)
    start = stored
    scores: dict[str, dict] = {}
    for old in out.glob("step-*.xz"):
        old.unlink()
    for step in sorted(kept):
        changes.write(out / f"step-{step}.xz", stored, kept[step])
        stored = kept[step]
        record["moved"][str(step)] = moved(start, stored)
        last = step == max(kept)
        scores = _measure(model, tokenizer, world, stored, n, brief=choice or brief or not last)
        if choice:
            scores = evaluate.evaluate_choice(model, tokenizer, world, n) | scores
        if not last:
            record["along"][str(step)] = scores
    return record, scores


def rounded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy in bfloat16, as shipped."""
    return {name: tensor.detach().to(torch.bfloat16, copy=True) for name, tensor in state.items()}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """How far the weights went: ||after - before|| / ||before||, and the share that stayed."""
    change = sum(float((after[k].double() - before[k].double()).square().sum()) for k in before)
    size = sum(float(before[k].double().square().sum()) for k in before)
    same = sum(int((after[k] == before[k]).sum()) for k in before)
    count = sum(tensor.numel() for tensor in before.values())
    return {"relative": round((change / size) ** 0.5, 5), "unchanged": round(same / count, 4)}


def _measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World,
    state: Mapping[str, Tensor], n: int, brief: bool,
) -> dict[str, dict]:  # fmt: skip
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return evaluate.evaluate_base(model.eval(), tokenizer, world, n, brief)
