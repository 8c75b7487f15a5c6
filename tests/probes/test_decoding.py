"""Two-model decoding in `generate` against a slow loop that recomputes everything."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
import probes
from interp._model import generate_ids
from probes._decoding_follower import Follower
from tests.architectures import build
from tests.oracles import tokenizers

PROMPTS = [[5, 9, 33, 7, 21, 40, 8, 11, 12, 60], [13, 4], [70, 71, 72, 50, 51]]
NEW = 12


def another(module: Any, seed: int, size: float = 0.3) -> Any:
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += size * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return other


def logits(module: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return module(torch.tensor([ids]), use_cache=False).logits[0, -1]


Rule = Callable[[list[int]], Tensor]


def slowly(rule: Rule, prompt: list[int], end: int = 2) -> list[int]:
    """Greedy, one row, unpadded, no cache: every model reads everything at every step."""
    ids = list(prompt)
    for _ in range(NEW):
        ids.append(int(rule(ids).argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


def fast(model: Any, decoder: Any, **options: Any) -> list[list[int]]:
    """Greedy, batched, padded on the left, with caches: the continuations up to their end."""
    sequences, start = generate_ids(
        interp.Model(model), PROMPTS, max_new_tokens=NEW, logits_processor=[decoder], **options
    )
    rows = sequences[:, start:].tolist()
    return [row[: row.index(2) + 1] if 2 in row else row for row in rows]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom", "gpt_oss", "opt", "mixtral"])
def test_proxy_tuning_equals_recomputing_everything(name: str) -> None:
    large = build("llama", num_hidden_layers=4)
    small = build(name, seed=5)
    tuned = another(small, 1)

    def rule(ids: list[int]) -> Tensor:
        q, b = (logits(m, ids).log_softmax(-1) for m in (tuned, small))
        return logits(large, ids).log_softmax(-1) + 1.5 * (q - b)

    got = fast(large, probes.proxy_tuning(large, tuned, small, weights=1.5))
    assert got == [slowly(rule, prompt) for prompt in PROMPTS]
    assert got != [slowly(lambda ids: logits(large, ids), prompt) for prompt in PROMPTS]


def test_contrastive_equals_recomputing_everything() -> None:
    base = build("gpt2")
    tuned = another(base, 2)

    def rule(ids: list[int]) -> Tensor:
        q, p = (logits(m, ids).softmax(-1) for m in (tuned, base))
        return (q.log() - p.log()).masked_fill(q < 0.2 * q.max(), -math.inf)

    decoder = probes.contrastive(tuned, base, alpha=0.2)
    expected = [slowly(rule, prompt) for prompt in PROMPTS]
    assert fast(tuned, decoder) == expected
    assert fast(tuned, decoder) == expected  # the same decoder, another generation


def test_logit_sum_is_a_product_of_experts() -> None:
    backbone, first, second = build("llama"), build("gpt2", seed=2), build("opt", seed=3)

    def rule(ids: list[int]) -> Tensor:
        return logits(backbone, ids) + 0.5 * logits(first, ids) - 0.25 * logits(second, ids)

    decoder = probes.logit_sum(backbone, [first, second], weights=[0.5, -0.25])
    assert fast(backbone, decoder) == [slowly(rule, prompt) for prompt in PROMPTS]
    ids = torch.tensor([PROMPTS[0]])
    scores = decoder(ids, logits(backbone, PROMPTS[0])[None])
    torch.testing.assert_close(scores[0], rule(PROMPTS[0]).log_softmax(-1), atol=1e-5, rtol=1e-4)


class Recomputed:
    """What a decoder does, with nothing remembered between steps."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.make()(input_ids, scores)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3_next"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3, "do_sample": True, "temperature": 2.0},
    ],
)
def test_beams_and_samples_follow_their_own_rows(name: str, options: dict[str, Any]) -> None:
    base = build(name)
    tuned = another(base, 3, 0.1)

    def make() -> Any:
        return probes.contrastive(tuned, base, alpha=0.01)

    def run(processor: Any) -> Tensor:
        torch.manual_seed(0)
        settings = {"max_new_tokens": NEW, "logits_processor": [processor], **options}
        return generate_ids(interp.Model(tuned), PROMPTS, **settings)[0]

    assert torch.equal(run(make()), run(Recomputed(make)))


def test_the_cache_is_used_and_reordered_not_computed_again() -> None:
    model = build("llama")
    follower = Follower(interp.Model(model), None)
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda _m, args, kwargs: lengths.append((*args, kwargs.get("input_ids"))[0].shape[1]),
        with_kwargs=True,
    )
    ids = torch.tensor([[0, 4, 5], [6, 7, 8]])
    follower.read(ids)
    swapped = torch.tensor([[6, 7, 8, 9], [0, 4, 5, 10], [6, 7, 8, 11]])
    got = follower.read(swapped)
    assert lengths[-2:] == [3, 1]
    expected = [
        logits(model, [6, 7, 8, 9]),
        logits(model, [4, 5, 10]),
        logits(model, [6, 7, 8, 11]),
    ]
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=1e-4)
    follower.read(torch.tensor([[6, 7, 1, 9, 9]]))  # nothing that was seen before
    assert lengths[-1] == 5


def test_weight_zero_is_the_large_model_to_the_bit() -> None:
    large, small = build("llama"), build("gpt2")
    decoder = probes.proxy_tuning(large, another(small, 1), small, weights=0.0)
    scores = logits(large, PROMPTS[0])[None]
    assert decoder(torch.tensor([PROMPTS[0]]), scores) is scores
    same = probes.proxy_tuning(large, small, small)  # nothing was tuned
    assert same(torch.tensor([PROMPTS[0]]), scores) is scores


def test_tuning_the_large_model_by_its_own_tuning_gives_the_tuned_model() -> None:
    base = build("llama")
    tuned = another(base, 4)
    got = fast(base, probes.proxy_tuning(base, tuned, base))
    assert got == [slowly(lambda ids: logits(tuned, ids), prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("alpha", [0.0, 0.05, 1.0])
def test_contrasting_a_model_with_itself_is_uniform_over_the_plausible(alpha: float) -> None:
    model = build("gpt2")
    ids = torch.tensor([PROMPTS[0]])
    z = logits(model, PROMPTS[0])[None]
    got = probes.contrastive(model, copy.deepcopy(model), alpha=alpha)(ids, z)[0]
    p = z[0].softmax(-1)
    plausible = p >= alpha * p.max()
    assert torch.equal(got.isfinite(), plausible)
    expected = torch.full((int(plausible.sum()),), -math.log(int(plausible.sum())))
    torch.testing.assert_close(got[plausible], expected, atol=1e-4, rtol=0)


def test_tokens_that_generate_forbids_stay_forbidden() -> None:
    base = build("llama")
    decoder = probes.contrastive(another(base, 1), base, alpha=0.0)
    scores = logits(base, PROMPTS[0])[None].clone()
    scores[0, 7] = -math.inf
    assert float(decoder(torch.tensor([PROMPTS[0]]), scores)[0, 7]) == -math.inf


def test_bos_that_is_also_the_pad_token_is_text() -> None:
    model = build("gpt2")
    model.generation_config.pad_token_id = model.generation_config.bos_token_id = 1
    ids = torch.tensor([[1, 1, 1, 5, 6], [1, 7, 8, 9, 10]])
    got = Follower(interp.Model(model), None).read(ids)
    expected = torch.stack([logits(model, [1, 5, 6]), logits(model, [1, 7, 8, 9, 10])])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    given = Follower(interp.Model(model), mask).read(ids)
    expected = torch.stack([logits(model, [1, 1, 1, 5, 6]), logits(model, [7, 8, 9, 10])])
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)


def test_wider_vocabularies_are_cut_to_what_is_shared() -> None:
    tokenizer = tokenizers.byte_level()
    base = build("llama", vocab_size=len(tokenizer))
    tuned = another(base, 1)
    padded = copy.deepcopy(tuned)
    padded.resize_token_embeddings(len(tokenizer) + 9, mean_resizing=False)
    plain = probes.contrastive(interp.Model(tuned, tokenizer), interp.Model(base, tokenizer))
    wider = probes.contrastive(interp.Model(padded, tokenizer), interp.Model(base, tokenizer))
    ids = torch.tensor([[5, 6, 7]])
    expected = plain(ids, logits(tuned, [5, 6, 7])[None])
    got = wider(ids, logits(padded, [5, 6, 7])[None])
    torch.testing.assert_close(got[:, : len(tokenizer)], expected, atol=1e-5, rtol=1e-4)
    assert bool((got[:, len(tokenizer) :] == -math.inf).all())


def test_all_models_stay_bit_identical() -> None:
    base = build("llama")
    tuned = another(base, 1)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (base, tuned)]
    fast(tuned, probes.contrastive(tuned, base), num_beams=2)
    for module, state in zip((base, tuned), before, strict=True):
        assert all(torch.equal(state[n], t) for n, t in module.state_dict().items())


def test_bad_input_is_refused() -> None:
    base, other = build("llama"), build("gpt2", vocab_size=99)
    for make in (
        lambda: probes.contrastive(base, other),
        lambda: probes.proxy_tuning(base, other, other),
        lambda: probes.logit_sum(base, other),
    ):
        with pytest.raises(interp.InterpError, match="cannot be compared without"):
            make()
    with pytest.raises(interp.InterpError, match=r"alpha=1\.5"):
        probes.contrastive(base, base, alpha=1.5)
    with pytest.raises(interp.InterpError, match="3 weights for 1 models"):
        probes.logit_sum(base, base, weights=[1.0, 2.0, 3.0])
    with pytest.raises(interp.InterpError, match="2 bases for 1 tuned"):
        probes.proxy_tuning(base, base, [base, base])
    with pytest.raises(interp.InterpError, match="no models"):
        probes.logit_sum(base, [])
    broken = copy.deepcopy(base)
    with torch.no_grad():
        broken.lm_head.weight[3] = math.nan
    with pytest.raises(interp.InterpError, match="not finite after 3 tokens of row 0"):
        probes.contrastive(base, broken)(torch.tensor([[4, 5, 6]]), torch.zeros(1, 97))
    with pytest.raises(interp.InterpError, match="attention_mask is"):
        Follower(interp.Model(base), torch.ones(1, 2).long()).read(torch.tensor([[4, 5, 6]]))
