"""Names of sites: both spellings, both ways, and what a wrong one says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp import Site, SiteNotFound
from interp._site import KINDS, expand

sites = st.one_of(
    st.just(Site("embed")),
    st.builds(Site, st.sampled_from([k for k in KINDS if k != "embed"]), st.integers(0, 10**4)),
)


@given(sites)
def test_a_site_reads_back_from_either_of_its_names(site) -> None:
    assert Site.parse(str(site)) == site
    assert Site.parse(site.hook_name) == site
    assert Site.parse(site) is site


@given(sites, sites)
def test_different_sites_have_different_names(first, second) -> None:
    assert (first == second) == (str(first) == str(second))
    assert (first == second) == (first.hook_name == second.hook_name)


@given(st.text(max_size=20))
def test_any_text_is_a_site_or_a_site_not_found(text) -> None:
    try:
        site = Site.parse(text)
    except SiteNotFound:
        return
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("resid_pre.3", "blocks.3.hook_resid_pre"),
        ("z.0", "blocks.0.attn.hook_z"),
        ("head_out.2", "blocks.2.attn.hook_result"),
        ("mlp_post.11", "blocks.11.mlp.hook_post"),
        ("pattern.1", "blocks.1.attn.hook_pattern"),
        ("embed", "hook_embed"),
    ],
)
def test_hook_names_are_those_of_transformer_lens(name, hook) -> None:
    assert Site.parse(name).hook_name == hook
    assert str(Site.parse(hook)) == name


@given(st.integers(1, 30), st.data())
def test_expanding_counts_layers_from_either_end_and_names_each_site_once(n_layers, data) -> None:
    layer = data.draw(st.integers(0, n_layers - 1))
    kind = data.draw(st.sampled_from([k for k in KINDS if k != "embed"]))
    assert expand(f"{kind}.{layer - n_layers}", n_layers) == [(Site(kind, layer), False)]
    every = [(Site(kind, i), True) for i in range(n_layers)]
    assert expand(f"{kind}.*", n_layers) == expand(kind, n_layers) == every
    hook = Site(kind, layer).hook_name
    assert expand([hook, f"{kind}.{layer}"], n_layers) == [(Site(kind, layer), False)]
    # Named outright beside a star: one site, and it is the outright name that counts.
    both = expand([f"{kind}.*", f"{kind}.{layer}"], n_layers)
    assert len(both) == n_layers
    assert dict(both)[Site(kind, layer)] is False
    with pytest.raises(SiteNotFound, match=f"layers 0 to {n_layers - 1}"):
        expand(f"{kind}.{n_layers}", n_layers)
    with pytest.raises(SiteNotFound, match=f"-{n_layers} to -1"):
        expand(f"{kind}.{-n_layers - 1}", n_layers)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("resid_pots.3", "resid_post"),
        ("blocks.3.attn.hook_zz", "attn.hook_z"),
        ("z.", "'z.*'"),
        ("z.1.2", "kind.layer"),
        ("z.*", "one layer"),
        ("z", "'z.3'"),
        ("embed.0", "takes no layer"),
        ("", "kind.layer"),
    ],
)
def test_a_wrong_name_says_which_are_near(wrong, says) -> None:
    with pytest.raises(SiteNotFound) as raised:
        Site.parse(wrong)
    assert says in str(raised.value)
    assert isinstance(raised.value, ValueError)
