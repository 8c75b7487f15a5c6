"""Detrimental neurons: a planted one is found, the grid is what pruning by hand gives."""

from __future__ import annotations

import pytest
import torch

import interp
import interventions as iv
from interventions._detrimental_neurons import how_many
from interventions._neuron_scores import neuron_scores
from tests.architectures import build
from tests.oracles import plain
from tests.oracles.tokenizers import byte_level

PLANTED = (1, 17)  # layer, neuron
OPTIONS = ("P", "R", "T", "Y")


@pytest.fixture
def tokenizer():
    return byte_level()


def with_planted_neuron(tokenizer) -> interp.Model:
    """A GPT-2 in which one neuron, always on, writes the letter P over every other answer."""
    model = build("gpt2", vocab_size=len(tokenizer), tie_word_embeddings=False)
    layer, neuron = PLANTED
    letter = tokenizer("P")["input_ids"][-1]
    mlp = model.transformer.h[layer].mlp
    with torch.no_grad():
        mlp.c_fc.bias[neuron] = 30.0
        model.lm_head.weight[letter] *= 4
        mlp.c_proj.weight[neuron] = model.lm_head.weight[letter]
    return interp.load(model, tokenizer=tokenizer)


def questions(model: interp.Model, n: int, seed: int) -> list[iv.Question]:
    """Answers are what the model says without the planted neuron."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(97, 123, (n, 5), generator=generator).tolist()
    words = ["".join(map(chr, word)) for word in letters]
    asked = [iv.Question(word, "P", OPTIONS) for word in words]
    ids = [model.tokenizer(o)["input_ids"][-1] for o in OPTIONS]
    with iv.prune_neurons({PLANTED[0]: [PLANTED[1]]}).applied(model):
        best = [
            int(plain.logits_of(model.module, model.batch(q.prompt).input_ids)[0, -1, ids].argmax())
            for q in asked
        ]
    return [iv.Question(q.prompt, OPTIONS[b], OPTIONS) for q, b in zip(asked, best, strict=True)]


def test_the_planted_neuron_is_found_and_pruning_it_mends_the_model(tokenizer) -> None:
    model = with_planted_neuron(tokenizer)
    before = plain.snapshot(model.module)
    train, dev, test = (questions(model, 12, seed) for seed in range(3))
    assert len({q.answer for q in dev}) > 1
    found = iv.find_detrimental_neurons(model, train, dev, percents=(1.0, 5.0), target="logit")
    assert (found.layer, found.neurons) == (PLANTED[0], (PLANTED[1],))
    assert found.unpruned < 1.0 and float(found.accuracy[PLANTED[0], 0]) == 1.0
    options = [tokenizer(o)["input_ids"][-1] for o in OPTIONS]
    with found.edit.applied(model):
        for q in test:
            logits = plain.logits_of(model.module, model.batch(q.prompt).input_ids)[0, -1, options]
            assert q.options[int(logits.argmax())] == q.answer
    plain.assert_unchanged(before, model.module)
    assert found.edit.notes["detrimental_neurons"]["score"] == "integrated_gradients"


def test_the_grid_is_the_accuracy_of_pruning_by_hand(tokenizer) -> None:
    """Every (layer, percent), by zeroing columns of the projection and a whole forward."""
    model = with_planted_neuron(tokenizer)
    train, dev = questions(model, 8, 3), questions(model, 9, 4)
    found = iv.find_detrimental_neurons(
        model, train, dev, percents=(2.0, 10.0), score="activation", layers=[0, 2]
    )
    assert bool(found.accuracy[1].isnan().all())
    options = [tokenizer(o)["input_ids"][-1] for o in OPTIONS]
    for row in found.table().dropna().itertuples():
        twin = with_planted_neuron(tokenizer).module
        top = found.scores[row.layer].argsort(descending=True, stable=True)[: row.neurons]
        with torch.no_grad():
            twin.transformer.h[row.layer].mlp.c_proj.weight[top] = 0
        right = 0
        for q in dev:
            logits = plain.logits_of(twin, model.batch(q.prompt).input_ids)[0, -1, options]
            right += q.options[int(logits.argmax())] == q.answer
        assert row.accuracy == pytest.approx(right / len(dev))


def test_scores_are_what_their_formulas_say(tokenizer) -> None:
    model = with_planted_neuron(tokenizer)
    batch = model.batch(["abc", "hello", "xy"])
    acts = interp.capture(model, batch, "mlp_post.*", positions="last").stack("mlp_post")[:, :, 0]
    sizes = acts.abs().mean(1)
    torch.testing.assert_close(neuron_scores(model, batch, "activation"), sizes)
    norms = torch.stack([b.mlp.c_proj.weight.norm(dim=1) for b in model.module.transformer.h])
    torch.testing.assert_close(neuron_scores(model, batch, "wanda"), sizes * norms.detach())
    attr = interp.attribute(model, batch, "prob", "mlp_post", method="gradient_x_activation")
    expected = torch.stack([attr[f"mlp_post.{layer}"].mean(0) for layer in range(3)])
    torch.testing.assert_close(neuron_scores(model, batch, "gradient_x_activation"), expected)
    again = [neuron_scores(model, batch, "random", seed=s) for s in (1, 1, 2)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])


def test_nothing_is_pruned_when_nothing_is_gained(tokenizer) -> None:
    """A dev set the model already answers perfectly."""
    model = with_planted_neuron(tokenizer)
    train = questions(model, 8, 5)
    perfect = []
    for q in questions(model, 30, 6):
        ids = [tokenizer(o)["input_ids"][-1] for o in q.options]
        logits = plain.logits_of(model.module, model.batch(q.prompt).input_ids)[0, -1, ids]
        perfect.append(iv.Question(q.prompt, q.options[int(logits.argmax())], q.options))
    perfect = [*perfect[:6], iv.Question("zz", "Y", ("Y",))]  # another answer, always right
    found = iv.find_detrimental_neurons(model, train, perfect, percents=(1.0,), target="logit")
    assert found.unpruned == 1.0 and found.layer is None and len(found.edit) == 0


def test_a_finding_is_saved_and_read_back(tokenizer, tmp_path) -> None:
    model = with_planted_neuron(tokenizer)
    train, dev = questions(model, 8, 3), questions(model, 8, 4)
    found = iv.find_detrimental_neurons(model, train, dev, percents=(1.0,), target="logit")
    again = iv.DetrimentalNeurons.load(found.save(tmp_path / "found"))
    assert again.edit == found.edit and torch.equal(again.accuracy, found.accuracy)
    assert again.meta == found.meta and again.layer == found.layer


def test_percents_are_rounded_up() -> None:
    assert [how_many(p, 384) for p in (0.1, 0.25, 1.0, 5.0, 100.0)] == [1, 1, 4, 20, 384]
    assert how_many(50.0, 4) == 2


@pytest.mark.parametrize(
    ("train", "dev", "options", "words"),
    [
        ([], None, {}, "the training set is empty"),
        (None, [], {}, "the dev set is empty"),
        (None, [iv.Question("a", "P", ("P", "R"))] * 3, {}, "all 3 questions .* perfect"),
        (None, None, {"percents": (0.0,)}, "above 0, at most 100"),
        (None, None, {"layers": [3]}, "layers 0 to 2"),
        ([iv.Question("a", "E", ("P", "R"))], None, {}, "training question 0: the answer 'E'"),
        ([iv.Question("a", "PP", ("PP", "PR"))], None, {}, "start with the same token"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_sentence(tokenizer, train, dev, options, words) -> None:
    model = with_planted_neuron(tokenizer)
    good = [iv.Question("a", "P", ("P", "R")), iv.Question("b", "R", ("P", "R"))]
    with pytest.raises(interp.InterpError, match=words):
        iv.find_detrimental_neurons(
            model, good if train is None else train, good if dev is None else dev, **options
        )


def test_experts_are_refused(tokenizer) -> None:
    model = interp.load(build("olmoe", vocab_size=len(tokenizer)), tokenizer=tokenizer)
    good = [iv.Question("a", "P", ("P", "R")), iv.Question("b", "R", ("P", "R"))]
    with pytest.raises(interp.InterpError, match="mixture of experts"):
        iv.find_detrimental_neurons(model, good, good)
