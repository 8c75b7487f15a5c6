"""Activations along a generation equal those of the finished text."""

from __future__ import annotations

import pytest
import torch

import interp
from tests.architectures import build
from tests.oracles.layout import EVERY


@pytest.mark.parametrize("name", EVERY)
def test_capture_along_a_cached_generation_equals_capture_of_the_finished_text(name) -> None:
    model = build(name)
    prompt = [[5, 17, 44, 8]]
    sites = ["embed", "resid_pre.1", "attn_out.1", "mlp_post.1", "mlp_out.1", "resid_post.1", "z.1"]
    acts = interp.capture_generation(model, prompt, sites, max_new_tokens=8, eos_token_id=None)
    assert acts.tokens.shape == (1, 11)  # the twelfth token was never run
    whole = interp.capture(model, acts.tokens, sites)
    # Recurrent and chunked delta rules, one and several rows of grouped kernels differ a little.
    tolerance = 1e-3 if name == "qwen3_next" else 3e-5
    for site, value in whole.items():
        torch.testing.assert_close(
            acts[site], value, rtol=1e-4, atol=tolerance, msg=lambda m, s=site: f"{s}: {m}"
        )
    for site, experts in whole.expert_ids.items():
        assert torch.equal(acts.expert_ids[site], experts)


def test_the_greedy_path_is_followed() -> None:
    """Each token is the argmax of the logits at the one before."""
    model = build("llama")
    acts = interp.capture_generation(model, [[5, 9]], "z.0", max_new_tokens=6, eos_token_id=None)
    logits = interp.capture(model, acts.tokens, "z.0", logits=True).logits
    assert acts.tokens[0, 2:].tolist() == logits[0, 1:-1].argmax(-1).tolist()


def test_what_follows_the_end_of_text_is_no_token() -> None:
    """Rows end where the model ended them; a shorter row is masked from there on."""
    model = build("llama")
    free = interp.capture_generation(
        model, [[5, 9], [7, 30]], "resid_post.1", max_new_tokens=6, eos_token_id=None
    )
    end = int(free.tokens[0, 3])  # the second new token of the first prompt
    model.generation_config.eos_token_id = end
    acts = interp.capture_generation(model, [[5, 9], [7, 30]], "resid_post.1", max_new_tokens=6)
    stop = free.tokens[0, 2:].tolist().index(end) + 3
    assert acts.mask[0].tolist() == [True] * stop + [False] * (acts.mask.shape[1] - stop)
    assert float(acts["resid_post.1"][0, stop:].abs().sum()) == 0
    torch.testing.assert_close(acts["resid_post.1"][0, :stop], free["resid_post.1"][0, :stop])


def test_edits_hold_during_a_generation_with_a_cache() -> None:
    model = interp.load(build("llama"))
    with interp.hooked(model, {"resid_post.1": lambda x, site: x * -0.5}):
        acts = interp.capture_generation(
            model, [[5, 9, 4]], "resid_post.1", max_new_tokens=5, eos_token_id=None
        )
        whole = interp.capture(model, acts.tokens, "resid_post.1")
        plain = interp.capture(model, acts.tokens, "resid_post.1", logits=True).logits
    torch.testing.assert_close(acts["resid_post.1"], whole["resid_post.1"], rtol=1e-5, atol=1e-5)
    assert acts.tokens[0, 3:].tolist() == plain[0, 2:-1].argmax(-1).tolist()


def test_generation_refuses_beams_and_patterns() -> None:
    model = build("llama")
    with pytest.raises(interp.InterpError, match="num_beams must be 1"):
        interp.capture_generation(model, [[3, 4]], "z.0", max_new_tokens=2, num_beams=2)
    with pytest.raises(interp.InterpError, match=r"pattern.*finished text"):
        interp.capture_generation(model, [[3, 4]], "pattern.0", max_new_tokens=2)


def test_texts_are_continued(tokenizer) -> None:
    model = interp.load(build("gpt2"), tokenizer=tokenizer)
    prompts = ["The capital", "is"]
    alone = [model.generate(prompt, max_new_tokens=4, eos_token_id=None)[0] for prompt in prompts]
    assert model.generate(prompts, max_new_tokens=4, eos_token_id=None) == alone
