"""`divergence` against full logits in float64, scipy's relative entropy, and its invariances."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

import interp
import probes
from probes._divergence_measure import measure
from tests.architectures import build
from tests.oracles import tokenizers

LENGTHS = (9, 3, 14, 1, 6)


def texts(vocab: int = 97) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in LENGTHS]


def moved(module: torch.nn.Module, size: float = 0.05) -> torch.nn.Module:
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)
    return other


def naive(base: torch.nn.Module, tuned: torch.nn.Module, ids: list[int]) -> dict[str, np.ndarray]:
    """From the whole logits of one unpadded text, in numpy's float64."""
    with torch.no_grad():
        both = [m(torch.tensor([ids])).logits[0].double().numpy() for m in (base, tuned)]
    logp, logq = (z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
                  - z.max(-1, keepdims=True) for z in both)  # fmt: skip
    p, q = np.exp(logp), np.exp(logq)
    after = np.array([*ids[1:], -1])
    rows = np.arange(len(ids))
    order = np.argsort(-both[0], axis=-1, kind="stable")
    rank = [int(np.where(order[i] == q[i].argmax())[0][0]) + 1 for i in rows]
    return {
        "forward": rel_entr(p, q).sum(-1),
        "reverse": rel_entr(q, p).sum(-1),
        "tv": np.abs(p - q).sum(-1) / 2,
        "base_entropy": -(p * logp).sum(-1),
        "tuned_entropy": -(q * logq).sum(-1),
        "base_logprob": np.where(after < 0, np.nan, logp[rows, after]),
        "tuned_logprob": np.where(after < 0, np.nan, logq[rows, after]),
        "rank": np.array(rank),
        "base_top": p.argmax(-1),
        "tuned_top": q.argmax(-1),
        "token": np.array(ids),
        "target": after,
        "position": rows,
    }


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt-projected", "granite", "bloom"])
def test_equals_full_logits_in_float64(name: str) -> None:
    base = build(name)
    tuned = moved(base)
    got = probes.divergence(base, tuned, texts(), batch_size=2, chunk=4)
    for index, ids in enumerate(texts()):
        mine = got.text == index
        for column, expected in naive(base, tuned, ids).items():
            value = getattr(got, column)[mine].double().numpy()
            np.testing.assert_allclose(value, expected, rtol=2e-4, atol=2e-5, err_msg=column)


def test_a_float64_model_is_measured_in_float64() -> None:
    base = build("gpt2", dtype=torch.float64)
    tuned = moved(base, 1e-4)
    got = probes.divergence(base, tuned, texts())
    expected = np.concatenate([naive(base, tuned, ids)["forward"] for ids in texts()])
    assert got.forward.dtype == torch.float64
    # Far below what float32 could tell from nothing.
    np.testing.assert_allclose(got.forward.numpy(), expected, rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_measure_is_scipys_whatever_constant_is_added_to_the_logits(shift: float) -> None:
    generator = torch.Generator().manual_seed(1)
    old = 4 * torch.randn(40, 3000, generator=generator)
    new = old + torch.randn(40, 3000, generator=generator) + shift
    got = measure(old, new, torch.zeros(40, dtype=torch.long))
    p, q = (z.double().softmax(-1).numpy() for z in (old, new))
    np.testing.assert_allclose(got["forward"], rel_entr(p, q).sum(-1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["reverse"], rel_entr(q, p).sum(-1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["tv"], np.abs(p - q).sum(-1) / 2, rtol=1e-5)


def test_equally_likely_tokens_rank_by_their_ids() -> None:
    old = torch.tensor([[1.0, 2.0, 2.0, 2.0]])
    new = torch.tensor([[0.0, 0.0, 0.0, 5.0]])
    got = measure(old, new, torch.tensor([0]))
    assert (int(got["base_top"]), int(got["tuned_top"]), int(got["rank"])) == (1, 3, 3)


def test_a_model_differs_in_nothing_from_itself() -> None:
    base = build("llama")
    got = probes.divergence(base, copy.deepcopy(base), texts(), batch_size=2)
    for column in (got.forward, got.reverse, got.tv):
        assert torch.equal(column, torch.zeros_like(column))
    assert not bool(got.flip.any())
    assert torch.equal(got.rank, torch.ones_like(got.rank))
    assert torch.equal(got.base_entropy, got.tuned_entropy)


def test_batches_chunks_and_padding_change_nothing() -> None:
    base = build("gpt2")
    tuned = moved(base)
    alone = probes.divergence(base, tuned, texts(), batch_size=1)
    for options in ({"batch_size": 5}, {"batch_size": 2, "chunk": 1}, {"chunk": 1000}):
        got = probes.divergence(base, tuned, iter(texts()), **options)
        torch.testing.assert_close(got.forward, alone.forward, rtol=1e-3, atol=1e-5)
        assert torch.equal(got.rank, alone.rank)
        assert torch.equal(got.position, alone.position)


def test_both_models_stay_bit_identical_and_keep_their_mode() -> None:
    base = build("llama")
    tuned = moved(base).train()
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (base, tuned)]
    logits = base(torch.tensor([texts()[0]])).logits
    probes.divergence(base, tuned, texts())
    for module, state in zip((base, tuned), before, strict=True):
        assert all(torch.equal(state[n], t) for n, t in module.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert tuned.training
    assert torch.equal(base(torch.tensor([texts()[0]])).logits, logits)


def test_completions_alone_are_predicted() -> None:
    base = build("llama")
    tuned = moved(base)
    prompts, ends = [[5, 6, 7], [8, 9]], [[10, 11], [12]]
    whole = probes.divergence(base, tuned, [a + b for a, b in zip(prompts, ends, strict=True)])
    got = probes.divergence(base, tuned, prompts, completions=ends)
    assert got.target.tolist() == [10, 11, 12]
    assert got.position.tolist() == [2, 3, 1]
    where = [2, 3, 6]
    torch.testing.assert_close(got.forward, whole.forward[where])
    assert whole.target[where].tolist() == got.target.tolist()
    assert sorted(got.summary("position")["position"].unique().tolist()) == [0, 1]


def test_memory_never_holds_the_logits_of_more_than_a_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import probes._divergence as module

    seen = []

    def watched(old: torch.Tensor, new: torch.Tensor, targets: torch.Tensor) -> object:
        seen.append(len(old))
        return measure(old, new, targets)

    monkeypatch.setattr(module, "measure", watched)
    base = build("llama")
    probes.divergence(base, base, texts(), chunk=5)
    assert max(seen) == 5
    assert sum(seen) == sum(LENGTHS)


# Texts, classes, tables.


def readers(a: object = None, b: object = None) -> tuple[interp.Model, interp.Model]:
    a = tokenizers.byte_level() if a is None else a
    b = a if b is None else b
    base = build("llama", vocab_size=128)
    return interp.Model(base, a), interp.Model(moved(base), b)


def test_classes_are_of_the_token_that_follows() -> None:
    base, tuned = readers()
    got = probes.divergence(base, tuned, ["The capital is Paris"])
    table = got.table()
    assert table["target"].tolist()[-2:] == [" Paris", ""]
    assert table["class"].tolist()[-2:] == ["word", "end"]
    assert math.isnan(table["log_ratio"].iloc[-1])
    kinds = probes.divergence(base, tuned, ["The is"], classify=str.upper).table()["class"]
    assert kinds.tolist() == [" IS", "end"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[(" Paris", "word"), ("Paris", "word"), ("ris", "piece"), ("+", "punctuation")],
        *[("4", "number"), (" 12", "number"), ("x2", "number"), ("\ufffd", "other")],
        *[("\n", "space"), ("", "space")],
    ],
)
def test_token_class(text: str, expected: str) -> None:
    assert probes.token_class(text) == expected


def test_summary_takes_texts_as_the_evidence() -> None:
    base = build("llama")
    got = probes.divergence(base, moved(base), texts())
    whole = got.summary().set_index("measure")
    assert whole.loc["forward", "mean"] == pytest.approx(float(got.forward.mean()), rel=1e-5)
    assert (whole["texts"] == len(LENGTHS)).all() or whole.loc["log_ratio", "texts"] == 4
    assert bool((whole["low"] <= whole["mean"]).all() and (whole["mean"] <= whole["high"]).all())
    assert whole.loc["forward", "low"] >= 0
    assert whole.loc["flip", "mean"] == pytest.approx(float((got.rank > 1).float().mean()))
    places = got.summary("position")
    assert sorted(places["position"].unique().tolist()) == [0, 1, 2, 4, 8]
    tokens = places[places["measure"] == "tv"].set_index("position")["tokens"]
    assert tokens.to_dict() == {0: 5, 1: 4, 2: 7, 4: 10, 8: 7}
    weights = places[places["measure"] == "forward"]
    again = (weights["mean"] * weights["tokens"]).sum() / weights["tokens"].sum()
    assert again == pytest.approx(whole.loc["forward", "mean"])
    for by in ("class", "text", "shift"):
        assert set(got.summary(by)["measure"]) <= set(whole.index)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    base, tuned = readers()
    got = probes.divergence(base, tuned, ["The capital is Rome", "The is"])
    back = probes.Divergence.load(got.save(tmp_path / "div"))
    assert got.table().equals(back.table())
    assert (back.kinds, back.tokens, back.meta) == (got.kinds, got.tokens, got.meta)


def test_plot_draws_the_summary() -> None:
    pytest.importorskip("matplotlib").use("agg")
    base = build("llama")
    got = probes.divergence(base, moved(base), texts())
    ax = got.plot(measure="tv")
    expected = got.summary("position").query("measure == 'tv'")["mean"].tolist()
    assert ax.lines[0].get_ydata().tolist() == expected
    assert "position" in ax.get_xlabel()
    with pytest.raises(interp.InterpError, match="nearest valid names: 'reverse'"):
        got.plot(ax, measure="revers")


# Bad input.


def test_other_vocabularies_are_refused_in_one_sentence() -> None:
    other = tokenizers.sentencepiece_like()
    with pytest.raises(interp.InterpError, match="the tokenizers differ: "):
        probes.divergence(*readers(None, other), ["The is"])
    small, large = build("llama"), build("llama", vocab_size=99)
    with pytest.raises(interp.InterpError, match="97 and 99 tokens cannot be compared without"):
        probes.divergence(small, large, texts())


def test_padded_rows_of_a_vocabulary_are_left_out_of_both() -> None:
    tokenizer = tokenizers.byte_level()
    small = build("llama", vocab_size=len(tokenizer))
    large = copy.deepcopy(small)
    large.resize_token_embeddings(len(tokenizer) + 24, mean_resizing=False)
    got = probes.divergence(
        interp.Model(small, tokenizer), interp.Model(large, tokenizer), ["The capital is Rome"]
    )
    assert got.meta["vocab"] == len(tokenizer)
    assert got.meta["vocabularies"] == [len(tokenizer), len(tokenizer) + 24]
    assert float(got.forward.max()) < 1e-6  # renormalised: the rows added have probability


def test_a_text_that_the_tokenizers_cut_differently_is_named() -> None:
    first, second = tokenizers.byte_level(), tokenizers.byte_level()
    second.backend_tokenizer.post_processor = (
        tokenizers.sentencepiece_like().backend_tokenizer.post_processor
    )  # adds a BOS token
    with pytest.raises(interp.InterpError, match=r"cut text 0 .* only one of them adds a BOS"):
        probes.divergence(*readers(first, second), ["The is"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no texts"),
        ([[4], []], "text 1 has no tokens"),
        ([[4], [5] * 200], "text 1 has 200 tokens, over the models' context of 128"),
        ([[4], [3, 97]], "text 1 has token id 97, outside the 97 ids"),
        ([[4.5]], "text 0 is neither a text nor"),
        (["words"], "no tokenizer"),
        ("words", "got one text"),
    ],
)
def test_bad_texts_are_refused_by_name(given: object, message: str) -> None:
    base = build("llama")
    with pytest.raises(interp.InterpError, match=message):
        probes.divergence(base, base, given)
    with pytest.raises(interp.InterpError, match="1 completions for 2 texts"):
        probes.divergence(base, base, [[4], [5]], completions=[[4]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_logits_that_are_not_finite_are_named(value: float, which: int) -> None:
    models = [build("llama"), build("llama")]

    def spoil(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[1, 2] = value
        return output

    models[which].model.layers[-1].mlp.register_forward_hook(spoil)
    named = [interp.Model(m, name=n, check=False) for m, n in zip(models, "ab", strict=True)]
    with pytest.raises(interp.InterpError, match=f"{'ab'[which]} gives .* text 1, position 2"):
        probes.divergence(*named, [[4, 5, 6], [7, 8, 50, 9]])
