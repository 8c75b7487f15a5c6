"""Causal tracing equals noised forwards with states put back one at a time."""

from __future__ import annotations

import pytest
import torch

import interp
from tests.architectures import build
from tests.interp.patch.slow import activations, difference
from tests.oracles import plain
from tests.oracles.tokenizers import byte_level


def slow_trace(model, prompt, subject, std, samples, seed, restored, metric) -> float:
    """Mean over noise samples of the metric with `restored` [(site, position)] set to clean."""
    generator = torch.Generator().manual_seed(seed)
    noise = std * torch.randn(samples, len(subject), 32, generator=generator)
    donors = {site: activations(model, prompt, site) for site, _ in restored}
    total = 0.0
    for sample in noise:

        def disturb(tensor, _site, sample=sample):
            tensor[0, subject] += sample
            return tensor

        def put(tensor, site):
            for name, position in restored:
                if name == str(site):
                    tensor[0, position] = donors[name][position]
            return tensor

        with (
            interp.hooked(model, {"embed": disturb}),
            interp.hooked(model, dict.fromkeys(donors, put)),
        ):
            total += float(metric(plain.logits_of(model, torch.tensor([prompt]))[0, -1]))
    return total / samples


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "bloom"])
def test_it_equals_noised_forwards_with_states_restored(name, ids) -> None:
    model, subjects = build(name), [[3, 4], [2]]
    trace = interp.causal_trace(
        model, [ids[0].tolist(), ids[1, :8].tolist()], subjects, difference,
        sites=["resid_post", "mlp_out", "attn_out"], window={"mlp_out": 3, "attn_out": 2},
        noise=2.0, samples=2, seed=5,
    )  # fmt: skip
    std = trace.meta["noise_std"]
    embedded = interp.capture(model, ids, "embed")["embed"]
    parts = torch.cat([embedded[0, [3, 4]], embedded[1, [2]]])
    assert std == pytest.approx(2.0 * float(parts.std()), rel=1e-5)
    cases = [
        (0, "resid_post.1", 4, ["resid_post.1"]),
        (0, "mlp_out.0", 3, ["mlp_out.0", "mlp_out.1"]),
        (1, "mlp_out.1", 7, ["mlp_out.0", "mlp_out.1", "mlp_out.2"]),
        (1, "attn_out.2", 5, ["attn_out.1", "attn_out.2"]),
    ]
    prompts = [ids[0].tolist(), ids[1, :8].tolist()]
    for prompt, site, position, sites in cases:
        restored = [(one, position) for one in sites]
        expected = slow_trace(
            model, prompts[prompt], subjects[prompt], std, 2, 5, restored, difference
        )
        got = float(trace[site][prompt, position])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for prompt in range(2):
        low = slow_trace(model, prompts[prompt], subjects[prompt], std, 2, 5, [], difference)
        torch.testing.assert_close(float(trace.corrupted[prompt]), low, rtol=1e-4, atol=1e-4)
        high = difference(plain.logits_of(model, torch.tensor([prompts[prompt]]))[0, -1])
        torch.testing.assert_close(trace.clean[prompt], high, rtol=1e-4, atol=1e-4)


def test_nothing_before_the_subject_and_everything_at_it(ids) -> None:
    model = build("llama")
    trace = interp.causal_trace(model, ids, [[4], [4]], "prob", sites=["resid_pre", "mlp_out"])
    for score in trace.score.values():
        assert torch.equal(score[:, :4], trace.corrupted[:, None, None].expand_as(score[:, :4]))
    assert torch.equal(trace["resid_pre.0"][:, 4], trace.clean)
    both = interp.causal_trace(model, ids, [[4], [4]], "prob", sites="resid_pre.0", samples=3)
    again = interp.causal_trace(model, ids[:1], [[4]], "prob", sites="resid_pre.0", samples=3)
    assert both.meta["noise_std"] != again.meta["noise_std"]  # of all subjects given
    assert torch.equal(both["resid_pre.0"][:, 4], both.clean)


def test_subjects_are_found_in_texts(ids) -> None:
    model = interp.load(build("llama", vocab_size=80), tokenizer=byte_level())
    texts = ["The capital is New York", "Rome is The capital"]
    assert interp.token_positions(model, texts, ["New York", "Rome"]) == [[3, 4], [0]]
    trace = interp.causal_trace(model, texts, ["New York", "Rome"], samples=1, sites="resid_post.0")
    assert trace.meta["subjects"] == [[3, 4], [0]] and trace.meta["window"]["mlp_out"] == 10
    assert interp.token_positions(model, "ab abc ab", "ab") == [[0, 5]]  # words, not "abc"
    assert interp.token_positions(model, "abc", "b") == [[0]]  # part of a token
    for subject, message in (
        ("Paris", r"'Paris' does not occur in prompt 0 \('The capital is New York'\); spell it"),
        (["New York"], "1 texts to find in 2 prompts"),
        ([[1], [9]], r"the subject of prompt 1 is at \[9\], and the prompt has 5 tokens"),
        ([[1]], "expected a text, one text for each of the 2 prompts"),
    ):
        with pytest.raises(interp.InterpError, match=message):
            interp.causal_trace(model, texts, subject)
    with pytest.raises(interp.InterpError, match="only in prompts given as texts"):
        interp.causal_trace(model, ids % 60, "New York")
    with pytest.raises(interp.InterpError, match="samples=0"):
        interp.causal_trace(model, texts, ["New York", "Rome"], samples=0)


def test_the_model_is_left_as_it_was(ids) -> None:
    model = build("gemma3")
    before = plain.snapshot(model)
    interp.causal_trace(model, ids, [[1], [2, 3]], samples=2, window={"mlp_out": 2})
    plain.assert_unchanged(before, model)
