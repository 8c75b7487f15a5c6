"""The loss on a straight line between two models, against losses computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

import probes
from interp import Delta, Edit, InterpError, Towards
from tests.architectures import build
from tests.interp.weights.helpers import noisy

TEXTS = [[5, 9, 33, 7, 60], [8, 3, 3, 41, 12, 77, 20], [90, 4]]


def towards(other: PreTrainedModel) -> Edit:
    return Edit(Delta(name, Towards(p.detach())) for name, p in other.named_parameters())


def by_hand(model: PreTrainedModel, texts=TEXTS) -> Tensor:
    """Nats of each text, one forward a text."""
    with torch.no_grad():
        return torch.stack([
            F.cross_entropy(model(torch.tensor([t])).logits[0, :-1].double(),
                            torch.tensor(t[1:]), reduction="sum")
            for t in texts
        ])  # fmt: skip


def test_losses_are_those_of_the_interpolated_models(tmp_path: Path):
    base, other = build("llama"), noisy(build("llama"), 0.3)
    before = [p.detach().clone() for p in base.parameters()]
    line = probes.loss_barrier(base, towards(other), TEXTS, points=5, batch_size=2)
    for i, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        middle = build("llama")
        with torch.no_grad():
            for p, a, b in zip(middle.parameters(), before, other.parameters(), strict=True):
                p.copy_(a + share * (b - a))
        torch.testing.assert_close(line.loss[i], by_hand(middle), rtol=1e-4, atol=1e-4)
    assert line.tokens.tolist() == [4, 6, 1]
    mean = line.loss.sum(1) / 11
    assert line.barrier == pytest.approx(float(mean[1:4].max() - max(mean[0], mean[4])), rel=1e-9)
    assert all(torch.equal(p, q) for p, q in zip(base.parameters(), before, strict=True))
    line.save(tmp_path / "line")
    back = probes.LossBarrier.load(tmp_path / "line")
    assert torch.equal(back.loss, line.loss) and back.barrier == line.barrier
    table = line.table()
    assert len(table) == 15
    row = table[(table["point"] == 0.5) & (table["text"] == 1)].iloc[0]
    assert row["loss"] * row["tokens"] == pytest.approx(float(line.loss[2, 1]))


def test_permuted_neurons_are_the_same_model_behind_a_barrier():
    """The textbook case: two ends with equal logits, and a worse model between them."""
    base, other = build("llama"), build("llama")
    with torch.no_grad():
        for layer in other.model.layers:
            order = torch.randperm(48)
            for p in (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight):
                p.copy_(p[order])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
    texts = [[3 + (5 * i + j * j) % 90 for j in range(12)] for i in range(12)]
    # Texts on which the ends are good: their own greedy continuations.
    ids = torch.tensor(texts)[:, :4]
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, base(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    line = probes.loss_barrier(base, towards(other), ids[:, 3:].tolist(), points=5)
    torch.testing.assert_close(line.mean[0], line.mean[-1], rtol=1e-4, atol=1e-4)
    found = line.estimate()
    assert found.low > 0.1 and found.low < found.mean < found.high and found.n == 12


def test_no_change_has_no_barrier_and_completions_count_alone():
    base = build("gpt2")
    nothing = Edit([Delta("lm_head.weight", torch.zeros_like(base.lm_head.weight))])
    line = probes.loss_barrier(base, nothing, TEXTS[:2], completions=[[7, 8], [9]], points=3)
    assert line.tokens.tolist() == [2, 1] and line.barrier == 0.0
    full, start = by_hand(base, [[*TEXTS[0], 7, 8]]), by_hand(base, [TEXTS[0]])
    torch.testing.assert_close(line.loss[1, :1], full - start, rtol=1e-4, atol=1e-4)


def test_bad_lines_are_refused():
    base = build("llama")
    with pytest.raises(InterpError, match="points=2: a line with a middle"):
        probes.loss_barrier(base, Edit(), TEXTS, points=2)
    with pytest.raises(InterpError, match="no texts, so no loss"):
        probes.loss_barrier(base, Edit(), [])
    with pytest.raises(InterpError, match="transfer=True"):
        probes.loss_barrier(base, towards(base).on(noisy(base)), TEXTS)
