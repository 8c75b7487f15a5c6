"""Contexts leave nothing behind, nest in order, and captures see what edits made."""

from __future__ import annotations

import pytest
import torch

import interp
from interp._hooked import ports_of
from interp._site import KINDS
from tests.architectures import build
from tests.oracles import layout, plain
from tests.oracles.layout import EVERY


def every_site(model) -> list[str]:
    """Every site that can be opened."""
    handle, found = interp.load(model), []
    for kind in KINDS:
        try:
            found += [str(site) for site in ports_of(handle, kind)]
        except interp.UnsupportedSite:
            continue
    return found


@pytest.mark.parametrize("name", EVERY)
def test_identity_edits_leave_the_logits_bit_equal(name, ids) -> None:
    """Pattern apart, which falls back on pattern @ v; Granite divides by its multiplier."""
    model = build(name)
    before = plain.logits_of(model, ids)
    sites = [s for s in every_site(model) if s.split(".")[0] not in ("pattern", "head_out")]
    with interp.hooked(model, dict.fromkeys(sites, lambda tensor, site: tensor.clone())):
        cloned = plain.logits_of(model, ids)
    with interp.hooked(model, dict.fromkeys(sites, lambda tensor, site: tensor)):
        same = plain.logits_of(model, ids)
    with interp.hooked(model, dict.fromkeys(sites, lambda tensor, site: None)):
        silent = plain.logits_of(model, ids)
    assert torch.equal(silent, before)
    if name == "granite":
        torch.testing.assert_close(same, before, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cloned, before, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(same, before)
        assert torch.equal(cloned, before)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_oss", "deepseek_v3"])
def test_an_identical_pattern_leaves_the_logits_alone(name, ids) -> None:
    model = build(name)
    before = plain.logits_of(model, ids)
    with interp.hooked(model, {"pattern.*": lambda pattern, site: pattern.clone()}):
        logits = plain.logits_of(model, ids)
    torch.testing.assert_close(logits, before, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_left_behind(name, ids) -> None:
    """After a capture, an edit and an exception inside: bits, keys, hooks, attributes, settings."""
    model = build(name)
    sites = every_site(model)
    before, logits = plain.snapshot(model), plain.logits_of(model, ids)
    interp.capture(model, ids, sites)
    plain.assert_unchanged(before, model)
    writable = [s for s in sites if s.split(".")[0] not in ("pattern", "head_out")]
    with interp.hooked(model, dict.fromkeys(writable, lambda tensor, site: tensor * 1.1)):
        assert not torch.equal(plain.logits_of(model, ids), logits)
    plain.assert_unchanged(before, model)

    def explode(tensor, site):
        raise RuntimeError("inside")

    for site in sites:
        with pytest.raises(RuntimeError, match="inside"), interp.hooked(model, {site: explode}):
            plain.logits_of(model, ids)
    with pytest.raises(KeyboardInterrupt), interp.hooked(model, dict.fromkeys(sites, explode)):
        raise KeyboardInterrupt
    plain.assert_unchanged(before, model)
    assert torch.equal(plain.logits_of(model, ids), logits)


def test_a_refused_site_leaves_no_hook_of_those_before_it() -> None:
    model = build("cohere")
    interp.capture(model, [[3, 4]], "z.0")
    before = plain.snapshot(model)
    with (
        pytest.raises(interp.UnsupportedSite),
        interp.hooked(model, {"z.0": lambda z, s: None, "resid_mid.1": lambda x, s: None}),
    ):
        pytest.fail("the context must not open")
    plain.assert_unchanged(before, model)


SITES = (
    "embed resid_pre.1 q.1 v.1 z.1 pattern.1 attn_out.1 resid_mid.1 mlp_post.1 mlp_out.1".split()
)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "mixtral", "granite"])
def test_nested_edits_apply_in_order_of_entry(name, ids) -> None:
    """Twice, then plus one: the other order would give another number."""
    model = build(name)
    for site in [*SITES, "resid_post.1"]:
        plain_value = interp.capture(model, ids, site)[site]
        with (
            interp.hooked(model, {site: lambda x, s: x * 2}),
            interp.hooked(model, {site: lambda x, s: x + 1}),
        ):
            value = interp.capture(model, ids, site)[site]
        torch.testing.assert_close(value, plain_value * 2 + 1)


def test_two_functions_in_one_context_apply_in_order(ids) -> None:
    model = build("llama")
    plain_value = interp.capture(model, ids, "z.1")["z.1"]
    edits = {"z.1": lambda x, s: x * 2, "blocks.1.attn.hook_z": lambda x, s: x + 1}
    with interp.hooked(model, edits):
        value = interp.capture(model, ids, "z.1")["z.1"]
    torch.testing.assert_close(value, plain_value * 2 + 1)


@pytest.mark.parametrize("name", EVERY)
def test_captures_see_values_after_edits_also_those_of_neighbouring_sites(name, ids) -> None:
    model, layer = build(name), layout.layer_of(name)
    z, heads = f"z.{layer}", f"head_out.{layer}"

    def zero(tensor, site):
        return torch.zeros_like(tensor)

    with interp.hooked(model, {z: zero}):
        acts = interp.capture(model, ids, [z, heads])
    assert float(acts[z].abs().max()) == 0
    assert float(acts[heads].abs().max()) == 0
    shift = torch.ones(32)
    before = interp.capture(model, ids, [f"resid_post.{layer}", f"resid_pre.{layer + 1}"])
    with interp.hooked(model, {f"resid_post.{layer}": lambda x, s: x + shift}):
        after = interp.capture(model, ids, list(before))
    for site, value in before.items():
        torch.testing.assert_close(after[site], value + 1)


def test_an_edit_shows_in_the_models_own_hidden_states_even_when_asked_for_before(ids) -> None:
    """transformers keeps its capture hooks for good; edits must run before them."""
    model = build("llama")
    states = plain.forward(model, ids, output_hidden_states=True).hidden_states
    with interp.hooked(model, {"resid_post.0": lambda x, s: x + 1}):
        edited = plain.forward(model, ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(edited[1], states[1] + 1)


def test_a_wrong_shape_is_refused_with_both_shapes(ids) -> None:
    model = build("llama")
    for site in ("z.1", "pattern.1", "resid_post.0", "resid_mid.1"):
        with (
            interp.hooked(model, {site: lambda x, s: x[:1]}),
            pytest.raises(interp.InterpError, match=r"returned shape .*expected"),
        ):
            plain.logits_of(model, ids)
    experts = build("mixtral")
    with (
        interp.hooked(experts, {"mlp_post.1": lambda x, s: x[:1]}),
        pytest.raises(interp.InterpError, match=r"returned shape .*expected"),
    ):
        plain.logits_of(experts, ids)


def test_head_out_cannot_be_written(ids) -> None:
    model = build("llama")
    with (
        interp.hooked(model, {"head_out.1": lambda x, s: x * 0}),
        pytest.raises(interp.UnsupportedSite, match=r"write 'z\.1' instead"),
    ):
        plain.logits_of(model, ids)
