"""A model wrapped by peft is read like any other, its adapters included."""

from __future__ import annotations

import pytest
import torch

import interp
from tests.architectures import build
from tests.oracles import plain

peft = pytest.importorskip("peft")

# peft 0.18 to 0.20 ask transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
}


def wrapped(name: str):
    """A model with a LoRA of random A and B on every kind of projection, and the two merged."""

    def make():
        config = peft.LoraConfig(
            r=3,
            target_modules=TARGETS[name],
            init_lora_weights=False,
            fan_in_fan_out=name == "gpt2",
        )
        torch.manual_seed(4)
        return peft.get_peft_model(build(name), config).eval()

    # The decoder inside, into which peft has put its layers.
    return make().get_base_model(), make().merge_and_unload()


@pytest.mark.parametrize("name", list(TARGETS))
def test_capture_on_an_adapter_equals_capture_on_the_merged_model(name, ids) -> None:
    model, merged = wrapped(name)
    base = build(name)
    sites = ["resid_post.*", "resid_mid.*", "q.*", "k.*", "v.*", "pattern.*", "z.*", "mlp_post.*"]
    sites += ["attn_out.*", "mlp_out.*", "head_out.*"]
    acts = interp.capture(model, ids, sites, logits=True)
    expected = interp.capture(merged, ids, sites, logits=True)
    torch.testing.assert_close(acts.logits, expected.logits, rtol=1e-4, atol=1e-4)
    for site, value in expected.items():
        torch.testing.assert_close(
            acts[site], value, rtol=1e-4, atol=1e-4, msg=lambda m, s=site: f"{s}: {m}"
        )
    assert float((acts.logits - plain.logits_of(base, ids)).abs().max()) > 1e-2


@pytest.mark.parametrize("name", list(TARGETS))
def test_edits_and_lens_work_through_an_adapter(name, ids) -> None:
    model, merged = wrapped(name)

    def halve(z, site):
        return z * 0.5

    before = plain.snapshot(model)
    with interp.hooked(model, {"z.1": halve}):
        logits = interp.capture(model, ids, "resid_post.2", logits=True).logits
    with interp.hooked(merged, {"z.1": halve}):
        expected = plain.logits_of(merged, ids)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    plain.assert_unchanged(before, model)
    trace, other = (interp.logit_lens(m, ids, 5) for m in (model, merged))
    torch.testing.assert_close(trace.logprob, other.logprob, rtol=1e-4, atol=1e-3)
    again = interp.replay(model, ids)
    assert torch.equal(again.run(1, again.streams[1]), again.streams[-1])
    last = interp.replay_last(model, ids)
    torch.testing.assert_close(last.logits[:, -1], again.logits[:, -1], rtol=1e-4, atol=1e-4)
