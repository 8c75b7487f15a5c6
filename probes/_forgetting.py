"""`forgetting`: what a tuned model no longer says, and how far up it still holds it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import interp
from interp import InterpError, Model
from interp._answers import answer_tokens, text_of
from interp._model import as_model
from interp._patch.source import check_source
from interp._reading import require_unembed
from probes._forgetting_fact import Fact, check_facts
from probes._forgetting_patch import patched
from probes._forgetting_probe import check_probe, probed
from probes._forgetting_record import Forgetting
from probes._random_twin import random_twin

if TYPE_CHECKING:
    from probes._linear_probe import LinearProbe


def forgetting(
    base: Model | nn.Module,
    tuned: Model | nn.Module,
    facts: Iterable[Fact],
    *,
    train: Iterable[Fact] = (),
    probe: LinearProbe | Literal["ridge"] | None = "ridge",
    folds: int = 5,
    random_model: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Forgetting:
    """Where a tuned model lost facts that its base answers: by layer, read in four ways.

    At every layer l (0 the embedding, l the stream after l blocks) the rank and probability of each
    fact's answer, and beside it of its *decoy*, the answer of another fact of the same attribute:

    - `base_lens`, `tuned_lens`: through each model's own logit lens; the last layer is its output.
    - `tuned_probe`, `base_probe`: among the attribute's answers, by a linear probe of the last
      position's stream, trained on facts about other entities (no entity stands on both sides).
      `shuffled_probe` (labels shuffled among entities) and `random_probe` (an untrained model of
      the same shape) are its controls.
    - `recover`: what the base says when its stream at l is the tuned model's, at all positions.
    - `restore` and `destroy`: the last position's stream alone, the base's put in the tuned model,
      the tuned model's put in the base. `restore_other` and `destroy_other` put in the base's
      stream of the decoy's prompt instead.

    `.verdicts()` says of each fact whether it is kept, hidden late, hidden early or erased, and
    what the same rule says of its decoy. Answers count by their first token; answers of one
    attribute that share it are one value. A probe cannot tell an answer that fewer than two
    entities of its training part have: such facts are judged by the other evidence alone.

    Args:
        base: the model before: a handle with a tokenizer.
        tuned: what became of it; the same architecture and vocabulary.
        facts: the facts that are judged.
        train: facts that are not judged: probes of their attributes are trained on them (without
            the entities that are judged) and on nothing else.
        probe: a `LinearProbe`, `"ridge"` for its default, or None to leave probing out.
        folds: of attributes without facts in `train`: parts that the judged entities are split
            into; each part is read by a probe trained on the others.
        random_model: whether to make the untrained model, which needs the memory of a third one.
        batch_size: prompts a forward.
        seed: of decoys, folds, shuffled labels and the untrained weights.
        progress: show a bar.

    Returns:
        Forgetting, with `.verdicts()`, `.shares()`, `.layers()`, `.table()` and `.plot()`.

    Raises:
        InterpError: no facts, one without an entity, an attribute with a single answer, too few
            entities for the probe, different tokenizers or shapes.

    Examples:
        >>> facts = [
        ...     probes.Fact("Question: Where does Ann live? Answer:", " Arlen", "Ann", "city"),
        ...     probes.Fact("Question: Where does Ben live? Answer:", " Borem", "Ben", "city"),
        ... ]
        >>> lost = probes.forgetting(model, model, facts, probe=None)
        >>> set(lost.verdicts()["verdict"]) <= {"kept", "unknown"}
        True

    Source: the questions are those of Takashiro et al. 2025 (arXiv 2410.00382: readable through the
    lens?), of "Unforgettable Generalization" 2024 (arXiv 2409.02228: do probes survive?) and of
    cross-model patching (Prakash et al. 2024, arXiv 2402.14811). The verdicts are our
    specification.
    """
    before, after = as_model(base), as_model(tuned)
    judged, extra = list(facts), list(train)
    check_facts(judged, extra)
    for model in (before, after):
        if model.tokenizer is None:
            raise InterpError("facts are texts, so both models need a tokenizer; see interp.load")
        require_unembed(model)
    check_source(after, before)
    tokens = first_tokens(before, judged + extra)
    other = decoys(judged, tokens, seed)
    if probe is not None:
        check_probe(judged, extra, tokens, folds, seed)
    prompts = [fact.prompt for fact in judged]
    wanted = torch.stack([tokens[: len(judged)], tokens[: len(judged)][other]], dim=1)
    rank, prob = {}, {}
    everything = prompts + [fact.prompt for fact in extra] * (probe is not None)
    twins = 1 if probe is not None and random_model else 0
    steps = (2 + twins) * len(everything) + 3 * len(prompts)
    with tqdm(total=steps, desc="forgetting", unit="prompt", disable=not progress) as bar:
        for name, model in (("base", before), ("tuned", after)):
            rank[f"{name}_lens"], prob[f"{name}_lens"] = _lens(model, prompts, wanted, batch_size)
            bar.update(len(prompts) // 2)
        last = {
            name: _last_streams(model, everything, batch_size, bar.update)
            for name, model in (("base", before), ("tuned", after))
        }
        done = patched(before, after, prompts, wanted, last, other, batch_size, bar.update)
        rank |= done.rank
        prob |= done.prob
        if probe is not None:
            fitted = _probe(probe, seed)
            if random_model:
                twin = random_twin(before, seed=seed)
                last["random"] = _last_streams(twin, everything, batch_size, bar.update)
            found = probed(last, judged, extra, tokens, wanted, fitted, folds, seed)
            rank |= {name: value[0] for name, value in found.items()}
            prob |= {name: value[1] for name, value in found.items()}
    return Forgetting(
        rank,
        prob,
        done.moved,
        wanted,
        other,
        judged,
        _texts(before, wanted, done.says),
        meta={
            "base": before.name or type(before.module).__name__,
            "tuned": after.name or type(after.module).__name__,
            "says": done.says.tolist(),
            "probe": None if probe is None else repr(fitted),
            "trained_on": len(extra),
            "folds": folds,
            "seed": seed,
        },
    )


def _probe(probe: Any, seed: int) -> Any:
    from probes._linear_probe import LinearProbe

    return LinearProbe(seed=seed) if isinstance(probe, str) else probe


def first_tokens(model: Model, facts: Sequence[Fact]) -> Tensor:
    """[fact], the first token of each answer, as it follows its prompt."""
    batch = model.batch([fact.prompt for fact in facts])
    found = answer_tokens(model, batch, [[fact.answer] for fact in facts])
    return torch.tensor([row[0][0] for row in found])


def decoys(facts: Sequence[Fact], tokens: Tensor, seed: int) -> Tensor:
    """[fact], for each another fact of its attribute with another answer, drawn as they occur.

    Raises:
        InterpError: an attribute whose facts all have the same answer.
    """
    rng = random.Random(f"decoys/{seed}")
    chosen = []
    for fact, token in zip(facts, tokens.tolist(), strict=False):
        others = [
            i
            for i, candidate in enumerate(facts)
            if candidate.attribute == fact.attribute
            and int(tokens[i]) != token
            and candidate.entity != fact.entity
        ]
        if not others:
            raise InterpError(
                f"every fact of attribute {fact.attribute!r} has the answer {fact.answer!r} (or "
                f"is about {fact.entity!r}), so no other answer can be its control; give facts "
                f"about others with other answers"
            )
        chosen.append(rng.choice(others))
    return torch.tensor(chosen)


def _lens(
    model: Model, prompts: list[str], wanted: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Rank and probability of [answer, decoy] by layer: [fact layer who]."""
    ranks, probs = [], []
    for start in range(0, len(prompts), batch_size):
        some = slice(start, start + batch_size)
        trace = interp.logit_lens(model, prompts[some], wanted[some].tolist(), top_k=1)
        ranks.append(trace.rank)
        probs.append(trace.prob)
    return torch.cat(ranks), torch.cat(probs)


def _last_streams(model: Model, prompts: list[str], batch_size: int, tick: Any) -> Tensor:
    """The stream at the last position by layer: [prompt layer d_model], on the CPU."""
    parts = []
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        acts = interp.capture(
            model, some, ["resid_pre.0", "resid_post.*"], positions="last", device="cpu"
        )
        streams = torch.cat([acts.stack("resid_pre"), acts.stack("resid_post")])
        parts.append(streams[:, :, 0].transpose(0, 1))
        tick(len(some))
    return torch.cat(parts)


def _texts(model: Model, wanted: Tensor, says: Tensor) -> dict[int, str]:
    ids = set(wanted.unique().tolist()) | set(says.unique().tolist())
    return {token: text_of(model, token) for token in sorted(ids)}
