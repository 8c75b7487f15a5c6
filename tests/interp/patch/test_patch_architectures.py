"""Patches run together equal whole forwards, one patch and one prompt at a time, everywhere."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import interp
from interp._hooked import ports_of
from interp._patch import exact
from interp._patch.plan import PATCHABLE
from tests.architectures import build
from tests.interp.patch.slow import activations, difference, patched
from tests.oracles import plain
from tests.oracles.layout import EVERY, EXPERTS, PATTERN_READ_ONLY, layer_of

TOLERANCE = {"rtol": 1e-4, "atol": 5e-5}


def sites_of(name, model, layer: int) -> list[str]:
    found = []
    for kind in PATCHABLE:
        if kind == "pattern" and name in PATTERN_READ_ONLY:
            continue
        if kind == "mlp_post" and name in EXPERTS:
            continue
        try:
            found += [str(site) for site in ports_of(interp.load(model), f"{kind}.{layer}")]
        except interp.UnsupportedSite:
            continue
    return found


def pairs_of(ids: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    """Two pairs, of eleven tokens and of eight; the second shares its first two."""
    other = (ids + 17) % 90 + 3
    short = [*ids[1, :2].tolist(), *other[1, 2:8].tolist()]
    return [ids[0].tolist(), ids[1, :8].tolist()], [other[0].tolist(), short]


@pytest.mark.parametrize("name", EVERY)
def test_each_patch_equals_a_whole_forward(name, ids, monkeypatch) -> None:
    model, (clean, corrupted) = build(name), pairs_of(ids)
    sites = sites_of(name, model, layer_of(name))
    streams = [site for site in sites if not site.startswith("pattern")]
    options = {"positions": (2, 5, -1), "progress": False}
    whole = interp.patch(model, clean, corrupted, sites, difference, **options)
    # With a negative cost of a start every position is run over its own cached prefix.
    monkeypatch.setattr(exact, "_CALL", -(10**6))
    over_prefix = interp.patch(model, clean, corrupted, streams, difference, **options)
    draw = random.Random(0)
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if name == "qwen3_next" else TOLERANCE
    for site in sites:
        prompt, span = draw.randrange(2), draw.randrange(3)
        unit = draw.randrange(len(whole.units[site])) if whole.units[site] else None
        place = (
            site,
            activations(model, clean[prompt], site),
            whole.positions[prompt][span],
            None if unit is None else [unit],
        )
        expected = patched(model, corrupted[prompt], [place], difference)
        for eff in [whole, over_prefix] if site in streams else [whole]:
            got = float(eff.score[site][prompt, span, unit or 0])
            torch.testing.assert_close(got, expected, **tolerance)
    for score, ids_of in ((whole.clean, clean), (whole.corrupted, corrupted)):
        last = [plain.logits_of(model, torch.tensor([row]))[0, -1] for row in ids_of]
        torch.testing.assert_close(score, difference(torch.stack(last)), **TOLERANCE)


@pytest.mark.parametrize("name", EVERY)
def test_at_equal_batch_a_patch_is_bit_equal_to_the_hooked_forward(name, ids) -> None:
    model = build(name)
    clean, corrupted = ids, (ids + 17) % 90 + 3
    last = f"resid_post.{model.config.num_hidden_layers - 1}"
    for site in sites_of(name, model, layer_of(name)):
        if site.startswith(("resid", "pattern")):
            continue  # streams leave nothing of the corrupted run: see test_patch_oracles
        donor = interp.capture(model, clean, site)[site]
        with interp.hooked(model, {site: lambda tensor, _site, donor=donor: donor}):
            stream = interp.capture(model, corrupted, last)[last][:, -1]
        groups = [list(range(donor.shape[2]))] if site[0] in "qkvz" else None
        eff = interp.patch(
            model, clean, corrupted, site, difference, positions="together", groups=groups
        )
        with torch.no_grad():
            expected = difference(interp.load(model).anatomy.unembed(stream))
        assert torch.equal(eff.score[site][:, 0, 0], expected), site


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "falcon", "opt", "mixtral"])
def test_the_model_is_left_as_it_was(name, ids) -> None:
    model = build(name)
    before, logits = plain.snapshot(model), plain.logits_of(model, ids)
    interp.patch(model, ids[:1], ids[1:], ["resid_post", "z", "mlp_out"], "kl")
    interp.patch(model, ids[:1], ids[1:], ["resid_mid" if name != "falcon" else "z"],
                 "prob", method="attribution")  # fmt: skip
    with pytest.raises(interp.InterpError, match="the metric returned"):
        interp.patch(model, ids[:1], ids[1:], "z", lambda logits: logits)
    plain.assert_unchanged(before, model)
    assert torch.equal(plain.logits_of(model, ids), logits)
