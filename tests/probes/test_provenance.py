"""Provenance of sentences, and the iterative contrastive generations."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
import probes
from probes._provenance import LABELS, _label, split_sentences
from tests.architectures import build
from tests.oracles import tokenizers

PROMPT = "The capital"


@pytest.fixture(scope="module")
def models() -> list[interp.Model]:
    """Distilled, teacher, student: random models of one vocabulary."""
    tokenizer = tokenizers.byte_level()
    return [interp.Model(build("llama", vocab_size=128, seed=s), tokenizer) for s in (0, 3, 4)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ("It is 3.5, e.g. here", ["It is 3.5, e.g.", " here"]),
        ("a\nb\n\nc", ["a\n", "b\n\n", "c"]),
        ("   \n ", []),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[a:b] for a, b in split_sentences(text)] == expected


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_like"])
def test_probability_is_the_geometric_mean_over_the_sentences_own_tokens(kind: str) -> None:
    tokenizer = getattr(tokenizers, kind)()
    readers = [interp.Model(build("llama", vocab_size=128, seed=s), tokenizer) for s in (0, 3, 4)]
    outputs = [" is Paris\n New York is Rome", " Rome"]
    if kind == "sentencepiece_like":
        outputs = [" is Paris is Rome", " Rome"]

    def halves(text: str) -> list[tuple[int, int]]:
        return [(0, 9), (9, len(text))] if len(text) > 9 else [(0, len(text))]

    got = probes.provenance(*readers, [PROMPT] * 2, outputs, split=halves)
    assert got.sentences == [outputs[0][:9], outputs[0][9:], outputs[1]]
    for i, (output, sentence) in enumerate(zip([0, 0, 1], got.sentences, strict=True)):
        before = PROMPT + ("" if i != 1 else outputs[0][:9])
        ids = tokenizer(before + sentence)["input_ids"]
        skip = len(tokenizer(before)["input_ids"])
        assert int(got.tokens[i]) == len(ids) - skip
        assert int(got.output[i]) == output
        for model, found in zip(readers, (got.distilled, got.teacher, got.student), strict=True):
            with torch.no_grad():
                z = model.module(torch.tensor([ids])).logits[0, skip - 1 : -1].double()
            logp = z.log_softmax(-1)[range(len(ids) - skip), ids[skip:]]
            assert float(found[i]) == pytest.approx(float(logp.mean().exp()), rel=1e-4)


def test_labels_follow_the_papers_order() -> None:
    cases = {  # distilled, teacher, student
        (0.50, 0.52, 0.51): "shared",
        (0.50, 0.60, 0.30): "teacher",
        (0.50, 0.30, 0.60): "student",
        (0.90, 0.30, 0.31): "boosted",
        (0.50, 0.52, 0.44): "boosted",  # apart by more than alpha, by less than beta
    }
    d, t, s = torch.tensor(list(cases)).unbind(1)
    found = [LABELS[i] for i in _label(d, t, s, alpha=0.05, beta=0.1).tolist()]
    assert found == list(cases.values())


def test_a_model_beside_itself_shares_everything(
    models: list[interp.Model], tmp_path: Path
) -> None:
    same = [models[0]] * 3
    got = probes.provenance(*same, [PROMPT] * 3, [" is Paris", "", " is"])
    assert got.output.tolist() == [0, 2]  # an empty output has no sentences
    assert set(got.table()["label"]) == {"shared"}
    shares = got.summary().set_index("label")["share"].to_dict()
    assert shares == {"shared": 1.0, "teacher": 0.0, "student": 0.0, "boosted": 0.0}
    back = probes.Provenance.load(got.save(tmp_path / "from"))
    assert back.table().equals(got.table())


def test_bad_provenance_is_refused(models: list[interp.Model]) -> None:
    with pytest.raises(interp.InterpError, match="no output holds a sentence"):
        probes.provenance(*models, [PROMPT], [" "])
    with pytest.raises(interp.InterpError, match="2 outputs for 1 prompts"):
        probes.provenance(*models, [PROMPT], [" is", " is"])
    with pytest.raises(interp.InterpError, match=r"alpha=-0\.1"):
        probes.provenance(*models, [PROMPT], [" is"], alpha=-0.1)
    with pytest.raises(interp.InterpError, match=r"outputs is one text; give a list .*\[text\]"):
        probes.provenance(*models, ["a", "b"], "is")
    with pytest.raises(interp.InterpError, match="prompts is one text"):
        probes.provenance(*models, "is", [" a", " b"])
    other = interp.Model(models[1].module, tokenizers.sentencepiece_like())
    with pytest.raises(interp.InterpError, match="the tokenizers differ"):
        probes.provenance(models[0], other, models[2], [PROMPT], [" is"])


# The iterative variant of contrastive decoding.


def favouring(module: Any, *tokens: int) -> Any:
    """A copy that gives these tokens, in falling measure, far more probability everywhere."""
    other = copy.deepcopy(module)

    def raised(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for place, token in enumerate(tokens):
            output[..., token] = 12.0 - 2.0 * place
        return output

    other.lm_head.register_forward_hook(raised)
    return other


def test_what_was_found_is_no_news_to_the_next_contrast() -> None:
    base = build("llama")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    tuned = favouring(base, 50, 60)
    options = {"prompt": [1, 5], "max_new_tokens": 4, "temperature": 0.1, "alpha": 0.01}
    still = probes.contrastive_discovery(tuned, base, 3, steps=0, **options)
    got = probes.contrastive_discovery(tuned, base, 3, steps=60, lr=3e-3, **options)
    # The static contrast says the favourite for ever; the iterative one turns to what is left.
    assert still.ids == [[50] * 4] * 3
    assert got.ids[:2] == [[50] * 4, [60] * 4]
    assert torch.equal(still.score, still.fresh)
    assert float(got.fresh[0]) == float(got.score[0])
    assert float(got.fresh[1]) > float(got.score[1])  # the copy, full of 50s, expects no 60
    assert all(torch.equal(before[n], t) for n, t in base.state_dict().items())
    assert all(p.grad is None for p in base.parameters())


def test_scores_are_mean_log_ratios_and_the_seed_decides() -> None:
    base = build("gpt2")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    state = torch.random.get_rng_state()
    once, again = (
        probes.contrastive_discovery(tuned, base, 2, prompt=[5, 6], max_new_tokens=5, seed=3)
        for _ in range(2)
    )
    assert once.ids == again.ids
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's numbers are touched
    for ids, score in zip(once.ids, once.score, strict=True):
        logp = []
        for module in (tuned, base):
            with torch.no_grad():
                z = module(torch.tensor([[5, 6, *ids]])).logits[0, 1:-1].double()
            logp.append(float(z.log_softmax(-1)[range(len(ids)), ids].mean()))
        assert float(score) == pytest.approx(logp[0] - logp[1], abs=1e-4)


def test_bad_discovery_is_refused() -> None:
    base = build("llama")
    with pytest.raises(interp.InterpError, match="n=0"):
        probes.contrastive_discovery(base, base, 0)
    base.generation_config.bos_token_id = None
    with pytest.raises(interp.InterpError, match="no BOS token"):
        probes.contrastive_discovery(base, base, 1)
