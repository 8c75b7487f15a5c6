"""The record: its table, its intervals, its figure, its folder, and what is refused."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch

import interp
from interp import Place
from tests.architectures import build
from tests.interp.patch.slow import difference
from tests.oracles.tokenizers import byte_level


@pytest.fixture
def eff(ids) -> interp.PatchEffects:
    clean = [ids[0].tolist(), ids[1, :8].tolist(), ids[1].tolist()]
    corrupted = [[(token + 17) % 90 + 3 for token in row] for row in clean]
    return interp.patch(build("llama"), clean, corrupted, ["resid_post", "z.1"], difference)


def test_the_table_is_tidy_and_holds_every_score(eff) -> None:
    table = eff.table()
    assert list(table.columns) == [
        "prompt", "site", "layer", "span", "position", "head", "score", "normalised",
    ]  # fmt: skip
    assert len(table) == (11 + 8 + 11) * (3 + 4)
    row = table[
        (table.prompt == 1) & (table.site == "z.1") & (table.position == 7) & (table["head"] == 2)
    ]
    assert float(row.score.iloc[0]) == pytest.approx(float(eff["z.1"][1, 7, 2]))
    expected = (eff["z.1"][1, 7, 2] - eff.corrupted[1]) / (eff.clean[1] - eff.corrupted[1])
    assert float(row.normalised.iloc[0]) == pytest.approx(float(expected), rel=1e-5)
    assert table[table.site == "resid_post.1"]["head"].isna().all()


def test_intervals_are_students_over_prompts_and_clusters(eff) -> None:
    table = eff.summary()
    row = table[(table.site == "resid_post.1") & (table.span == "6")].iloc[0]
    values = eff["resid_post.1"][:, 6].double().numpy()
    low, high = scipy.stats.t.interval(0.95, 2, values.mean(), scipy.stats.sem(values))
    assert [row.score, row.low, row.high] == pytest.approx([values.mean(), low, high], rel=1e-4)
    gap = float((eff.clean - eff.corrupted).double().mean())
    assert row.normalised == pytest.approx(
        (values.mean() - float(eff.corrupted.double().mean())) / gap, rel=1e-4
    )
    assert int(table[(table.site == "resid_post.1") & (table.span == "9")].prompts.iloc[0]) == 2
    by_cluster = eff.summary(["a", "b", "b"])
    row = by_cluster[(by_cluster.site == "resid_post.1") & (by_cluster.span == "6")].iloc[0]
    assert row.score == pytest.approx(values.mean(), rel=1e-4)
    sums, counts = np.array([values[0], values[1:].sum()]), np.array([1, 2])
    residuals = (sums - values.mean() * counts) / 1.5
    half = scipy.stats.t.ppf(0.975, 1) * np.sqrt(np.square(residuals).sum() / 2)
    assert row.high - row.score == pytest.approx(half, rel=1e-4)
    with pytest.raises(interp.InterpError, match="2 clusters for 3 prompts"):
        eff.summary(["a", "b"])


def test_it_survives_its_folder(eff, tmp_path) -> None:
    again = interp.PatchEffects.load(eff.save(tmp_path / "eff"))
    assert list(again.score) == list(eff.score)
    for name, score in eff.score.items():
        assert torch.equal(again.score[name].nan_to_num(), score.nan_to_num())
    assert torch.equal(again.clean, eff.clean) and again.positions == eff.positions
    assert again.units == eff.units and again.tokens == eff.tokens and again.meta == eff.meta
    assert again.table().equals(eff.table())


def test_sites_are_found_by_any_of_their_names(eff) -> None:
    assert torch.equal(eff["blocks.1.attn.hook_z"].nan_to_num(), eff["z.1"].nan_to_num())
    assert eff["resid_post.-1"].shape == (3, 11)
    assert eff.stack("resid_post", normalised=True).shape == (3, 3, 11)
    with pytest.raises(interp.SiteNotFound, match=r"z\.2 was not patched; .*'z\.1'"):
        eff["z.2"]
    with pytest.raises(interp.SiteNotFound, match="no layers of 'q' were patched"):
        eff.stack("q")


def test_figures_show_normalised_effects(ids) -> None:
    model = interp.load(build("llama", vocab_size=80), tokenizer=byte_level())
    pair = "The capital is Paris", "The capital is Rome"
    one = interp.patch(model, *pair, ["resid_post", "z"], positions="each")
    ax = one.plot("resid_post")
    shown = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(
        shown, one.stack("resid_post", normalised=True)[:, 0].numpy(), rtol=1e-5, atol=1e-6
    )
    assert [label.get_text() for label in ax.get_xticklabels()][-1] == "3 ·Rome"
    heads = one.plot("z", span="3")
    assert np.asarray(heads.images[0].get_array()).shape == (3, 4)
    joint = interp.patch(model, *pair, {"a": [Place("z.1", [0], -1)]}, "prob").plot()
    assert len(joint.patches) == 1
    plt.close("all")
    with pytest.raises(interp.InterpError, match="say which of resid_post, z to draw"):
        one.plot()
    with pytest.raises(interp.InterpError, match="at 4 spans; say which"):
        one.plot("z")
    with pytest.raises(interp.InterpError, match="no prompt 3; there are 1"):
        one.plot("resid_post", prompt=3)


def test_pairs_that_do_not_fit_are_refused_with_the_positions(ids) -> None:
    model = interp.load(build("llama", vocab_size=80), tokenizer=byte_level())
    message = (
        r"pair 1: the clean prompt has 4 tokens and the corrupted one 5; they share the first 3 "
        r"and the last 0 and differ at position 3 of the clean, positions 3 to 4 of the corrupted; "
        r"use prompts of one length, or align='ends'"
    )
    clean = ["The capital is Paris", "The capital is Paris"]
    corrupted = ["The capital is Rome", "The capital is New York"]
    with pytest.raises(interp.InterpError, match=message):
        interp.patch(model, clean, corrupted)
    with pytest.raises(interp.InterpError, match="2 clean and 1 corrupted prompts"):
        interp.patch(model, clean, corrupted[:1])
    with pytest.raises(interp.InterpError, match="no corrupted prompts; give some, or source="):
        interp.patch(model, clean)
    aligned = interp.patch(model, clean, corrupted, align="ends")
    assert aligned["resid_post.0"].isnan()[1].tolist() == [False, False, False, True, True]
    with pytest.raises(interp.InterpError, match="position 3 of prompt 1 has no partner"):
        interp.patch(model, clean, corrupted, align="ends", positions=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "probs"}, "metric 'probs': expected one of 'logit_difference', "),
        ({"metric": lambda x: x.sum()}, r"the metric returned \[\] for logits \[\d+, 97\]"),
        ({"metric": lambda x: 3.0}, "the metric returned float for logits"),
        (
            {"metric": lambda x: x[:, 0] / 0},
            "metric of the clean run of prompt 0 is (-?inf|nan)",
        ),
        ({"metric": interp.Target("logit_difference", 3, 3)}, "start with the same token"),
        ({"metric": interp.Accuracy([1, 2, 3])}, "3 answers for 2 prompts"),
        ({"metric": "accuracy", "method": "attribution"}, "accuracy has no gradient"),
        ({"compare": True}, "use method='attribution'"),
        ({"sites": "embed"}, r"embed cannot be patched; patch 'resid_pre.0'"),
        ({"sites": "head_out.1"}, r"head_out.1 cannot be patched; patch 'z', a head's output"),
        ({"sites": "z.7"}, "layers 0 to 2"),
        ({"sites": {}}, "nothing to patch"),
        ({"sites": {"a": []}}, "'a' names"),
        ({"sites": {"a": [Place("resid_post.1", [2])]}}, "has no heads or neurons"),
        ({"sites": {"a": [Place("z", [2])]}}, "a place is one site"),
        ({"positions": "all"}, "expected 'each', 'together', 'last'"),
        ({"positions": 11}, "position 11 is outside prompt 0, which has 11 tokens"),
        ({"positions": []}, "positions is empty"),
        ({"positions": {"a": [[1], [2], [3]]}}, "positions 'a' are given for 3 prompts"),
        ({"groups": [[0]]}, "no site asked for has any"),
        ({"groups": [[4]], "sites": "z.1"}, r"units \[4\]; expected at least one, of 4 heads"),
        ({"groups": [[99]], "sites": "mlp_post.1"}, r"has 48 units \(0 to 47\), and 99"),
    ],
)
def test_refusals(options, message, ids) -> None:
    arguments = {"sites": "resid_post.1", "metric": difference, **options}
    with pytest.raises(interp.InterpError, match=message):
        interp.patch(build("llama"), ids, (ids + 1) % 97, **arguments)


def test_sources_that_do_not_fit_are_refused(ids) -> None:
    model = build("llama")
    for other, message in (
        (build("llama", vocab_size=98), "differ in vocabulary: 97 and 98"),
        (build("llama", num_hidden_layers=2), "differ in layers: 3 and 2"),
        (build("llama", hidden_size=64), "differ in width: 32 and 64"),
    ):
        with pytest.raises(interp.InterpError, match=message):
            interp.patch(model, ids, source=other)
    wide = build("llama", intermediate_size=52)
    with pytest.raises(interp.InterpError, match=r"mlp_post.0 has units \[52\] in one"):
        interp.patch(model, ids, None, "mlp_post", "kl", source=wide)
    one, two = byte_level(), byte_level()
    two.add_tokens(["extra"])
    ours = interp.load(build("llama", vocab_size=90), tokenizer=one)
    theirs = interp.load(build("llama", vocab_size=90), tokenizer=two)
    with pytest.raises(interp.InterpError, match="tokenizers of model and source differ: 'extra'"):
        interp.patch(ours, "The capital", source=theirs)


def test_activations_that_are_not_numbers_are_refused(ids) -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    handle = interp.load(model, check=False)
    with pytest.raises(interp.InterpError, match=r"mlp_out\.1 holds NaN or infinity"):
        interp.patch(handle, ids, (ids + 1) % 97, ["mlp_out.0", "mlp_out.1"], difference)


def test_expert_neurons_are_refused_with_the_reason(ids) -> None:
    with pytest.raises(interp.UnsupportedSite, match=r"routed to other experts.*mlp_out\.1"):
        interp.patch(build("mixtral"), ids, (ids + 1) % 97, "mlp_post.1", difference)


def test_a_compiled_module_is_refused(ids) -> None:
    model = build("llama")
    model.compile(backend="eager")
    with pytest.raises(interp.InterpError, match="this module is compiled"):
        interp.patch(model, ids, (ids + 1) % 97)
