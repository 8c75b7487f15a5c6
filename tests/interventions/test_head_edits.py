"""Gated edits of heads: gates against Monte-Carlo, gradients, planted heads, hooked == baked."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor

import interp
import interventions as iv
from interp import InterpError
from interventions import _hard_concrete as gates
from interventions import _head_edits
from interventions._examples import completion_loss, encode
from interventions._gated_heads import GatedHeads
from interventions._head_edits import SCHEDULES, _check, _schedule
from tests.architectures import build
from tests.oracles.tokenizers import byte_level

PAIRS = [("ab", " cd"), ("b", " a"), ("cab", " d d"), ("da", " b"), ("aa", " c"), ("bd", " a c")]


def model_of(name: str = "llama", **overrides: object) -> interp.Model:
    tokenizer = byte_level()
    return interp.load(
        build(name, vocab_size=max(97, len(tokenizer)), **overrides), tokenizer=tokenizer
    )


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_gates_have_the_moments_that_their_formulas_say():
    """P(g != 0) and the mean, from two hundred thousand draws a gate."""
    log_alpha = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0])
    uniform = torch.rand(200_000, 6, generator=torch.Generator().manual_seed(1))
    drawn = gates.sample(log_alpha.expand_as(uniform), uniform)
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    torch.testing.assert_close(
        (drawn > 0).float().mean(0), gates.open_probability(log_alpha), atol=4e-3, rtol=0
    )
    # What the research notes measured for the mean of a gate, and for its settled value.
    wanted = torch.tensor([0.124, 0.275, 0.501, 0.724, 0.875])
    torch.testing.assert_close(drawn[:, 1:].mean(0), wanted, atol=4e-3, rtol=0)
    settled = torch.tensor([0.043, 0.223, 0.500, 0.777, 0.957])
    torch.testing.assert_close(gates.settled(log_alpha[1:]), settled, atol=6e-4, rtol=0)
    closed, open_ = gates.settled(torch.tensor([-2.3980, -2.3970]))
    assert float(closed) == 0.0 < float(open_)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
def test_it_begins_as_no_edit_and_ends_with_the_model_as_it_was(name: str):
    model = model_of(name)
    before = state(model.module)
    ids = model.batch([prompt for prompt, _ in PAIRS])
    example = encode(model, PAIRS[:1], end=True)
    gated = GatedHeads.on(model, example, 0.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.module(**ids.inputs).logits
        with interp.hooked(model, dict.fromkeys(gated.layers, gated.noisy)):
            assert torch.equal(model.module(**ids.inputs).logits, plain)
    assert gated.atoms() == []
    wanted = {n: p.requires_grad for n, p in model.module.named_parameters()}
    iv.learn_head_edits(model, PAIRS, epochs=1, batch_size=3, price=0)
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    assert {n: p.requires_grad for n, p in model.module.named_parameters()} == wanted
    assert all(p.grad is None for p in model.module.parameters())


def test_gradients_agree_with_finite_differences():
    model = interp.load(build("gpt2", dtype=torch.float64))  # Llama norms in float32
    example = [encode_ids((5, 6, 7), (8, 9))]
    gated = GatedHeads.on(model, example, 0.3, torch.Generator().manual_seed(3))
    uniform = torch.rand(2, 64, generator=torch.Generator().manual_seed(4))

    def loss() -> Tensor:
        def fixed(z: Tensor, site: interp.Site) -> Tensor:
            layer = gated.layers[site]
            heads = len(layer.additive)
            drawn = gates.sample(
                torch.stack([layer.additive, layer.multiplicative]), uniform[:, :heads]
            )
            scale = 1 + drawn[1][:, None] * layer.factor
            return z * scale.double() + (drawn[0][:, None] * layer.shift).double()

        with interp.hooked(model, dict.fromkeys(gated.layers, fixed)):
            return completion_loss(model, example)

    for site in gated.layers:  # doubles, so that differences resolve
        layer = gated.layers[site]
        for field in ("shift", "factor", "additive", "multiplicative"):
            setattr(layer, field, getattr(layer, field).detach().double().requires_grad_())
    uniform = uniform.double()
    gradients = torch.autograd.grad(loss(), gated.parameters)
    generator = torch.Generator().manual_seed(5)
    checked = 0
    for tensor, gradient in zip(gated.parameters, gradients, strict=True):
        at = int(torch.randint(tensor.numel(), (1,), generator=generator))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.view(-1)[at] += sign * 1e-5
                values.append(float(loss()))
                tensor.view(-1)[at] -= sign * 1e-5
        slope = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close(
            gradient.reshape(-1)[at], torch.tensor(slope).double(), atol=1e-7, rtol=1e-4
        )
        checked += abs(slope) > 1e-6
    assert checked >= 4


def encode_ids(prompt: tuple[int, ...], completion: tuple[int, ...]) -> object:
    from interventions._examples import Encoded

    return Encoded(prompt, completion)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_edit_is_what_was_learned_and_bakes(name: str):
    """Applied, baked, and by the formula on z: the same logits."""
    model = model_of(name)
    options = {"epochs": 8, "batch_size": 6, "lr": 2e-2, "gate_lr": 1.0, "warmup": 1}
    found = iv.find_head_edits(model, PAIRS, price=0.5, **options)
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    ids = model.batch([prompt for prompt, _ in PAIRS])
    with torch.no_grad():
        plain = model.module(**ids.inputs).logits
        with found.edit.applied(model):
            hooked = model.module(**ids.inputs).logits
        baked = interp.bake(model, found.edit)(**ids.inputs).logits
    assert not torch.equal(hooked, plain)
    torch.testing.assert_close(baked, hooked, atol=2e-5, rtol=1e-5)
    named = {(a.site.layer, h) for a in found.edit.affines for h in a.index or ()}
    assert named <= set(found.heads)


@pytest.mark.parametrize("how", [{}, {"schedule": "rising", "start": 2.0}])
def test_planted_heads_are_found_and_the_others_closed(how: dict[str, object]):
    """Only three heads reach the residual stream, so that an edit of any other is worth nothing."""
    model = model_of(num_hidden_layers=3)
    planted = {(0, 2), (1, 0), (2, 3)}
    d_head = model.module.config.hidden_size // 4
    with torch.no_grad():
        for layer, block in enumerate(model.module.model.layers):
            for head in range(4):
                if (layer, head) not in planted:
                    columns = slice(head * d_head, (head + 1) * d_head)
                    block.self_attn.o_proj.weight[:, columns] = 0
    options = {"epochs": 120, "batch_size": 6, "lr": 0.1, "warmup": 1} | how
    found = iv.find_head_edits(model, PAIRS, price=1.0, **options)
    assert found.heads
    share = len(planted & set(found.heads)) / len(found.heads)
    assert share >= 0.8, found.table()
    free = iv.find_head_edits(model, PAIRS, price=0.0, **options)
    assert len(free.heads) > len(found.heads)  # without a price nothing closes them
    assert len(free.heads) == 12


def test_gates_move_at_their_own_rate():
    """AdamW moves a number by its rate a step: slow gates stay open, quick ones close."""
    model = model_of()
    options = {"epochs": 8, "batch_size": 6, "lr": 5e-3, "warmup": 1, "price": 5.0}
    # The cosine falls after one step of eight: 1 + 4 steps of full rate in all.
    with pytest.warns(UserWarning, match=r"add up to 0.02\d* over 8 steps.*closes after 2.4: few"):
        slow = iv.find_head_edits(model, PAIRS, gate_lr=5e-3, **options)
    quick = iv.find_head_edits(model, PAIRS, gate_lr=1.0, **options)
    assert len(slow.heads) == 12 > len(quick.heads)
    with pytest.warns(UserWarning, match="closes after 4.4"):
        iv.find_head_edits(model, PAIRS, gate_lr=0.5, start=2.0, **options)


def test_by_default_a_high_price_closes_every_gate():
    data = [(f"a{letter}", " b") for letter in "abcdefgh"] * 5
    found = iv.find_head_edits(model_of(), data, price=1000.0)
    assert found.heads == []  # 100 steps of .1, half of that under the cosine


def test_gates_start_where_they_are_told_and_each_goes_its_own_way():
    model = model_of()
    example = encode(model, PAIRS[:1], end=True)
    gated = GatedHeads.on(model, example, 0.0, torch.Generator().manual_seed(0), 2.0)
    drawn = GatedHeads.on(model, example, 0.0, torch.Generator().manual_seed(0))
    for site, layer in gated.layers.items():
        assert bool((layer.additive == 2).all() & (layer.multiplicative == 2).all())
        by_chance = torch.cat([drawn.layers[site].additive, drawn.layers[site].multiplicative])
        assert len(set(by_chance.tolist())) == 8
        assert float(by_chance.detach().abs().max()) <= (6 / 5) ** 0.5  # Xavier's, for [4 1]
    found = iv.find_head_edits(
        model, PAIRS, start=2.0, epochs=4, batch_size=6, lr=5e-2, warmup=1, price=0
    )
    assert len(set(found.additive.flatten().tolist())) > 1
    assert not torch.equal(found.additive, found.multiplicative)
    assert found.meta["start"] == 2.0


def test_dev_ends_training_and_chooses():
    model = model_of()
    found = iv.find_head_edits(
        model, PAIRS[:3], PAIRS[3:], epochs=30, batch_size=3, lr=5e-2, gate_lr=0.3,
        warmup=1, patience=2,
    )  # fmt: skip
    losses = [row["dev"] for row in found.history]
    best = int(torch.tensor(losses).argmin())
    assert found.meta["best epoch"] == best
    assert len(losses) == min(30, best + 3)
    held_out = encode(model, PAIRS[3:], end=True)
    with torch.no_grad():
        from interventions._examples import mean_loss

        assert found.meta["dev at the start"] == pytest.approx(mean_loss(model, held_out), rel=1e-5)
        with found.edit.applied(model):
            reached = mean_loss(model, held_out)
    assert reached == pytest.approx(losses[best], rel=1e-4)


def test_schedules_are_the_papers():
    model = model_of()
    heads = 4
    additive, multiplicative = _schedule("exponential", 9.0, model, 900)(500)
    assert additive == pytest.approx(0.1 * 0.00674 / heads, rel=1e-3)
    assert multiplicative == pytest.approx((1 - 0.1 * 0.00674) / heads, rel=1e-3)
    assert _schedule("constant", 0.3, model, 100)(77) == (0.3, 0.3)
    rising = _schedule("rising", 0.3, model, 100)
    assert rising(0) == (0.0, 0.0)
    assert rising(35) == pytest.approx((0.15, 0.15))
    assert rising(70) == rising(99) == (0.3, 0.3)
    assert SCHEDULES["linear"](1.0, 0.0, 0) == (0.0, 1.0)
    assert SCHEDULES["cyclic"](1.0, 0.5, 5)[0] == pytest.approx(1.0)
    assert _schedule(lambda step: (step, 2.0), 0.0, model, 9)(3) == (3, 2.0)


def test_no_epoch_is_chosen_while_the_price_rises():
    """Every epoch before has its gates open and costs less on dev; none is kept or ends it."""
    model = model_of()
    options = {"epochs": 20, "batch_size": 3, "lr": 5e-2, "gate_lr": 1.0, "warmup": 1}
    found = iv.find_head_edits(
        model, PAIRS[:3], PAIRS[:3], price=200.0, schedule="rising", patience=2, **options
    )
    losses = [row["dev"] for row in found.history]
    best = found.meta["best epoch"]
    assert min(losses[:13]) < losses[best]  # patience and choice would both have ended there
    assert best >= 13 and losses[best] == min(losses[13:])  # epoch 13 ends at .7 of the steps
    opened = found.history[best]["open additive"] + found.history[best]["open multiplicative"]
    assert (
        opened < 24 == found.history[0]["open additive"] + found.history[0]["open multiplicative"]
    )


def test_gates_come_back_from_disk(tmp_path: Path):
    found = iv.find_head_edits(model_of(), PAIRS, epochs=1, batch_size=6, price=0)
    again = iv.HeadGates.load(found.save(tmp_path / "gates"))
    assert again.edit == found.edit
    assert torch.equal(again.additive, found.additive)
    assert again.history == found.history
    assert repr(again) == repr(found)
    later = iv.find_head_edits(model_of(), PAIRS, epochs=2, batch_size=6, price=0)
    assert iv.HeadGates.load(later.save(tmp_path / "gates")).edit == later.edit != found.edit
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    with pytest.raises(InterpError, match="holds other files"):
        found.save(tmp_path / "notes")
    axes = found.plot()
    assert axes.get_xlabel() == "head"
    assert len(found.table()) == 12
    meta = tmp_path / "gates" / "gates" / "meta.json"
    meta.write_text(meta.read_text().replace('"history"', '"histories"'))
    with pytest.raises(InterpError, match="damaged: it lacks 'history'; learn it anew"):
        iv.HeadGates.load(tmp_path / "gates")


def test_what_cannot_be_learned_is_said():
    model = model_of()
    with pytest.raises(InterpError, match="6 examples and a batch has 8 rows"):
        iv.learn_head_edits(model, PAIRS)
    with pytest.raises(InterpError, match=r"schedule='exponental'.*exponential"):
        iv.learn_head_edits(model, PAIRS, batch_size=3, schedule="exponental")
    with pytest.raises(InterpError, match="epochs=0"):
        iv.learn_head_edits(model, PAIRS, batch_size=3, epochs=0)
    with pytest.raises(InterpError, match=r"schedule=3; .*or a function of the step"):
        _check(3, 0.1)
    with pytest.raises(InterpError, match=r"gave 0.5 at step 0; expected two prices"):
        _schedule(lambda step: 0.5, 0.0, model, 9)(0)  # type: ignore[arg-type, return-value]
    with torch.no_grad():
        model.module.model.norm.weight[0] = torch.nan
    with pytest.raises(InterpError, match="not finite in step 1, in the first epoch, at lr="):
        iv.learn_head_edits(model, PAIRS, batch_size=3, price=0)


def test_a_loss_that_is_lost_later_ends_the_training_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
):
    """Twelve steps of two an epoch; the seventh is the first whose loss is NaN."""
    taken: list[float] = []

    original = _head_edits._step

    def step(*given: object) -> float:
        taken.append(original(*given) if len(taken) < 6 else float("nan"))
        return taken[-1]

    monkeypatch.setattr(_head_edits, "_step", step)
    with pytest.warns(UserWarning, match=r"not finite in step 7 at lr=.*epoch 2 is returned"):
        found = iv.find_head_edits(model_of(), PAIRS, epochs=6, batch_size=3, price=0)
    assert "step 7" in found.meta["stopped"]
    assert len(found.history) == 3


def test_both_verbs_take_the_same() -> None:
    one, other = (inspect.signature(f) for f in (iv.learn_head_edits, iv.find_head_edits))
    assert one.parameters == other.parameters
