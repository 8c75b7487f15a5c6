"""Divergence of two models over a corpus, beside the two forwards it cannot do without."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import interp
import probes
from benchmarks._measure import Contestant, Held, alternate, disagreement
from benchmarks._memory import in_fresh_process
from benchmarks._models import ARCHITECTURES, build, describe, random_ids
from benchmarks._peers import Peers
from benchmarks._plain import blocks_only
from benchmarks._report import Report, Section, row_of

REFERENCE = "two bare forwards, logits of every position"
# texts, tokens each, texts a batch
SHAPES = ((16, 128, 8), (2, 512, 1), (1, 2048, 1))
NOTES = """\
Two checkpoints of one model (weights 2 % apart) read the same token ids. The reference runs both
forwards with the logits of every position and drops them. `probes.divergence` also gives forward
and reverse KL, total variation, both top tokens, the rank of one under the other, both entropies
and both log-probs of the next token, at every position, as a record. 'by hand' does the obvious
from whole logits: two log-softmaxes, both KL, total variation and the top tokens. What
`probes.divergence` adds to the forwards are some ten passes over the vocabulary a position; what it
saves is writing whole logits to memory. So the ratio falls as models get wider: the last section is
of a width that real models have, at the vocabulary of the others. The peak's growth is that of one
call on one text, in a fresh process: whole logits grow with the text, here a chunk of positions
bounds them and only the streams grow. The last column is the largest difference to the KL by hand,
which is the less exact of the two: float32 log-softmaxes are subtracted."""


def contestants(
    base: PreTrainedModel, tuned: PreTrainedModel, ids: Tensor, batch: int, *, judged: bool
) -> list[Contestant]:
    """Everyone, the reference first."""
    models = interp.Model(base), interp.Model(tuned)
    batches = ids.split(batch)
    texts = ids.tolist()

    def forwards() -> Held:
        for some in batches:
            for model in (base, tuned):
                model(some, use_cache=False)
        return Held()

    def blocks() -> Held:
        for some in batches:
            for model in (base, tuned):
                blocks_only(model, some)
        return Held()

    def by_hand() -> Held:
        return Held({"forward": torch.cat([_by_hand(base, tuned, some) for some in batches])})

    def ours() -> Held:
        return Held({"forward": probes.divergence(*models, texts, batch_size=batch).forward})

    return [
        Contestant(REFERENCE, forwards),
        Contestant("the same again (control)", forwards),
        Contestant("blocks of both, no logits", blocks),
        Contestant("by hand, whole logits", by_hand),
        Contestant("probes.divergence", ours, target=(1.10, 1.10) if judged else None),
    ]


def _by_hand(base: PreTrainedModel, tuned: PreTrainedModel, ids: Tensor) -> Tensor:
    """Forward KL [row]; the rest is computed and dropped."""
    logp, logq = (model(ids, use_cache=False).logits.log_softmax(-1) for model in (base, tuned))
    p, q = logp.exp(), logq.exp()
    forward = (p * (logp - logq)).sum(-1)
    _ = (q * (logq - logp)).sum(-1), (p - q).abs().sum(-1) / 2, p.argmax(-1), q.argmax(-1)
    return forward.flatten()


def moved(model: PreTrainedModel, size: float = 0.02) -> PreTrainedModel:
    """A copy with Gaussian noise of `size` times each matrix's own spread."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += size * parameter.std() * noise
    return other


def wide() -> PreTrainedModel:
    """A llama of 4 layers x 768."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        num_hidden_layers=4,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=2048,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("sdpa")
    return model.eval()


def at_peak(model: PreTrainedModel, tokens: int, _peers: Peers) -> list[Contestant]:
    """Whose memory is measured in a process of its own: one text."""
    return contestants(model, moved(model), random_ids(model, 1, tokens), 1, judged=False)


def run(*, quick: bool, seconds: float) -> Report:
    """Measure; `seconds` is shared among the models and corpora."""
    report = Report("divergence", NOTES)
    shapes = ((4, 16, 2),) if quick else SHAPES
    cases = [(name, shape) for name in ARCHITECTURES for shape in shapes]
    cases += [] if quick else [("wide", SHAPES[0])]
    for name, (texts, tokens, batch) in cases:
        base = wide() if name == "wide" else build(name, tiny=quick)
        everyone = contestants(
            base, moved(base), random_ids(base, texts, tokens), batch, judged=not quick
        )
        gaps = disagreement(everyone)
        rounds = (3, 3) if quick else (8, 200)
        timing = alternate(everyone, seconds=seconds / len(cases), rounds=rounds)
        title = f"{describe(base)}; {texts} texts of {tokens} tokens, {batch} a batch"
        section = Section(title, REFERENCE, timing)
        for one in everyone:
            row = row_of(one, timing, REFERENCE)
            if not quick and batch == 1:
                arguments = ["divergence", name, str(tokens), one.name]
                row["peak_growth_bytes"] = in_fresh_process(arguments)
            section.rows.append(row | {"max_difference": gaps.get(one.name)})
        report.sections.append(section)
    return report
