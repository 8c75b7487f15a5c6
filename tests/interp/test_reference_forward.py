"""Every site of four decoders equals a forward written from their papers."""

from __future__ import annotations

import pytest
import torch

import interp
from interp._site import KINDS
from tests.architectures import build
from tests.oracles import decoders

# LayerNorm models run wholly in float64; rotary tables and RMSNorm are float32 in any dtype.
TOLERANCE = {"gpt2": 1e-11}


@pytest.mark.parametrize("name", decoders.NAMES)
def test_every_site_equals_the_reference_forward(name, ids) -> None:
    model = build(name, dtype=torch.float64)
    expected = decoders.reference(name, model, ids)
    acts = interp.capture(model, ids, list(expected.sites), logits=True)
    tolerance = TOLERANCE.get(name, 2e-6)
    for site, value in expected.sites.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(
            acts[site], value, rtol=0, atol=tolerance * scale, msg=lambda m, s=site: f"{s}: {m}"
        )
    torch.testing.assert_close(acts.logits, expected.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", decoders.NAMES)
def test_reference_covers_every_kind_that_the_model_has(name) -> None:
    """So that no site escapes the comparison above."""
    model = build(name)
    covered = {site.split(".")[0] for site in _covered(name, model)}
    missing = set(KINDS) - covered
    assert missing == ({"resid_mid"} if name == "gpt_neox" else set())
    for kind in missing:
        with pytest.raises(interp.UnsupportedSite):
            interp.capture(model, [[3, 4, 5]], f"{kind}.0")


def _covered(name, model) -> set[str]:
    return set(decoders.reference(name, model, torch.tensor([[3, 4, 5]])).sites)
