"""A sweep's score is what scikit-learn's nested loop gives; its controls catch what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import interp
import probes
from interp import InterpError, Site
from probes import LinearProbe, ProbeSweep
from probes._probe_cells import n_examples
from probes._probe_folds import outer_folds
from probes._probe_null import control_task, shuffled
from probes._probe_scores import auroc, draws, interval, weighted_balanced_accuracy
from tests.architectures import build

PENALTIES = (100.0, 10.0, 1.0)
QUIET: dict[str, Any] = {"progress": False, "bootstrap": 50}


def planted(n: int, d: int, classes: int = 2, strength: float = 1.0) -> Any:
    """Features, labels of one class a group of four, groups."""
    rng = np.random.default_rng(0)
    groups = np.arange(n) // 4
    y = (rng.permutation(n // 4) % classes)[groups]
    x = rng.standard_normal((n, d)) + strength * rng.standard_normal((classes, d))[y]
    return x, y, groups


@pytest.mark.parametrize(("d", "classes"), [(10, 2), (10, 3), (130, 2), (130, 3)])
def test_scores_are_those_of_a_nested_loop_in_scikit_learn(d: int, classes: int) -> None:
    x, y, groups = planted(120, d, classes, 0.7)
    fit = probes.sweep(
        {"resid_post.1": torch.from_numpy(x)},
        y,
        LinearProbe(penalties=PENALTIES),
        groups=groups,
        permutations=0,
        seed=2,
        **QUIET,
    )
    folds = outer_folds(y, groups, 5, 2, list(range(classes)))
    predicted, areas, pairs, penalties = np.empty_like(y), [], [], []
    for fold in range(5):
        test = folds == fold
        assert not set(groups[test]) & set(groups[~test])
        theirs = make_pipeline(
            StandardScaler(),
            RidgeClassifierCV(
                PENALTIES, cv=PredefinedSplit(folds[~test]), scoring="balanced_accuracy"
            ),
        ).fit(x[~test], y[~test])
        predicted[test] = theirs.predict(x[test])
        penalties.append(theirs[-1].alpha_)
        scores = theirs.decision_function(x[test]).reshape(test.sum(), -1)
        for place in range(scores.shape[1]):
            hit = y[test] == (1 if classes == 2 else place)
            areas.append(roc_auc_score(hit, scores[:, place]))
            pairs.append(hit.sum() * (~hit).sum())
    assert float(fit.score) == pytest.approx(balanced_accuracy_score(y, predicted), abs=1e-12)
    assert (fit.correct[0].bool().numpy() == (predicted == y)).all()
    assert float(fit.penalty) == np.median(penalties)
    by_class = np.array(areas).reshape(5, -1), np.array(pairs).reshape(5, -1)
    expected = ((by_class[0] * by_class[1]).sum(0) / by_class[1].sum(0)).mean()
    assert float(fit.auroc) == pytest.approx(expected, abs=1e-12)


def test_a_group_s_identity_does_not_leak() -> None:
    """Features that name the group and nothing else: chance in new groups, perfect in old ones."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 5)
    y = (np.arange(40) % 2)[groups]
    x = rng.standard_normal((40, 60))[groups] + 0.01 * rng.standard_normal((200, 60))
    acts = {"resid_post.0": x}
    fit = probes.sweep(acts, y, groups=groups, permutations=39, **QUIET)
    assert float(fit.low) <= 0.5 <= float(fit.high)
    assert float(fit.p) > 0.1
    # The control's types are the groups, on both sides of its split: all memorised.
    assert float(fit.control) > 0.95
    assert float(fit.selectivity) < -0.3
    leaky = probes.sweep(acts, y, permutations=0, **QUIET)
    assert float(leaky.score) > 0.99


def test_p_is_uniform_on_labels_that_mean_nothing() -> None:
    """Share of p at or below 0.2, with groups; and of the smallest corrected p of four cells."""
    rng = np.random.default_rng(0)
    single, best, uncorrected = 0, 0, 0
    for seed in range(100):
        groups = np.repeat(np.arange(24), 2)
        y = rng.permutation(np.arange(24) % 2)[groups]
        acts = {f"resid_post.{i}": rng.standard_normal((48, 4)) for i in range(4)}
        fit = probes.sweep(
            acts,
            y,
            LinearProbe("mean_difference"),
            groups=groups,
            folds=4,
            permutations=19,
            control_labels=0,
            bootstrap=2,
            seed=seed,
            progress=False,
        )
        single += float(fit.p[0]) <= 0.2
        best += float(fit.p_max.min()) <= 0.2
        uncorrected += float(fit.p.min()) <= 0.2
    # Ties between scores make p larger, never smaller.
    assert binomtest(single, 100, 0.2, alternative="greater").pvalue > 0.01
    assert binomtest(best, 100, 0.2, alternative="greater").pvalue > 0.01
    assert single >= 8
    assert uncorrected > 30  # what looking at four cells does without correction


def test_the_planted_layer_stands_out_and_survives_correction() -> None:
    x, y, groups = planted(160, 8, strength=2.0)
    rng = np.random.default_rng(3)
    acts = {f"resid_post.{i}": rng.standard_normal((160, 8)) for i in range(4)}
    acts["resid_post.2"] = x
    fit = probes.sweep(acts, y, groups=groups, permutations=39, **QUIET)
    table = fit.table().set_index("layer")
    assert table["score"].idxmax() == 2
    assert table.loc[2, "p_max"] == table["p"].min() == 1 / 40
    assert (table["p_max"] >= table["p"]).all()
    assert table.drop(2)["score"].max() < fit.threshold < table.loc[2, "score"]
    assert table.loc[2, "low"] > 0.5
    assert abs(table["score_null"] - 0.5).max() < 0.1


def test_shuffles_keep_folds_stratified_and_groups_whole() -> None:
    _, y, groups = planted(120, 2, 3)
    folds = outer_folds(y, groups, 5, 0, [0, 1, 2])
    null = shuffled(y, groups, folds, 30, 0)
    for labels in null.T:
        pairs = {(g, c) for g, c in zip(groups, labels, strict=True)}
        assert len(pairs) == 30  # one label a group
        for fold in range(5):
            counts = np.bincount(labels[folds == fold], minlength=3)
            assert (counts == np.bincount(y[folds == fold], minlength=3)).all()
    assert len({tuple(labels) for labels in null.T}) == 30
    mixed = np.arange(120) % 3  # labels differ within groups: exchanged within them
    null = shuffled(mixed, groups, folds, 5, 0)
    for labels in null.T:
        for group in range(30):
            own = groups == group
            assert sorted(labels[own]) == sorted(mixed[own])


def test_control_labels_are_one_a_type_and_types_stand_on_both_sides() -> None:
    types = np.repeat(np.arange(12), 10)
    codes = np.arange(120) % 3
    found = control_task(codes, types, 5, 4, 0)
    assert found is not None
    labels, folds = found
    for column in labels.T:
        assert len({(t, c) for t, c in zip(types, column, strict=True)}) == 12
        assert set(column) == {0, 1, 2}
    for kind in range(12):
        assert len(set(folds[types == kind])) == 5
    assert control_task(codes, np.zeros(120, dtype=int), 5, 4, 0) is None


def test_weighted_scores_are_scikit_learn_s_with_sample_weights() -> None:
    rng = np.random.default_rng(0)
    codes, groups = rng.integers(0, 2, 60), rng.integers(0, 40, 60)
    scores = rng.integers(0, 9, 60) / 4 + 0.4 * codes  # with ties
    weights = draws(groups, 20, 0)
    assert (weights.sum(axis=1) > 0).all()
    assert all(len(set(column)) == 1 for g in set(groups) for column in weights[:, groups == g])
    areas = auroc(scores[:, None], codes, np.zeros(60), weights)
    correct = (scores > 1) == codes
    balanced = weighted_balanced_accuracy(correct, codes, weights)
    for i, weight in enumerate(weights):
        expected = roc_auc_score(codes, scores, sample_weight=weight)
        assert areas[i] == pytest.approx(expected)
        expected = balanced_accuracy_score(codes, scores > 1, sample_weight=weight)
        assert balanced[i] == pytest.approx(expected)


def test_few_groups_or_no_errors_still_have_an_interval() -> None:
    low, high = interval(1.0, np.ones(10), np.array([10, 10]), 20, pairs=False)
    assert high == 1
    assert low == pytest.approx(0.025 ** (1 / 20))  # Clopper and Pearson, 20 of 20
    assert interval(0.5, np.linspace(0, 1, 101), np.array([40, 40]), 80, pairs=False) == (
        pytest.approx(0.025),
        pytest.approx(0.975),
    )
    wide = interval(0.5, np.full(10, 0.5), np.array([2, 40]), 42, pairs=False)
    assert wide[0] < 0.15  # the rarest class has two groups


@pytest.fixture(scope="module")
def captured() -> Any:
    model = build("llama")
    texts = [[1, *range(3 + i % 60, 3 + i % 60 + 3 + i % 2)] for i in range(60)]
    return model, texts, interp.capture(model, texts, ["embed", "resid_post.*", "z.1"])


def test_a_position_at_which_all_prompts_are_the_same_is_skipped_by_name(captured: Any) -> None:
    _, _, acts = captured
    y = np.arange(60) // 2 % 2
    options: dict[str, Any] = {"permutations": 0, "control_labels": 0, **QUIET}
    one = {"embed": acts["embed"]}  # token 0 is 1 everywhere; only odd prompts have a fifth token
    assert probes.sweep(one, y, positions=[0, 1], **options).meta["skipped"] == ["embed at 0"]
    with pytest.raises(InterpError, match="every feature of embed at 0 is constant over the 60"):
        probes.sweep(one, y, positions=[0], **options)


def test_last_is_the_last_real_token(captured: Any) -> None:
    model, texts, acts = captured
    y = np.arange(60) // 2 % 2
    options: dict[str, Any] = {"permutations": 0, "control_labels": 0, **QUIET}
    one = interp.capture(model, texts, ["embed", "resid_post.*", "z.1"], positions="last")
    mine, theirs = (
        probes.sweep(acts, y, positions="last", **options),
        probes.sweep(one, y, **options),
    )
    torch.testing.assert_close(mine.score, theirs.score)
    assert theirs.position == mine.position == ["last"] * 5
    assert mine.site == ["embed", "resid_post.0", "z.1", "resid_post.1", "resid_post.2"]
    assert mine.layer.tolist() == [-1, 0, 1, 1, 2]


def test_positions_that_few_prompts_reach_are_skipped_by_name(captured: Any) -> None:
    model, texts, _ = captured
    short = [ids if i < 6 else ids[:4] for i, ids in enumerate(texts)]
    acts = interp.capture(model, short, "resid_post.1")
    y = np.arange(60) // 2 % 2
    fit = probes.sweep(acts, y, positions=[1, 2, 3, 4], permutations=0, **QUIET)
    assert fit.position == [1, 2, 3]
    assert fit.meta["skipped"] == ["resid_post.1 at 4"]
    mean = probes.sweep(acts, y, positions="mean", permutations=0, control_labels=0, **QUIET)
    by_hand = [acts["resid_post.1"][i, : len(ids)].mean(0) for i, ids in enumerate(short)]
    same = probes.sweep(
        {Site("resid_post", 1): torch.stack(by_hand)}, y, permutations=0, control_labels=0, **QUIET
    )
    torch.testing.assert_close(mean.probability, same.probability)


def test_tokens_as_types_and_the_random_twin(captured: Any) -> None:
    model, texts, acts = captured
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    twin = probes.random_twin(model, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    again = probes.random_twin(model, seed=1).module.state_dict()
    own = twin.module.state_dict()
    assert own.keys() == before.keys()
    assert all(torch.equal(again[name], value) for name, value in own.items())
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(own[name], before[name])
    random = interp.capture(twin, texts, ["embed", "resid_post.*", "z.1"])
    y = np.array([ids[1] for ids in texts]) % 2  # a fact about the token: no training needed
    fit = probes.sweep(
        acts, y, positions=[1], types="token", permutations=9, control_acts=random, **QUIET
    )
    assert fit.random_init.isfinite().all()
    alone = probes.sweep(random, y, positions=[1], permutations=0, **QUIET)
    torch.testing.assert_close(fit.random_init, alone.score)
    torch.testing.assert_close(fit.random_init_low, alone.low)
    assert fit.control.isfinite().all()
    with pytest.raises(InterpError, match="control_acts lack embed at 1 for the same 60 examples"):
        fewer = interp.capture(twin, texts, "resid_post.*")
        probes.sweep(acts, y, positions=[1], control_acts=fewer, permutations=0, **QUIET)


def test_record_comes_back_and_draws(tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    x, y, groups = planted(80, 6)
    acts = {f"resid_post.{i}": np.stack([x, x + i], axis=1) for i in range(2)}
    fit = probes.sweep(acts, y, groups=groups, permutations=9, **QUIET)
    again = ProbeSweep.load(fit.save(tmp_path / "fit"))
    torch.testing.assert_close(again.null, fit.null, rtol=0, atol=0)
    assert again.table().equals(fit.table())
    assert again.meta["shuffled"] == "between groups"
    columns = "site layer position score low high control p p_max".split()
    assert list(fit.table().columns[:9]) == columns
    examples = fit.examples()
    assert len(examples) == 4 * 80
    assert examples.groupby(["site", "position"])["correct"].mean().between(0, 1).all()
    assert fit.plot().get_ylabel() == "balanced accuracy, held-out groups"
    assert fit.plot(measure="auroc").get_ylabel().startswith("AUROC")
    with pytest.raises(InterpError, match="no measure 'scor'; nearest valid names: 'score'"):
        fit.plot(measure="scor")
    without = probes.sweep(acts, y, groups=groups, permutations=0, control_labels=0, **QUIET)
    assert without.p.isnan().all()
    assert without.table()["score_z"].isna().all()
    assert without.control.isnan().all()
    torch.testing.assert_close(without.score, fit.score)


def test_logistic_probes_sweep_too() -> None:
    x, y, groups = planted(80, 5, strength=2.0)
    probe = LinearProbe("logistic", penalties=[1.0, 0.1])
    fit = probes.sweep({"a": x}, y, probe, groups=groups, permutations=3, folds=3, **QUIET)
    assert float(fit.score) > 0.8 > float(fit.null.max())
    assert float(fit.brier) < 0.2
    assert fit.layer.tolist() == [-1]


def test_bad_input_gives_one_clear_sentence() -> None:
    x, y, groups = planted(40, 4)
    nan = x.copy()
    nan[3] = np.nan
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("1 class only: every example has the label 0", x, y * 0, {}),
        ("labels of shape .39. for 40 examples", x, y[:-1], {}),
        ("39 groups for 40 examples", x, y, {"groups": groups[:-1]}),
        ("all 40 examples are of one group", x, y, {"groups": ["ann"] * 40}),
        ("occurs in 5 groups, fewer than the 6 folds", x, y, {"groups": groups, "folds": 6}),
        ("folds=2: expected 3 or more", x, y, {"folds": 2}),
        ("a at given has NaN or inf in 1 of 40 examples", nan, y, {}),
        ("every feature of a at given is constant", x * 0, y, {}),
        ("expected .example d. or .example pos d.", x[:, 0], y, {}),
        ("types='word': expected 'token' or one", x, y, {"types": "word"}),
        ("types='token', but a at given has no tokens", x, y, {"types": "token"}),
        ("39 types for 40 examples", x, y, {"types": groups[:-1]}),
        ("position 7 was not captured", x[:, None], y, {"positions": [7]}),
        ("positions='lst': expected 'each'", x[:, None], y, {"positions": "lst"}),
    ]
    for match, features, labels, options in cases:
        with pytest.raises(InterpError, match=match):
            probes.sweep({"a": features}, labels, permutations=0, **options, **QUIET)
    with pytest.raises(InterpError, match="no activations"):
        probes.sweep({}, y)
    with pytest.raises(InterpError, match="labels have NaN at example"):
        probes.sweep({"a": x}, np.where(y == 0, np.nan, 1.0), **QUIET)
    for missing, name in ((None, "None"), (float("nan"), "NaN"), (pd.NA, "NaN")):
        with pytest.raises(InterpError, match=f"labels have {name} at example 3; leave such"):
            probes.sweep({"a": x}, ["ab"[i % 2] if i != 3 else missing for i in range(40)], **QUIET)
    with pytest.raises(InterpError, match=r"labels are of several types \(\w*Path, str\)"):
        probes.sweep({"a": x}, [Path("a"), "b"] * 20, **QUIET)
    with pytest.raises(InterpError, match="the activations are a Tensor; expected a capture, or a"):
        n_examples(torch.zeros(40, 4))
