"""The bridge's hooks equal our sites wherever they mean the same, and are refused elsewhere."""

from __future__ import annotations

import pytest
import torch

import interp
from interp._ports import open_port
from interp._resolve import anatomy_of
from interp._site import KINDS
from interp.adapters import transformer_lens as tl
from tests.architectures import build
from tests.oracles.layout import EVERY, EXPERTS

BOOTS = [name for name in EVERY if name != "falcon-new"]
# What a hook of our site's name holds something else for, or is missing, by hand from the bridges.
EXCEPTIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "mixtral": {"mlp_post": (0, 1, 2)},
    "qwen3_moe": {"mlp_post": (0, 2)},  # block 1 is dense
    "olmoe": {"mlp_post": (0, 1, 2)},
    "gpt_oss": {"mlp_post": (0, 1, 2)},
    "deepseek_v3": {"mlp_post": (1, 2), "z": (0, 1, 2)},  # block 0 is dense
    "qwen3_next": {"mlp_post": (0, 1, 2, 3), "q": (1, 3), "attn_out": (0, 2)},
    "granite": {"head_out": (0, 1, 2)},
    "bloom": {"attn_out": (0, 1, 2)},
    "opt": {"pattern": (0, 1, 2), "head_out": (0, 1, 2)},
    "opt-projected": {"pattern": (0, 1, 2), "head_out": (0, 1, 2), "embed": ()},
    "gptj": {"head_out": (0, 1, 2)},
}


def refused_in(name) -> set[interp.Site]:
    return {
        interp.Site(kind, layer)
        for kind, layers in EXCEPTIONS.get(name, {}).items()
        for layer in (layers or (None,))
    }


def ours(model) -> list[interp.Site]:
    """Every site that this model has."""
    found = []
    for kind in KINDS:
        for layer in [None] if kind == "embed" else range(model.config.num_hidden_layers):
            try:
                open_port(anatomy_of(model), interp.Site(kind, layer))
            except interp.UnsupportedSite:
                continue
            found.append(interp.Site(kind, layer))
    return found


def run(name, ids):
    model = build(name)
    bridge = tl.bridge(model)
    if name.split("-")[0] not in ("opt", "gptj"):
        bridge.set_use_attn_result(True)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(ids)
    return model, bridge, logits, cache


def same(given, expected, site) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        given, expected, rtol=0, atol=4e-6 * scale, msg=lambda m: f"{site}: {m}"
    )


@pytest.mark.parametrize("name", BOOTS)
def test_every_shared_site_has_one_value(name, ids) -> None:
    model, _, logits, cache = run(name, ids)
    theirs = tl.from_cache(cache, model, ids)
    refused = refused_in(name)
    shared = [site for site in ours(model) if site not in refused]
    assert set(theirs) == set(shared)
    acts = interp.capture(model, ids, shared, logits=True)
    same(logits, acts.logits, "logits")
    for site in shared:
        same(theirs[site], acts[site], site)
        assert tl.hook_name(site, model) == site.hook_name
    for site in refused:
        if name in EXPERTS and site.kind == "mlp_post":  # what the hook holds instead
            same(cache[site.hook_name], acts[f"mlp_out.{site.layer}"], site)
        with pytest.raises(interp.UnsupportedSite):
            tl.hook_name(site, model)
        with pytest.raises(interp.UnsupportedSite, match=str(site)):
            tl.from_cache(cache, model, ids, site)


def test_the_refusals_are_real(ids) -> None:
    model, _, _, cache = run("deepseek_v3", ids)
    assert cache["z", 1].shape[2:] != interp.capture(model, ids, "z.1")["z.1"].shape[2:]
    model, _, _, cache = run("qwen3_next", ids)
    assert cache["q", 1].shape[2] == 2 * interp.capture(model, ids, "q.1")["q.1"].shape[2]
    model, _, _, cache = run("granite", ids)
    heads = interp.capture(model, ids, "head_out.1")["head_out.1"]
    same(cache["blocks.1.attn.hook_result"], heads * model.config.residual_multiplier, "result")


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_model_is_left_as_it_was(name, ids) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kinds = [(path, type(m), set(vars(m))) for path, m in model.named_modules()]
    with torch.no_grad():
        logits = model(ids).logits
        tl.bridge(model).run_with_cache(ids)
        after = model(ids).logits
    assert torch.equal(after, logits)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [(path, type(m), set(vars(m))) for path, m in model.named_modules()] == kinds


def test_a_model_that_the_bridge_cannot_split_is_refused() -> None:
    with pytest.raises(interp.InterpError, match="cannot boot FalconForCausalLM"):
        tl.bridge(build("falcon-new"))
    with pytest.raises(interp.InterpError, match="nothing to copy"):
        tl.bridge(build("gpt2").to("meta"))


def test_names_go_both_ways() -> None:
    for kind in KINDS:
        site = interp.Site(kind, None if kind == "embed" else 11)
        assert tl.site(tl.hook_name(site)) == site
    assert tl.hook_name("z.3") == "blocks.3.attn.hook_z"
    assert tl.site("embed.hook_out") == interp.Site("embed")
    with pytest.raises(interp.SiteNotFound, match=r"blocks\.2\.hook_attn_out"):
        tl.site("blocks.2.attn.hook_out")
    with pytest.raises(interp.SiteNotFound, match=r"blocks\.2\.attn\.hook_z"):
        tl.site("blocks.2.attn.hook_zz")
    with pytest.raises(interp.SiteNotFound, match="layers 0 to 2"):
        tl.hook_name("z.3", build("gpt2"))


@pytest.mark.parametrize("name", ["llama", "olmo2"])
def test_the_bridges_own_names_hold_the_same_tensors(name, ids) -> None:
    _, _, _, cache = run(name, ids)
    checked = set()
    for key in cache:
        try:
            site = tl.site(key)
        except interp.SiteNotFound:
            continue
        if key != site.hook_name and site.hook_name in cache.cache_dict:
            assert torch.equal(
                cache[key].reshape(cache[site.hook_name].shape), cache[site.hook_name]
            )
            checked.add(site.kind)
    assert {"resid_pre", "resid_post", "z", "q", "k", "v", "mlp_post"} <= checked


def test_attention_sinks_and_compatibility_mode(ids) -> None:
    model = build("gpt_oss")
    bridge = tl.bridge(model)
    with pytest.raises(interp.InterpError, match="attention sinks"):
        bridge.enable_compatibility_mode()
    bridge.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
    with torch.no_grad():
        given, expected = bridge(ids).log_softmax(-1), model(ids).logits.log_softmax(-1)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-4)


def test_a_cache_of_processed_weights_is_refused(ids) -> None:
    model = build("llama")
    bridge = tl.bridge(model)
    bridge.enable_compatibility_mode(disable_warnings=True)
    _, cache = bridge.run_with_cache(ids)
    with pytest.raises(interp.InterpError, match="compatibility mode"):
        tl.from_cache(cache, model, ids)


def test_caches_go_both_ways(ids) -> None:
    from transformer_lens import ActivationCache

    model, bridge, _, cache = run("llama", ids)
    acts = interp.capture(model, ids, ["z.*", "resid_post.*", "pattern.1"])
    theirs = ActivationCache(tl.to_cache(acts), bridge)
    assert torch.equal(theirs["z", 1], acts["z.1"])
    back = tl.from_cache(theirs, model, ids)
    assert set(back) == set(acts) and all(torch.equal(back[s], acts[s]) for s in acts)
    assert torch.equal(back.tokens, acts.tokens) and torch.equal(back.mask, acts.mask)
    one = tl.from_cache(cache.cache_dict, model, ids, "blocks.1.attn.o.hook_in")
    assert list(one) == [interp.Site("z", 1)]


def test_caches_that_do_not_fit_are_refused(ids) -> None:
    model, _, _, cache = run("llama", ids)
    with pytest.raises(interp.InterpError, match="expected axes batch pos head d_head"):
        tl.from_cache(cache, model, ids[:1], "z.1")
    with pytest.raises(interp.SiteNotFound, match="not in this cache"):
        tl.from_cache({"blocks.1.attn.hook_z": cache["z", 1]}, model, ids, "z.2")
    with pytest.raises(interp.InterpError, match="positions='last'"):
        tl.to_cache(interp.capture(model, ids, "z.1", positions="last"))
    with pytest.raises(interp.UnsupportedSite, match=r"mlp_post\.1"):
        tl.to_cache(interp.capture(build("mixtral"), ids, "mlp_post.1"))


@pytest.mark.parametrize("padding", ["right", "left"])
def test_padding_never_changes_a_result(padding) -> None:
    model = interp.load(build("llama"))
    batch = model.batch([[5, 6, 7, 8, 9], [11, 12, 13]], padding=padding)
    with torch.no_grad():
        _, cache = tl.bridge(model).run_with_cache(
            batch.input_ids, attention_mask=batch.attention_mask
        )
    sites = ["resid_post.2", "z.1", "pattern.1"]
    acts = interp.capture(model, batch, sites)
    theirs = tl.from_cache(cache, model, batch, sites)
    for site in acts:
        same(theirs[site], acts[site], site)


@pytest.mark.parametrize("kind", ["tokenizer", "sentencepiece"])
def test_a_text_has_the_same_tokens_on_both_sides(kind, request) -> None:
    tokenizer = request.getfixturevalue(kind)
    model = interp.load(build("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)
    before = tokenizer.init_kwargs.copy(), tokenizer.padding_side
    text = "The capital is Paris"
    assert torch.equal(tl.bridge(model).to_tokens(text), model.batch(text).input_ids)
    assert (tokenizer.init_kwargs, tokenizer.padding_side) == before
