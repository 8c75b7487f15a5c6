"""An edit on a model: exact on every architecture, and gone without a trace."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import interp
from interp import Affine, Delta, Dense, Edit, LowRank, Sparse, Towards
from interp._edit.affine import WRITABLE
from interp._hooked import ports_of
from tests.architectures import build
from tests.oracles import plain
from tests.oracles.layout import EVERY


def sites_of(model) -> list[interp.Site]:
    found = []
    for kind in WRITABLE:
        try:
            found += list(ports_of(interp.load(model), kind))
        except interp.UnsupportedSite:
            continue
    return found


@pytest.mark.parametrize("name", EVERY)
def test_an_affine_map_is_the_function_it_names_at_every_site(name, ids) -> None:
    """Against a plain function on the site, for scale and shift over the whole site."""
    model = build(name)
    before = plain.snapshot(model)
    for site in sites_of(model):
        shape = interp.capture(model, ids, site)[site].shape[2:]
        width = shape[1:] if site.kind == "mlp_post" and len(shape) == 2 else shape
        scale, shift = torch.rand(width), torch.randn(width)
        edit = Edit([Affine(site, scale=scale, shift=shift)])
        with interp.hooked(model, {site: lambda x, _s, a=scale, b=shift: a * x + b}):
            expected = plain.logits_of(model, ids)
        with edit.applied(model):
            assert torch.equal(plain.logits_of(model, ids), expected), str(site)
    plain.assert_unchanged(before, model)


@pytest.mark.parametrize("name", EVERY)
def test_chosen_units_change_and_the_others_keep_their_bits(name, ids) -> None:
    model = build(name)
    for site in sites_of(model):
        if site.kind not in ("q", "k", "v", "z", "mlp_post"):
            continue
        plainly = interp.capture(model, ids, site)
        x = plainly[site]
        experts = plainly.expert_ids.get(site)
        index = ((0, 3), (2, 5)) if experts is not None else sorted({0, x.shape[2] - 1})
        with Edit([Affine(site, index, scale=-2.0)]).applied(model):
            y = interp.capture(model, ids, site)[site]
        if experts is not None:
            chosen = torch.zeros_like(x, dtype=torch.bool)
            for expert, neuron in index:
                chosen[..., neuron] |= experts == expert
        else:
            chosen = torch.zeros_like(x, dtype=torch.bool)
            chosen[:, :, list(index)] = True
        assert torch.equal(y, torch.where(chosen, -2 * x, x)), str(site)


@pytest.mark.parametrize("name", EVERY)
def test_a_changed_weight_is_the_weight_changed(name, ids) -> None:
    """Every parameter takes a dense, a sparse and (matrices) a low-rank change."""
    model, twin = build(name), build(name)
    before, logits = plain.snapshot(model), plain.logits_of(model, ids)
    generator = torch.Generator().manual_seed(3)
    atoms = []
    with torch.no_grad():
        for key, parameter in twin.named_parameters():
            noise = 0.05 * torch.randn(parameter.shape, generator=generator)
            atoms.append(Delta(key, noise))
            parameter.copy_(parameter + noise)
            atoms.append(Delta(key, Sparse(torch.tensor([0]), torch.ones(1), tuple(noise.shape))))
            parameter.view(-1)[0] += 1
            if parameter.ndim == 2:
                left = 0.05 * torch.randn(len(noise), 1, generator=generator)
                right = torch.randn(1, noise.shape[1], generator=generator)
                atoms.append(Delta(key, LowRank(left, right)))
                parameter.copy_(torch.addmm(parameter, left, right))
    with Edit(atoms).applied(model):
        assert torch.equal(plain.logits_of(model, ids), plain.logits_of(twin, ids))
    plain.assert_unchanged(before, model)
    assert torch.equal(plain.logits_of(model, ids), logits)


def test_apply_and_undo_in_any_order_that_makes_sense(ids) -> None:
    model = build("llama")
    before, logits = plain.snapshot(model), plain.logits_of(model, ids)
    key = "model.layers.1.mlp.down_proj.weight"
    first = Edit([Delta(key, torch.randn(32, 48)), Affine("z.1", 0, 0.0)])
    second = Edit([Delta(key, torch.randn(32, 48))])
    third = Edit([Affine("z.2", 1, 2.0)])
    for edit in (first, second, third):
        edit.apply_(model)
    with pytest.raises(interp.InterpError, match=r"changed again by a later one.*undo that one"):
        first.undo_(model)
    third.undo_(model)
    second.undo_(model)
    with first.applied(build("llama")):  # another module: nothing to do with this one
        pass
    first.undo_(model)
    plain.assert_unchanged(before, model)
    assert torch.equal(plain.logits_of(model, ids), logits)
    with pytest.raises(interp.InterpError, match="not on this model"):
        first.undo_(model)


def test_a_refused_edit_changes_nothing(ids) -> None:
    model = build("llama")
    before = plain.snapshot(model)
    good = Delta("model.layers.1.mlp.down_proj.weight", torch.ones(32, 48))
    for bad, words in [
        (Delta("model.layers.1.mlp.dwn_proj.weight", torch.ones(32, 48)), r"no param.*down_proj"),
        (Delta("lm_head.weight", torch.ones(3, 3)), r"\[97, 32\] here and \[3, 3\] in the edit"),
        (Affine("z.9", 0, 0.0), "layers 0 to 2"),
        (Affine("mlp_post.1", ((0, 1),), 0.0), None),
    ]:  # fmt: skip
        with pytest.raises(interp.InterpError, match=words), Edit([good, bad]).applied(model):
            plain.logits_of(model, ids)
        plain.assert_unchanged(before, model)


@pytest.mark.parametrize(
    ("name", "atom", "words"),
    [
        ("llama", Affine("z.1", 4, 0.0), "z.1 has heads 0 to 3, and the edit names head 4"),
        ("llama", Affine("mlp_post.1", 48, 0.0), "neurons 0 to 47, and the edit names neuron 48"),
        ("llama", Affine("mlp_post.1", ((0, 1),), 0.0), "dense here, so its neurons are numbers"),
        ("olmoe", Affine("mlp_post.1", 3, 0.0), "mixture of 4 experts"),
        ("olmoe", Affine("mlp_post.1", ((4, 0),), 0.0), "experts 0 to 3"),
        ("llama", Affine("z.1", 0, shift=torch.ones(5)), r"\[batch pos 4 8\]"),
        ("llama", Affine("resid_post.1", shift=torch.ones(5)), r"\[batch pos 32\]"),
        ("gpt_neox", Affine("resid_mid.1", scale=0.0), "in parallel"),
    ],
)
def test_units_and_widths_are_checked_against_the_model(name, atom, words, ids) -> None:
    model = build(name)
    with pytest.raises(interp.InterpError, match=words), Edit([atom]).applied(model):
        plain.logits_of(model, ids)


def test_gradients_flow_through_an_edit(ids) -> None:
    """d loss / d weight below the edit, against the same edit written into the forward by hand."""
    model = build("llama")
    edit = Edit([Affine("resid_post.1", scale=0.5, shift=torch.ones(32))])
    weight = model.model.layers[0].mlp.down_proj.weight
    with edit.applied(model):
        (given,) = torch.autograd.grad(model(ids).logits.logsumexp(-1).sum(), weight)
    with interp.hooked(model, {"resid_post.1": lambda x, _s: 0.5 * x + 1}):
        (expected,) = torch.autograd.grad(model(ids).logits.logsumexp(-1).sum(), weight)
    assert torch.equal(given, expected)


def test_a_backward_after_a_weight_edit_has_gone_is_refused_by_torch(ids) -> None:
    """Silent wrong gradients would be worse: the saved weight is no longer there."""
    model = build("llama")
    with Edit([Delta("lm_head.weight", torch.ones(97, 32))]).applied(model):
        loss = model(ids).logits.sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_tied_tensor_moves_at_both_ends_and_untied_at_one(ids) -> None:
    model = build("gpt2", tie_word_embeddings=True)
    assert model.lm_head.weight is model.transformer.wte.weight
    change = 0.3 * torch.randn(97, 32)
    twin = build("gpt2", tie_word_embeddings=True)
    with torch.no_grad():
        twin.transformer.wte.weight.add_(change)
    both = plain.logits_of(twin, ids)
    for name in ("lm_head.weight", "transformer.wte.weight"):
        with Edit([Delta(name, change)]).applied(model):
            torch.testing.assert_close(plain.logits_of(model, ids), both)
    one = build("gpt2", tie_word_embeddings=True)
    one.lm_head.weight = nn.Parameter(one.transformer.wte.weight.detach() + change)
    with Edit([Delta("lm_head.weight", change, untie=True)]).applied(model):
        torch.testing.assert_close(plain.logits_of(model, ids), plain.logits_of(one, ids))
    one = build("gpt2", tie_word_embeddings=True)
    one.lm_head.weight = nn.Parameter(one.transformer.wte.weight.detach().clone())
    with torch.no_grad():
        one.transformer.wte.weight.add_(change)
    low = LowRank(change, torch.eye(32))
    with Edit([Delta("transformer.wte.weight", low, untie=True)]).applied(model):
        torch.testing.assert_close(
            plain.logits_of(model, ids), plain.logits_of(one, ids), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_an_untied_embedding_moves_as_its_own_module_reads_it(name: str, kind: str, ids) -> None:
    """Gemma's embedding multiplies by sqrt(d_model) itself; beside a copy whose ends are apart."""
    module = build(name)
    module.config.tie_word_embeddings = True
    module.tie_weights()
    embedding = module.get_input_embeddings()
    key = next(n for n, p in module.named_parameters() if p is embedding.weight)
    rows, width = embedding.weight.shape
    change = Dense(0.1 * torch.randn(rows, width))
    if kind == "low rank":
        change = LowRank(0.1 * torch.randn(rows, 2), torch.randn(2, width))
    apart = copy.deepcopy(module)
    apart.config.tie_word_embeddings = False
    apart.lm_head.weight = torch.nn.Parameter(apart.lm_head.weight.detach().clone())
    with torch.no_grad():
        moved = change.applied_to(embedding.weight.detach())
        apart.get_input_embeddings().weight.copy_(moved)
        wanted = apart(ids).logits
        with Edit([Delta(key, change, untie=True)]).applied(interp.load(module)):
            torch.testing.assert_close(module(ids).logits, wanted)


def test_untying_what_is_not_tied_is_nothing(ids) -> None:
    """Norms, biases and matrices of their own are changed where they stand."""
    module = build("gpt2")
    names = ("transformer.h.0.ln_1.weight", "transformer.h.1.mlp.c_fc.bias",
             "transformer.h.1.attn.c_proj.weight")  # fmt: skip
    for name in names:
        change = Dense(0.1 * torch.randn(module.get_parameter(name).shape))
        found = []
        for untie in (False, True):
            with Edit([Delta(name, change, untie=untie)]).applied(interp.load(module)):
                found.append(module(ids).logits)
        assert torch.equal(*found)


def test_an_untied_change_comes_before_every_hook(ids) -> None:
    """Deltas act on the weights, affines on what follows, also when the affine came first."""
    model = build("gpt2", tie_word_embeddings=True)
    low = LowRank(torch.randn(97, 1), torch.randn(1, 32))
    apart = build("gpt2", tie_word_embeddings=True)
    apart.lm_head.weight = nn.Parameter(apart.transformer.wte.weight.detach().clone())
    with torch.no_grad():
        apart.transformer.wte.weight.copy_(low.applied_to(apart.transformer.wte.weight.detach()))
    with Edit([Affine("embed", scale=0.5)]).applied(apart):
        expected = plain.logits_of(apart, ids)
    with (
        Edit([Affine("embed", scale=0.5)]).applied(model),
        Edit([Delta("transformer.wte.weight", low, untie=True)]).applied(model),
    ):
        torch.testing.assert_close(plain.logits_of(model, ids), expected, rtol=1e-4, atol=1e-4)


def test_offloaded_weights_take_low_rank_changes(ids, tmp_path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = build("llama")
    key = "model.layers.1.mlp.down_proj.weight"
    change = LowRank(torch.randn(32, 2), 0.1 * torch.randn(2, 48))
    with Edit([Delta(key, change)]).applied(model):
        expected = plain.logits_of(model, ids)
    model = accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    base = plain.logits_of(model, ids)
    with Edit([Delta(key, change)]).applied(model):
        torch.testing.assert_close(plain.logits_of(model, ids), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(plain.logits_of(model, ids), base)
    with (
        pytest.raises(interp.InterpError, match="low-rank or dense change of a whole matrix"),
        Edit([Delta(key, Towards(torch.ones(32, 48)))]).applied(model),
    ):
        pass


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_model_that_peft_has_wrapped_is_edited_under_its_plain_names(ids) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    model = peft.get_peft_model(build("llama"), config).eval()
    torch.manual_seed(1)
    merged = peft.get_peft_model(build("llama"), config).eval().merge_and_unload()
    change = 0.1 * torch.randn(32, 32)
    edit = Edit([Delta("model.layers.1.self_attn.q_proj.weight", change), Affine("z.1", 2, 0.0)])
    logits = model(ids).logits
    with edit.applied(model), edit.applied(merged), torch.no_grad():
        torch.testing.assert_close(model(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
        new = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert torch.equal(
            new, merged.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        )
    assert torch.equal(model(ids).logits, logits)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(build("llama"), config)
    with (
        pytest.raises(interp.InterpError, match=r"modules_to_save.*merge"),
        Edit([Delta("lm_head.weight", torch.ones(97, 32))]).applied(model),
    ):
        pass


def test_an_edit_left_on_a_model_does_not_keep_it_alive() -> None:
    model = build("llama")
    Edit(
        [Affine("z.1", 0, 0.0, positions="last"), Delta("lm_head.weight", torch.ones(97, 32))]
    ).apply_(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_bfloat16_activations_round_once(ids) -> None:
    model = build("llama", dtype=torch.bfloat16)
    x = interp.capture(model, ids, "resid_post.1")["resid_post.1"]
    shift, scale = torch.randn(32), torch.rand(32)
    with Edit([Affine("resid_post.1", scale=scale, shift=shift)]).applied(model):
        y = interp.capture(model, ids, "resid_post.1")["resid_post.1"]
    assert torch.equal(y, (scale * x.float() + shift).bfloat16())


def test_dropout_and_training_mode_are_left_alone(ids) -> None:
    model = build("llama").train()
    with Edit([Affine("z.1", 0, 0.0)]).applied(model):
        assert model.training and all(m.training for m in model.modules())
