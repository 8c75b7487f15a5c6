"""The same-circuit study: its swaps against the text, its numbers by hand, and one smoke run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from interp import InterpError, Place
from studies import _circuit_measures as measures
from studies._circuit_find import Node, _unit, nodes_of
from studies._circuit_tasks import DESIDERATA, Pairs, Task, from_file, of_scenes
from studies.same_circuit import SameCircuit, run
from tests.architectures import build


def told(prompt: str) -> tuple[list[tuple[str, str]], str]:
    """(object, label) in the order told, and the label asked about, read from the text alone."""
    return re.findall(r"he (\w+) is in Box (\w)", prompt), prompt.split()[-3]


def test_a_swap_moves_one_thing() -> None:
    """What each source shares with its base, and what answer follows if it alone is taken over."""
    task = of_scenes(4, 4, 12, 4, seed=0)
    assert tuple(task.swaps) == DESIDERATA
    for name, wanted in task.swaps.items():
        for base, source, target in zip(wanted.base, wanted.source, wanted.targets, strict=True):
            (ours, asked), (theirs, asked_there) = told(base), told(source)
            at = [label for _, label in theirs].index(asked_there)
            assert not {thing for thing, _ in ours} & {thing for thing, _ in theirs}
            same_labels = [b for _, b in ours] == [b for _, b in theirs]
            assert same_labels == (name != "position")
            if name == "position":
                assert not {b for _, b in ours} & {b for _, b in theirs}
            if name == "object":
                assert (
                    asked == asked_there and target == f" {dict((b, t) for t, b in theirs)[asked]}"
                )
            elif name == "label":
                assert asked != asked_there
                assert target == f" {dict((b, t) for t, b in ours)[asked_there]}"
            else:
                assert target == f" {ours[at][0]}" and ours[at][1] != asked


def test_found_on_some_scenes_and_reported_on_others() -> None:
    task = of_scenes(5, 6, 0, 4, seed=0)
    assert not set(task.find.prompts) & set(task.test.prompts)
    assert len(task.find.prompts) == 5 and len(task.test.prompts) == 6 and not task.swaps
    for pairs in (task.find, task.test):
        assert pairs.told is not None
        for prompt, answer, at in zip(pairs.prompts, pairs.answers, pairs.told, strict=True):
            words = ["<bos>", *re.findall(r"\w+|[.,]", prompt)]  # one token a word or mark
            statements, asked = told(prompt)
            assert words[at] == asked and dict((b, t) for t, b in statements)[asked] == answer[1:]


def test_a_shared_key_is_named_by_its_group() -> None:
    model = interp.load(build("llama"))
    block = model.anatomy.blocks[1].qkv
    assert block is not None and block.n_kv_heads < block.n_heads
    each = [_unit(model, 1, head, "k") for head in range(block.n_heads)]
    assert each == sorted(each) and set(each) == set(range(block.n_kv_heads))
    assert _unit(model, 1, block.n_heads - 1, "q") == block.n_heads - 1


def test_a_head_in_two_groups_at_one_place_is_one_node() -> None:
    rows = [("fetchers", 2, 1, True), ("askers", 2, 1, True), ("tellers of objects", 2, 1, True),
            ("askers", 1, 0, False)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["group", "layer", "head", "chosen"])
    pairs = Pairs(["a", "b"], ["c", "d"], ["x", "y"], [6, 13])
    found = nodes_of(table, Task(pairs, pairs, {}, -3))
    assert found == [Node("fetchers", 2, 1, (-1,)), Node("tellers of objects", 2, 1, (6, 13))]


def test_overlap_beside_its_null() -> None:
    every = [(layer, head) for layer in range(2) for head in range(8)]
    same = measures.overlap([(0, 3)], [(0, 3)], every)
    assert (
        same["jaccard"] == 1.0
        and abs(same["p"] - 1 / 8) < 0.02
        and abs(same["null"] - 1 / 8) < 0.02
    )
    apart = measures.overlap([(0, 3)], [(1, 3)], every)
    assert apart["jaccard"] == 0.0 and apart["p"] == 1.0 and apart["null"] == 0.0
    two = measures.overlap([(0, 1), (1, 1)], [(0, 1), (1, 2)], every)
    assert two["jaccard"] == 1 / 3 and two["common"] == 1
    expected = 1 / 64 + (2 * (1 / 8) * (7 / 8)) / 3  # both in common, or one of the two
    assert abs(two["null"] - expected) < 0.01


def test_shares_of_the_gap_by_hand() -> None:
    columns = {
        "base": [0.0] * 40, "tuned": [1.0] * 30 + [0.0] * 10, "circuit": [1.0] * 15 + [0.0] * 25,
        "circuit, random 0": [1.0] * 3 + [0.0] * 37, "circuit, random 1": [0.0] * 40,
    }  # fmt: skip
    found = measures.shares(measures._long(columns)).set_index("what")
    assert found.loc["circuit", "share"] == 0.5
    assert abs(found.loc["circuit, random heads", "share"] - 1.5 / 30) < 1e-12
    assert found.loc["circuit", "share_low"] < 0.5 < found.loc["circuit", "share_high"]
    assert len(found) == 4 and found.loc["base", "share"] != found.loc["base", "share"]
    level = measures.shares(measures._long(columns | {"tuned": [0.0] * 40}))
    assert level["share"].isna().all()  # nothing to recover


def pairs_of(n: int, width: int = 6) -> Pairs:
    """Random tokens of a tiny tokenizer's words, told at position 2."""
    generator = torch.Generator().manual_seed(n)

    def texts() -> list[str]:
        return [
            "".join(f" w{i}" for i in row)
            for row in torch.randint(20, 90, (n, width), generator=generator).tolist()
        ]

    return Pairs(texts(), texts(), [" w30"] * n, [2] * n)


def test_an_untouched_clone_changes_nothing(checkpoint: Path) -> None:
    """CMAP and transplants of a model into itself; accuracies against a plain forward."""
    model, clone = interp.load(checkpoint), interp.load(checkpoint)
    pairs = pairs_of(8)
    ids = model.batch(pairs.prompts)
    with torch.no_grad():
        logits = model.module(input_ids=ids.input_ids).logits[:, -1]
    names = [model.tokenizer.decode(token) for token in logits.argmax(-1)]
    pairs = Pairs(pairs.prompts, pairs.corrupted, [*names[:4], *[" w30"] * 4], pairs.told)
    plain = (logits.argmax(-1) == torch.tensor(
        [model.tokenizer(a)["input_ids"][-1] for a in pairs.answers]
    )).float().tolist()  # fmt: skip
    task = Task(pairs, pairs, {})
    assert measures.accuracy_of(model, pairs) == plain and sum(plain) >= 4
    groups = {"circuit": [Place("z.1", [0], [-1])], "fetchers": []}
    for table in (
        measures.across(model, clone, task, groups, 2, 0),
        measures.transplanted(model, clone, task, [(1, 0)], 2, 0),
    ):
        for _, part in table.groupby("what"):
            assert part["right"].tolist() == plain
        assert measures.shares(table)["share"].isna().all()


def test_a_transplant_of_everything_is_the_tuned_model(
    checkpoint: Path, other_checkpoint: Path
) -> None:
    base, tuned = interp.load(checkpoint), interp.load(other_checkpoint)
    pairs = pairs_of(12)
    with torch.no_grad():
        logits = tuned.module(input_ids=tuned.batch(pairs.prompts).input_ids).logits[:, -1]
    names = [tuned.tokenizer.decode(token) for token in logits.argmax(-1)]
    task = Task(pairs, Pairs(pairs.prompts, pairs.corrupted, names, None), {})
    before = {k: v.clone() for k, v in base.module.state_dict().items()}
    table = measures.transplanted(base, tuned, task, [], 2, 0)
    at = table.groupby("what")["right"].mean()
    assert at["everything"] == at["tuned"] == 1.0 and at["base"] < 1
    assert all(torch.equal(v, before[k]) for k, v in base.module.state_dict().items())
    rows = measures.shares(table).set_index("what")
    assert rows.loc["everything", "share"] == 1.0


def test_prompts_of_ones_own(checkpoint: Path, tmp_path: Path) -> None:
    model = interp.load(checkpoint)
    file = tmp_path / "prompts.jsonl"
    pairs = pairs_of(9)
    rows = [
        {
            "prompt": p + " Rome" + p,
            "corrupted": c + " Paris" + c,
            "answer": " Rome",
            "told": "Rome",
        }
        for p, c in zip(pairs.prompts, pairs.corrupted, strict=True)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    task = from_file(file, model)
    assert len(task.find.prompts) == 3 and len(task.test.prompts) == 6
    assert task.test.told == [6] * 6 and task.asked is None
    file.write_text("\n".join(json.dumps(r) for r in rows) + '\n{"prompt": " Rome"}\n')
    with pytest.raises(InterpError, match="line 10: expected an object"):
        from_file(file, model)
    longer = [*rows[:8], rows[8] | {"prompt": rows[8]["prompt"] + " is"}]
    file.write_text("\n".join(map(json.dumps, longer)))
    with pytest.raises(InterpError, match="13 to 14 tokens"):
        from_file(file, model)
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(InterpError, match="holds 1 pairs"):
        from_file(file, model)


def test_other_checkpoints_need_prompts(checkpoint: Path, tmp_path: Path) -> None:
    config = SameCircuit(base=str(checkpoint), tuned=str(checkpoint), out=tmp_path / "run")
    with pytest.raises(InterpError, match="pass --prompts FILE"):
        run(config)


def test_a_smoke_run_writes_its_report(tmp_path: Path) -> None:
    config = SameCircuit(out=tmp_path / "run", smoke=True)
    folder = run(config)
    assert (folder.path / "report.html").stat().st_size > 10_000
    facts = folder.read_meta()["facts"]["verdict"]
    assert facts[0].startswith("The base answers")
    words = ("Held", "Did not hold", "Could not be tested")
    assert all(line.startswith(words) for line in facts[1:])
    again = run(config)  # nothing is computed twice
    assert again.read_meta()["facts"]["verdict"] == facts
