"""CHES and displacement against literal per-example references."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

import interp
import probes
from tests.architectures import build

PROMPTS = [[5, 9, 33, 7, 21], [13, 4], [70, 71, 72, 50], [6]]
CHOSEN = [[40, 41], [8, 9, 10, 11], [60], [30, 31, 32]]
REJECTED = [[42, 43, 44], [12], [61, 62, 63, 64, 65], [33]]


def states(module: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """As in the paper's code for one example: the last hidden states that predict the answer."""
    with torch.no_grad():
        hidden = module(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
    return hidden[-1][0, len(prompt) - 1 : -1]  # after the final norm; the last token is dropped


def literal(module: Any, prompt: list[int], good: list[int], bad: list[int]) -> tuple[float, float]:
    plus, minus = states(module, prompt, good).sum(0), states(module, prompt, bad).sum(0)
    n, m = len(good), len(bad)
    raw = float(plus @ minus - plus @ plus)
    return raw, float(plus @ minus / (n * m) - plus @ plus / n**2)


@pytest.mark.parametrize("name", ["gpt2", "opt-projected", "gpt_neox", "starcoder2"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_equals_the_literal_sum_in_float64(name: str, batch_size: int) -> None:
    module = build(name, dtype=torch.float64)
    got = probes.ches(module, PROMPTS, CHOSEN, REJECTED, batch_size=batch_size)
    for i, triple in enumerate(zip(PROMPTS, CHOSEN, REJECTED, strict=True)):
        raw, normalised = literal(module, *triple)
        assert float(got.score[i]) == pytest.approx(raw, rel=1e-9)
        assert float(got.normalised[i]) == pytest.approx(normalised, rel=1e-9)
    assert got.table()["chosen_tokens"].tolist() == [2, 4, 1, 3]


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "mixtral"])
def test_equals_the_literal_sum_in_float32(name: str) -> None:
    module = build(name)
    got = probes.ches(module, PROMPTS, CHOSEN, REJECTED)
    expected = [literal(module, *t) for t in zip(PROMPTS, CHOSEN, REJECTED, strict=True)]
    torch.testing.assert_close(
        got.score.float(), torch.tensor(expected)[:, 0], rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(
        got.normalised.float(), torch.tensor(expected)[:, 1], rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_of_either_side_moves_nothing(padding: Any) -> None:
    model = interp.Model(build("gpt2"))
    batch = model.batch(PROMPTS, padding=padding)
    rows = [
        ids[mask.bool()] for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    alone = probes.ches(model, PROMPTS, CHOSEN, REJECTED, batch_size=1)
    got = probes.ches(model, [row.tolist() for row in rows], CHOSEN, REJECTED, batch_size=4)
    torch.testing.assert_close(got.score, alone.score, rtol=1e-4, atol=1e-3)


def test_an_answer_beside_itself_is_neutral_and_the_model_untouched() -> None:
    module = build("llama")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    got = probes.ches(module, PROMPTS, CHOSEN, CHOSEN)
    torch.testing.assert_close(got.score, torch.zeros_like(got.score), rtol=0, atol=1e-3)
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


def test_displacement_is_the_change_of_the_literal_log_probability() -> None:
    before = build("gpt2")
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter += 0.02 * torch.randn_like(parameter)

    def logprob(module: Any, prompt: list[int], answer: list[int]) -> float:
        with torch.no_grad():
            logits = module(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        return float(logits.double().log_softmax(-1)[range(len(answer)), answer].sum())

    got = probes.likelihood_displacement(before, after, PROMPTS, CHOSEN, REJECTED, batch_size=3)
    for i, (x, good, bad) in enumerate(zip(PROMPTS, CHOSEN, REJECTED, strict=True)):
        changes = [logprob(after, x, y) - logprob(before, x, y) for y in (good, bad)]
        assert float(got.chosen[i]) == pytest.approx(changes[0], abs=1e-4)
        assert float(got.margin[i]) == pytest.approx(changes[0] - changes[1], abs=1e-4)
    down = int((got.chosen < 0).sum())
    exact = binomtest(down, 4).proportion_ci(0.95, "exact")
    assert (got.displaced().low, got.displaced().high) == pytest.approx((exact.low, exact.high))
    assert got.table()["chosen_change"].tolist() == got.chosen.tolist()


def test_bad_pairs_are_refused() -> None:
    module = build("llama")
    for measure in (
        lambda *pairs: probes.ches(module, *pairs),
        lambda *pairs: probes.likelihood_displacement(module, module, *pairs),
    ):
        with pytest.raises(interp.InterpError, match="2 prompts, 1 chosen, 1 rejected"):
            measure([[4], [5]], [[4]], [[5]])
        with pytest.raises(interp.InterpError, match="no preference pairs"):
            measure([], [], [])
        with pytest.raises(interp.InterpError, match="chosen is one text"):
            measure([[4]], "yes", [[5]])
        with pytest.raises(interp.InterpError, match="gives no tokens"):
            measure([[4]], [[]], [[5]])
    with torch.no_grad():
        module.model.norm.weight[0] = float("nan")
    with pytest.raises(interp.InterpError, match="hidden states of pair 0 are not finite"):
        probes.ches(interp.Model(module, check=False), [[4]], [[5]], [[6]])
