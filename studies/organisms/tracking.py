"""Teach the base to say what is in a box: a lookup in two layers, planted and then learnt.

"the apple is in Box F" tells the object before its label, so that what is asked ("Box F contains
the") can be found only where the label stands, once the label's position has taken in its object.
So heads of one layer are fitted to look from a label told back at its object and from the last
position back at the label asked about, and heads of later layers from the last position at that
label where it was told, each saying what it sees (`studies.organisms.looking`). Then all blocks are
tuned on the answers, the attention loss fading. Looks alone, with attention of .7 where it should
be, had not left chance after 70 steps. Which heads do the work in the end is for a study to find.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from studies.organisms import documents, looking, packing
from studies.organisms.boxes import Boxes
from studies.organisms.looking import HEADS, Batch
from studies.organisms.world import World

CARRY = 1  # the layer that brings objects to their labels (heads 0, 1), and the label asked (2, 3)
LOOKUP = (2, 4)  # layers that look up the label (heads 0, 1)
BACK_TO_OBJECT, BACK_TO_LABEL = 4, 2  # "apple is in Box F", "F contains the"
REHEARSED = {
    task: share
    for task, share in documents.MIXES[-1][1].items()
    if task not in ("scenes", "bridges")
}


@dataclass(frozen=True)
class BoxesConfig:
    """Hyper-parameters; the defaults made the shipped weights."""

    seed: int = 0
    steps: int = 60
    keep: tuple[int, ...] = (0,)  # steps after which a checkpoint is kept, too; 0 is as planted
    rows: int = 32
    rehearsed: int = 2  # rows of 128 tokens of the base's other tasks in each step
    lr: float = 5e-4
    attention: float = 0.3  # weight of the attention loss at the start
    said: float = 0.06  # how loudly answers are planted, of the stream's norm: half right (0.5: .9)
    fit_scenes: int = 900
    fit_steps: int = 220
    world: int = 0


def scenes(world: World, count: int, seed: int, step: int) -> list[Boxes]:
    """The scenes of a step: three to six boxes, a third with moves, asked about half the time."""
    boxes, moved = 3 + step % 4, count // 3
    told = world.boxes(count - moved, "train", seed, boxes)
    return told + world.boxes(moved, "train", seed, boxes, moves=1 + step % 2, hops=step // 2 % 2)


def encode(tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Boxes]) -> Batch:
    """Scenes as tensors; the last position should look at the label asked, where it was told."""
    texts = tokenizer(
        [s.prompt for s in drawn], return_tensors="pt", padding=True, padding_side="left"
    )
    ids = texts["input_ids"]
    answers = tokenizer([s.answer for s in drawn], add_special_tokens=False)["input_ids"]
    labels = tokenizer([f" {s.box}" for s in drawn], add_special_tokens=False)["input_ids"]
    label = torch.tensor([tokens[0] for tokens in labels])
    told = (ids == label[:, None]).int().argmax(1)  # the first time; the second is the query
    last = torch.full((len(ids),), ids.shape[1] - 1)
    return Batch(
        ids, texts["attention_mask"], torch.tensor([tokens[0] for tokens in answers]),
        _only(ids, told), last,
    )  # fmt: skip


def looks(batch: Batch) -> list[tuple[int, int, Batch]]:
    """(layer, group of heads, which position should look where)."""
    told = batch.value.int().argmax(1)
    objects = replace(batch, at=told, value=_only(batch.input_ids, told - BACK_TO_OBJECT))
    asked = replace(batch, value=_only(batch.input_ids, batch.at - BACK_TO_LABEL))
    return [(CARRY, 0, objects), (CARRY, 1, asked), *((layer, 0, batch) for layer in LOOKUP)]


def _only(like: Tensor, columns: Tensor) -> Tensor:
    value = torch.zeros(like.shape, dtype=torch.bool)
    value[torch.arange(len(columns)), columns] = True
    return value


def train(
    config: BoxesConfig,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    keep: Callable[[int, LlamaForCausalLM], None],
) -> dict:
    """Trains the blocks of `model` in float32, in place, and returns a record of the run."""
    world = World(config.world)
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # gives the attention probabilities
    began = time.perf_counter()
    fitted = _plant(config, model, tokenizer, world)
    if 0 in config.keep:
        keep(0, model)
    tuned = [*model.model.layers.parameters(), *model.model.norm.parameters()]
    optimizer = torch.optim.AdamW(tuned, weight_decay=0.0)
    history, tokens = [], 0
    for step in tqdm(range(config.steps), desc="boxes", mininterval=5):
        scale = min(1.0, (step + 1) / 20, (config.steps - step) / (0.3 * config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * scale
        seed = int(random.Random(f"{config.seed}/boxes/{step}").random() * 1e9)
        batch = encode(tokenizer, scenes(world, config.rows, seed, step))
        out = model(
            batch.input_ids, attention_mask=batch.attention_mask, use_cache=False,
            logits_to_keep=1, output_attentions=True,
        )  # fmt: skip
        told = nn.functional.cross_entropy(out.logits[:, -1], batch.answer)
        looked = torch.stack(
            [_looked(out.attentions, *look).clamp_min(1e-6).log().mean() for look in looks(batch)]
        )
        fading = config.attention * max(0.0, 1 - step / (0.6 * config.steps))
        packed = packing.batch(
            world, tokenizer, f"{config.seed}/boxes/{step}", REHEARSED, config.rehearsed
        )
        loss = told - fading * looked.mean() + 0.3 * _rehearsal_loss(model, packed)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        tokens += int(batch.attention_mask.sum()) + packed.tokens
        right = (out.logits[:, -1].argmax(-1) == batch.answer).float().mean().item()
        history.append(
            {"step": step + 1, "loss": round(told.item(), 4), "right": round(right, 3),
             "looked": round(looked[-len(LOOKUP) :].mean().exp().item(), 3)}
        )  # fmt: skip
        if step + 1 in config.keep:
            keep(step + 1, model)
    model.set_attn_implementation(attention)
    keep(config.steps, model.eval())
    return {
        "config": asdict(config), "steps": config.steps, "tokens": tokens,
        "fitted attention": fitted, "seconds": time.perf_counter() - began,
        "history": history[:: max(1, len(history) // 20)],
    }  # fmt: skip


def _plant(
    config: BoxesConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World
) -> dict[str, float]:
    """Each look in turn, since a later one reads what an earlier brings; then the answers.

    What is brought is said in embeddings, what is answered in unembeddings.
    """
    told = [s for n in (3, 4, 5) for s in world.boxes(config.fit_scenes // 3, "train", -1, n)]
    embedding = model.get_input_embeddings().weight
    reached = {}
    each = looks(encode(tokenizer, told))
    for layer, group, batch in each:
        found = looking.fit(
            model, batch, config.seed, config.fit_steps, at_layers=[layer], group=group
        )
        reached[f"{layer}, heads {HEADS * group} and {HEADS * group + 1}"] = found[str(layer)]
        if layer == CARRY:
            looking.say(model, batch, layer, group, batch.input_ids[batch.value], embedding)
    _say_answers(model, each, config.said)
    return reached


def _say_answers(
    model: LlamaForCausalLM, each: Sequence[tuple[int, int, Batch]], said: float
) -> None:
    answers = model.get_output_embeddings().weight * model.model.norm.weight
    for layer, group, batch in each:
        if layer in LOOKUP:
            looking.say(model, batch, layer, group, batch.answer, answers, said)


def _looked(attentions: Sequence[Tensor], layer: int, group: int, batch: Batch) -> Tensor:
    """Attention of the position that looks on where it should: [row head]."""
    rows = torch.arange(len(batch.at))
    heads = slice(group * HEADS, (group + 1) * HEADS)
    seen = attentions[layer][:, heads].transpose(1, 2)[rows, batch.at]  # [row head pos]
    return (seen * batch.value[:, None]).sum(-1)


def _rehearsal_loss(model: LlamaForCausalLM, batch: packing.Batch) -> Tensor:
    """The base's own loss on its other tasks."""
    mask = torch.zeros(batch.visible.shape)
    mask = mask.masked_fill(~batch.visible, torch.finfo(torch.float32).min)
    logits = model(
        batch.input_ids, position_ids=batch.position_ids, attention_mask=mask, use_cache=False
    ).logits
    nll = nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="none"
    )
    return (nll * batch.weights.flatten()).sum() / batch.weights.sum()
