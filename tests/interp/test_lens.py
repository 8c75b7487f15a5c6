"""The logit lens against a direct computation in float64, and in pieces of any size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import interp
from interp import _lens
from tests.architectures import build
from tests.oracles import layout, plain
from tests.oracles.layout import EVERY

NAMES = ["gpt2", "llama", "gemma2", "cohere", "granite", "opt-projected", "mixtral", "bloom"]


def lens_logits(name: str, ids: Tensor) -> Tensor:
    """[layer batch pos vocab]: the model's own norm and head on every layer's stream.

    Each layer's stream is put in place of the last block's output, so that the model itself
    unembeds it: norm, projections, scales and soft caps.
    """
    model = build(name)
    states = plain.forward(model, ids, output_hidden_states=True).hidden_states[:-1]
    last = model.config.num_hidden_layers - 1
    rows = []
    for state in states:
        twin = build(name)
        plain.map_output(layout.block_of(name, twin, last), lambda _raw, s=state: s)
        rows.append(plain.logits_of(twin, ids))
    rows.append(plain.logits_of(model, ids))
    return torch.stack(rows).double()


@pytest.mark.parametrize("name", NAMES)
def test_every_quantity_equals_a_direct_computation(name, ids) -> None:
    model = build(name)
    logprobs = lens_logits(name, ids).log_softmax(-1)
    answers = [[5, 9, 60], [7, 8, 61]]
    trace = interp.logit_lens(model, ids, answers, positions="all", top_k=4)
    final = logprobs[-1]
    for row in range(len(trace.prompt)):
        prompt, position = int(trace.prompt[row]), int(trace.position[row])
        here = logprobs[:, prompt, position]  # [layer vocab]
        chosen = here[:, answers[prompt]]
        near = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(trace.logprob[row].double(), chosen, **near)
        torch.testing.assert_close(trace.prob[row].double(), chosen.exp(), **near)
        entropy = -(here.exp() * here).sum(-1)
        torch.testing.assert_close(trace.entropy[row].double(), entropy, **near)
        own = final[prompt, position]
        kl = (own.exp() * (own - here)).sum(-1)
        torch.testing.assert_close(trace.kl[row].double(), kl, rtol=1e-4, atol=2e-4)
        top = here.topk(4, dim=-1)
        torch.testing.assert_close(trace.top_logprob[row].double(), top.values, **near)
        assert torch.equal(trace.top_token[row], top.indices)
        rank = (here[:, None] > chosen[..., None]).sum(-1) + 1
        assert torch.equal(trace.rank[row], rank)
        assert int(trace.token[row]) == int(ids[prompt, position])


@pytest.mark.parametrize("name", EVERY)
def test_the_last_row_is_the_models_own_output(name, ids) -> None:
    model = build(name)
    logprobs = plain.logits_of(model, ids)[:, -1].log_softmax(-1)
    trace = interp.logit_lens(model, ids, 5)
    torch.testing.assert_close(trace.logprob[:, -1, 0], logprobs[:, 5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trace.kl[:, -1], torch.zeros(2), rtol=0, atol=1e-5)
    assert trace.n_layers == model.config.num_hidden_layers + 1
    # Without an answer it is the model's own first choice that is traced.
    own = interp.logit_lens(model, ids)
    assert own.answer_token[:, 0].tolist() == logprobs.argmax(-1).tolist()
    assert own.rank[:, -1, 0].tolist() == [1, 1]


@pytest.mark.parametrize("size", [1, 97 * 2, 97 * 5, 97 * 9, 10**9])
def test_the_size_of_chunks_changes_nothing(size, ids, monkeypatch) -> None:
    model = interp.load(build("llama"))
    whole = interp.logit_lens(model, ids, [[5, 6], [7, 8]], positions="all")
    monkeypatch.setattr(_lens, "_CHUNK", size)
    monkeypatch.setattr(_lens, "_PIECE", max(1, size // 2))
    pieces = interp.logit_lens(model, ids, [[5, 6], [7, 8]], positions="all")
    for part in ("logprob", "entropy", "kl", "top_logprob"):
        torch.testing.assert_close(
            getattr(pieces, part), getattr(whole, part), rtol=1e-5, atol=1e-5
        )
    for part in ("rank", "top_token", "answer_token", "prompt", "position", "token"):
        assert torch.equal(getattr(pieces, part), getattr(whole, part))


def test_equally_likely_tokens_rank_in_the_order_of_their_ids(ids) -> None:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[:] = 0
        model.lm_head.weight[[40, 50]] = 1e-3
    trace = interp.logit_lens(model, ids, [[40, 50, 3, 96], [40, 50, 3, 96]])
    logits = plain.logits_of(model, ids)[:, -1]
    for row in range(2):
        order = sorted(range(97), key=lambda token: (-float(logits[row, token]), token))
        expected = [order.index(token) + 1 for token in (40, 50, 3, 96)]
        assert trace.rank[row, -1].tolist() == expected
    uniform = torch.full_like(trace.entropy, math.log(97))
    torch.testing.assert_close(trace.entropy, uniform, rtol=0, atol=1e-3)


def test_an_identity_lens_is_the_raw_lens(ids) -> None:
    model = build("llama")
    identity = interp.LinearLens(torch.eye(32).repeat(3, 1, 1), torch.zeros(3, 32))
    raw = interp.logit_lens(model, ids, 5, positions="all")
    mapped = interp.logit_lens(model, ids, 5, positions="all", lens=identity)
    torch.testing.assert_close(mapped.logprob, raw.logprob, rtol=1e-5, atol=1e-5)
    assert torch.equal(mapped.top_token, raw.top_token)


def test_a_linear_lens_maps_each_layer_and_never_the_output(ids, monkeypatch) -> None:
    model = interp.load(build("gpt2"))
    weight, bias = torch.randn(3, 32, 32) / 6, torch.randn(3, 32)
    lens = interp.LinearLens(weight, bias)
    trace = interp.logit_lens(model, ids, 5, lens=lens)
    acts = interp.capture(model, ids, ["resid_pre.0", "resid_post.*"], positions="last")
    streams = [acts["resid_pre.0"], acts["resid_post.0"], acts["resid_post.1"]]
    mapped = [s @ w.T + b for s, w, b in zip(streams, weight, bias, strict=True)]
    with torch.no_grad():
        logits = torch.stack(
            [model.anatomy.unembed(s[:, 0]) for s in [*mapped, acts["resid_post.2"]]]
        )
    expected = logits.log_softmax(-1)[..., 5].T
    torch.testing.assert_close(trace.logprob[..., 0], expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(_lens, "_CHUNK", 97)  # a layer at a time
    again = interp.logit_lens(model, ids, 5, lens=lens)
    torch.testing.assert_close(again.logprob, trace.logprob, rtol=1e-5, atol=1e-5)


def test_a_lens_reads_back_and_refuses_another_models_size(ids, tmp_path) -> None:
    lens = interp.LinearLens(torch.randn(3, 32, 32), None, "jacobian")
    loaded = interp.LinearLens.load(lens.save(tmp_path / "lens"))
    assert torch.equal(loaded.weight, lens.weight)
    assert loaded.bias is None
    assert loaded.kind == "jacobian"
    with pytest.raises(
        interp.InterpError, match=r"lens has shape \[3, 32, 32\].*needs \[2, 32, 32\]"
    ):
        interp.logit_lens(build("llama", num_hidden_layers=2), ids, 5, lens=lens)


def test_a_folder_of_the_tuned_lens_library_is_read(tmp_path) -> None:
    """Its translators add A h + b to h."""
    import json

    matrices = {f"{i}.weight": torch.randn(4, 4) for i in range(2)}
    biases = {f"{i}.bias": torch.randn(4) for i in range(2)}
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "d_model": 4}))
    torch.save(matrices | biases, tmp_path / "params.pt")
    lens = interp.LinearLens.load(tmp_path)
    h = torch.randn(5, 4)
    for layer in range(2):
        expected = h + h @ matrices[f"{layer}.weight"].T + biases[f"{layer}.bias"]
        torch.testing.assert_close(lens(h, layer), expected, rtol=1e-5, atol=1e-5)


def test_the_lens_sees_edits(ids) -> None:
    model = build("llama")
    with interp.hooked(model, {"resid_post.0": lambda x, site: x * 0 + 1}):
        trace = interp.logit_lens(model, ids, 5)
    untouched = interp.logit_lens(model, ids, 5)
    torch.testing.assert_close(trace.logprob[0, 1:], trace.logprob[1, 1:], rtol=1e-5, atol=1e-5)
    assert torch.equal(trace.logprob[:, 0], untouched.logprob[:, 0])


def test_top_k_outside_the_vocabulary_is_refused(ids) -> None:
    for top_k in (0, 98):
        with pytest.raises(interp.InterpError, match=f"top_k={top_k}: expected 1 to 97"):
            interp.logit_lens(build("llama"), ids, top_k=top_k)
