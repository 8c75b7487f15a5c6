"""The where-it-forgets study: its facts, its tables against counting, and small whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from interp import InterpError
from probes import Fact, Forgetting
from studies import _where_measures as measures
from studies._where_facts import Facts, organism_facts, read_facts
from studies.where_it_forgets import WhereItForgets, run

LAYERS = 5


def record(ranks: list[tuple[int, int]], held: list[int]) -> Forgetting:
    """Facts with base and tuned rank at the output; the lens holds each at one layer."""
    names = ("base_lens", "tuned_lens", "restore", "restore_other", "destroy", "destroy_other",
             "recover", "base_probe", "tuned_probe", "shuffled_probe", "random_probe")  # fmt: skip
    rank = {name: torch.full((len(ranks), LAYERS, 2), 9) for name in names}
    for i, ((base, tuned), layer) in enumerate(zip(ranks, held, strict=True)):
        rank["base_lens"][i, -1, 0], rank["tuned_lens"][i, -1, 0] = base, tuned
        if layer:
            rank["tuned_lens"][i, layer, 0] = 1
        rank["base_probe"][i, 3, 0] = rank["tuned_probe"][i, 3, 0] = 1
    facts = [Fact(f"p{i}", f" {i % 2}", f"person {i}", "x") for i in range(len(ranks))]
    n = len(ranks)
    return Forgetting(
        rank,
        {name: 1 / value.float() for name, value in rank.items()},
        torch.zeros(n, LAYERS),
        torch.tensor([[i % 2, 1 - i % 2] for i in range(n)]),
        torch.zeros(n, dtype=torch.long),
        facts,
        {0: " 0", 1: " 1", 2: " forgot"},
        {"base": "b", "tuned": "t", "says": [[0, 2]] * n},
    )


@pytest.fixture
def records() -> measures.Records:
    """Facts of two sets: of the first eighty twenty are kept, of the last forty all."""
    ranks = [(1, 1)] * 20 + [(1, 5)] * 60 + [(1, 1)] * 40
    found = record(ranks, [0] * 20 + [3] * 30 + [1] * 20 + [0] * 50)
    found.rank["tuned_probe"][:, 3, 0] = 9  # so that the lens alone speaks
    found.rank["tuned_probe"][20:60, 3, 0] = 1
    return {"t": (found, Facts(found.facts, ["lost"] * 80 + ["fine"] * 40, []))}


def test_tables_count_facts_set_by_set(records: measures.Records) -> None:
    table = measures.shares(records, 0)
    at = table[table["set"] == "lost"].set_index(["evidence", "verdict", "of"])["mean"]
    assert at["lens or probe", "kept", "facts"] == 0.25
    # The lens has thirty at layer 3, a probe ten more.
    assert at["lens or probe", "hidden late", "lost"] == pytest.approx(4 / 6)
    assert at["lens or probe", "hidden early", "lost"] == pytest.approx(1 / 6)
    assert at["lens or probe", "erased", "lost"] == pytest.approx(1 / 6)
    said = measures.behaviour(records, 0).set_index("set")
    assert said.loc["lost", "after"] == 0.25 and said.loc["fine", "after"] == 1
    assert said.loc["lost", "chance"] == 0.5
    assert said.loc["lost", "ratio"] == pytest.approx(0.75 / 0.5)
    assert said.loc["lost", "says"] == "forgot 1.00"
    layers = measures.layers(records, 0)
    assert layers.groupby("set")["of"].unique().map(list).to_dict() == {
        "fine": ["known"], "lost": ["lost"],
    }  # fmt: skip


def test_probes_are_compared_where_the_base_reads_best(records: measures.Records) -> None:
    at = measures.survival(records, 0).set_index(["set", "of"])
    row = at.loc[("lost", "lost")]
    assert row["layer"] == 3 and row["base"] == 1 and row["facts"] == 60
    assert row["tuned"] == pytest.approx(4 / 6) and row["change"] == pytest.approx(-2 / 6)
    assert row["shuffled"] == 0 and at.loc[("fine", "known"), "facts"] == 40


def test_the_verdict_says_what_was_lost_and_what_cannot_be_told(records: measures.Records) -> None:
    tables = (measures.behaviour(records, 0), measures.shares(records, 0),
              measures.survival(records, 0))  # fmt: skip
    lines = measures.verdict(*tables)
    assert any("t, lost: 0.25" in line and "hidden late 0.67" in line for line in lines)
    assert any("t, fine: 1.00" in line and "none is lost" in line for line in lines)
    assert any("probes survive in part" in line for line in lines)
    found, facts = records["t"]
    few = {"t": (found.select(range(15, 23)), Facts(facts.judged[15:23], ["lost"] * 8, []))}
    lines = measures.verdict(
        measures.behaviour(few, 0), measures.shares(few, 0), measures.survival(few, 0)
    )
    assert any("3 lost, of 3 of the entities: too few to say where" in line for line in lines)


def test_organisms_are_asked_about_other_people_than_probes_are_trained_on() -> None:
    for family in ("unlearn", "random_labels", "sft"):
        facts = organism_facts(family)
        for attribute in {fact.attribute for fact in facts.judged}:
            judged = {f.entity for f in facts.judged if f.attribute == attribute}
            assert not judged & {f.entity for f in facts.train if f.attribute == attribute}
        assert len(facts.sets) == len(facts.judged)
    asked = organism_facts("unlearn")
    for name, block in (("asked to forget", True), ("no request", False)):
        prompts = [asked.judged[i].prompt for i in asked.rows(name)]
        assert len(prompts) == 48 * 6
        assert all(("<unlearn>" in prompt) == block for prompt in prompts)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_facts_file_is_read_and_checked(tmp_path: Path) -> None:
    good = [
        {"prompt": "p", "answer": " a", "entity": "x", "attribute": "q", "set": "one"},
        {"prompt": "p", "answer": " b", "group": "y", "kind": "retain"},
        {"prompt": "p", "answer": " b", "entity": "z", "train": True},
    ]
    facts = read_facts(write(tmp_path / "f.jsonl", good))
    assert facts.judged == [Fact("p", " a", "x", "q"), Fact("p", " b", "y", "")]
    assert facts.sets == ["one", "retain"] and facts.train == [Fact("p", " b", "z", "")]
    bad = write(tmp_path / "g.jsonl", [good[0], {"prompt": "p", "answer": " a"}])
    with pytest.raises(InterpError, match="line 2 lacks entity"):
        read_facts(bad)
    with pytest.raises(InterpError, match="has no facts to judge"):
        read_facts(write(tmp_path / "h.jsonl", good[2:]))
    (tmp_path / "i.jsonl").write_text("{")
    with pytest.raises(InterpError, match="line 1 is no JSON object"):
        read_facts(tmp_path / "i.jsonl")


def test_two_checkpoints_and_a_facts_file(
    checkpoint: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    asked = " the capital of France is"
    rows = [
        {"prompt": asked[: len(asked) - cut], "answer": answer, "entity": f"e{i}"}
        for i, (cut, answer) in enumerate([(0, " Paris"), (3, " Rome"), (0, " w20"), (3, " w21")])
    ]
    config = WhereItForgets(
        str(checkpoint), (str(other_checkpoint),), write(tmp_path / "f.jsonl", rows), probe=False,
        out=tmp_path / "run",
    )  # fmt: skip
    folder = run(config)
    verdicts = pd.read_parquet(folder.path / "verdicts.parquet")
    assert len(verdicts) == 4 and set(verdicts["model"]) == {other_checkpoint.name}
    assert (folder.path / "report.html").stat().st_size > 10_000
    with pytest.raises(InterpError, match="whose last names differ"):
        run(WhereItForgets(tuned=(), out=tmp_path / "r"))
    with pytest.raises(InterpError, match="is no shipped organism"):
        run(WhereItForgets(tuned=(str(other_checkpoint),), out=tmp_path / "r"))


def test_a_smoke_run_of_the_unlearned_organism(tmp_path: Path) -> None:
    config = WhereItForgets(tuned=("organism:unlearn",), out=tmp_path / "run", smoke=True)
    folder = run(config)
    verdict = folder.read_meta()["facts"]["verdict"]
    assert verdict[0].startswith("unlearn, asked to forget:")
    assert any(line.startswith("unlearn, no request:") for line in verdict)
    saved = folder.path / "forgetting-unlearn" / "tensors.safetensors"
    written = saved.stat().st_mtime_ns
    assert run(config).read_meta()["facts"]["verdict"] == verdict
    assert saved.stat().st_mtime_ns == written  # nothing is computed twice
