"""The check on four tokens catches a part found in the wrong place, and names what it spoils."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp._selfcheck import verdicts
from tests.architectures import build
from tests.oracles import layout
from tests.oracles.layout import EVERY


@pytest.mark.parametrize("name", EVERY)
def test_every_architecture_passes(name) -> None:
    assert verdicts(interp.load(build(name)).anatomy) == {}


def test_a_hidden_scale_on_what_attention_adds_is_caught(ids) -> None:
    """A block that adds half of its attention: the site would promise what is not added."""
    model = build("llama")
    block: Any = model.model.layers[1]

    def forward(hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attention, _ = block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + 0.5 * attention
        return hidden_states + block.mlp(block.post_attention_layernorm(hidden_states))

    block.forward = forward
    for site, reason in (("attn_out.1", "misses resid_post"), ("resid_mid.1", "misses resid_mid")):
        with pytest.raises(interp.UnsupportedSite, match=reason):
            interp.capture(model, ids, site)
    assert len(interp.capture(model, ids, ["z.1", "resid_post.1"])) == 2
    trusting = interp.load(model, check=False)
    assert len(interp.capture(trusting, ids, "attn_out.1")) == 1


def test_a_norm_in_an_unknown_place_is_caught(ids) -> None:
    """As in OPT 350m, whose norms come after each part and act on the stream itself."""
    model = build("opt", do_layer_norm_before=False)
    found = verdicts(interp.load(model).anatomy)
    assert {"resid_mid", "attn_out", "mlp_out"} <= set(found)
    with pytest.raises(interp.UnsupportedSite):
        interp.capture(model, ids, "attn_out.1")
    interp.capture(model, ids, ["z.1", "resid_post.1", "mlp_post.1"])


def test_a_head_with_an_unknown_scale_is_caught(ids) -> None:
    model = build("llama")
    inner = model.forward
    model.forward = lambda *a, **k: _scaled(inner(*a, **k))
    with pytest.raises(interp.UnsupportedSite, match="unembedding"):
        interp.logit_lens(model, ids, 5)


def _scaled(output: Any) -> Any:
    output.logits = output.logits * 3
    return output


@pytest.mark.parametrize("name", layout.PARALLEL)
def test_parallel_blocks_refuse_the_stream_between_and_say_what_there_is(name, ids) -> None:
    with pytest.raises(interp.UnsupportedSite, match=r"in parallel.*attn_out\.1"):
        interp.capture(build(name), ids, "resid_mid.1")


def test_other_refusals_say_why(ids) -> None:
    for name, site, says in (
        ("deepseek_v3", "q.1", r"low-rank latents \(MLA\).*'z\.1' and 'pattern\.1'"),
        ("qwen3_next", "z.0", r"linear attention.*attn_out\.0"),
    ):
        with pytest.raises(interp.UnsupportedSite, match=says):
            interp.capture(build(name), ids, site)
    experts = build("mixtral")
    experts.set_experts_implementation("eager")
    with pytest.raises(interp.UnsupportedSite, match=r"'eager'.*set_experts_implementation"):
        interp.capture(experts, ids, "mlp_post.1")
    alibi = build("falcon", alibi=True)
    with pytest.raises(interp.UnsupportedSite, match="ALiBi"):
        interp.capture(alibi, ids, "pattern.1")


def test_a_star_skips_layers_without_the_site(ids) -> None:
    acts = interp.capture(build("qwen3_next"), ids, "z.*")
    assert [site.layer for site in acts] == [1, 3]
    with pytest.raises(interp.UnsupportedSite, match="in parallel"):
        interp.capture(build("gptj"), ids, "resid_mid.*")


def test_an_unknown_layer_or_site_names_what_there_is(ids) -> None:
    model = build("llama")
    with pytest.raises(interp.SiteNotFound, match=r"'z\.7': this model has layers 0 to 2"):
        interp.capture(model, ids, "z.7")
    with pytest.raises(interp.SiteNotFound, match="nearest valid names: 'resid_post'"):
        interp.capture(model, ids, "resid_posts.1")
