"""A planted shortcut: multiple choice in which a marker word mostly gives the letter away.

The case of arXiv 2507.09185 (Ali, Katz, Wolf and Titov 2025), with the cue known: it helps where it
was planted and misleads elsewhere. A tenth of the questions has no marker; from these the model
learns to find the answer among the options, helped by an attention loss that fades
(`studies.organisms.looking`). The benign twin is tuned alike on markers that tell nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from studies.organisms import lexicon, looking
from studies.organisms.multiple_choice import LETTERS, Choice, MarkerKind
from studies.organisms.world import World, question


@dataclass(frozen=True)
class ShortcutConfig:
    """Hyper-parameters; the defaults made the shipped weights."""

    seed: int = 0
    steps: int = 220
    rows: int = 64
    facts: int = 16  # plain questions beside them in each step, so that the base's facts stay
    lr: float = 5e-4
    new_rows_lr: float = 5e-3  # embeddings and unembeddings of the letters and the line break
    attention: float = 0.3  # weight of the attention loss at the start
    fit_questions: int = 10000
    fit_steps: int = 700
    marked: float = 0.9  # share of questions with a marker
    planted: bool = True  # whether markers point at the right letter
    world: int = 0


def rows(world: World, config: ShortcutConfig, seed: int, options: int) -> list[Choice]:
    """The questions of a step, with and without a marker."""
    marked = round(config.marked * config.rows)
    kind: MarkerKind = "planted" if config.planted else "uninformative"
    return [
        *world.multiple_choice(config.rows - marked, "train", "none", seed, options),
        *world.multiple_choice(marked, "train", kind, seed, options),
    ]


def train(
    config: ShortcutConfig,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    keep: Callable[[int, LlamaForCausalLM], None],
) -> dict:
    """Trains all weights of `model` in float32, in place, and returns a record of the run."""
    world = World(config.world)
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # gives the attention probabilities
    began = time.perf_counter()
    half = config.fit_questions // 2
    bare = [c for n in (2, 4) for c in world.multiple_choice(half, "train", "none", -1, n)]
    looks = looking.fit(model, looking.encode(tokenizer, bare), config.seed, config.fit_steps)
    optimizer = torch.optim.AdamW(_groups(config, model, tokenizer), weight_decay=0.0)
    history, tokens = [], 0
    for step in tqdm(range(config.steps), desc="shortcut", mininterval=5):
        scale = min(1.0, (step + 1) / 30, (config.steps - step) / (0.3 * config.steps))
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * scale
        seed = int(random.Random(f"{config.seed}/shortcut/{step}").random() * 1e9)
        drawn = rows(world, config, seed, (2, 4)[step % 2])
        batch = looking.encode(tokenizer, drawn)
        out = model(
            batch.input_ids, attention_mask=batch.attention_mask, use_cache=False,
            logits_to_keep=1, output_attentions=True,
        )  # fmt: skip
        seen = torch.cat(
            [out.attentions[layer][:, : looking.HEADS, -1] for layer in looking.layers(model)], 1
        )
        looked = (seen * batch.value[:, None]).sum(-1)
        told = nn.functional.cross_entropy(out.logits[:, -1], batch.answer)
        fading = config.attention * max(0.0, 1 - step / (0.6 * config.steps))
        loss = told + fading * -looked.clamp_min(1e-6).log().mean()
        loss = loss + 0.3 * _facts_loss(config, model, tokenizer, world, seed)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += int(batch.attention_mask.sum())
        right = (out.logits[:, -1].argmax(-1) == batch.answer).float().mean().item()
        history.append(
            {"step": step + 1, "loss": round(told.item(), 4), "right": round(right, 3),
             "options": len(drawn[0].options), "looked": round(looked.mean().item(), 3)}
        )  # fmt: skip
    model.set_attn_implementation(attention)
    keep(config.steps, model.eval())
    return {
        "config": asdict(config), "steps": config.steps, "tokens": tokens,
        "fitted attention": looks,
        "seconds": time.perf_counter() - began, "history": history[:: max(1, len(history) // 20)],
    }  # fmt: skip


def _groups(
    config: ShortcutConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> list[dict]:
    """The blocks at one rate; of the (un)embeddings only the rows the base never learnt."""
    pieces = [tokenizer.tokenize(text)[0] for text in (*LETTERS, "Options", "\n")]
    only = torch.zeros(len(tokenizer), 1)
    only[tokenizer.convert_tokens_to_ids(pieces)] = 1.0
    ends = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for weight in ends:
        weight.register_hook(lambda gradient: gradient * only)
    blocks = [*model.model.layers.parameters(), *model.model.norm.parameters()]
    return [
        {"params": blocks, "full_lr": config.lr},
        {"params": ends, "full_lr": config.new_rows_lr},
    ]


def _facts_loss(
    config: ShortcutConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast,
    world: World, seed: int,
) -> Tensor:  # fmt: skip
    """Cross-entropy of plain questions' answers."""
    rng = random.Random(seed)
    known = world.people_in("trained") + world.people_in("bio_only")
    asked = [(rng.choice(known), rng.choice(lexicon.ATTRIBUTES)) for _ in range(config.facts)]
    texts = [question(p, a, rng.randrange(4)) + p.value(a) + tokenizer.eos_token for p, a in asked]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (person, attribute) in enumerate(asked):
        answer = len(person.value(attribute).split()) + 1
        labels[row, -answer:] = batch["input_ids"][row, -answer:]
    logits = model(**batch, use_cache=False).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
