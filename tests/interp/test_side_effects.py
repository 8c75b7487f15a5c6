"""Side effects of an edit, against whole logits in float64 and against what must be exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import interp
from interp import Affine, Delta, Edit, LowRank, SideEffects
from interp._batch import several
from tests.architectures import build
from tests.oracles import plain

TEXTS = [[5, 9, 11, 40, 3, 77], [8, 8, 8], [60, 61, 62, 63, 64, 65, 66, 67, 68], [4, 90]]
STEER = Edit([Affine("resid_post.1", shift=torch.linspace(-1, 1, 32)), Affine("z.0", (1,), 0.0)])


def oracle(module: torch.nn.Module, edit: Edit, ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """(KL, -log p, -log q) of one unpadded text from the model's own logits."""
    batch = torch.tensor([ids])
    p = plain.logits_of(module, batch)[0].double().log_softmax(-1)
    with edit.applied(module):
        q = plain.logits_of(module, batch)[0].double().log_softmax(-1)
    at = torch.arange(len(ids) - 1), torch.tensor(ids[1:])
    return (p.exp() * (p - q)).sum(-1), -p[at], -q[at]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite", "cohere", "mixtral"])
def test_kl_and_perplexity_are_those_of_the_models_own_logits(name) -> None:
    module = build(name)
    found = interp.side_effects(module, STEER, TEXTS, batch_size=3)
    expected = [oracle(module, STEER, ids) for ids in TEXTS]
    kl = torch.cat([e[0] for e in expected]).float()
    torch.testing.assert_close(found.kl, kl, rtol=1e-3, atol=1e-6)
    assert float(kl.mean()) > 1e-5
    means = [float(torch.cat([e[i] for e in expected]).mean().exp()) for i in (1, 2)]
    assert found.perplexity == pytest.approx(means, rel=1e-4)
    assert found.nll_change.mean == pytest.approx(math.log(means[1] / means[0]), rel=1e-3, abs=1e-5)
    assert found.kl_per_token.n == sum(map(len, TEXTS)) and found.kl_per_token.clusters == 4
    assert found.kl_per_token.low < found.kl_per_token.mean < found.kl_per_token.high


def test_an_edit_that_does_nothing_has_no_effect_at_all() -> None:
    found = interp.side_effects(build("llama"), 0 * STEER, TEXTS)
    assert bool((found.kl == 0).all())
    assert found.perplexity[0] == found.perplexity[1]
    assert bool((found.norm_ratio == 1).all())


def test_neither_the_batch_nor_the_chunk_changes_a_number(monkeypatch) -> None:
    module = build("gpt2")
    whole = interp.side_effects(module, STEER, TEXTS, batch_size=4)
    monkeypatch.setattr("interp._side_effects._LOGITS", 2 * 97)
    alone = interp.side_effects(module, STEER, TEXTS, batch_size=1)
    for name in ("kl", "nll_before", "nll_after", "norm_before", "norm_after", "norm_ratio"):
        torch.testing.assert_close(
            getattr(whole, name), getattr(alone, name), rtol=1e-3, atol=2e-6, equal_nan=True
        )
    assert torch.equal(whole.text, alone.text)


def test_norm_growth_of_a_scaled_stream_is_its_scale() -> None:
    edit = Edit([Affine("resid_post.2", scale=1.5)])
    found = interp.side_effects(build("llama"), edit, TEXTS)
    torch.testing.assert_close(found.growth, torch.tensor([1.0, 1.0, 1.5]))
    table = found.table("layer")
    assert list(table.columns) == ["layer", "norm_before", "norm_after", "growth"]
    assert table["norm_after"][2] == pytest.approx(1.5 * table["norm_before"][2])
    assert float(found.kl.max()) < 1e-6  # the final norm divides by it again


@pytest.mark.parametrize(("name", "untie"), [("llama", False), ("gpt2", False), ("gpt2", True)])
def test_a_changed_head_is_compared_with_the_head_as_it_was(name, untie) -> None:
    module = build(name)
    generator = torch.Generator().manual_seed(1)
    change = LowRank(
        torch.randn(97, 1, generator=generator), 0.1 * torch.randn(1, 32, generator=generator)
    )
    edit = Edit([Delta("lm_head.weight", change, untie), Affine("z.1", (0,), 2.0)])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = interp.side_effects(module, edit, TEXTS)
    kl = torch.cat([oracle(module, edit, ids)[0] for ids in TEXTS]).float()
    torch.testing.assert_close(found.kl, kl, rtol=1e-3, atol=1e-6)
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_positions_mean_each_text_as_a_prompt() -> None:
    module = build("llama")
    last = Edit([Affine("resid_post.0", shift=torch.ones(32), positions="last")])
    found = interp.side_effects(module, last, TEXTS)
    for text, ids in enumerate(TEXTS):
        mine = found.kl[found.text == text]
        assert bool((mine[: len(ids) - 1] == 0).all()) and float(mine[-1]) > 0
    generated = Edit([Affine("resid_post.0", shift=torch.ones(32), positions="generated")])
    assert bool((interp.side_effects(module, generated, TEXTS).kl == 0).all())


def test_continuations_are_what_generate_gives(tokenizer) -> None:
    model = interp.load(build("llama"), tokenizer=tokenizer)
    prompts = ["ab", "hello there"]
    found = interp.side_effects(model, STEER, ["some text", "and more"], prompts=prompts)
    assert found.prompts == ("ab", "hello there")
    expected = model.generate(prompts, max_new_tokens=32)
    with STEER.applied(model):
        changed = model.generate(prompts, max_new_tokens=32)
    assert list(found.before) == expected and list(found.after) == changed
    assert found.same_words == sum(a == b for a, b in zip(expected, changed, strict=True)) / 2
    default = interp.side_effects(model, STEER, ["some text", "and more"], max_new_tokens=3)
    assert default.prompts == ("some text", "and more")
    assert list(default.table("prompt").columns) == ["prompt", "before", "after"]


def test_the_record_reads_back_as_written(tmp_path) -> None:
    found = interp.side_effects(build("llama"), STEER, TEXTS)
    loaded = SideEffects.load(found.save(tmp_path / "effects"))
    for name in ("kl", "text", "norm_before", "norm_after", "norm_ratio"):
        assert torch.equal(getattr(loaded, name), getattr(found, name))
    assert loaded.before == found.before and loaded.meta == found.meta
    table = loaded.table()
    assert list(table["tokens"]) == [len(ids) for ids in TEXTS]
    assert table["kl"][1] == pytest.approx(float(found.kl[found.text == 1].mean()))
    assert math.isnan(loaded.same_words)


@pytest.mark.parametrize(
    ("texts", "words"),
    [([], "no texts"), ([[5, 6], [7]], "two tokens")],
)
def test_too_little_text_is_refused(texts, words) -> None:
    with pytest.raises(interp.InterpError, match=words):
        interp.side_effects(build("llama"), STEER, texts)


def test_one_text_is_not_read_letter_by_letter(tokenizer) -> None:
    model = interp.load(build("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)
    with pytest.raises(interp.InterpError, match=r"texts is one text; give a list .*\[text\]"):
        interp.side_effects(model, STEER, "The capital is Paris")
    for ids in ([5, 6, 7], torch.tensor([5, 6, 7])):
        with pytest.raises(interp.InterpError, match="one list of token ids; give a list of them"):
            several(ids)
    assert several(torch.tensor([[5, 6], [7, 8]])) == [[5, 6], [7, 8]]
