"""On every architecture, capture equals plain torch hooks on hand-written module paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from tests.architectures import build
from tests.oracles import layout, plain
from tests.oracles.layout import EVERY, LAYOUTS, layer_of, part_of
from tests.oracles.plain import watch


@pytest.mark.parametrize("name", EVERY)
def test_capture_equals_plain_hooks(name, ids) -> None:
    model, watched = build(name), build(name)
    seen: dict[str, Tensor] = {}
    for layer in range(model.config.num_hidden_layers):
        block = layout.block_of(name, watched, layer)
        watch(block, "input", seen, f"resid_pre.{layer}")
        watch(block, "output", seen, f"resid_post.{layer}")
        if name == "qwen3_next" and layer % 2 == 0:
            watch(block.linear_attn, "output", seen, f"attn_out.{layer}")
        else:
            watch(part_of(name, watched, layer, "attn_out"), "output", seen, f"attn_out.{layer}")
            watch(part_of(name, watched, layer, "o_proj"), "input", seen, f"z.{layer}")
        watch(part_of(name, watched, layer, "mlp_out"), "output", seen, f"mlp_out.{layer}")
        if LAYOUTS[name].down:
            watch(part_of(name, watched, layer, "down"), "input", seen, f"mlp_post.{layer}")
        if LAYOUTS[name].pre_mlp:
            watch(part_of(name, watched, layer, "pre_mlp"), "input", seen, f"resid_mid.{layer}")
    logits = plain.logits_of(watched, ids)
    acts = interp.capture(model, ids, list(seen), logits=True)
    assert torch.equal(acts.logits, logits)
    for site, value in seen.items():
        if name == "granite" and site.split(".")[0] in ("attn_out", "mlp_out"):
            value = value * model.config.residual_multiplier
        assert torch.equal(acts[site], value.reshape(acts[site].shape)), site


@pytest.mark.parametrize("name", EVERY)
def test_residual_stream_equals_output_hidden_states(name, ids) -> None:
    """Whose last entry has already passed the final norm, so it is left out."""
    model = build(name)
    states = plain.forward(build(name), ids, output_hidden_states=True).hidden_states
    acts = interp.capture(model, ids, ["resid_pre.*", "resid_post.*"])
    for layer in range(model.config.num_hidden_layers):
        assert torch.equal(acts[f"resid_pre.{layer}"], states[layer])
        if layer:
            assert torch.equal(acts[f"resid_post.{layer - 1}"], states[layer])
    last = acts.stack("resid_post")[-1]
    if name == "opt-projected":  # whose last entry is projected to the embedding's width too
        return
    assert float((last - states[-1]).abs().max()) > 1e-2
    torch.testing.assert_close(final_norm(name, model)(last), states[-1])


def final_norm(name: str, model: Any) -> Any:
    base = model.get_submodule(LAYOUTS[name].blocks.rsplit(".", 1)[0])
    names = ("ln_f", "norm", "final_layer_norm", "final_layernorm")
    return next(getattr(base, n) for n in names if getattr(base, n, None) is not None)


@pytest.mark.parametrize("name", EVERY)
def test_unembedding_the_last_stream_gives_the_logits(name, ids) -> None:
    model = interp.load(build(name))
    acts = interp.capture(model, ids, "resid_post.-1", logits=True)
    (stream,) = acts.tensors.values()
    with torch.no_grad():
        assert torch.equal(model.anatomy.unembed(stream), acts.logits)


@pytest.mark.parametrize("name", EVERY)
def test_embed_is_the_stream_before_positions(name, ids) -> None:
    model = build(name)
    acts = interp.capture(model, ids, ["embed", "resid_pre.0"])
    added = acts["resid_pre.0"] - acts["embed"]
    if name not in layout.LEARNED_POSITIONS:
        assert float(added.abs().max()) == 0
        return
    # What is added depends on the position alone: the learned table's rows.
    torch.testing.assert_close(added[0], added[1], rtol=0, atol=1e-5)
    offset = 2 if name.startswith("opt") else 0
    table = model.get_parameter(
        "transformer.wpe.weight" if name == "gpt2" else "model.decoder.embed_positions.weight"
    )
    torch.testing.assert_close(added[0], table[offset : offset + ids.shape[1]].detach())


@pytest.mark.parametrize("name", EVERY)
def test_components_add_up_to_the_stream(name, ids) -> None:
    model = build(name)
    kinds = ["resid_pre.*", "attn_out.*", "mlp_out.*", "resid_post.*"]
    mid = [] if name in layout.PARALLEL else ["resid_mid.*"]
    acts = interp.capture(model, ids, [*kinds, *mid])
    for layer in range(model.config.num_hidden_layers):
        pre, attn = acts[f"resid_pre.{layer}"], acts[f"attn_out.{layer}"]
        mlp, post = acts[f"mlp_out.{layer}"], acts[f"resid_post.{layer}"]
        bound = 1e-6 * float(post.abs().max())
        torch.testing.assert_close(pre + attn + mlp, post, rtol=1e-5, atol=bound)
        if mid:
            torch.testing.assert_close(
                acts[f"resid_mid.{layer}"], pre + attn, rtol=1e-5, atol=bound
            )


@pytest.mark.parametrize("name", EVERY)
def test_heads_sum_to_the_projections_output_minus_its_bias(name, ids) -> None:
    model = build(name)
    layer = layer_of(name)
    projection = part_of(name, model, layer, "o_proj")
    seen: dict[str, Tensor] = {}
    watch(projection, "output", seen, "out")
    acts = interp.capture(model, ids, [f"head_out.{layer}", f"z.{layer}"], logits=True)
    bias = 0 if projection.bias is None else projection.bias.detach()
    heads = acts[f"head_out.{layer}"]
    torch.testing.assert_close(heads.sum(2), seen["out"] - bias, rtol=1e-5, atol=1e-5)
    matrix = layout.output_matrix(name, projection).detach()
    z = acts[f"z.{layer}"]
    d_head = z.shape[-1]
    for head in range(z.shape[2]):
        rows = matrix[head * d_head : (head + 1) * d_head]
        torch.testing.assert_close(heads[:, :, head], z[:, :, head] @ rows, rtol=1e-5, atol=1e-5)
