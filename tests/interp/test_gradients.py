"""Gradients at a captured site: finite differences, retain_grad, frozen parameters."""

from __future__ import annotations

import pytest
import torch

import interp
from tests.architectures import build
from tests.oracles import plain
from tests.oracles.layout import block_of

KINDS = "resid_pre q k v pattern z attn_out mlp_post mlp_out resid_post".split()
# RMSNorm, rotary tables and some softmaxes compute in float32 even in a float64 model: there a
# coarser step.
STEP = {"gpt2": (1e-5, 1e-6), "opt": (1e-5, 1e-6)}
NAMES = ["gpt2", "opt", "bloom", "gpt_neox", "llama", "gemma2", "granite", "phi3"]


def sites_of(name: str) -> list[str]:
    mid = [] if name == "gpt_neox" else ["resid_mid.1"]
    return ["embed", *(f"{kind}.1" for kind in KINDS), *mid]


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return logits[0, -1, 5] + logits[1, -1, 9]


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name, frozen, ids) -> None:
    model = build(name, dtype=torch.float64).requires_grad_(not frozen)
    step, tolerance = STEP.get(name, (3e-3, 2e-3))
    generator = torch.Generator().manual_seed(2)
    for site in sites_of(name):
        if site == "pattern.1" and name == "bloom":
            continue  # its probabilities can be read, not written
        acts = interp.capture(model, ids, site, grad=True)
        value = acts[site]
        (gradient,) = torch.autograd.grad(loss_of(acts.logits), value)
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        direction = direction / direction.norm()

        def shifted(by, site=site, direction=direction):
            with interp.hooked(model, {site: lambda x, _: x + by * direction}):
                return loss_of(plain.logits_of(model, ids))

        numeric = (shifted(step) - shifted(-step)) / (2 * step)
        analytic = (gradient * direction).sum()
        bound = tolerance * max(1.0, float(gradient.norm()))
        torch.testing.assert_close(
            analytic, numeric.to(analytic), rtol=0, atol=bound, msg=lambda m, s=site: f"{s}: {m}"
        )
        assert float(gradient.norm()) > 1e-3


@pytest.mark.parametrize("name", [*NAMES, "falcon", "falcon-new", "gptj", "mixtral", "gpt_oss"])
def test_gradients_equal_those_of_plain_hooks(name, ids) -> None:
    model = build(name)
    kept = {}

    def keep(_module, _args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        tensor.retain_grad()
        kept["post"] = tensor

    twin = build(name)
    block_of(name, twin, 1).register_forward_hook(keep)
    loss_of(twin(ids, use_cache=False).logits).backward()
    acts = interp.capture(model, ids, ["resid_post.1", "resid_pre.2"], grad=True)
    loss = loss_of(acts.logits)
    (gradient,) = torch.autograd.grad(loss, acts["resid_post.1"], retain_graph=True)
    torch.testing.assert_close(gradient, kept["post"].grad, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_next", "deepseek_v3", "falcon", "gpt_oss"])
def test_every_site_but_head_out_carries_a_gradient(name, frozen, ids) -> None:
    """Experts, gates and shared experts included; head_out is computed beside the graph."""
    model = interp.load(build(name).requires_grad_(not frozen))
    layer = 1
    wanted = [f"{kind}.{layer}" for kind in KINDS]
    if name == "deepseek_v3":
        wanted = [site for site in wanted if site[0] not in "qkv"]
    acts = interp.capture(model, ids, wanted, grad=True)
    gradients = torch.autograd.grad(loss_of(acts.logits), list(acts.tensors.values()))
    for site, gradient in zip(acts, gradients, strict=True):
        assert float(gradient.norm()) > 1e-6, site
    assert acts.logits.requires_grad


def test_gradients_keep_the_batches_own_layout_when_padded() -> None:
    model = interp.load(build("llama"))
    batch = model.batch([[3, 4, 5], [6, 7, 8, 9, 10]], padding="left")
    acts = interp.capture(model, batch, "z.1", grad=True)
    assert torch.equal(acts.mask, batch.attention_mask.bool())
    loss = acts.logits[0, -1, 5]
    (gradient,) = torch.autograd.grad(loss, acts["z.1"])
    single = interp.capture(model, [[3, 4, 5]], "z.1", grad=True)
    (alone,) = torch.autograd.grad(single.logits[0, -1, 5], single["z.1"])
    torch.testing.assert_close(gradient[0, 2:], alone[0], rtol=1e-4, atol=1e-5)
    assert float(gradient[0, :2].abs().max()) == 0
    assert float(gradient[1].abs().max()) == 0


def test_gradients_refuse_positions(ids) -> None:
    with pytest.raises(interp.InterpError, match=r"positions.*cannot be chosen; index"):
        interp.capture(build("llama"), ids, "z.1", grad=True, positions="last")


def test_head_out_with_gradients_is_refused(ids) -> None:
    with pytest.raises(interp.UnsupportedSite, match="capture z or attn_out"):
        interp.capture(build("llama"), ids, "head_out.1", grad=True)
