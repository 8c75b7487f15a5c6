"""An edit at a site equals the same edit made in the weights or in a module's own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from tests.architectures import build
from tests.oracles import layout, plain
from tests.oracles.layout import EVERY, LAYOUTS, block_of, layer_of, part_of

DENSE = [name for name in EVERY if LAYOUTS[name].down]
TOLERANCE = {"rtol": 1e-5, "atol": 3e-5}


def check(name: str, ids: Tensor, site: str, fn: Callable[..., Tensor], oracle: Any) -> None:
    """Logits under the hook equal those of `oracle`, a model changed otherwise; and they moved."""
    model = build(name)
    before = plain.logits_of(model, ids)
    with interp.hooked(model, {site: fn}):
        logits = plain.logits_of(model, ids)
    assert float((logits - before).abs().max()) > 1e-3
    torch.testing.assert_close(logits, plain.logits_of(oracle, ids), **TOLERANCE)
    assert torch.equal(plain.logits_of(model, ids), before)


def scaled(index: int, factor: float) -> Callable[..., Tensor]:
    """Scale one head or neuron: axis 2 in both."""

    def fn(tensor: Tensor, site: interp.Site) -> Tensor:
        tensor = tensor.clone()
        tensor[:, :, index] *= factor
        return tensor

    return fn


@pytest.mark.parametrize("name", EVERY)
def test_scaling_a_head_scales_its_rows_of_the_output_matrix(name, ids) -> None:
    edited, layer = build(name), layer_of(name)
    matrix = layout.output_matrix(name, part_of(name, edited, layer, "o_proj"))
    d_head = matrix.shape[0] // 4
    with torch.no_grad():
        matrix[2 * d_head : 3 * d_head] *= -1.7
    check(name, ids, f"z.{layer}", scaled(2, -1.7), edited)


@pytest.mark.parametrize("name", DENSE)
def test_zeroing_a_neuron_zeroes_its_row_of_the_down_matrix(name, ids) -> None:
    edited = build(name)
    with torch.no_grad():
        layout.output_matrix(name, part_of(name, edited, 1, "down"))[[5, 31]] = 0
    check(name, ids, "mlp_post.1", scaled([5, 31], 0), edited)


@pytest.mark.parametrize("kernel", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", layout.EXPERTS)
def test_zeroing_an_experts_neuron_zeroes_its_slice_of_the_experts(name, kernel, ids) -> None:
    model, edited, layer = build(name), build(name), layer_of(name)
    model.set_experts_implementation(kernel)
    edited.set_experts_implementation(kernel)
    expert, neurons = 1, [3, 11]
    experts = block_of(name, edited, layer).mlp.experts
    with torch.no_grad():
        if name == "gpt_oss":  # [expert d_mlp d_model]
            experts.down_proj[expert, neurons] = 0
        else:
            experts.down_proj[expert, :, neurons] = 0
    site = f"mlp_post.{layer}"
    ids_of = interp.capture(model, ids, site).expert_ids[interp.Site.parse(site)]
    assert bool((ids_of == expert).any())

    def zero(neuron: Tensor, _site: interp.Site) -> Tensor:
        neuron = neuron.clone()
        chosen = neuron[ids_of == expert]
        chosen[:, neurons] = 0
        neuron[ids_of == expert] = chosen
        return neuron

    before = plain.logits_of(model, ids)
    with interp.hooked(model, {site: zero}):
        logits = plain.logits_of(model, ids)
    assert float((logits - before).abs().max()) > 1e-4
    torch.testing.assert_close(logits, plain.logits_of(edited, ids), **TOLERANCE)
    assert torch.equal(plain.logits_of(model, ids), before)


@pytest.mark.parametrize("name", layout.EXPERTS)
def test_expert_rows_sum_to_the_experts_output(name, ids) -> None:
    """Row k of a token, through its expert's down matrix and router weight."""
    model, layer = build(name), layer_of(name)
    experts = block_of(name, model, layer).mlp.experts
    seen: dict[str, Tensor] = {}

    def note(_module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        seen["weights"] = kwargs.get("top_k_weights", args[-1] if args else None)
        seen["out"] = output

    experts.register_forward_hook(note, with_kwargs=True)
    site = interp.Site("mlp_post", layer)
    acts = interp.capture(model, ids, [site, f"resid_post.{layer}"])
    neurons, chosen = acts[site], acts.expert_ids[site]
    down = experts.down_proj.detach() if name == "gpt_oss" else experts.down_proj.detach().mT
    rows = torch.einsum("bpkf,bpkfd->bpkd", neurons, down[chosen])
    if name == "gpt_oss":
        rows = rows + experts.down_proj_bias.detach()[chosen]
    weights = seen["weights"].reshape(*chosen.shape)
    expected = (rows * weights[..., None]).sum(2)
    torch.testing.assert_close(seen["out"].reshape(expected.shape), expected, **TOLERANCE)


def shifted(vector: Tensor) -> Callable[..., Tensor]:
    return lambda tensor, site: tensor + vector


@pytest.fixture
def vector() -> Tensor:
    """A shift that differs from position to position and prompt to prompt."""
    return torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", ["attn_out", "mlp_out"])
def test_shifting_what_a_part_adds_equals_changing_that_part(name, kind, ids, vector) -> None:
    edited, layer = build(name), layer_of(name)
    multiplier = edited.config.residual_multiplier if name == "granite" else 1.0
    change = vector / multiplier
    if kind == "mlp_out" and name.startswith("opt"):
        change = change.flatten(0, 1)
    plain.map_output(part_of(name, edited, layer, kind), lambda raw: raw + change)
    check(name, ids, f"{kind}.{layer}", shifted(vector), edited)


@pytest.mark.parametrize("name", [n for n in EVERY if n not in layout.PARALLEL])
def test_shifting_resid_mid_moves_the_skip_path_too(name, ids, vector) -> None:
    """It equals a shift of what attention adds: MLP and skip path both see it."""
    edited, layer = build(name), layer_of(name)
    multiplier = edited.config.residual_multiplier if name == "granite" else 1.0
    plain.map_output(
        part_of(name, edited, layer, "attn_out"), lambda raw: raw + vector / multiplier
    )
    check(name, ids, f"resid_mid.{layer}", shifted(vector), edited)


@pytest.mark.parametrize("name", EVERY)
def test_writing_the_stream_equals_changing_what_blocks_read_and_return(name, ids, vector) -> None:
    layer = layer_of(name)
    for kind, change in (("resid_pre", plain.map_input), ("resid_post", plain.map_output)):
        edited = build(name)
        change(block_of(name, edited, layer), lambda x: x * 0.5 + vector)
        check(name, ids, f"{kind}.{layer}", lambda x, site: x * 0.5 + vector, edited)


@pytest.mark.parametrize("name", EVERY)
def test_shifting_embed_moves_the_first_stream(name, ids, vector) -> None:
    """Positions are added to it afterwards, so a shift is one of resid_pre.0."""
    edited = build(name)
    plain.map_input(block_of(name, edited, 0), lambda x: x + vector)
    check(name, ids, "embed", shifted(vector), edited)


@pytest.mark.parametrize("name", [n for n in EVERY if n not in layout.PARALLEL])
def test_rewriting_resid_mid_keeps_no_trace_of_the_old_stream(name, ids, vector) -> None:
    """Overwritten whole: the block then returns vector + its MLP's part of vector."""
    model, layer = build(name), layer_of(name)
    with interp.hooked(model, {f"resid_mid.{layer}": lambda x, site: vector}):
        acts = interp.capture(
            model, ids, [f"resid_mid.{layer}", f"mlp_out.{layer}", f"resid_post.{layer}"]
        )
    assert torch.equal(acts[f"resid_mid.{layer}"], vector)
    expected = vector + acts[f"mlp_out.{layer}"]
    torch.testing.assert_close(acts[f"resid_post.{layer}"], expected, rtol=1e-5, atol=1e-5)
