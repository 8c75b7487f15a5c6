"""Queries, keys, values and patterns: which numbers they are, and whose heads."""

from __future__ import annotations

import pytest
import torch

import interp
from tests.architectures import build
from tests.oracles import layout, plain
from tests.oracles.layout import EVERY, kv_heads_of, layer_of, part_of, qkv_of, qkv_rows

WITH_QKV = [name for name in EVERY if name != "deepseek_v3"]  # MLA has no per-head projections
INTERFACE = [name for name in EVERY if name not in layout.PATTERN_READ_ONLY]


@pytest.mark.parametrize("name", WITH_QKV)
def test_heads_are_their_rows_of_the_projection(name, ids) -> None:
    model, layer = build(name), layer_of(name)
    acts = interp.capture(model, ids, [f"{kind}.{layer}" for kind in "qkv"], logits=True)
    seen: dict[str, torch.Tensor] = {}
    for kind in "qkv":
        plain.watch(qkv_of(name, model, layer, kind), "input", seen, kind)
    plain.logits_of(model, ids)
    for kind in "qkv":
        projection = qkv_of(name, model, layer, kind)
        weight = layout.output_matrix(name, projection).detach()  # [in, out]
        heads = 4 if kind == "q" else kv_heads_of(name, model)
        tensor = acts[f"{kind}.{layer}"]
        assert tensor.shape[2] == heads
        for head in range(heads):
            rows = qkv_rows(name, model, layer, kind, head)
            expected = seen[kind] @ weight[:, rows]
            if projection.bias is not None:
                expected = expected + projection.bias.detach()[rows]
            torch.testing.assert_close(tensor[:, :, head], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WITH_QKV)
def test_zeroing_a_head_equals_zeroing_its_weight_rows(name, ids) -> None:
    for kind in "qkv":
        zeroing_equals_zero_rows(name, kind, ids)


def zeroing_equals_zero_rows(name, kind, ids) -> None:
    model, edited, layer = build(name), build(name), layer_of(name)
    heads = 4 if kind == "q" else kv_heads_of(name, model)
    head = heads - 1
    projection = qkv_of(name, edited, layer, kind)
    rows = qkv_rows(name, edited, layer, kind, head)
    with torch.no_grad():
        layout.output_matrix(name, projection)[:, rows] = 0
        if projection.bias is not None:
            projection.bias[rows] = 0

    def zero(tensor, site):
        tensor = tensor.clone()
        tensor[:, :, head] = 0
        return tensor

    before = plain.logits_of(model, ids)
    with interp.hooked(model, {f"{kind}.{layer}": zero}):
        logits = plain.logits_of(model, ids)
    assert float((logits - before).abs().max()) > 1e-3
    torch.testing.assert_close(logits, plain.logits_of(edited, ids), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", [n for n in WITH_QKV if n != "qwen3_next"])
def test_pattern_times_values_is_z(name, ids) -> None:
    """With query head h reading key head h // group; qwen3_next gates z afterwards."""
    model, layer = build(name), layer_of(name)
    acts = interp.capture(model, ids, [f"pattern.{layer}", f"v.{layer}", f"z.{layer}"])
    pattern, v, z = (acts[f"{kind}.{layer}"] for kind in ("pattern", "v", "z"))
    group = z.shape[2] // v.shape[2]
    for head in range(z.shape[2]):
        expected = pattern[:, head] @ v[:, :, head // group]
        torch.testing.assert_close(z[:, :, head], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_pattern_is_a_causal_distribution_over_keys(name, ids) -> None:
    model, layer = build(name), layer_of(name)
    pattern = interp.capture(model, ids, f"pattern.{layer}")[f"pattern.{layer}"]
    rows = pattern.sum(-1)
    if name == "gpt_oss":  # the sink takes its share
        assert float(rows.max()) < 1
        assert float(rows.mean()) < 0.99
    else:
        torch.testing.assert_close(rows, torch.ones_like(rows))
    assert float(pattern.triu(1).abs().max()) == 0


@pytest.mark.parametrize("name", EVERY)
def test_pattern_equals_the_eager_models_attentions(name, ids) -> None:
    eager = build(name, attn_implementation="eager")  # Falcon cannot be switched later
    expected = plain.forward(eager, ids, output_attentions=True).attentions
    expected = [pattern for pattern in expected if pattern is not None]
    model = build(name)
    acts = interp.capture(model, ids, "pattern.*")
    assert len(acts) == len(expected)
    for (site, pattern), value in zip(acts.items(), expected, strict=True):
        torch.testing.assert_close(
            pattern, value, rtol=1e-4, atol=1e-5, msg=lambda m, s=site: f"{s}: {m}"
        )


@pytest.mark.parametrize("name", EVERY)
def test_reading_patterns_leaves_the_logits_bit_identical(name, ids) -> None:
    """Under SDPA; Falcon's kernel gives no probabilities, so there eager runs instead."""
    model = build(name)
    before = plain.logits_of(model, ids)
    acts = interp.capture(model, ids, "pattern.*", logits=True)
    if name.startswith("falcon"):
        torch.testing.assert_close(acts.logits, before, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(acts.logits, before)
    assert torch.equal(plain.logits_of(model, ids), before)


@pytest.mark.parametrize("name", INTERFACE)
def test_a_written_pattern_mixes_the_values(name, ids) -> None:
    """A uniform pattern makes z the mean of the values over every position."""
    model, edited, layer = build(name), build(name), layer_of(name)

    def uniform(pattern, site):
        return torch.full_like(pattern, 1 / pattern.shape[-1])

    def mean_value(z):
        group = 4 // kv_heads_of(name, model)
        v = interp.capture(model, ids, f"v.{layer}")[f"v.{layer}"]
        mean = v.mean(1, keepdim=True).repeat_interleave(group, dim=2)
        return mean.repeat(1, z.shape[1], 1, 1).flatten(-2)

    if name in ("deepseek_v3", "qwen3_next"):  # no per-head values, a gate after z
        with interp.hooked(model, {f"pattern.{layer}": uniform}):
            z = interp.capture(model, ids, f"z.{layer}")[f"z.{layer}"]
        if name == "deepseek_v3":
            torch.testing.assert_close(z, z[:, :1].expand_as(z))
        return
    plain.map_input(part_of(name, edited, layer, "o_proj"), mean_value)
    with interp.hooked(model, {f"pattern.{layer}": uniform}):
        logits = plain.logits_of(model, ids)
    torch.testing.assert_close(logits, plain.logits_of(edited, ids), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", layout.PATTERN_READ_ONLY)
def test_a_pattern_outside_the_interface_refuses_to_be_written(name, ids) -> None:
    model = build(name)
    before = plain.snapshot(model)
    with (
        interp.hooked(model, {"pattern.1": lambda pattern, site: pattern * 0.5}),
        pytest.raises(interp.UnsupportedSite, match="read but not written"),
    ):
        plain.logits_of(model, ids)
    plain.assert_unchanged(before, model)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_oss", "falcon-new"])
def test_a_key_head_moves_only_the_queries_of_its_group(name, ids) -> None:
    model, layer = build(name), layer_of(name)
    kv = kv_heads_of(name, model)
    group = 4 // kv

    def twice(k, site):
        k = k.clone()
        k[:, :, 0] *= 2
        return k

    plain_pattern = interp.capture(model, ids, f"pattern.{layer}")[f"pattern.{layer}"]
    with interp.hooked(model, {f"k.{layer}": twice}):
        moved = interp.capture(model, ids, f"pattern.{layer}")[f"pattern.{layer}"]
    change = (moved - plain_pattern).abs().amax((0, 2, 3))
    assert bool((change[:group] > 1e-3).all())
    assert float(change[group:].max() if kv > 1 else 0) == 0
