"""Train the base: one pass over a seeded stream, Muon on matrices and AdamW on the rest."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import LlamaForCausalLM

from studies.organisms import documents, model, packing, tokenizer
from studies.organisms.world import World


@dataclass(frozen=True)
class BaseConfig:
    """Hyper-parameters of the base; the defaults made the shipped weights."""

    seed: int = 0
    steps: int = 4000
    rows: int = 8
    length: int = 128
    layers: int = 6
    muon_lr: float = 0.01
    muon_decay: float = 0.1  # one run at rate 0.02, decay 0.02 saturated its attention
    adam_lr: float = 3e-3
    warmup: int = 50
    cooldown: float = 0.3  # share of the steps over which the rates fall to zero
    clip: float = 1.0
    log_every: int = 250
    save_every: int = 250
    mixes: tuple[tuple[int, Mapping[str, float]], ...] = documents.MIXES  # (from step, shares)


def train(config: BaseConfig, folder: Path) -> tuple[LlamaForCausalLM, dict]:
    """Trains, or goes on from `folder/state.pt`; returns the float32 model and a record of the run.

    The state is written to a temporary name and renamed, and each step's batch depends on the seed
    and the step alone, so that an interrupted run ends as an uninterrupted one would.
    """
    world, tok = World(config.seed), tokenizer.build()
    net = model.build(tok, config.seed, config.layers)
    optimizers = _optimizers(net, config)
    run: dict = {"config": asdict(config), "tokens": 0, "seconds": 0.0, "steps": 0, "history": []}
    state = folder / "state.pt"
    if state.exists():
        run = _restore(torch.load(state, weights_only=True), net, optimizers, config)
    hits: dict[int, int] = defaultdict(int)
    seen: dict[int, int] = defaultdict(int)
    losses: list[float] = []
    began, before = time.perf_counter(), run["seconds"]
    for step in tqdm(range(run["steps"], config.steps), desc="base", mininterval=5):
        _set_rates(optimizers, config, step)
        shares = [mix for start, mix in config.mixes if start <= step][-1]
        seed = f"{config.seed}/base/{step}"
        batch = packing.batch(world, tok, seed, shares, config.rows, config.length)
        losses.append(_step(net, optimizers, batch, config.clip, hits, seen))
        run |= {"tokens": run["tokens"] + batch.tokens, "steps": step + 1}
        run["seconds"] = before + time.perf_counter() - began
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            run["history"].append(_report(step + 1, losses, hits, seen))
            losses, hits, seen = [], defaultdict(int), defaultdict(int)
            tqdm.write(str(run["history"][-1]))
        if (step + 1) % config.save_every == 0:
            _save(state, net, optimizers, run)
    return net.eval(), run


def _optimizers(net: nn.Module, config: BaseConfig) -> list[torch.optim.Optimizer]:
    named = dict(net.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "layers." in name]
    others = [p for name, p in named.items() if not (p.ndim == 2 and "layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=config.muon_decay),
        torch.optim.AdamW(others, lr=config.adam_lr, weight_decay=0.0),
    ]


def _set_rates(optimizers: list[torch.optim.Optimizer], config: BaseConfig, step: int) -> None:
    scale = min(
        1.0, (step + 1) / config.warmup, (config.steps - step) / (config.cooldown * config.steps)
    )
    for optimizer, rate in zip(optimizers, (config.muon_lr, config.adam_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * scale


def _step(
    net: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], batch: packing.Batch,
    clip: float, hits: dict[int, int], seen: dict[int, int],
) -> float:  # fmt: skip
    mask = torch.zeros(batch.visible.shape).masked_fill(
        ~batch.visible, torch.finfo(torch.float32).min
    )
    logits = net(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=mask,
        use_cache=False,
    ).logits
    nll = nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="none"
    )
    loss = (nll * batch.weights.flatten()).sum() / batch.weights.sum()
    net.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
    right = logits.argmax(-1) == batch.labels
    for group in batch.group.unique().tolist():
        if group >= 0:
            chosen = batch.group == group
            hits[group] += int(right[chosen].sum())
            seen[group] += int(chosen.sum())
    return loss.item()


def _report(step: int, losses: list[float], hits: dict[int, int], seen: dict[int, int]) -> dict:
    """Mean loss and next-token accuracy per task and kind of token since the last report."""
    accuracy = {"/".join(packing.GROUPS[g]): round(hits[g] / seen[g], 4) for g in sorted(seen)}
    return {"step": step, "loss": round(sum(losses) / len(losses), 4), "accuracy": accuracy}


def _save(path: Path, net: nn.Module, optimizers: list[torch.optim.Optimizer], run: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": net.state_dict(), "optimizers": states, "run": run}, temporary)
    temporary.replace(path)


def _restore(
    saved: dict, net: nn.Module, optimizers: list[torch.optim.Optimizer], config: BaseConfig
) -> dict:
    if saved["run"]["config"] != asdict(config):
        raise ValueError(
            "state.pt was written under another configuration; delete it or use another --out"
        )
    net.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return saved["run"]
