"""Masked tuning: equal to AdamW on a full copy whose other entries are held, state only inside."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import interp
import interventions as iv
from interp import InterpError
from tests.architectures import build
from tests.oracles.tokenizers import byte_level

DOWN = "model.layers.1.mlp.down_proj.weight"
PAIRS = [("ab", " cd"), ("b", " a"), ("cab", " d d"), ("da", " b"), ("aa", " c"), ("bd", " a c")]


def model_of(name: str = "llama", **overrides: object) -> interp.Model:
    tokenizer = byte_level()
    module = build(name, vocab_size=max(97, len(tokenizer)), **overrides)
    return interp.load(module, tokenizer=tokenizer)


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def loss_by_hand(
    module: PreTrainedModel, tokenizer: object, pairs: list[tuple[str, str]]
) -> Tensor:
    """Example by example, without padding or batches."""
    total, count = torch.zeros(()), 0
    for prompt, completion in pairs:
        before = tokenizer(prompt)["input_ids"]  # type: ignore[operator]
        whole = tokenizer(prompt + completion)["input_ids"]  # type: ignore[operator]
        if tokenizer.eos_token_id is not None:  # type: ignore[attr-defined]
            whole = [*whole, tokenizer.eos_token_id]  # type: ignore[attr-defined]
        logprobs = module(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)
        for at in range(len(before), len(whole)):
            total = total - logprobs[at - 1, whole[at]]
            count += 1
    return total / count


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_it_is_adamw_with_the_other_entries_held(name: str):
    """The same steps by torch's own AdamW on all weights, every other entry put back each time."""
    model = model_of(name)
    module = model.module
    mask = iv.masks.random_mask(model, share=0.3, seed=1)
    before = state(module)
    options = {"steps": 4, "rows": 6, "lr": 1e-2, "warmup": 0.0, "weight_decay": 0.1}
    edit = iv.masked_tune(model, PAIRS, mask, clip=None, **options)
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())

    inside = {n: mask.dense(n) if n in mask.index else torch.zeros_like(p).bool()
              for n, p in module.named_parameters()}  # fmt: skip
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (4 - step) / 4)
        optimizer.zero_grad()
        loss_by_hand(module, model.tokenizer, PAIRS).backward()
        optimizer.step()
        with torch.no_grad():
            for n, p in module.named_parameters():
                p.copy_(torch.where(inside[n], p, before[n]))
    wanted = state(module)
    with torch.no_grad():
        for n, p in module.named_parameters():
            p.copy_(before[n])
    with edit.applied(model):
        for n, p in module.named_parameters():
            torch.testing.assert_close(p.detach(), wanted[n], atol=2e-5, rtol=1e-4)
            assert torch.equal(p[~inside[n]], before[n][~inside[n]])
    assert {d.parameter for d in edit.deltas} <= set(mask.index)


def test_state_is_kept_for_the_mask_alone(monkeypatch: pytest.MonkeyPatch):
    """Two numbers an entry chosen, and no gradient of a whole matrix outlives its layer."""
    model = model_of()
    mask = iv.masks.random_mask(model, lora_rank=1, modules=("up", "down"))
    seen: dict[str, int] = {}
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *arguments: object) -> object:
        result = step(self, *arguments)
        seen["state"] = sum(
            tensor.numel()
            for entry in self.state.values()
            for key, tensor in entry.items()
            if key != "step"
        )
        seen["gradients"] = sum(p.grad is not None for p in model.module.parameters())
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    iv.masked_tune(model, PAIRS, mask, steps=2, rows=3)
    assert seen == {"state": 2 * mask.count, "gradients": 0}


def test_it_learns_and_dev_chooses_the_step():
    model = model_of()
    mask = iv.masks.module_mask(model, modules="mlp")
    edit = iv.masked_tune(model, PAIRS, mask, steps=40, rows=6, lr=1e-2)
    history = edit.notes["masked_tune"]["history"]
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    kept = iv.masked_tune(
        model, PAIRS[:3], mask, steps=40, rows=3, lr=1e-2, dev=PAIRS[3:], dev_every=5
    )
    note = kept.notes["masked_tune"]
    seen = {row["step"]: row["dev"] for row in note["history"] if "dev" in row}
    assert note["best step"] == 0 or seen[note["best step"]] == min(seen.values())
    with torch.no_grad(), kept.applied(model):
        reached = float(loss_by_hand(model.module, model.tokenizer, PAIRS[3:]))
    if note["best step"]:
        assert reached == pytest.approx(min(seen.values()), rel=1e-4)


def test_a_mask_made_anew_keeps_the_state_of_what_stays():
    """With a mask that never changes, making it anew changes nothing."""
    model = model_of()
    mask = iv.masks.random_mask(model, share=0.2, seed=2)
    options = {"steps": 6, "rows": 3, "lr": 1e-2, "seed": 4}
    once = iv.masked_tune(model, PAIRS, mask, **options)
    anew = iv.masked_tune(model, PAIRS, lambda _: mask, remask=2, **options)
    for a, b in zip(once.deltas, anew.deltas, strict=True):
        assert torch.equal(a.change.tensors()["index"], b.change.tensors()["index"])
        torch.testing.assert_close(a.change.tensors()["values"], b.change.tensors()["values"])


def test_entries_that_left_the_mask_keep_what_they_learned():
    model = model_of()
    masks = iter([iv.masks.random_mask(model, share=0.2, seed=s, modules="down") for s in (1, 2)])
    drawn = []

    def draw(_: interp.Model) -> iv.WeightMask:
        drawn.append(next(masks))
        return drawn[-1]

    before = state(model.module)
    edit = iv.masked_tune(model, PAIRS, draw, remask=3, steps=6, rows=3, lr=1e-2)
    union = drawn[0] | drawn[1]
    moved = {d.parameter: d.change.tensors()["index"] for d in edit.deltas}
    assert len(drawn) == 2
    for name, places in moved.items():
        assert bool(torch.isin(places, union.index[name]).all())
        assert bool(torch.isin(drawn[0].index[name], places).float().mean() > 0.9)
        assert bool(torch.isin(drawn[1].index[name], places).float().mean() > 0.9)
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())


def test_a_loss_that_is_lost_ends_it_and_keeps_what_was_reached():
    model = model_of()
    mask = iv.masks.module_mask(model, modules="down")
    before = state(model.module)
    with pytest.warns(UserWarning, match=r"is nan in step \d+ at lr=1e\+37|not finite in step"):
        edit = iv.masked_tune(model, PAIRS, mask, steps=9, rows=3, lr=1e37, clip=None)
    note = edit.notes["masked_tune"]
    assert note["stopped"] and len(note["history"]) == int(note["stopped"].split("step ")[1][0]) - 2
    with torch.no_grad(), edit.applied(model):
        assert bool(loss_by_hand(model.module, model.tokenizer, PAIRS).isfinite())
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    draws = iter(range(1, 9))
    with pytest.warns(UserWarning, match="before the last step is returned"):
        anew = iv.masked_tune(
            model, PAIRS, lambda m: iv.masks.random_mask(m, share=0.9, seed=next(draws)),
            remask=1, steps=9, rows=3, lr=1e37, clip=None,
        )  # fmt: skip
    with torch.no_grad(), anew.applied(model):
        assert bool(loss_by_hand(model.module, model.tokenizer, PAIRS).isfinite())
    with torch.no_grad():
        model.module.get_parameter(DOWN)[0, 0] = torch.nan
    with pytest.raises(InterpError, match="before anything was learned; look for NaN"):
        iv.masked_tune(model, PAIRS, mask, steps=2, rows=3)


def test_the_model_comes_back_after_an_exception():
    model = model_of()
    model.module.get_parameter(DOWN).requires_grad_(False)
    wanted = {n: p.requires_grad for n, p in model.module.named_parameters()}
    before = state(model.module)
    calls = iter(range(99))

    def failing(handle: interp.Model) -> iv.WeightMask:
        if next(calls):
            raise RuntimeError("no")
        return iv.masks.module_mask(handle, modules="down")

    with pytest.raises(RuntimeError, match="no"):
        iv.masked_tune(model, PAIRS, failing, remask=1, steps=3, rows=3, lr=1e-2)
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    assert {n: p.requires_grad for n, p in model.module.named_parameters()} == wanted
    assert all(p.grad is None for p in model.module.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.module.parameters())


def test_gradients_of_the_user_stay_and_do_no_harm():
    model = model_of()
    mask = iv.masks.random_mask(model, share=0.2, seed=1)
    options = {"steps": 2, "rows": 6, "lr": 1e-2}
    clean = iv.masked_tune(model, PAIRS, mask, **options)
    for parameter in model.module.parameters():
        parameter.grad = 1000 * torch.ones_like(parameter)
    held = {n: p.grad for n, p in model.module.named_parameters()}
    again = iv.masked_tune(model, PAIRS, mask, **options)
    for a, b in zip(clean.deltas, again.deltas, strict=True):
        assert torch.equal(a.change.tensors()["values"], b.change.tensors()["values"])
    for name, parameter in model.module.named_parameters():
        assert parameter.grad is held[name]
        assert bool((parameter.grad == 1000).all())  # type: ignore[union-attr]


def test_what_cannot_be_tuned_is_said():
    model = model_of()
    mask = iv.masks.module_mask(model, modules="down")
    with pytest.raises(InterpError, match="6 examples and a batch has 7 rows; lower rows"):
        iv.masked_tune(model, PAIRS, mask, rows=7)
    with pytest.raises(InterpError, match="no examples"):
        iv.masked_tune(model, [], mask)
    with pytest.raises(InterpError, match="made for another model"):
        iv.masked_tune(model_of(intermediate_size=64), PAIRS, mask, rows=2)
    with pytest.raises(InterpError, match="no parameter"):
        iv.masked_tune(model_of("gpt2"), PAIRS, mask, rows=2)
    with pytest.raises(InterpError, match="chooses no entry"):
        iv.masked_tune(model, PAIRS, mask & iv.masks.module_mask(model, modules="q"), rows=2)
    with pytest.raises(InterpError, match="give at least 1, and as mask a function"):
        iv.masked_tune(model, PAIRS, mask, rows=2, remask=5)
    tied = model_of("gpt2")
    both = {n: tied.module.get_parameter(n).shape for n in ("transformer.wte.weight",)}
    both["lm_head.weight"] = both["transformer.wte.weight"]
    ends = iv.WeightMask.of({n: torch.ones(shape).bool() for n, shape in both.items()})
    with pytest.raises(InterpError, match="are one tensor here, and the mask names both"):
        iv.masked_tune(tied, PAIRS, ends, rows=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iv.masked_tune(model, PAIRS, mask, rows=2, steps=1)


def test_a_round_may_train_other_parameters():
    """Half fine-tuning: another half each round; what a round freezes stays as the last left it."""
    model = model_of()
    before = state(model.module)
    drawn: list[iv.WeightMask] = []
    between: dict[str, Tensor] = {}

    def draw(handle: interp.Model) -> iv.WeightMask:
        drawn.append(iv.masks.half_mask(handle, seed=len(drawn)))
        between.update(state(handle.module))
        return drawn[-1]

    edit = iv.masked_tune(model, PAIRS, draw, remask=2, steps=4, rows=3, lr=1e-2)
    assert len(drawn) == 2
    first, second = (set(mask.index) for mask in drawn)
    assert first - second and second - first
    with edit.applied(model):
        after = state(model.module)
    for name in first - second:
        assert not torch.equal(between[name], before[name])
        torch.testing.assert_close(after[name], between[name], atol=1e-6, rtol=0)
    for name in second - first:
        assert torch.equal(between[name], before[name])
        assert not torch.equal(after[name], before[name])
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.module.parameters())


def test_a_prior_bends_every_gradient_as_the_formula_says(monkeypatch: pytest.MonkeyPatch):
    """One step of plain descent by hand: g - a |g| D / |D|, which moves along +D."""
    model = model_of()
    mask = iv.masks.random_mask(model, share=0.3, modules="down", seed=1)
    module = model.module
    other = build("llama", vocab_size=module.config.vocab_size, seed=5)
    prior = iv.Edit(
        [
            iv.Delta(n, interp.Dense(p.detach().clone()))
            for n, p in other.named_parameters()
            if "down" in n
        ]
    )
    seen: dict[str, Tensor] = {}

    def step(self: torch.optim.AdamW, *_: object) -> None:
        seen.update(enumerate(p.grad.clone() for p in self.param_groups[0]["params"]))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    options = {"steps": 1, "rows": 6, "clip": None}
    iv.masked_tune(model, PAIRS, mask, **options)
    plain = dict(seen)
    iv.masked_tune(model, PAIRS, mask, prior=prior, pull=0.7, **options)
    for i, name in enumerate(mask.index):
        g = plain[i]
        towards = other.get_parameter(name).detach().flatten()[mask.index[name]]
        cosine = torch.nn.functional.cosine_similarity(g, towards, dim=0)
        wanted = g - 0.7 * (1 + cosine) / 2 * g.norm() * towards / towards.norm()
        torch.testing.assert_close(seen[i], wanted)
        assert -seen[i] @ towards > -g @ towards  # descent goes further along +D
    with pytest.raises(InterpError, match="none of the parameters that the mask names"):
        iv.masked_tune(model, PAIRS, iv.masks.module_mask(model, modules="q"), prior=prior, rows=3)
    with pytest.raises(InterpError, match="prior changes activations"):
        steered = iv.steer("resid_post.0", torch.ones(module.config.hidden_size))
        iv.masked_tune(model, PAIRS, mask, prior=steered, rows=3)
    with pytest.raises(InterpError, match="another model"):
        iv.masked_tune(model_of(intermediate_size=64), PAIRS, iv.masks.module_mask(
            model_of(intermediate_size=64), modules="down"), prior=prior, rows=3)  # fmt: skip


def test_a_ticket_is_where_the_whole_tuning_went():
    """LT-SFT: tune everything, keep the entries that moved most, tune those from the start."""
    model = model_of()
    whole = iv.masked_tune(
        model, PAIRS, iv.masks.module_mask(model), steps=3, rows=6, lr=1e-2, seed=1
    )
    assert whole.notes["masked_tune"]["state bytes"] >= 8 * whole.notes["masked_tune"]["count"]
    ticket = iv.masks.change_mask(model, whole, share=0.1, modules="down")
    before = state(model.module)
    with whole.applied(model):
        moved = (model.module.get_parameter(DOWN).detach() - before[DOWN]).abs()
    inside = ticket.dense(DOWN)
    assert int(inside.sum()) == round(0.1 * moved.numel())
    assert moved[inside].min() >= moved[~inside].max()
    edit = iv.masked_tune(model, PAIRS, ticket, steps=3, rows=6, lr=1e-2)
    assert {delta.parameter for delta in edit.deltas} == set(ticket.index)
    note = edit.notes["masked_tune"]
    overhead = note["state bytes"] - 8 * note["count"]  # two float32 an entry, and the step counts
    assert 0 <= overhead <= 8 * len(ticket.index)
    with pytest.raises(InterpError, match="none of the matrices chosen"):
        iv.masks.change_mask(model, edit, modules="q")
