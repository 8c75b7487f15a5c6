"""Localised fine-tuning against torch's own training loop on a copy."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import interp
import interventions as iv
from interp import Edit, InterpError, Model
from tests.architectures import build
from tests.interventions.knowledge import FACT, handle, state, words

FACTS = [
    FACT,
    iv.Rewrite(" Bo lives in", "Bo", " Oslo"),
    iv.Rewrite(" in Rome {} is a", "Ann", " w33"),
]


def trained_by_hand(
    model: Model, name: str, facts: list[iv.Rewrite], lr: float, orders: list[list[list[int]]],
    end: bool = True,
) -> Tensor:  # fmt: skip
    """One sequence at a time, Adam on one parameter of a copy."""
    module = copy.deepcopy(model.module)
    weight = module.get_parameter(name)
    optimizer = torch.optim.Adam([weight], lr=lr)
    for epoch in orders:
        for batch in epoch:
            loss = torch.zeros((), dtype=torch.float64)
            for index in batch:
                fact = facts[index]
                prompt = model.batch(fact.text).input_ids[0].tolist()
                answer = model.tokenizer(fact.answer)["input_ids"] + [2] * end
                ids = torch.tensor([prompt + answer])
                labels = torch.tensor([-100] * len(prompt) + answer)
                logits = module(ids, use_cache=False).logits[0].double()
                loss = loss + F.cross_entropy(logits[:-1], labels[1:]) / len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight.detach()


def orders(epochs: int, size: int, seed: int = 0) -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [part.tolist() for part in torch.randperm(len(FACTS), generator=generator).split(size)]
        for _ in range(epochs)
    ]


@pytest.mark.parametrize("size", [2, 100])
def test_it_is_adam_on_one_projection_breadth_first(size: int):
    model = handle()
    name = "model.layers.1.mlp.down_proj.weight"
    before = state(model)
    edit = iv.localised_finetuning(
        model, FACTS, 1, lr=1e-3, epochs=3, batch_size=size, stop_below=0
    )
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in model.module.parameters())
    want = trained_by_hand(model, name, FACTS, 1e-3, orders(3, size))
    with edit.applied(model):
        got = state(model)
    torch.testing.assert_close(got[name], want, rtol=1e-5, atol=1e-7)
    assert {n for n in got if not torch.equal(got[n], before[n])} == {name}


def test_the_end_of_the_text_is_trained_only_if_asked():
    model = handle()
    name = "model.layers.0.self_attn.o_proj.weight"
    edit = iv.localised_finetuning(model, FACTS, 0, "o", lr=1e-3, epochs=1, end=False, stop_below=0)
    want = trained_by_hand(model, name, FACTS, 1e-3, orders(1, 100), end=False)
    with edit.applied(model):
        torch.testing.assert_close(state(model)[name], want, rtol=1e-5, atol=1e-7)


def test_it_learns_all_its_facts_and_then_stops():
    model = handle(dtype=torch.float32)
    edit = iv.localised_finetuning(model, FACTS, 1, lr=3e-2, epochs=200, stop_below=0.05)
    losses = edit.notes["localised_finetuning"]["loss"]
    assert len(losses) < 200 and losses[-1] < 0.05 < losses[-2]
    with edit.applied(model):
        for fact in FACTS:
            said = model.generate(fact.text, max_new_tokens=3)[0]
            assert said.split() == fact.answer.split()  # and then the end
    assert model.generate(FACT.text, max_new_tokens=2)[0].split() != FACT.answer.split()


def test_part_of_a_fused_matrix_is_changed_where_it_lies():
    model = handle("phi3", torch.float32)
    edit = iv.localised_finetuning(model, FACTS, 1, "up", epochs=2, lr=1e-2)
    (delta,) = edit
    assert delta.parameter == "model.layers.1.mlp.gate_up_proj.weight"
    before = state(model)[delta.parameter]
    with edit.applied(model):
        after = state(model)[delta.parameter]
    assert torch.equal(after[:48], before[:48])
    assert not torch.equal(after[48:], before[48:])


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral", "bloom"])
def test_other_architectures(name: str):
    model = handle(name, torch.float32)
    module = "o" if name == "mixtral" else "down"
    edit = iv.localised_finetuning(model, FACTS, 1, module, epochs=4, lr=1e-2)
    losses = edit.notes["localised_finetuning"]["loss"]
    assert losses[-1] < losses[0]
    ids = model.batch(FACT.text).input_ids
    with torch.no_grad(), edit.applied(model):
        want = model.module(ids).logits
    got = interp.bake(model, edit)(ids).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_an_edit_saves_and_loads(tmp_path):
    model = handle(dtype=torch.float32)
    edit = iv.localised_finetuning(model, FACTS, 1, epochs=1)
    edit.save(tmp_path / "edit")
    assert Edit.load(tmp_path / "edit") == edit


def test_what_cannot_be_tuned_is_said():
    model = handle()
    for options, message in (
        ({"layer": 9}, "layer"),
        ({"layer": 1, "module": "dawn"}, "dawn"),
        ({"layer": 1, "module": "mlp"}, "'mlp' of layer 1 is 3 matrices .* name one projection"),
        ({"layer": 1, "epochs": 0}, "epochs=0"),
        ({"layer": 1, "lr": 0.0}, "lr=0.0"),
    ):
        with pytest.raises(InterpError, match=message):
            iv.localised_finetuning(model, FACTS, **options)
    with pytest.raises(InterpError, match="for each expert; name one projection"):
        iv.localised_finetuning(handle("mixtral", torch.float32), FACTS, 1)
    with pytest.raises(InterpError, match="lower lr=1e"):
        iv.localised_finetuning(model, FACTS, 1, lr=1e200, epochs=3)
    with pytest.raises(InterpError, match="no tokenizer"):
        iv.localised_finetuning(interp.load(build("llama")), FACTS, 1)
    with pytest.raises(InterpError, match="gives this answer already"):
        said = int(
            interp.load(model.module, tokenizer=words())
            .module(model.batch(FACT.text).input_ids)
            .logits[0, -1]
            .argmax()
        )
        iv.localised_finetuning(model, [iv.Rewrite(FACT.prompt, FACT.subject, said)], 1)
