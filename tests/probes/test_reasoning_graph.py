"""From rollouts to graphs: steps, points, nodes, and what cannot be done."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import interp
import probes
from interp import InterpError
from probes._reasoning_graph_nodes import cluster
from studies import organisms
from tests.probes.reasoning_graphs import rollouts


def graph(*texts: str, **options: Any) -> probes.ReasoningGraph:
    traces = [{"problem": "p", "model": "base", "text": text} for text in texts]
    return probes.reasoning_graph(traces, **{"separator": ";", "progress": False} | options)


def one_hot(texts: list[str]) -> np.ndarray:
    """Texts that begin with the same letter are the same point."""
    return np.eye(26)[[ord(text[0]) - ord("a") for text in texts]]


def walk(found: probes.ReasoningGraph, rollout: int) -> list[str]:
    nodes = found.node[int(found.start[rollout]) : int(found.start[rollout + 1])]
    return [found.steps[int(node)] for node in nodes]


def test_rollouts_become_walks_over_shared_nodes() -> None:
    found = graph("a1; a2 ;b;; c", "b;a3;a1", "", "c", embed=one_hot, k=3)
    assert [walk(found, i) for i in range(4)] == [["a1", "b", "c"], ["b", "a1"], [], ["c"]]
    assert found.meta["empty"] == 1
    edges = found.edges("base")
    assert edges["count"].sum() == 3
    np.testing.assert_allclose(edges["distance"], math.sqrt(2), rtol=1e-6)
    table = found.table().set_index("step")
    assert table["visits"].to_dict() == {"a1": 2, "b": 2, "c": 2}
    assert table["betweenness"].to_dict() == pytest.approx({"a1": 0, "b": 0.5, "c": 0})


def test_nodes_are_shared_by_models_and_problems() -> None:
    found = probes.reasoning_graph(
        rollouts(0, models={"base": 0.1, "rl": 0.5}, problems=4), separator=";", progress=False
    )
    assert found.meta["nodes"] == len(found.steps) == 40  # 4 problems, 10 words each
    assert found.models == ["base", "rl"]
    assert found.meta["clustering"] == "every distinct step is a node"


def test_a_planted_squeeze_shows_in_rates_and_ratios() -> None:
    found = probes.reasoning_graph(
        rollouts(0, models={"base": 0.1, "rl": 0.5, "again": 0.1}, samples=10),
        separator=";",
        progress=False,
    )
    rates = found.rates(draws=3)
    assert len(rates) == 3 * 30 * 3
    visits = rates[rates["quantity"] == "visits"]
    assert visits["beta_null"].isna().all()  # that null keeps visits
    mean = visits.groupby("model")["beta_visits"].mean()
    assert mean["rl"] > 1.5 * mean["base"]
    ratios = found.compare(draws=6).set_index(["model", "quantity", "sampling"])
    assert ratios.loc[("rl", "visits", "visits"), "low"] > 1.3
    again = ratios.loc[("again", "visits", "visits")]
    assert again["low"] < 1.05 and again["high"] > 0.95 and abs(again["z"]) < 3
    smape = found.difference(draws=10).set_index("model")
    assert smape.loc["rl", "z"] > 3 > abs(smape.loc["again", "z"])
    pooled = found.rates(per="model", draws=3)
    assert len(pooled) == 9 and pooled["problem"].isna().all()
    shape = found.topology(draws=3)
    assert len(shape) == 3 * 14 and (shape["null"].notna() == shape["value"].notna()).all()


def test_the_seed_decides_and_a_saved_graph_gives_the_same(tmp_path: Path) -> None:
    found = probes.reasoning_graph(
        rollouts(1, models={"base": 0.1, "rl": 0.5}, problems=5),
        separator=";",
        k=20,
        progress=False,
    )
    again = probes.ReasoningGraph.load(found.save(tmp_path / "graph"))
    assert torch.equal(again.node, found.node) and torch.equal(again.centroid, found.centroid)
    assert again.compare(draws=3, seed=4).equals(found.compare(draws=3, seed=4))
    assert again.rates(draws=2).equals(found.rates(draws=2))
    assert again.table().equals(found.table())


def test_kmeans_finds_planted_groups_small_and_in_mini_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 8, 900)
    points = (20 * rng.standard_normal((8, 6)))[truth] + rng.standard_normal((900, 6))
    points, weights = points.astype(np.float32), rng.integers(1, 5, 900)
    node, centroid, how = cluster(points, weights, 8, 0)
    assert how.startswith("K-means") and adjusted_rand_score(truth, node) == 1
    for index in range(8):
        inside = node == index
        mean = np.average(points[inside], axis=0, weights=weights[inside])
        np.testing.assert_allclose(centroid[index], mean, atol=1e-3)
    monkeypatch.setattr("probes._reasoning_graph_nodes._LLOYD_UP_TO", 0)
    node, _, how = cluster(points, weights, 8, 0)
    assert how.startswith("mini-batch") and adjusted_rand_score(truth, node) > 0.9


def test_fewer_distinct_points_than_nodes_leave_no_empty_node() -> None:
    points = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    node, centroid, _ = cluster(points, np.ones(30, dtype=np.int64), 5, 0)
    assert len(centroid) == 3 and adjusted_rand_score(np.repeat(np.arange(3), 10), node) == 1


def test_tfidf_puts_equal_spelling_together() -> None:
    texts = [f"adding {n} to the total" for n in range(10)] + [f"x = {n} / y" for n in range(10)]
    found = graph(*(f"{a};{b}" for a, b in zip(texts[:10], texts[10:], strict=True)), k=2)
    assert sorted(len(walk(found, i)) for i in range(10)) == [2] * 10
    assert len({tuple(walk(found, i)) for i in range(10)}) == 1


@pytest.fixture(scope="module")
def base() -> interp.Model:
    module, tokenizer = organisms.load("base")
    return interp.load(module, tokenizer=tokenizer)


PROMPT = "Problem: Mia has 23 coins. Mia finds 12 more. Mia loses 5. How many coins? Solution:"
TEXTS = [" 23 + 12 = 35; 35 - 5 = 30; answer 30", " adding 12 to 23 makes 35; answer 35", ""]


def test_hidden_states_are_means_over_each_steps_tokens_in_context(base: interp.Model) -> None:
    traces = [probes.Rollout("p", "base", text, prompt=PROMPT) for text in TEXTS]
    found = probes.reasoning_graph(traces, separator=";", embed=base, layer=3, progress=False)
    assert found.meta["embedding"].endswith("resid_post.3") and found.meta["nodes"] == 5
    tokenizer = base.tokenizer
    before = PROMPT + TEXTS[0].split(";")[0] + ";"
    whole = PROMPT + TEXTS[0]
    begin, end = (len(tokenizer(t)["input_ids"]) for t in (before, before + " 35 - 5 = 30"))
    stream = interp.capture(base, whole, "resid_post.3")["resid_post.3"][0]
    torch.testing.assert_close(found.centroid[1], stream[begin:end].mean(0), atol=1e-5, rtol=1e-4)


def test_hidden_states_do_not_depend_on_the_batch_and_the_model_stays(base: interp.Model) -> None:
    before = {name: tensor.clone() for name, tensor in base.module.state_dict().items()}
    traces = [
        probes.Rollout("p", "base", text, prompt=PROMPT) for text in [*TEXTS, TEXTS[0], TEXTS[1]]
    ]
    one, many = (
        probes.reasoning_graph(traces, separator=";", embed=base, batch_size=size, progress=False)
        for size in (1, 8)
    )
    torch.testing.assert_close(one.centroid, many.centroid, atol=1e-5, rtol=1e-4)
    assert torch.equal(one.node, many.node)
    assert one.meta["embedding"].endswith("resid_post.4")  # 0.9 of the depth of six blocks
    assert all(torch.equal(before[n], t) for n, t in base.module.state_dict().items())


def test_traces_without_separators_are_one_clear_sentence() -> None:
    with pytest.raises(InterpError, match=r"none of the 2 traces contains ';' between two steps"):
        graph("a b", "c")
    with pytest.raises(InterpError, match=r"none of the 1 traces is split into more than one step"):
        graph("a b", separator=lambda text: [text])
    with pytest.raises(InterpError, match="all 2 traces are empty"):
        graph("", "  ")
    with pytest.raises(InterpError, match="separator is empty"):
        graph("a;b", separator="")


def test_a_function_may_split_sentences() -> None:
    split = re.compile(r"(?<=[.!?])\s+").split
    found = graph("First. Then that! Why? So.", separator=split)
    assert walk(found, 0) == ["First.", "Then that!", "Why?", "So."]


def test_a_single_node_one_sample_and_all_but_empty_traces_have_defined_values() -> None:
    single = graph("a;a1;a2", "a", embed=one_hot, k=2)
    assert single.table()["visits"].tolist() == [2]
    rates = single.rates(draws=2)
    assert rates["beta"].isna().all() and rates["beta_visits"].isna().all()
    assert single.topology(draws=2)["value"].isna().all()
    lonely = graph("a;b;c;d", "", embed=one_hot).rates(draws=2).set_index("quantity")
    assert lonely.loc["visits", "beta"] == 0 and lonely.loc["visits", "nodes"] == 4
    traces = [
        {"problem": "p", "model": "base", "text": "a;b;c;d"},
        {"problem": "p", "model": "mute", "text": ""},
    ]
    two = probes.reasoning_graph(traces, separator=";", progress=False)
    ratios = two.compare(draws=2)
    assert ratios["ratio"].isna().all() and (ratios["problems"] == 0).all()
    assert two.rates(per="model", draws=2).set_index("model").loc["mute", "beta"].isna().all()
    assert math.isfinite(two.difference(draws=2)["smape"][0])
    assert set(two.table()["model"]) == {"base"}


def test_what_embeddings_must_be(base: interp.Model) -> None:
    with pytest.raises(InterpError, match=r"shape \[1, 2\] for 2 steps"):
        graph("a;b", embed=lambda texts: np.zeros((1, 2)))
    with pytest.raises(InterpError, match=r"1 of 2 steps have values .* not finite"):
        graph("a;b", embed=lambda texts: np.array([[0.0], [np.nan]]))
    with pytest.raises(InterpError, match="embed is no model"):
        graph("a;b", layer=3)
    with pytest.raises(InterpError, match="fast tokenizer"):
        graph("a;b", embed=interp.Model(base.module))
    with pytest.raises(InterpError, match="does not stand in its text"):
        graph("a;b", embed=base, separator=lambda text: ["other", "steps"])


def test_unknown_names_are_answered_with_the_nearest() -> None:
    found = graph("a;b")
    with pytest.raises(InterpError, match=r"no model 'bas' .* 'base'"):
        found.compare("bas")
    with pytest.raises(InterpError, match=r"no quantity 'visit'.*'visits'"):
        found.plot("visit")
    with pytest.raises(InterpError, match="k=0"):
        graph("a;b", k=0)


def test_plot_is_a_falling_curve_for_each_model() -> None:
    import matplotlib

    matplotlib.use("Agg")
    found = probes.reasoning_graph(
        rollouts(0, models={"base": 0.1, "rl": 0.5}, problems=3), separator=";", progress=False
    )
    axes = found.plot("visits")
    assert [line.get_label() for line in axes.lines] == ["base", "rl"]
    assert all((np.diff(line.get_ydata()) <= 0).all() for line in axes.lines)
    assert axes.get_yscale() == "log"
    matplotlib.pyplot.close(axes.figure)
