"""Adjacent change and entropy traces against loops over single states and logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
import probes
from interp._model import generate_ids
from tests.architectures import build

TEXTS = [[5, 9, 33, 7, 21, 40], [13, 4, 70], [8]]


def test_adjacent_change_is_the_relative_step_of_each_state() -> None:
    model = interp.Model(build("llama"))
    acts = interp.capture(model, TEXTS, "resid_post.*")
    got = probes.adjacent_change(acts)
    for text, ids in enumerate(TEXTS):
        for layer in range(3):
            alone = interp.capture(model, [ids], f"resid_post.{layer}")[f"resid_post.{layer}"][0]
            for t in range(1, len(ids)):
                expected = float((alone[t] - alone[t - 1]).norm() / alone[t - 1].norm())
                assert float(got.change[text, t - 1, layer]) == pytest.approx(expected, rel=1e-4)
        assert bool(got.change[text, len(ids) - 1 :].isnan().all())
    mean = got.mean()
    assert mean.mean == pytest.approx(float(got.change.nanmean()), rel=1e-6)
    assert (mean.clusters, mean.n) == (2, 7)
    assert got.table().query("text == 0 and layer == 1")["steps"].tolist() == [5]


def test_shuffling_changes_a_drift_and_not_exchangeable_states() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 30, 16, generator=generator) + 3
    drift = torch.ones(40, 30, 16) + torch.linspace(0, 1, 30)[None, :, None]
    for states, low, high in ((noise, 0.97, 1.03), (drift, 5.0, 20.0)):
        tokens = torch.zeros(40, 30, dtype=torch.long)
        acts = interp.Activations(
            {interp.Site("resid_post", 0): states}, tokens, torch.ones(40, 30, dtype=torch.bool)
        )
        got = probes.adjacent_change(acts)
        assert low < got.mean(shuffled=True).mean / got.mean().mean < high


def test_repeating_one_state_has_no_change() -> None:
    states = torch.ones(1, 5, 8)
    tokens, mask = torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool)
    acts = interp.Activations({interp.Site("resid_post", 0): states}, tokens, mask)
    assert float(probes.adjacent_change(acts).mean().mean) == 0.0


def test_activations_that_are_not_adjacent_are_refused() -> None:
    model = interp.Model(build("llama"))
    with pytest.raises(interp.InterpError, match="chosen positions only"):
        probes.adjacent_change(interp.capture(model, TEXTS, "resid_post.1", positions=[0, -1]))
    with pytest.raises(interp.InterpError, match="no text has two tokens"):
        probes.adjacent_change(interp.capture(model, [[4], [5]], "resid_post.1"))


def entropies(module: Any, prompt: list[int], new: list[int]) -> list[float]:
    with torch.no_grad():
        z = module(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1].double()
    return (-(z.softmax(-1) * z.log_softmax(-1)).sum(-1)).tolist()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_entropy_of_a_generation_is_that_of_each_step(name: str) -> None:
    module = build(name)
    got = probes.entropy_trace(module, TEXTS, max_new_tokens=9, batch_size=2, chunk=3)
    for i, prompt in enumerate(TEXTS):
        sequences, start = generate_ids(interp.Model(module), [prompt], max_new_tokens=9)
        new = sequences[0, start:].tolist()
        assert got.token[i, : len(new)].tolist() == new
        expected = entropies(module, prompt, new)
        torch.testing.assert_close(
            got.entropy[i, : len(new)].double(),
            torch.tensor(expected).double(),
            rtol=1e-4,
            atol=1e-5,
        )
        assert bool(got.entropy[i, len(new) :].isnan().all())
        assert int(got.peak[i]) == int(torch.tensor(expected).argmax())


def test_given_completions_are_read_and_averaged() -> None:
    module = build("gpt2")
    ends = [[40, 41, 42, 43], [50], [60, 61]]
    got = probes.entropy_trace(module, TEXTS, ends, decay=0.75)
    for i, (prompt, new) in enumerate(zip(TEXTS, ends, strict=True)):
        expected = entropies(module, prompt, new)
        smooth = expected[0]
        for t, now in enumerate(expected):
            smooth = now if t == 0 else 0.75 * smooth + 0.25 * now
            assert float(got.entropy[i, t]) == pytest.approx(now, rel=1e-4)
            assert float(got.smoothed[i, t]) == pytest.approx(smooth, rel=1e-4)
    assert got.table()["text"].tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert got.token[1].tolist() == [50, -1, -1, -1]


def test_a_uniform_model_has_the_greatest_entropy(tmp_path: Path) -> None:
    module = build("llama")
    with torch.no_grad():
        module.lm_head.weight.zero_()
    got = probes.entropy_trace(interp.Model(module, check=False), [[5]], [[6, 7]])
    torch.testing.assert_close(got.entropy, torch.full((1, 2), math.log(97)))
    back = probes.EntropyTrace.load(got.save(tmp_path / "trace"))
    assert back.table().equals(got.table())
    assert back.meta == got.meta


def test_bad_traces_are_refused() -> None:
    module = build("llama")
    with pytest.raises(interp.InterpError, match=r"decay=1\.0"):
        probes.entropy_trace(module, TEXTS, decay=1.0)
    with pytest.raises(interp.InterpError, match="no prompts"):
        probes.entropy_trace(module, [])
    with pytest.raises(interp.InterpError, match="gives no tokens"):
        probes.entropy_trace(module, [[4]], [[]])
    with pytest.raises(interp.InterpError, match="one sequence a prompt"):
        probes.entropy_trace(module, [[4]], num_return_sequences=2, do_sample=True)
    with torch.no_grad():
        module.lm_head.weight[3] = float("nan")
    with pytest.raises(interp.InterpError, match="not finite at text 0, position 0"):
        probes.entropy_trace(interp.Model(module, check=False), [[4]], [[5]])
