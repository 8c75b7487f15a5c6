"""Contrastive generations, each unlike the ones before: the iterative variant."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp import InterpError, Model
from interp._model import as_model, generate_ids
from probes._brief import brief
from probes._decoding import ModelLike, contrastive
from probes._next_token import target_logprobs
from probes._token_rows import TokenRow
from probes._vocabulary import shared_vocabulary

if TYPE_CHECKING:
    import pandas as pd

_TOGETHER = 16  # texts in one update; the newest is always among them


@dataclass(frozen=True, eq=False)
class Discovery:
    """Texts that the tuned model finds likelier than the base does.

    Args:
        ids: the new tokens of each text.
        texts: as text; empty strings without a tokenizer.
        score: mean over tokens of log p_tuned - log p_base, in nats.
        fresh: the same against the base as it was updated on the texts before.
        meta: the models and the arguments.
    """

    ids: list[list[int]]
    texts: list[str]
    score: Float[Tensor, " sample"]
    fresh: Float[Tensor, " sample"]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """One row a text: `sample text tokens score fresh`."""
        import pandas as pd

        return pd.DataFrame(
            {
                "sample": range(len(self.ids)),
                "text": self.texts,
                "tokens": [len(ids) for ids in self.ids],
                "score": self.score.numpy(),
                "fresh": self.fresh.numpy(),
            }
        )


def contrastive_discovery(
    tuned: ModelLike,
    base: ModelLike,
    n: int,
    *,
    prompt: Sequence[int] | str | None = None,
    alpha: float = 0.1,
    max_new_tokens: int = 64,
    steps: int = 4,
    lr: float = 1e-4,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Discovery:
    """Contrastive samples; after each, a copy of the base is trained on all texts so far.

    What has been generated is then no news to the copy, so that the next contrast turns to what
    else the tuning data held. The base itself is not touched: one copy of it is trained.

    Args:
        tuned: the model that generates.
        base: what it was before.
        n: how many texts.
        prompt: what each begins with; by default the BOS token.
        alpha: as for `contrastive`.
        max_new_tokens: upper limit of new tokens a text.
        steps: updates of the copy after each text; 0 gives the static variant.
        lr: their learning rate (AdamW).
        seed: of the sampling and of the choice of texts.
        progress: show a bar.
        options: for `generate` (`temperature=...`).

    Raises:
        InterpError: no BOS token and no prompt, another vocabulary, nothing generated.

    Examples:
        >>> base = model                                     # two models in real life
        >>> found = probes.contrastive_discovery(model, base, n=2, prompt="The", max_new_tokens=4)
        >>> found.table()[["text", "score"]]

    Source: contrastive generative experts (2410.14765, ICLR 2025). Steps, learning rate and
    optimiser are our specification; the paper's could not be read.
    """
    first, second = as_model(tuned), as_model(base)
    vocab = shared_vocabulary(first, second)
    if n < 1:
        raise InterpError(f"n={n}: expected at least 1 text")
    start = _prompt(first, prompt)
    learner = Model(copy.deepcopy(second.module).eval(), second.tokenizer, check=False)
    parameters = [p.requires_grad_() for p in learner.module.parameters() if p.is_floating_point()]
    optimiser = torch.optim.AdamW(parameters, lr=lr)
    order = random.Random(seed)
    found: list[list[int]] = []
    scores: list[float] = []
    fresh: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in tqdm(range(n), desc="discovery", disable=not progress):
            ids = _sample(first, learner, start, alpha, max_new_tokens, options)
            row = [TokenRow(len(found), start + ids, len(start) - 1, len(start) + len(ids) - 1)]
            means = [
                float(target_logprobs(m, row, vocab=vocab)[0].mean())
                for m in (first, second, learner)
            ]
            found.append(ids)
            scores.append(means[0] - means[1])
            fresh.append(means[0] - means[2])
            for _ in range(steps):
                older = order.sample(found[:-1], min(len(found) - 1, _TOGETHER - 1))
                _update(learner, optimiser, start, [*older, ids])
    decode = first.tokenizer.decode if first.tokenizer is not None else lambda _ids: ""
    texts = [str(decode(ids)) for ids in found]
    meta = {"tuned": first.name, "base": second.name, "alpha": alpha, "steps": steps, "lr": lr}
    meta |= {"seed": seed, "prompt": start}
    return Discovery(found, texts, torch.tensor(scores), torch.tensor(fresh), meta)


def _prompt(model: Model, prompt: Sequence[int] | str | None) -> list[int]:
    if prompt is None:
        for source in (model.tokenizer, model.module.generation_config):
            if isinstance(bos := getattr(source, "bos_token_id", None), int):
                return [bos]
        raise InterpError("this model has no BOS token to begin with; give prompt=...")
    batch = model.batch(prompt if isinstance(prompt, str) else [prompt])
    return [int(token) for token in batch.input_ids[0].tolist()]


def _sample(
    tuned: Model,
    learner: Model,
    start: list[int],
    alpha: float,
    limit: int,
    options: dict[str, Any],
) -> list[int]:
    """The new tokens of one contrastive sample, up to its end."""
    settings = {"do_sample": True, "top_k": 0, **options}
    decoder = contrastive(tuned, learner, alpha=alpha)
    sequences, begin = generate_ids(
        tuned, [start], max_new_tokens=limit, logits_processor=[decoder], **settings
    )
    ids = [int(token) for token in sequences[0, begin:].tolist()]
    if not ids:
        raise InterpError("nothing was generated; is max_new_tokens at least 1?")
    return ids


def _update(
    learner: Model, optimiser: torch.optim.Optimizer, start: list[int], texts: list[list[int]]
) -> None:
    """One step on the mean cross-entropy of the new tokens."""
    batch = learner.batch([start + ids for ids in texts])
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    labels[:, : len(start)] = -100
    with torch.enable_grad():
        logits = learner.module(**batch.inputs, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        optimiser.zero_grad()
        loss.backward()
    optimiser.step()
