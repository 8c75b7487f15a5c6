"""What pruning by integrated gradients is held against: random neurons, LoRA, the cue itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch

import interp
import interventions as iv
from interp import Model
from interventions import Question


def random_edits(found: iv.DetrimentalNeurons, draws: int, seed: int) -> Iterator[iv.Edit]:
    """Prunings of as many neurons of the same layer, drawn blindly."""
    if found.layer is None:
        return
    generator = torch.Generator().manual_seed(seed)
    width = found.scores.shape[1]
    for _ in range(draws):
        chosen = torch.randperm(width, generator=generator)[: len(found.neurons)]
        yield iv.prune_neurons({found.layer: chosen.tolist()})


def tuned_with_lora(
    model: Model, questions: Sequence[Question], steps: int, seed: int, lr: float = 3e-3
) -> Model:
    """A copy of the model tuned with LoRA (r = 8, all linear layers) on the questions' answers."""
    import warnings

    import peft
    from torch import nn

    torch.manual_seed(seed)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks by a name that is going away
        tuned = peft.get_peft_model(copy.deepcopy(model.module), config)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=lr)
    tokens = [
        model.tokenizer(q.answer, add_special_tokens=False)["input_ids"][0] for q in questions
    ]
    generator = torch.Generator().manual_seed(seed)
    tuned.train()
    for _ in range(steps):
        chosen = torch.randint(0, len(questions), (16,), generator=generator).tolist()
        batch = model.batch([questions[i].prompt for i in chosen], padding="left")
        logits = tuned(**batch.inputs, use_cache=False).logits[:, -1]
        loss = nn.functional.cross_entropy(
            logits.float(), torch.tensor([tokens[i] for i in chosen])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    merged = tuned.merge_and_unload().eval()
    return interp.load(merged, tokenizer=model.tokenizer)


def cue_percentiles(
    model: Model,
    helping: Sequence[Question],
    misleading: Sequence[Question],
    found: iv.DetrimentalNeurons,
) -> list[float]:
    """For each pruned neuron, the share of its layer that follows the cue less than it does.

    A neuron follows the cue by |mean(a | cue helps) - mean(a | cue misleads)| for questions with
    the same right letter, averaged over letters, in units of its standard deviation.
    """
    if found.layer is None or not misleading:
        return []
    site = f"mlp_post.{found.layer}"
    sides = []
    for questions in (helping, misleading):
        acts = interp.capture(model, [q.prompt for q in questions], site, positions="last")
        sides.append(acts[site][:, 0].float())
    spread = torch.cat(sides).std(dim=0).clamp(min=1e-12)
    gaps = []
    for letter in sorted({q.answer for q in helping} & {q.answer for q in misleading}):
        means = [
            side[[q.answer == letter for q in questions]].mean(dim=0)
            for side, questions in zip(sides, (helping, misleading), strict=True)
        ]
        gaps.append((means[0] - means[1]).abs() / spread)
    follows = torch.stack(gaps).mean(dim=0)
    rank = follows.argsort().argsort().float() / (len(follows) - 1)
    return rank[list(found.neurons)].tolist()
