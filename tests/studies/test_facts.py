import json
from pathlib import Path

import pytest

from interp import InterpError
from studies._facts import KINDS, organism_items, read_items


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


GOOD = {"prompt": "P", "answer": " a", "forgotten": " forgot"}


def test_organism_items_have_a_true_answer_and_anothers_as_decoy() -> None:
    items = organism_items(seed=0)
    assert {item.kind for item in items} == set(KINDS)
    # Decoys are drawn as often as answers occur, so some agree by chance, and few do.
    agreeing = sum(item.decoy == item.answer for item in items) / len(items)
    assert 0 < agreeing < 0.3
    truths = {item.answer for item in items}
    assert {item.decoy for item in items} <= truths
    forget = [item for item in items if item.kind == "forget"]
    assert all(item.group in item.prompt.split("</unlearn>")[0] for item in forget)
    assert all("<unlearn>" not in item.prompt for item in items if item.kind == "no_block")


def test_fewer_people_are_a_subset() -> None:
    few = organism_items(seed=0, people=3)
    assert len({item.group for item in few}) == 3
    assert {i.prompt for i in few} <= {i.prompt for i in organism_items(seed=0)}


def test_missing_fields_of_a_file_get_defaults(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "answer": " b", "kind": "retain", "group": "g"}]
    first, second = read_items(write(tmp_path / "f.jsonl", *rows), seed=0)
    assert (first.kind, first.group) == ("forget", "1")
    assert (second.kind, second.group) == ("retain", "g")
    assert {first.decoy, second.decoy} <= {" a", " b"}


def test_a_constant_guess_agrees_with_answer_and_decoy_equally_often(tmp_path: Path) -> None:
    # The null must not punish knowing which answers are common: 40 % of answers are " Paris".
    rows = [{**GOOD, "answer": " Paris" if i % 5 < 2 else f" w{i}"} for i in range(1000)]
    items = read_items(write(tmp_path / "f.jsonl", *rows), seed=0)
    hits = sum(item.decoy == " Paris" for item in items) / len(items)
    assert hits == pytest.approx(0.4, abs=4 * (0.4 * 0.6 / 1000) ** 0.5)


def test_facts_without_a_request_to_forget_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match="no line of kind 'forget'"):
        read_items(write(tmp_path / "f.jsonl", {**GOOD, "kind": "retain"}), seed=0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no JSON"),
        ('{"prompt": "P"}', "line 2 lacks answer, forgotten"),
        (json.dumps({**GOOD, "kind": "keep"}), "kind 'keep'; expected one of forget"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InterpError, match=said):
        read_items(write(tmp_path / "f.jsonl", GOOD, line), seed=0)


def test_one_answer_alone_has_no_null(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match="two different answers"):
        read_items(write(tmp_path / "f.jsonl", GOOD), seed=0)


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match="cannot read the facts file"):
        read_items(tmp_path / "none.jsonl", seed=0)
