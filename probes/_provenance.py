"""Whose each sentence of a distilled model is: its teacher's, its own of old, both's, new."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp import InterpError, Model
from interp._batch import several
from interp._estimate import cluster_mean
from interp._model import as_model
from interp._reading import require_unembed
from interp._record import load_record, save_record
from probes._brief import brief
from probes._next_token import target_logprobs
from probes._token_rows import TokenRow, token_rows
from probes._vocabulary import shared_vocabulary

if TYPE_CHECKING:
    import pandas as pd

LABELS = ["shared", "teacher", "student", "boosted"]
Split = Callable[[str], list[tuple[int, int]]]


@dataclass(frozen=True, eq=False)
class Provenance:
    """Sentences of a distilled model's outputs with a label each.

    Args:
        teacher: geometric mean probability of the sentence's tokens under the teacher.
        student: the same under the student before distillation.
        distilled: the same under the distilled model.
        label: index into `labels`.
        output: index of the output each sentence stands in.
        tokens: how many tokens it has.
        sentences: their text.
        labels: shared, teacher, student, boosted.
        meta: models and arguments.
    """

    teacher: Float[Tensor, " sentence"]
    student: Float[Tensor, " sentence"]
    distilled: Float[Tensor, " sentence"]
    label: Int[Tensor, " sentence"]
    output: Int[Tensor, " sentence"]
    tokens: Int[Tensor, " sentence"]
    sentences: list[str]
    labels: list[str]
    meta: dict[str, Any] = field(default_factory=dict)

    __repr__ = brief

    def table(self) -> pd.DataFrame:
        """One row a sentence: `output sentence tokens teacher student distilled label`."""
        import pandas as pd

        columns: dict[str, Any] = {"output": self.output.numpy(), "sentence": self.sentences}
        for name in ("tokens", "teacher", "student", "distilled"):
            columns[name] = getattr(self, name).numpy()
        return pd.DataFrame(columns | {"label": [self.labels[i] for i in self.label.tolist()]})

    def summary(self, *, seed: int = 0) -> pd.DataFrame:
        """Share of sentences with each label, with outputs as the evidence.

        Columns `label share low high sentences outputs`. Compare shares: how many teacher sentences
        an output holds grows with its length alone.
        """
        import pandas as pd

        rows = []
        for index, name in enumerate(self.labels):
            hits = (self.label == index).float().tolist()
            got = cluster_mean(hits, self.output.tolist(), seed)
            row = {"label": name, "share": got.mean, "low": got.low, "high": got.high}
            rows.append(row | {"sentences": int(sum(hits)), "outputs": got.clusters})
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> Path:
        """Write a folder that `Provenance.load` reads back, whole or not at all."""
        names = ("teacher", "student", "distilled", "label", "output", "tokens")
        tensors = {name: getattr(self, name) for name in names}
        meta = {"sentences": self.sentences, "labels": self.labels, "provenance": self.meta}
        return save_record(path, "provenance", tensors, meta, self.table())

    @staticmethod
    def load(path: str | Path) -> Provenance:
        """Read what `save` wrote."""
        tensors, meta = load_record(path, "provenance")
        return Provenance(
            **tensors,
            sentences=meta["sentences"],
            labels=meta["labels"],
            meta=meta["provenance"],
        )


def split_sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence: up to a full stop, ! or ? before a space, or a line's end.

    Examples:
        >>> [text[a:b] for text in ["Add 3.5. So 4!"] for a, b in split_sentences(text)]
        ['Add 3.5.', ' So 4!']
    """
    spans = [m.span() for m in re.finditer(r".+?(?:[.!?]+(?=\s|$)|\n+|$)", text, re.DOTALL)]
    return [(start, end) for start, end in spans if text[start:end].strip()]


def provenance(
    distilled: Model | nn.Module,
    teacher: Model | nn.Module,
    student: Model | nn.Module,
    prompts: Sequence[str],
    outputs: Sequence[str],
    *,
    alpha: float = 0.05,
    beta: float = 0.1,
    split: Split = split_sentences,
    batch_size: int = 8,
) -> Provenance:
    """Label each sentence of a distilled model's outputs by who would have written it.

    With p = exp(mean over the sentence's tokens of log p(token | all before it)) under teacher T,
    student S before distillation and distilled model D: shared where no two of them differ by more
    than alpha; else teacher where p_T - p_S > beta, student where p_S - p_T > beta, and boosted
    where teacher and student agree within beta but the distilled model does not.

    Args:
        distilled: the model whose outputs these are.
        teacher: whose traces it was trained on.
        student: what it was before.
        prompts: texts.
        outputs: what the distilled model wrote after each; an empty one has no sentences.
        alpha: our specification; the paper does not say.
        beta: the paper's best; it reports .05 and .15 to work as well.
        split: (start, end) of the sentences in a text.
        batch_size: outputs a forward.

    Raises:
        InterpError: one text and no list, other vocabularies, tokenizers without character
            offsets, no sentence at all.

    Examples:
        >>> teacher = student = model                        # three models in real life
        >>> got = probes.provenance(model, teacher, student, [prompt], [" There. Or here."])
        >>> got.table()[["sentence", "label"]]

    Source: 2512.20908 (ICLR 2026), from a summary of it.
    """
    if not alpha >= 0 or not beta >= 0:
        raise InterpError(f"alpha={alpha}, beta={beta}: expected differences of probabilities >= 0")
    models = [as_model(model) for model in (distilled, teacher, student)]
    for model in models:
        require_unembed(model)
    vocab = min(shared_vocabulary(models[0], model) for model in models[1:])
    prompts, outputs = several(prompts, "prompts"), several(outputs, "outputs")
    if len(prompts) != len(outputs):
        raise InterpError(f"{len(outputs)} outputs for {len(prompts)} prompts; give one for each")
    kept = [i for i, text in enumerate(outputs) if text.strip()]
    texts = [prompts[i] for i in kept], [outputs[i] for i in kept]
    rows = list(token_rows(models, *texts, vocab=vocab))
    if not rows:
        raise InterpError("no output holds a sentence; is there anything but empty outputs?")
    logprobs: list[list[Tensor]] = [[], [], []]
    for begin in range(0, len(rows), batch_size):
        for model, found in zip(models, logprobs, strict=True):
            found += target_logprobs(model, rows[begin : begin + batch_size], vocab=vocab)
    probs, where, counts, sentences = [], [], [], []
    for number, (index, row) in enumerate(zip(kept, rows, strict=True)):
        for begin, end, members in _members(models[0], prompts[index], outputs[index], row, split):
            means = [float(found[number][members].double().mean().exp()) for found in logprobs]
            probs.append(means)
            where.append(index)
            counts.append(len(members))
            sentences.append(outputs[index][begin:end])
    d, t, s = torch.tensor(probs).unbind(1)
    names = [model.name or type(model.module).__name__ for model in models]
    meta = dict(zip(("distilled", "teacher", "student"), names, strict=True))
    return Provenance(
        teacher=t,
        student=s,
        distilled=d,
        label=_label(d, t, s, alpha, beta),
        output=torch.tensor(where),
        tokens=torch.tensor(counts),
        sentences=sentences,
        labels=LABELS,
        meta={**meta, "alpha": alpha, "beta": beta},
    )


def _label(d: Tensor, t: Tensor, s: Tensor, alpha: float, beta: float) -> Tensor:
    apart = torch.stack([s - d, t - d, t - s]).abs().amax(0) > alpha
    label = torch.full(d.shape, LABELS.index("boosted"))
    label[t - s > beta] = LABELS.index("teacher")
    label[s - t > beta] = LABELS.index("student")
    return label.masked_fill(~apart, LABELS.index("shared"))


def _members(
    model: Model, prompt: str, output: str, row: TokenRow, split: Split
) -> list[tuple[int, int, list[int]]]:
    """(start, end, the output's tokens) of each sentence; a token belongs where it ends."""
    if not getattr(model.tokenizer, "is_fast", False):
        raise InterpError("sentences need a tokenizer that gives character offsets (a fast one)")
    n = row.stop - row.start
    encoded = model.tokenizer(
        prompt + output, add_special_tokens=False, return_offsets_mapping=True
    )
    if list(encoded["input_ids"])[-n:] != row.ids[-n:]:
        raise InterpError(f"the tokens of output {row.index} cannot be aligned with its text")
    last = [end - len(prompt) - 1 for _, end in encoded["offset_mapping"][-n:]]
    spans = [(a, b, [k for k, at in enumerate(last) if a <= at < b]) for a, b in split(output)]
    return [span for span in spans if span[2]]
