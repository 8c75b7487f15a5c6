"""MEMIT against least squares, against ROME, and against what the stream should become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
import interventions as iv
from interp import Edit, InterpError
from interventions import _key_covariance, _memit
from interventions._projection import projection
from interventions._rewrite import requests_of
from interventions._value import search_values
from tests.architectures import NAMES, VARIANTS
from tests.interventions.knowledge import FACT, handle, state, texts
from tests.interventions.test_rome import MOE, association, spd

OTHER = iv.Rewrite(" Bo lives in", "Bo", " Oslo York")
THIRD = iv.Rewrite(" in Rome {} is a", "Ann", " w33")
SEARCH = iv.ValueSearch(steps=3, decay=0.0, drift_prompt=None, stop_below=-1.0)
POST_NORM = ("gemma2", "gemma3", "olmo2", "glm4")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_it_is_ridge_regression_in_the_metric_of_the_covariance():
    """min |D K - R|^2 + weight tr(D C D^T), by numpy's least squares of the stacked system."""
    keys, rest, moment = random(30, 6), random(8, 6, seed=1), spd(30)
    left, right = _memit.spread(keys, rest, moment, 2.5)
    root = np.linalg.cholesky(2.5 * moment.numpy())
    system = np.vstack([keys.numpy().T, root.T])
    target = np.vstack([rest.numpy().T, np.zeros((30, 8))])
    want = np.linalg.lstsq(system, target, rcond=None)[0].T
    np.testing.assert_allclose((left @ right).numpy(), want, rtol=1e-8, atol=1e-10)


def test_one_fact_without_weight_is_the_least_squares_solution_and_romes():
    model = handle()
    one, _ = association(model, 1)
    moment, lacking = spd(48), (one.value - one.output)[:, None]
    left, right = _memit.spread(one.key[:, None], lacking, moment, 1e-6)
    root = np.linalg.cholesky(moment.numpy())  # D = X root^-1, X k' = r with k' = root^-1 k
    inner = np.linalg.solve(root, one.key.numpy()[:, None])
    solved = np.linalg.lstsq(inner.T, lacking.numpy().T, rcond=None)[0].T  # of least norm
    want = np.linalg.solve(root.T, solved.T).T
    np.testing.assert_allclose((left @ right).numpy(), want, rtol=1e-5, atol=1e-9)
    rome = one.delta(projection(model, 1), _key_covariance.Solver(moment, 0, 1)).change
    torch.testing.assert_close(left @ right, rome.left @ rome.right, rtol=1e-5, atol=1e-9)


def test_facts_come_in_any_order():
    model = handle()
    covariance = iv.key_covariance(model, texts(), [0, 1])
    options = {"weight": 0.5, "contexts": [" w30"], "search": SEARCH}
    facts = [FACT, OTHER, THIRD]
    one = iv.memit(model, facts, [0, 1], covariance, **options)
    two = iv.memit(model, facts[::-1], [0, 1], covariance, **options)
    for a, b in zip(one, two, strict=True):
        first, second = (d.change.left @ d.change.right for d in (a, b))
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)
        assert float(first.abs().max()) > 1e-3


@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_the_stream_becomes_what_was_searched(name: str):
    """With hardly any weight on other keys, at the edited tokens, in every plain architecture."""
    model = handle(name, torch.float32 if name in MOE else torch.float64)
    layers = [0] if name == "deepseek_v3" else [1] if name == "qwen3_moe" else [0, 1]
    facts = [FACT, OTHER]

    def make() -> Edit:
        return iv.memit(model, facts, layers, weight=1e-9, contexts=[], search=SEARCH)

    if name in POST_NORM:
        with pytest.raises(InterpError, match=r"norms its MLP's output .* use iv\.rome"):
            make()
        return
    if name in ("mixtral", "olmoe", "gpt_oss", "qwen3_next"):
        with pytest.raises(InterpError, match="mixture of experts"):
            make()
        return
    before = state(model)
    edit = make()
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())
    requests = requests_of(model, facts, "subject_last", (), (), 0)
    values = search_values(model, requests, [None, None], layers[-1], None, SEARCH)
    rough = {"rtol": 1e-3, "atol": 1e-4} if name in MOE else {"rtol": 1e-5, "atol": 1e-6}
    for fact, request, value in zip(facts, requests, values, strict=True):
        at = request.rows[0].at
        site = f"resid_post.{layers[-1]}"
        with edit.applied(model):
            now = interp.capture(model, fact.text, site, positions=at)[site][0, 0].double()
        torch.testing.assert_close(now, value.start + value.change, **rough)
        assert float(value.change.norm()) > 1e-2
        assert value.loss[-1] < value.loss[0]


def test_the_stream_searched_for_has_the_loss_it_says():
    """By adding the change to the block's output with a plain function."""
    model = handle()
    (request,) = requests_of(model, [FACT], "subject_last", (), (), 0)
    (value,) = search_values(model, [request], [None], 1, None, SEARCH)

    def add(stream: Tensor, _site: interp.Site) -> Tensor:
        stream[:, request.rows[0].at] += value.change
        return stream

    with interp.hooked(model, {"resid_post.1": add}):
        logprob = interp.answer_logprob(model, FACT.text, FACT.answer)
    assert value.loss[-1] == pytest.approx(-float(logprob) / 2, rel=1e-5)


def test_layers_close_equal_shares_of_what_is_left():
    model = handle()
    edit = iv.memit(model, [FACT], [0, 1, 2], weight=1e-9, contexts=[], search=SEARCH,
                    position="last")  # fmt: skip
    lacking = edit.notes["memit"]["lacking"]
    assert len(edit.deltas) == 3 and lacking[0] > 0
    first = edit.deltas[0].change.left.norm()
    assert float(first) == pytest.approx(lacking[0] / 3, rel=1e-9)


def test_more_weight_moves_ordinary_keys_less():
    model = handle()
    covariance = iv.key_covariance(model, texts(), [1])
    moved = []
    for weight in (1e-3, 1.0, 1e3):
        edit = iv.memit(model, [FACT], [1], covariance, weight=weight, contexts=[], search=SEARCH)
        change = edit.deltas[0].change.left @ edit.deltas[0].change.right
        moved.append(float((change @ covariance.moment[1] @ change.T).trace()))
    assert moved[0] > moved[1] > moved[2] > 0


def test_a_memit_edit_bakes():
    for name in ("llama", "gpt2"):
        model = handle(name, torch.float32)
        edit = iv.memit(model, [FACT, OTHER], [0, 1], weight=0.1, contexts=[], search=SEARCH)
        ids = model.batch(FACT.text).input_ids
        with torch.no_grad(), edit.applied(model):
            want = model.module(ids).logits
        got = interp.bake(model, edit)(ids).logits
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_layers_and_weights_that_mean_nothing():
    model = handle()
    for layers, message in (
        ([], "no layers to write into"),
        ([1, 0], "expected each once, in ascending order"),
        ([1, 1], "expected each once"),
        ([0, 5], "this model has layers 0 to 2"),
        ([1, 2], "layer 2 is the last"),
    ):
        with pytest.raises(InterpError, match=message):
            iv.memit(model, [FACT], layers, contexts=[], search=SEARCH)
    with pytest.raises(InterpError, match="weight=0: expected more than 0"):
        iv.memit(model, [FACT], [1], weight=0, contexts=[], search=SEARCH)
    few = iv.key_covariance(model, texts(1), [1])
    options = {"weight": 1.0, "contexts": [], "search": SEARCH}
    with pytest.raises(InterpError, match=r"layer 1 has no inverse beside these 1 facts; .*=0\.01"):
        iv.memit(model, [FACT], [1], few, **options)
    assert len(iv.memit(model, [FACT], [1], few, damping=0.01, **options)) == 1
    with pytest.raises(InterpError, match="damping=-1: expected 0 or more"):
        iv.memit(model, [FACT], [1], few, damping=-1, **options)
