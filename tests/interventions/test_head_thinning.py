"""Heads left out: costs by hand, the elimination by a plain loop, and heads that do nothing."""

from __future__ import annotations

import pytest
import torch

import interp
import interventions as iv
from interp import Affine, InterpError
from interventions._head_thinning import _clustered
from tests.interventions.test_head_edits import PAIRS, model_of

GROUPS = ["x", "x", "y", "y", "z", "z"]


def gates_of(
    model: interp.Model, edits: dict[tuple[int, int], tuple[float, float]]
) -> iv.HeadGates:
    """Heads with a factor and a shift of all their numbers."""
    gates = torch.zeros(2, model.anatomy.n_layers, 4)
    atoms = []
    for (layer, head), (factor, shift) in edits.items():
        width = model.module.config.hidden_size // 4
        atoms.append(
            Affine(
                f"z.{layer}", (head,), torch.full((1, width), factor), torch.full((1, width), shift)
            )
        )
        gates[:, layer, head] = 0.5
    return iv.HeadGates(iv.Edit(atoms).on(model), gates[0], gates[1], [], {"price": 2.0})


def test_a_mean_over_groups_and_its_error() -> None:
    """Group means 2 and 5: mean 3.5, sd 3/sqrt 2, error 1.5."""
    mean, error = _clustered([1.0, 3.0, 5.0], ["a", "a", "b"])
    assert mean == pytest.approx(3.5) and error == pytest.approx(1.5)
    assert _clustered([1.0, 2.0], ["a", "a"]) == (1.5, 0.0)


def test_heads_are_left_out_as_a_plain_loop_would() -> None:
    model = model_of()
    edits = {(0, 1): (-1.0, 0.0), (0, 3): (1.0, 0.4), (1, 2): (1.5, 0.0), (2, 0): (0.0, -0.3)}
    found = gates_of(model, edits)
    thin = iv.thin_head_edits(model, found, PAIRS, GROUPS)

    def cost(heads: list[tuple[int, int]]) -> tuple[float, float]:
        groups: dict[str, list[float]] = {}
        with gates_of(model, {h: edits[h] for h in heads}).edit.applied(model), torch.no_grad():
            for (prompt, answer), group in zip(PAIRS, GROUPS, strict=True):
                ids = model.tokenizer(prompt)["input_ids"]
                said = [*model.tokenizer(answer)["input_ids"]]
                if model.tokenizer.eos_token_id is not None:
                    said.append(model.tokenizer.eos_token_id)
                logits = model.module(torch.tensor([[*ids, *said]])).logits[0].log_softmax(-1)
                nats = -sum(float(logits[len(ids) - 1 + i, t]) for i, t in enumerate(said))
                groups.setdefault(group, []).append(nats)
        means = torch.tensor([sum(some) / len(some) for some in groups.values()])
        return float(means.mean()), float(means.std() / len(means) ** 0.5)

    order = sorted(edits, key=lambda h: cost([o for o in edits if o != h])[0])
    costs = [cost(order[i:]) for i in range(5)]
    told = thin.meta["thinned"]
    assert [row["heads"] for row in told] == [4, 3, 2, 1, 0]
    assert [row["without"] for row in told] == [None, *map(list, order)]
    for row, (mean, error) in zip(told, costs, strict=True):
        assert row["cost"] == pytest.approx(mean, rel=1e-4)
        assert row["error"] == pytest.approx(error, rel=1e-3)
    least, error = min(costs)
    fewest = max(i for i in range(5) if costs[i][0] <= least + error)
    assert sorted(thin.heads) == sorted(order[fewest:])
    wanted = gates_of(model, {h: edits[h] for h in sorted(order[fewest:])}).edit
    ids = model.batch([prompt for prompt, _ in PAIRS])
    with torch.no_grad():
        with wanted.applied(model):
            one = model.module(**ids.inputs).logits
        with thin.edit.applied(model):
            other = model.module(**ids.inputs).logits
    torch.testing.assert_close(one, other)


def test_a_head_that_does_nothing_goes_and_one_that_is_needed_stays() -> None:
    """Two heads are edited; behind one the output projection is zero."""
    model = model_of()
    width = model.module.config.hidden_size // 4
    with torch.no_grad():
        model.module.model.layers[1].self_attn.o_proj.weight[:, 3 * width :] = 0
    options = {"epochs": 60, "batch_size": 6, "lr": 0.1, "warmup": 1, "price": 0}
    found = iv.find_head_edits(model, PAIRS, **options)
    assert (1, 3) in found.heads  # without a price its gate stays open
    thin = iv.thin_head_edits(model, found, PAIRS)
    assert (1, 3) not in thin.heads and thin.heads
    assert set(thin.heads) < set(found.heads)
    for head in found.heads:
        kept = head in thin.heads
        assert float(thin.additive[head]) == (float(found.additive[head]) if kept else 0.0)
    assert thin.edit.made_on == found.edit.made_on and thin.meta["price"] == 0
    with pytest.raises(InterpError, match="2 groups for 6 pairs"):
        iv.thin_head_edits(model, found, PAIRS, ["a", "b"])


def test_it_comes_back_from_disk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = model_of()
    thin = iv.thin_head_edits(model, gates_of(model, {(0, 1): (-1.0, 0.0)}), PAIRS)
    again = iv.HeadGates.load(thin.save(tmp_path / "gates"))
    assert again.meta["thinned"] == thin.meta["thinned"] and again.edit == thin.edit
