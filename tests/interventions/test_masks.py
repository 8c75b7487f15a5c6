"""Masks: each choice against the plain formula, in every layout; what a mask keeps and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import interventions as iv
from interp import InterpError
from tests.architectures import build
from tests.interp.weights.helpers import noisy, saved

DOWN = "model.layers.1.mlp.down_proj.weight"


def top(values: Tensor, count: int) -> Tensor:
    """The largest entries, the plain way."""
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.flatten().argsort(descending=True)[:count]] = True
    return mask.view(values.shape)


def test_the_principal_mask_is_the_top_of_the_truncated_svd():
    model = build("llama")
    mask = iv.masks.principal_mask(model, rank=3, share=0.1)
    for name in mask.index:
        weight = model.get_parameter(name).detach().double()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        low_rank = left[:, :3] @ values[:3].diag() @ right[:3]
        assert torch.equal(mask.dense(name), top(low_rank.abs(), round(0.1 * weight.numel())))
    assert len(mask.index) == 7 * model.config.num_hidden_layers
    full = iv.masks.principal_mask(model, rank=10**6, share=0.1)
    assert full.overlap(iv.masks.magnitude_mask(model, share=0.1)) > 0.99  # ties of rounding aside


@pytest.mark.parametrize("name", ["gpt2", "phi3", "mixtral", "gpt_oss", "falcon"])
def test_a_fused_tensor_is_masked_matrix_by_matrix(name: str):
    """q, k and v of one tensor each keep their own share, as do experts."""
    model = build(name)
    mask = iv.masks.magnitude_mask(model, share=0.25, modules=("q", "k", "v"))
    separate = [iv.masks.magnitude_mask(model, share=0.25, modules=one) for one in ("q", "k", "v")]
    assert sum(one.count for one in separate) == mask.count
    union = separate[0] | separate[1] | separate[2]
    assert union == mask
    assert mask.overlap(iv.masks.module_mask(model, modules=("q", "k", "v"))) < 0.3


def test_budgets():
    model = build("llama")
    mask = iv.masks.random_mask(model, lora_rank=2, modules="down")
    rows, columns = model.get_parameter(DOWN).shape
    assert len(mask.index[DOWN]) == 2 * (rows + columns)
    assert iv.masks.random_mask(model, modules="mlp").share == pytest.approx(0.05, abs=0.01)
    assert iv.masks.random_mask(model, share=1.0).share == 1.0


def test_magnitudes_split_a_matrix():
    model = build("llama")
    high = iv.masks.magnitude_mask(model, share=0.5)
    low = iv.masks.magnitude_mask(model, low=True, share=0.5)
    assert high.complement() == low
    weight = model.get_parameter(DOWN).detach().abs()
    assert weight[low.dense(DOWN)].max() < weight[high.dense(DOWN)].min()


def test_the_safe_mask_is_its_formula():
    model = build("llama")
    where = {"share": 0.4, "rank": 2}
    safe = iv.masks.safe_mask(model, **where)
    principal = iv.masks.principal_mask(model, **where).dense(DOWN)
    low = iv.masks.magnitude_mask(model, low=True, share=0.4).dense(DOWN)
    assert torch.equal(safe.dense(DOWN), low | ~principal)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_half_of_the_blocks_is_what_a_reset_leaves(name: str):
    """The trainable half is exactly what resetting the frozen half leaves as it is."""
    base = build(name)
    other = noisy(base, 0.1)
    mask = iv.masks.half_mask(base, seed=3)
    names = dict(base.named_parameters())
    with iv.reset(base, 0.5, by="category", seed=3).applied(other, transfer=True):
        for key, parameter in other.named_parameters():
            trained = mask.dense(key) if key in mask.index else torch.zeros_like(parameter).bool()
            same = parameter == names[key]
            assert not bool((same & trained).float().mean() > 0.01)  # noise moved nearly every one
            assert bool(same[~trained].all())
    everything = mask | iv.masks.half_mask(base, seed=3, complement=True)
    assert everything.count == sum(p.numel() for p in base.parameters())


def test_change_and_consensus(tmp_path: Path):
    base = build("llama")
    tuned = noisy(base, 0.02)
    mask = iv.masks.change_mask(
        saved(base, tmp_path / "a"), saved(tuned, tmp_path / "b"), share=0.2
    )
    moved = (tuned.get_parameter(DOWN) - base.get_parameter(DOWN)).detach().abs()
    assert torch.equal(mask.dense(DOWN), top(moved, round(0.2 * moved.numel())))
    draws = [iv.masks.random_mask(base, share=0.5, seed=seed) for seed in range(3)]
    votes = sum(draw.dense(DOWN).long() for draw in draws)
    for share, count in ((1.0, 3), (2 / 3, 2), (0.5, 2), (0.1, 1)):
        assert torch.equal(iv.masks.consensus_mask(draws, share).dense(DOWN), votes >= count)
    assert iv.masks.consensus_mask(draws).share == pytest.approx(0.125, abs=0.03)


def test_what_did_not_move_is_never_chosen():
    """Three tunings behind independent masks of 2 % agree on what chance lets them, no more."""
    base = build("llama", hidden_size=64, intermediate_size=96)
    tickets = []
    for seed in range(3):
        mask = iv.masks.random_mask(base, share=0.02, seed=seed)
        ticket = iv.masks.change_mask(base, mask.noise(0.1, seed=seed), share=0.1)
        assert ticket == mask
        whole = sum(round(0.1 * torch.Size(shape).numel()) for shape in mask.shapes.values())
        assert ticket.notes["short"] == whole - mask.count
        tickets.append(ticket)
    assert iv.masks.consensus_mask(tickets).share < 1e-3  # by chance 0.02^3
    with pytest.raises(InterpError, match=r"has the same weights as .* in all of the chosen"):
        iv.masks.change_mask(base, base)


def test_ties_are_broken_at_random_not_by_place():
    base = build("llama")
    tuned = build("llama")
    weight = tuned.get_parameter(DOWN)
    with torch.no_grad():
        base.get_parameter(DOWN).zero_()
        weight.copy_(0.125 * torch.ones_like(weight))
        weight.view(-1)[-3:] = 0.25  # moved most, and last
    where = {"share": 0.25, "modules": "down", "layers": 1}
    draws = [iv.masks.change_mask(base, tuned, seed=seed, **where).dense(DOWN) for seed in range(2)]
    for mask in draws:
        assert int(mask.sum()) == round(0.25 * weight.numel()) and bool(mask.view(-1)[-3:].all())
        half = mask.view(-1)[: weight.numel() // 2]
        assert float(half.float().mean()) == pytest.approx(0.25, abs=0.06)
    assert not torch.equal(*draws)
    large = iv.masks.magnitude_mask(tuned, **where).dense(DOWN)
    assert bool(large.view(-1)[-3:].all()) and not torch.equal(large, draws[1])


def test_layers_may_be_numpys_and_weights_must_be_numbers(tmp_path: Path):
    class Layers:
        def __iter__(self) -> Iterator[np.int64]:
            return iter(np.arange(2))

    model = build("llama")
    mask = iv.masks.magnitude_mask(model, share=0.1, layers=Layers())
    assert iv.WeightMask.load(mask.save(tmp_path / "mask")).notes["magnitude"]["layers"] == [0, 1]
    with torch.no_grad():
        model.get_parameter(DOWN)[0, 0] = torch.nan
    for make in (iv.principal_mask, iv.masks.magnitude_mask):
        with pytest.raises(InterpError, match=f"{DOWN} has entries that are not finite"):
            make(model)


def test_modules_and_what_is_frozen():
    model = build("llama")
    mask = iv.masks.module_mask(model, layers=1, modules=("q", "k"))
    assert set(mask.index) == {f"model.layers.1.self_attn.{m}_proj.weight" for m in "qk"}
    assert mask.share == 1.0
    rest = iv.masks.module_mask(model, layers=1, modules=("q", "k"), frozen=True)
    assert mask.count + rest.count == sum(p.numel() for p in model.parameters())


@given(st.data())
def test_sets_are_sets(data: st.DataObject):
    shape = (3, 5)
    bits = st.lists(st.booleans(), min_size=15, max_size=15)
    a, b = (torch.tensor(data.draw(bits)).view(shape) for _ in range(2))
    first, second = iv.WeightMask.of({"w": a}), iv.WeightMask.of({"w": b})
    assert torch.equal((first & second).dense("w"), a & b)
    assert torch.equal((first | second).dense("w"), a | b)
    assert torch.equal(first.complement().dense("w"), ~a)
    both, either = int((a & b).sum()), int((a | b).sum())
    assert first.overlap(second) == (both / either if either else 1.0)


def test_masks_come_back_from_disk(tmp_path: Path):
    mask = iv.masks.principal_mask(build("llama", num_hidden_layers=11), rank=2)
    loaded = iv.WeightMask.load(mask.save(tmp_path / "mask"))
    assert loaded == mask
    assert list(loaded.index) == list(mask.index)  # a file sorts layer 10 before layer 2
    pd.testing.assert_frame_equal(loaded.table(), mask.table())
    (tmp_path / "mask" / "meta.json").write_text('{"kind": "weight_mask"}')
    with pytest.raises(InterpError, match="damaged"):
        iv.WeightMask.load(tmp_path / "mask")


def test_noise_stays_inside_the_mask():
    model = build("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mask = iv.masks.random_mask(model, share=0.3, modules="down")
    with mask.noise(0.5, seed=1).applied(model):
        moved = model.get_parameter(DOWN).detach() - before[DOWN]
        assert torch.equal(moved != 0, mask.dense(DOWN))
        spread = float(moved[mask.dense(DOWN)].std())
        assert spread == pytest.approx(0.5, rel=0.2)
    assert torch.equal(model.get_parameter(DOWN), before[DOWN])
    assert mask.noise(0.5, seed=1) == mask.noise(0.5, seed=1) != mask.noise(0.5, seed=2)


def test_what_cannot_be_masked_is_said():
    model = build("llama")
    with pytest.raises(InterpError, match="two ways to say how many"):
        iv.masks.random_mask(model, share=0.1, lora_rank=2)
    with pytest.raises(InterpError, match=r"share=0.*above 0"):
        iv.masks.random_mask(model, share=0.0)
    with pytest.raises(InterpError, match="rank=0: expected at least 1"):
        iv.masks.principal_mask(model, rank=0)
    with pytest.raises(InterpError, match=r"no modules 'mpl'.*mlp"):
        iv.masks.random_mask(model, modules="mpl")
    with pytest.raises(InterpError, match="choose no matrix"):
        iv.masks.random_mask(model, layers=None, modules="norm")
    with pytest.raises(InterpError, match="of the same parameters"):
        iv.masks.consensus_mask(
            [iv.masks.random_mask(model), iv.masks.random_mask(model, modules="mlp")]
        )
    with pytest.raises(InterpError, match=r"expected torch\.bool"):
        iv.WeightMask.of({"w": torch.ones(3)})
    with pytest.raises(InterpError, match="in order, each once"):
        iv.WeightMask({"w": torch.tensor([2, 1])}, {"w": (3,)})
    with pytest.raises(InterpError, match="different models"):
        iv.masks.random_mask(model) | iv.masks.random_mask(build("llama", hidden_size=64))
