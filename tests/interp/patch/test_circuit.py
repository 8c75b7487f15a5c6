"""Circuit scores equal hooked ablations, and are what they must be for circuits we know."""

from __future__ import annotations

import pytest
import torch

import interp
from interp import Place
from tests.architectures import build
from tests.interp.patch.slow import difference
from tests.oracles import plain
from tests.oracles.copying import VOCAB, copying


def ablated_score(model, ids, keep, metric):
    """The metric with every (layer, head, position) not in `keep` at its mean over the prompts."""
    n_layers = model.config.num_hidden_layers
    means = {
        f"z.{n}": interp.capture(model, ids, f"z.{n}")[f"z.{n}"].mean(0) for n in range(n_layers)
    }

    def hold(tensor, site):
        for position in range(tensor.shape[1]):
            for head in range(tensor.shape[2]):
                if (site.layer, head, position) not in keep:
                    tensor[:, position, head] = means[str(site)][position, head]
        return tensor

    with interp.hooked(model, dict.fromkeys(means, hold)):
        return metric(plain.logits_of(model, ids)[:, -1])


@pytest.mark.parametrize("name", ["llama", "gemma2", "gptj"])
def test_scores_equal_hooked_mean_ablation(name, ids) -> None:
    model = build(name)
    prompts = torch.cat([ids, (ids + 9) % 97, (ids + 30) % 97])
    circuit = [(0, 1), (1, 2), Place("z.2", [0, 3], [4, -1])]
    scores = interp.circuit_scores(
        model, prompts, circuit, difference, draws=2, subsets=2, minimality=False
    )
    nodes = [
        {(0, 1, p) for p in range(11)},
        {(1, 2, p) for p in range(11)},
        {(2, 0, 4), (2, 0, 10)},
        {(2, 3, 4), (2, 3, 10)},
    ]
    own = set().union(*nodes)
    every = {(layer, h, p) for layer in range(3) for h in range(4) for p in range(11)}
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(
        scores.circuit, ablated_score(model, prompts, own, difference), **close
    )
    torch.testing.assert_close(
        scores.empty, ablated_score(model, prompts, set(), difference), **close
    )
    torch.testing.assert_close(
        scores.model, difference(plain.logits_of(model, prompts)[:, -1]), **close
    )
    for k, found in zip(scores.subsets, scores.without, strict=True):
        gone = set().union(*[nodes[i] for i in k])
        for value, keep in zip(found, (every - gone, own - gone), strict=True):
            torch.testing.assert_close(
                value, ablated_score(model, prompts, keep, difference), **close
            )
    assert scores.faithfulness == pytest.approx(
        float(scores.circuit.mean() / scores.model.mean()), rel=1e-5
    )


def test_a_planted_circuit_is_faithful_complete_and_minimal() -> None:
    model = copying(((0, 3), (1, 0)), noise=0.005)
    prompts = torch.randint(1, VOCAB, (40, 4), generator=torch.Generator().manual_seed(3))
    answers = interp.Accuracy(prompts[:, 0].tolist())
    planted = interp.circuit_scores(model, prompts, [(0, 3), (1, 0)], answers, draws=12)
    assert planted.faithfulness == 1.0 and planted.recovered == 1.0
    assert float(planted.incompleteness.max()) == 0.0
    assert float(planted.empty.mean()) < 0.3
    assert float(planted.random_faithfulness.min()) < 0.3
    idle = interp.circuit_scores(
        model, prompts, [(0, 3), (1, 0), (0, 1)], "prob", draws=1, subsets=1
    )
    assert idle.nodes == ["0.3", "1.0", "0.1"]
    assert float(idle.minimality[2]) < 0.01 < 0.1 < float(idle.minimality[:2].min())
    half = interp.circuit_scores(model, prompts, [(0, 3)], "prob", draws=1, subsets=1)
    assert half.faithfulness < planted.faithfulness
    low, high = planted.summary().set_index("quantity").loc["faithfulness", ["low", "high"]]
    assert low == high == 1.0


def test_every_head_is_the_model_and_none_is_empty(ids) -> None:
    model = build("llama")
    every = [(layer, head) for layer in range(3) for head in range(4)]
    scores = interp.circuit_scores(
        model, ids, every, difference, draws=1, subsets=3, minimality=False
    )
    assert torch.equal(scores.circuit, scores.model)
    assert float(scores.incompleteness.max()) == 0.0
    assert bool(scores.minimality.isnan().all())


def test_reference_record_and_refusals(ids, tmp_path) -> None:
    model = build("gpt2")
    before = plain.snapshot(model)
    scores = interp.circuit_scores(
        model, ids, [(0, 1), (2, 2)], "prob", reference=(ids + 5) % 97, draws=2, subsets=2
    )
    plain.assert_unchanged(before, model)
    again = interp.CircuitScores.load(scores.save(tmp_path / "scores"))
    assert torch.equal(again.without, scores.without) and again.subsets == scores.subsets
    assert again.nodes == scores.nodes and again.faithfulness == scores.faithfulness
    assert list(scores.table().columns) == ["node", "minimality"]
    for prompts, circuit, options, message in (
        ([[1, 2, 3], [4, 5]], [(0, 1)], {}, "reference prompts of one length"),
        (
            ids,
            [(0, 1)],
            {"reference": ids[:, :5]},
            r"prompts have \[11\] tokens and the reference 5",
        ),
        (ids, [(0, 4)], {}, r"units \[4\]; expected at least one, of 4 heads"),
        (ids, [Place("mlp_out.1")], {}, r"made of heads \(z\)"),
        (ids, [(0, 1), Place("z.0", [1], -1)], {}, "head 1 of layer 0 stands in the circuit twice"),
        (ids, [], {}, "the circuit is empty"),
    ):
        with pytest.raises(interp.InterpError, match=message):
            interp.circuit_scores(model, prompts, circuit, **options)
