"""The sweep equals whole forwards, one node and one prompt at a time, in every architecture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import interp
from interp._hooked import ports_of
from tests.architectures import build
from tests.oracles.attribution import integrated_gradients, last_values, target_at
from tests.oracles.layout import EVERY, EXPERTS, layer_of

KINDS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")
ANSWERS = (11, 40)


def sites_of(model, layer: int) -> list[str]:
    found = []
    for kind in KINDS:
        try:
            found += [str(site) for site in ports_of(interp.load(model), f"{kind}.{layer}")]
        except interp.UnsupportedSite:
            continue
    return found


def prompts_of(ids: Tensor) -> list[list[int]]:
    """Of eleven tokens and of seven, so that one of them is padded."""
    return [ids[0].tolist(), ids[1, :7].tolist()]


@pytest.mark.parametrize("name", EVERY)
def test_integrated_gradients_equal_whole_forwards(name, ids) -> None:
    model, prompts = build(name), prompts_of(ids)
    sites = sites_of(model, layer_of(name))
    ends = [last_values(model, prompt, sites) for prompt in prompts]
    baselines, starts = {}, {}
    for site in sites:
        values = torch.stack([end[site] for end in ends])
        if name in EXPERTS and site.startswith("mlp_post"):
            baselines[site] = 0.1 * torch.randn(4, values.shape[-1])  # expert d_mlp
            acts = [interp.capture(model, [p], site, positions="last") for p in prompts]
            chosen = torch.stack([a.expert_ids[interp.Site.parse(site)][0, 0] for a in acts])
            starts[site] = baselines[site][chosen]
        else:
            # Near the activation: far from it routing and ReLUs would switch within rounding.
            baselines[site] = starts[site] = 0.8 * values + 0.05 * torch.randn_like(values)
    target = interp.Target("logprob", list(ANSWERS))
    got = interp.attribute(model, prompts, target, sites, baseline=baselines, nodes=1, check=False)
    tolerance = {"rtol": 2e-3, "atol": 1e-4}
    if name == "qwen3_next":  # one token of the delta rule is a recurrence, a sequence is chunked
        tolerance = {"rtol": 1e-2, "atol": 1e-3}
    for row, prompt in enumerate(prompts):

        def answer(logits: Tensor, row: int = row) -> Tensor:
            return logits.log_softmax(-1)[ANSWERS[row]]

        for number, site in enumerate(str(site) for site in got.sites):
            path = starts[site][row], ends[row][site]
            expected = integrated_gradients(model, prompt, site, path, answer, nodes=1)
            torch.testing.assert_close(got[site][row], expected, **tolerance)
            with torch.no_grad():
                start = target_at(model, prompt, site, path[0], answer)
            torch.testing.assert_close(got.baseline_output[row, number], start, **tolerance)
        torch.testing.assert_close(
            got.output[row], interp.answer_logprob(model, [prompt], ANSWERS[row])[0, 0], **tolerance
        )


@pytest.mark.parametrize("name", ["falcon", "bloom", "gemma2", "gpt_oss", "mixtral", "gptj"])
def test_copied_and_shared_prefixes_agree(name, ids, monkeypatch):
    from interp import _replay_shared

    model, prompts = build(name), prompts_of(ids)
    shared = interp.attribute(model, prompts, "logit", "mlp_post", check=False, nodes=3)
    monkeypatch.setattr(_replay_shared, "_can_share", lambda recording: False)
    copied = interp.attribute(model, prompts, "logit", "mlp_post", check=False, nodes=3)
    for site in shared.sites:
        torch.testing.assert_close(shared[site], copied[site], rtol=1e-3, atol=1e-4)
