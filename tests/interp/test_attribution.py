"""The record: tables that say where each number stands, means, and the way to disk and back."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

import interp
from interp import Attribution
from tests.architectures import build

P = [[5, 6, 7, 8], [9, 3], [11, 12, 13]]
OPTIONS = {"nodes": 2, "check": False, "progress": False}


@pytest.fixture
def dense() -> Attribution:
    return interp.attribute(
        build("llama"), P, "logit", ["z", "mlp_post.1", "attn_out.2"], **OPTIONS
    )


@pytest.fixture
def experts() -> Attribution:
    return interp.attribute(build("mixtral"), P, "logit", "mlp_post", **OPTIONS)


def test_every_row_of_the_table_is_the_number_it_names(dense: Attribution) -> None:
    table = dense.table()
    assert len(table) == 3 * (3 * 32 + 48 + 32)
    assert list(table.columns) == ["prompt", "site", "layer", "head", "neuron", "dim", "value"]
    for row in table.sample(200, random_state=0).itertuples():
        value = dense[row.site][row.prompt]
        kind = row.site.split(".")[0]
        place = {
            "z": (row.head, row.dim),
            "mlp_post": (row.neuron,),
            "attn_out": (row.dim,),
        }[kind]
        assert float(value[place]) == row.value
        assert row.layer == interp.Site.parse(row.site).layer
        assert pd.isna(row.neuron) == (kind != "mlp_post")


def test_expert_neurons_are_named_by_expert(experts: Attribution) -> None:
    table = experts.table()
    assert list(table.columns) == ["prompt", "site", "layer", "expert", "neuron", "value"]
    for row in table.sample(100, random_state=0).itertuples():
        site = interp.Site.parse(row.site)
        slot = experts.expert_ids[site][row.prompt].tolist().index(row.expert)
        assert float(experts[site][row.prompt, slot, row.neuron]) == row.value
    whole = table.groupby(["site", "expert", "neuron"])["value"].sum() / len(P)
    mean = experts.mean()
    assert mean["mlp_post.1"].shape == (1, 4, 48)
    for (site, expert, neuron), value in whole.sample(100, random_state=0).items():
        assert float(mean[site][0, expert, neuron]) == pytest.approx(value, abs=1e-7)


def test_top_is_the_head_of_the_sorted_table(dense: Attribution, experts: Attribution) -> None:
    for got in (dense, experts):
        one = got.table()[lambda t: t["prompt"] == 1].drop(columns="prompt")
        order = one["value"].abs().sort_values(ascending=False).index[:7]
        pd.testing.assert_frame_equal(
            got.top(7, prompt=1), one.loc[order].reset_index(drop=True), check_index_type=False
        )
        mean = got.mean().table().drop(columns="prompt")
        order = mean["value"].abs().sort_values(ascending=False).index[:7]
        pd.testing.assert_frame_equal(
            got.top(7), mean.loc[order].reset_index(drop=True), check_index_type=False
        )


def test_the_mean_keeps_what_sums_to_what(dense: Attribution) -> None:
    two = dense.mean([0, 2])
    torch.testing.assert_close(two["z.1"][0], (dense["z.1"][0] + dense["z.1"][2]) / 2)
    torch.testing.assert_close(two.output[0], (dense.output[0] + dense.output[2]) / 2)
    total = two["z.1"].sum() - (two.output - two.baseline_output[:, 2])[0]
    assert float(total.abs()) < 1.0
    with pytest.raises(interp.InterpError, match=r"prompts \[3\]: expected indices from 0 to 2"):
        dense.mean([3])
    with pytest.raises(interp.InterpError, match="at least one"):
        dense.mean([])


def test_the_summary_says_what_the_parts_should_sum_to(dense: Attribution) -> None:
    summary = dense.summary()
    assert len(summary) == 3 * 5
    for row in summary.itertuples():
        number = [str(site) for site in dense.sites].index(row.site)
        value = dense[row.site][row.prompt].double()
        assert row.total == pytest.approx(float(value.sum()))
        assert row.total == pytest.approx(row.positive + row.negative)
        change = dense.output[row.prompt] - dense.baseline_output[row.prompt, number]
        assert row.change == pytest.approx(float(change), abs=1e-6)
        if abs(row.change) > 0.1:
            error = abs(row.total - row.change) / abs(row.change)
            assert row.completeness == pytest.approx(error, rel=1e-3, abs=1e-6)


def test_a_change_within_rounding_is_not_divided_by() -> None:
    """1 + 1e-6 against 1: in float32 that is nothing, and an error of 1e-7 no error of 10 %."""
    site = interp.Site("mlp_post", 0)
    values = {site: torch.tensor([[1e-6, 1e-7]])}
    got = Attribution(values, torch.tensor([1.0]), torch.tensor([[1.0]]), [], {}, {"eps": 1.2e-7})
    assert float(got.completeness[0, 0]) < 0.01


def test_a_token_that_is_certain_has_a_logprob_and_no_false_alarm() -> None:
    """Logits of 40 and 0: the log-probability is 0, and rounding of the logits is all there is."""
    model = build("gpt2", tie_word_embeddings=False)
    with torch.no_grad():
        model.transformer.ln_f.bias.copy_(model.lm_head.weight[5])
        model.lm_head.weight[5] *= 40
    attr = interp.attribute(model, [[7, 30, 12]], "logprob", "mlp_post", progress=False)
    assert float(attr.output[0]) > -1e-6
    assert float(attr.completeness.max()) < 0.01


def test_records_come_back_from_disk(dense, experts, tmp_path) -> None:
    for number, got in enumerate((dense, experts)):
        back = Attribution.load(got.save(tmp_path / str(number)))
        assert back.sites == got.sites
        assert back.meta == got.meta
        assert back.answers == got.answers
        assert torch.equal(back.completeness, got.completeness)
        pd.testing.assert_frame_equal(back.table(), got.table())
        saved = pd.read_parquet(tmp_path / str(number) / "table.parquet")
        pd.testing.assert_frame_equal(saved, got.summary())


def test_sites_are_found_by_any_of_their_names(dense: Attribution) -> None:
    assert dense["z.-1"] is dense[interp.Site("z", 2)]
    assert dense["blocks.2.attn.hook_z"] is dense["z.2"]
    assert dense.stack("z").shape == (3, 3, 4, 8)
    assert repr(dense).startswith("Attribution(integrated_gradients; z.0: [3, 4, 8]")
    with pytest.raises(interp.SiteNotFound, match=r"z\.3 was not attributed"):
        dense["z.3"]
    with pytest.raises(interp.SiteNotFound, match="no 'mlp_out' was attributed"):
        dense.stack("mlp_out")


def test_figures_show_the_sums_they_are_made_of(dense: Attribution, experts: Attribution) -> None:
    heads = interp.attribute(build("llama"), P, "logit", "z", **OPTIONS)
    image = heads.plot(prompt=1).images[0].get_array()
    torch.testing.assert_close(
        torch.tensor(image.data), torch.stack([heads[s][1].sum(-1) for s in heads.sites]).double()
    )
    ax = experts.plot()
    totals = experts.mean().summary()["total"]
    assert list(ax.lines[0].get_ydata()) == pytest.approx(list(totals))
    with pytest.raises(interp.InterpError, match="one kind of site, and this has attn_out, mlp_po"):
        dense.plot()
    plt.close("all")
