"""Weights of another checkpoint put in place, bit for bit: wholly, by head, by half, by mask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import interventions as iv
from interp import InterpError
from tests.architectures import build
from tests.interp.weights.helpers import noisy, saved

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(3))
EVERY = [
    "llama", "gpt2", "phi3", "gpt_neox", "gptj", "bloom", "falcon", "falcon-new", "gemma2",
    "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "opt-projected",
]  # fmt: skip


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", EVERY)
def test_a_transplant_of_everything_is_the_other_model(name: str, tmp_path: Path):
    base = build(name)
    other = noisy(base, 0.1)
    mine, theirs = state(base), state(other)
    with iv.transplant(saved(other, tmp_path)).applied(base):
        assert equal(state(base), theirs)
        if "correction" not in str(list(dict(base.named_buffers()))):
            with torch.no_grad():
                assert torch.equal(base(IDS).logits, other(IDS).logits)
    with iv.transplant(other).applied(base):
        assert equal(state(base), theirs)
    assert equal(state(base), mine)
    # Layer by layer and what is in no layer are the same thing.
    n = base.config.num_hidden_layers
    pieces = [iv.transplant(other, layers=layer) for layer in range(n)]
    with sum(pieces).applied(base):
        inside = {k: v for k, v in state(base).items() if not torch.equal(v, mine[k])}
    assert set(inside) == {k for k in mine if any(f".{i}." in k for i in range(n))}


# What one head owns, written out by hand for each layout: (parameter, slice of it).
def rows(start: int, stop: int) -> tuple[slice, ...]:
    return (slice(start, stop),)


def columns(start: int, stop: int) -> tuple[slice, ...]:
    return (slice(None), slice(start, stop))


HEAD_2 = {  # 32 wide, 4 heads of 8
    "phi": [  # separate, biases, no grouping when asked for 4 key heads
        ("model.layers.1.self_attn.q_proj.weight", rows(16, 24)),
        ("model.layers.1.self_attn.q_proj.bias", rows(16, 24)),
        ("model.layers.1.self_attn.k_proj.weight", rows(16, 24)),
        ("model.layers.1.self_attn.k_proj.bias", rows(16, 24)),
        ("model.layers.1.self_attn.v_proj.weight", rows(16, 24)),
        ("model.layers.1.self_attn.v_proj.bias", rows(16, 24)),
        ("model.layers.1.self_attn.dense.weight", columns(16, 24)),
    ],
    "gpt2": [  # one tensor, stored [in, out]
        ("transformer.h.1.attn.c_attn.weight", columns(16, 24)),
        ("transformer.h.1.attn.c_attn.weight", columns(48, 56)),
        ("transformer.h.1.attn.c_attn.weight", columns(80, 88)),
        ("transformer.h.1.attn.c_attn.bias", rows(16, 24)),
        ("transformer.h.1.attn.c_attn.bias", rows(48, 56)),
        ("transformer.h.1.attn.c_attn.bias", rows(80, 88)),
        ("transformer.h.1.attn.c_proj.weight", rows(16, 24)),
    ],
    "gpt_neox": [  # one tensor, head by head its q, k, v
        ("gpt_neox.layers.1.attention.query_key_value.weight", rows(48, 72)),
        ("gpt_neox.layers.1.attention.query_key_value.bias", rows(48, 72)),
        ("gpt_neox.layers.1.attention.dense.weight", columns(16, 24)),
    ],
    "phi3": [  # one tensor: 4 q, 2 k, 2 v; two heads share keys and values, which stay
        ("model.layers.1.self_attn.qkv_proj.weight", rows(16, 24)),
        ("model.layers.1.self_attn.o_proj.weight", columns(16, 24)),
    ],
    "falcon-new": [  # per key head: its two q, k, v; head 2 is the first of the second group
        ("transformer.h.1.self_attention.query_key_value.weight", rows(32, 40)),
        ("transformer.h.1.self_attention.dense.weight", columns(16, 24)),
    ],
    "qwen3": [  # heads of 12 in a model 32 wide
        ("model.layers.1.self_attn.q_proj.weight", rows(24, 36)),
        ("model.layers.1.self_attn.o_proj.weight", columns(24, 36)),
    ],
    "deepseek_v3": [  # latent attention: queries of 16, keys of 8 and values of 10 per head
        ("model.layers.1.self_attn.q_b_proj.weight", rows(32, 48)),
        ("model.layers.1.self_attn.kv_b_proj.weight", rows(36, 54)),
        ("model.layers.1.self_attn.o_proj.weight", columns(20, 30)),
    ],
}


@pytest.mark.parametrize("name", list(HEAD_2))
def test_a_transplant_of_a_head_is_its_slices_copied_by_hand(name: str):
    base = build(name, **({"num_key_value_heads": 4} if name == "phi" else {}))
    other = noisy(base, 0.1)
    before, by_hand, theirs = state(base), state(base), state(other)
    for key, where in HEAD_2[name]:
        by_hand[key][where] = theirs[key][where]
    with iv.transplant(other, heads=[(1, 2)]).applied(base):
        assert equal(state(base), by_hand)
    with (0.5 * iv.transplant(other, heads=[(-2, 2)])).applied(base):  # of three layers, the second
        for key, p in state(base).items():
            torch.testing.assert_close(p, (before[key] + by_hand[key]) / 2)
    assert equal(state(base), before)


def test_shared_keys_and_values_move_when_they_are_named():
    base = build("llama")  # heads 2 and 3 share key head 1
    other = noisy(base, 0.1)
    edit = iv.transplant(other, heads=[(0, 3)], modules=["k", "o"])
    by_hand, theirs = state(base), state(other)
    attention = "model.layers.0.self_attn"
    by_hand[f"{attention}.k_proj.weight"][8:16] = theirs[f"{attention}.k_proj.weight"][8:16]
    by_hand[f"{attention}.o_proj.weight"][:, 24:] = theirs[f"{attention}.o_proj.weight"][:, 24:]
    with edit.applied(base):
        assert equal(state(base), by_hand)


def test_all_heads_of_a_layer_are_its_attention_weights():
    base = build("gpt_neox")
    other = noisy(base, 0.1)
    heads = iv.transplant(other, heads=[(2, h) for h in range(4)])
    with heads.applied(base):
        moved = state(base)
    attention = iv.transplant(other, layers=2, modules="attn")
    with attention.applied(base):
        bias = "gpt_neox.layers.2.attention.dense.bias"  # of no head
        assert equal({**state(base), bias: moved[bias]}, moved)


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"heads": [(0, 4)]}, "layer 0 has heads 0 to 3; got head 4"),
        ({"heads": [(0, -1)]}, "layer 0 has heads 0 to 3; got head -1"),
        ({"heads": [(9, 0)]}, "no layer 9; this model has layers 0 to 2"),
        ({"heads": []}, "heads names nothing"),
        ({"heads": [(0, 0)], "layers": [0]}, "name their layers: drop layers"),
        ({"heads": [(0, 0)], "modules": "up"}, r"no attention heads of modules \['up'\]"),
    ],
)
def test_heads_that_are_not_there_are_refused(choice: dict, text: str):
    with pytest.raises(InterpError, match=text):
        iv.transplant(build("llama"), **choice)


def test_a_layer_of_linear_attention_has_no_heads_of_this_kind():
    model = build("qwen3_next")
    with pytest.raises(InterpError, match="layer 0 has no attention heads"):
        iv.transplant(model, heads=[(0, 0)])
    other = noisy(model, 0.1)
    with iv.transplant(other, heads=[(1, 1)]).applied(model):  # 16 queries, then 16 of their gates
        q = model.model.layers[1].self_attn.q_proj.weight
        same = (q == other.model.layers[1].self_attn.q_proj.weight).all(dim=1)
        assert same.nonzero()[:, 0].tolist() == list(range(32, 64))


def test_a_receiver_is_checked_and_remembered(tmp_path: Path):
    base = build("llama")
    other = noisy(base)
    edit = iv.transplant(other, layers=0, onto=saved(base, tmp_path))
    with edit.applied(base):
        pass
    with pytest.raises(InterpError, match="transfer=True"), edit.applied(other):
        pass
    with pytest.raises(InterpError, match="no common start"):
        iv.transplant(build("llama", seed=5), onto=base)
    with pytest.raises(InterpError, match="has shape"):
        iv.transplant(build("llama", intermediate_size=64)).apply_(base)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_full_reset_is_the_base_bit_for_bit(name: str, tmp_path: Path):
    base = build(name, dtype=torch.bfloat16)
    tuned = noisy(base, 0.05)
    with iv.reset(saved(base, tmp_path / "base"), onto=tuned).applied(tuned):
        assert equal(state(tuned), state(base))
    with iv.reset(tmp_path / "base", layers=[0, 1], modules="mlp").applied(tuned):
        moved = {key for key, p in state(tuned).items() if torch.equal(p, state(base)[key])}
    assert moved and all(".0." in key or ".1." in key for key in moved)


@pytest.mark.parametrize("share", [0.5, 0.3, 0.0])
def test_a_share_is_exact_and_its_complement_is_the_rest(share: float):
    base = build("gpt2")
    tuned = noisy(base, 0.1)
    masks = []
    for complement in (False, True):
        with iv.reset(base, share, seed=3, complement=complement).applied(tuned):
            masks.append({key: p == state(base)[key] for key, p in state(tuned).items()})
    for key, p in state(base).items():
        assert int(masks[0][key].sum()) == round(share * p.numel())
        assert torch.equal(masks[0][key], ~masks[1][key])
    again = iv.reset(base, 0.5, seed=3).atoms[0].change.mask
    assert torch.equal(again, iv.reset(base, 0.5, seed=3).atoms[0].change.mask)
    assert not torch.equal(again, iv.reset(base, 0.5, seed=4).atoms[0].change.mask)


def test_a_share_of_one_module_of_a_fused_tensor_counts_its_own_entries():
    base = build("phi3")
    edit = iv.reset(base, 0.25, layers=0, modules="v")
    (mask,) = [atom.change.mask for atom in edit]
    assert not mask[:48].any() and int(mask[48:].sum()) == round(0.25 * 16 * 32)


def test_half_by_category_takes_half_of_each_category():
    base = build("llama", num_hidden_layers=4)
    tuned = noisy(base, 0.1)

    def back(**options) -> set[str]:
        with iv.reset(base, 0.5, by="category", **options).applied(tuned):
            after, mine, theirs = state(tuned), state(base), state(noisy(base, 0.1))
        for key, p in after.items():  # whole tensors, or none of it
            assert torch.equal(p, mine[key]) or torch.equal(p, theirs[key])
        return {key for key, p in after.items() if torch.equal(p, mine[key])}

    half, rest = back(seed=2), back(seed=2, complement=True)
    assert not half & rest
    outside = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    assert half | rest == set(state(base)) - outside
    per_mlp = []
    for layer in range(4):
        inside = [key.split(".")[-2] for key in half if f".{layer}." in key]
        assert sum(name in ("q_proj", "k_proj", "v_proj", "o_proj") for name in inside) == 2
        per_mlp.append(sum(name in ("gate_proj", "up_proj", "down_proj") for name in inside))
    assert sorted(per_mlp) == [1, 1, 2, 2]
    assert sum("norm" in key for key in half) == 4  # of two in each of four blocks
    assert back(seed=2) == half and back(seed=5) != half
    assert back(seed=2, layers=[1]) == {key for key in half if ".1." in key}


@pytest.mark.parametrize("name", ["gpt2", "phi3", "mixtral", "deepseek_v3"])
def test_the_halves_by_category_are_disjoint_in_fused_layouts_too(name: str):
    base = build(name, num_hidden_layers=4)
    masks: list[dict[str, Tensor]] = []
    for complement in (False, True):
        edit = iv.reset(base, 0.5, by="category", seed=1, complement=complement)
        empty = {key: torch.zeros_like(p, dtype=torch.bool) for key, p in state(base).items()}
        for atom in edit:
            mask = atom.change.mask
            empty[atom.parameter] |= torch.ones((), dtype=torch.bool) if mask is None else mask
        masks.append(empty)
    for key in state(base):
        inside = any(f".{i}." in key for i in range(4))
        assert not (masks[0][key] & masks[1][key]).any()
        assert bool((masks[0][key] | masks[1][key]).all()) == inside


def test_a_given_mask_says_what_is_reset():
    base = build("llama")
    tuned = noisy(base, 0.1)
    key = "model.layers.1.mlp.up_proj.weight"
    mask = torch.rand(48, 32) < 0.3
    with iv.reset(base, mask={key: mask}).applied(tuned):
        moved = state(tuned)
    theirs = state(tuned)
    expected = {**theirs, key: torch.where(mask, state(base)[key], theirs[key])}
    assert equal(moved, expected)
    with iv.reset(base, mask={key: mask}, complement=True).applied(tuned):
        expected[key] = torch.where(mask, theirs[key], state(base)[key])
        assert equal(state(tuned), expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": 1.5}, "share=1.5: expected a number from 0 to 1"),
        ({"by": "catgory"}, "by='catgory'; nearest valid names: 'category'"),
        ({"by": "category", "share": 0.3}, "so share is 0.5; got 0.3"),
        ({"mask": {"x": torch.ones(1, dtype=torch.bool)}}, "has no parameter 'x'"),
        (
            {"mask": {"model.norm.weight": torch.ones(32)}},
            r"torch.float32 \[32\]; expected torch.bool \[32\]",
        ),
        ({"mask": {}, "layers": [0]}, "leave out share, layers and modules"),
    ],
)
def test_a_reset_that_cannot_be_is_refused(options: dict, text: str):
    with pytest.raises(InterpError, match=text):
        iv.reset(build("llama"), **options)
