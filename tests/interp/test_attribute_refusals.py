"""What cannot be attributed says so in one sentence, and the model is left as it was."""

from __future__ import annotations

import inspect

import pytest
import torch

import interp
from tests.architectures import build
from tests.oracles import plain

P = [[5, 6, 7, 8], [9, 3]]


def refused(match: str, *args, model=None, **kwargs) -> None:
    with pytest.raises(interp.InterpError, match=match):
        # Without the shape checks of the test run, which would refuse a wrong type first.
        attribute = inspect.unwrap(interp.attribute)
        attribute(build("llama") if model is None else model, P, *args, **kwargs)


@pytest.mark.parametrize("site", ["resid_pre.0", "resid_mid.1", "resid_post.2"])
def test_zero_means_nothing_in_the_stream(site) -> None:
    refused(rf"{site}: a zero baseline means nothing.*baseline='mean'", site=site, baseline="zero")
    zeros = torch.zeros(32)
    refused(rf"{site}: a zero baseline means nothing", site=site, baseline=zeros)
    refused(rf"{site}: a zero baseline means nothing", site=site, baseline={site: zeros})


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2", "glm4"])
@pytest.mark.parametrize("site", ["mlp_post.1", "z.1"])
def test_zero_means_nothing_before_a_post_norm(site, name) -> None:
    refused(f"{site}: a zero baseline", model=build(name), site=site, baseline="zero")
    assert interp.attribute(build(name), P, site=site, check=False).meta["baseline"][site] == "mean"
    out = f"{'mlp_out' if site.startswith('mlp') else 'attn_out'}.1"  # behind the norm it does
    assert interp.attribute(build(name), P, site=out, check=False).meta["baseline"][out] == "zero"


def test_a_mean_of_one_prompt_is_refused() -> None:
    with pytest.raises(interp.InterpError, match=r"mean over a batch of one prompt.*reference="):
        interp.attribute(build("llama"), P[:1], site="resid_mid.1")


def test_an_incomplete_path_is_refused_with_its_size() -> None:
    """ReLUs have kinks that few nodes step over; experts switch, which no gradient sees."""
    message = r"prompt \d, mlp_post\.\d: the parts sum to .* off by .*%.*more nodes than 2"
    refused(message, "logit", model=build("opt"), nodes=2)
    refused("experts may switch", "logit", model=build("mixtral"))
    got = interp.attribute(build("opt"), P, "logit", nodes=2, check=False)
    assert float(got.completeness.max()) > 0.01
    with pytest.raises(interp.InterpError, match="load the model in float32"):
        interp.attribute(build("opt", dtype=torch.bfloat16), P, "logit", nodes=2)


@pytest.mark.parametrize("site", ["embed", "q.1", "v.1", "pattern.1", "head_out.1"])
def test_sites_at_which_one_position_is_not_all_are_refused(site) -> None:
    refused(rf"{site} cannot be attributed: expected one of resid_pre, z,", site=site)


def test_arguments_are_refused_by_name() -> None:
    refused("unknown site", site="mlp_pots")
    refused("method='ig': expected one of integrated_gradients", method="ig")
    refused("nodes=0: expected at least 1", nodes=0)
    refused("by='heads': expected 'unit' or 'head'", by="heads", site="z")
    refused(r"by='head' is for z, and mlp_post\.0", by="head")
    refused("target ' Paris': expected one of 'prob', 'logprob'", " Paris")
    refused("target is a int; expected 'prob'", 5)
    refused(
        "2 answers for a prompt; attribute one at a time", interp.Target("prob", [[4, 5], [6, 7]])
    )
    refused("3 answers for 2 prompts", interp.Target("prob", [4, 5, 6]))
    refused("token id outside", interp.Target("prob", 97))
    refused(r"prompt 1: the answer and .* same token", interp.Target("logit_difference", 4, [3, 4]))
    with pytest.raises(interp.InterpError, match="target 'prob' takes no versus"):
        interp.Target("prob", 4, 5)


def test_functions_that_are_no_target_are_refused() -> None:
    refused(r"returned \[\] for logits .*one number a row", lambda logits: logits.sum())
    refused(r"returned \[.*97\] for logits", lambda logits: logits)
    refused("returned float for logits", lambda logits: float(logits[0, 0]))
    refused("no gradient in the logits", lambda logits: logits.detach()[:, 0])
    effects = interp.attribute(
        build("llama"), P, lambda logits: logits.argmax(-1).float(), method="ablation"
    )
    assert torch.equal(effects.output, plain_prediction())


def plain_prediction() -> torch.Tensor:
    model = build("llama")
    return torch.stack(
        [plain.logits_of(model, torch.tensor([p]))[0, -1].argmax().float() for p in P]
    )


def test_baselines_that_do_not_fit_are_refused() -> None:
    refused("baseline 'median': expected 'zero', 'mean'", baseline="median")
    refused(r"baseline of mlp_post.0 has shape \[7\]; expected .*48", baseline=torch.ones(7))
    refused("no entry for mlp_post.1", baseline={"mlp_post.0": torch.ones(48)})
    refused("baseline of z.1 is a float", site="z.1", baseline={"z.1": 0.5})
    refused("holds NaN", site="z.1", baseline=torch.full((4, 8), float("nan")))
    refused("reference is what the mean baseline", baseline="zero", reference=P)
    mixtral = build("mixtral")
    refused(r"\[expert d_mlp\]", model=mixtral, baseline=torch.ones(2, 2, 48))
    refused(
        r"no reference prompt was routed to expert \d",
        model=mixtral,
        reference=[[5]],
        site="mlp_post",
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "qwen3_next", "olmo2"])
def test_the_model_is_as_it_was_also_after_an_exception(name) -> None:
    model = build(name)
    frozen, gradient = dict(model.named_parameters()), {}
    for number, (key, parameter) in enumerate(frozen.items()):
        parameter.requires_grad_(number % 2 == 0)
        if number % 4 == 0:
            parameter.grad = gradient[key] = torch.randn_like(parameter)
    model.train()
    before = plain.snapshot(model)
    sites = ["mlp_post.*", "z.*", "attn_out.1"]
    interp.attribute(model, P, "logit", sites, check=False, nodes=2)
    interp.attribute(model, P, "logit", "z", method="ablation", by="head")
    with pytest.raises(RuntimeError, match="inside"):
        interp.attribute(model, P, explode, sites, nodes=2)
    plain.assert_unchanged(before, model)
    for key, parameter in frozen.items():
        assert parameter.grad is gradient.get(key)


def explode(logits: torch.Tensor) -> torch.Tensor:
    if logits.requires_grad:
        raise RuntimeError("inside")
    return logits[:, 0]


def test_a_graph_that_is_being_built_goes_on() -> None:
    model = build("gpt2")
    ids = torch.tensor([P[0]])
    model(ids).logits.logsumexp(-1).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = model(ids).logits.logsumexp(-1).sum()
    interp.attribute(model, P, nodes=2, check=False)
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_it_does_not_matter_in_which_mode_it_is_called() -> None:
    """Inference mode, no_grad, training with dropout."""
    model = build("gpt2")
    expected = interp.attribute(model, P, check=False)["mlp_post.1"]
    with torch.inference_mode():
        assert torch.equal(interp.attribute(model, P, check=False)["mlp_post.1"], expected)
    with torch.no_grad():
        assert torch.equal(interp.attribute(model, P, check=False)["mlp_post.1"], expected)
    model.train()
    assert torch.equal(interp.attribute(model, P, check=False)["mlp_post.1"], expected)
    assert not expected.requires_grad
