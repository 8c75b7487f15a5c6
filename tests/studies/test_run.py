import json
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest

from interp import InterpError
from studies._report import Section, write_report
from studies._run import Run, digests


@dataclass(frozen=True)
class Config:
    seed: int = 0
    out: Path = Path("elsewhere")


def test_steps_are_computed_once_and_read_back(tmp_path: Path) -> None:
    calls = []

    def compute() -> pd.DataFrame:
        calls.append(1)
        return pd.DataFrame({"layer": [0, 1], "mean": [0.5, 0.25]})

    first = Run.open(tmp_path / "run", "s", Config()).table("t", compute)
    again = Run.open(tmp_path / "run", "s", Config(out=Path("moved"))).table("t", compute)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(first, again)


def test_interrupted_step_leaves_nothing_and_is_done_again(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", "s", Config())

    def interrupted() -> pd.DataFrame:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.table("t", interrupted)
    assert [p.name for p in run.path.iterdir()] == ["meta.json"]
    assert run.table("t", lambda: pd.DataFrame({"a": [1]}))["a"].tolist() == [1]


def test_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    Run.open(tmp_path / "run", "s", Config(seed=0)).table("t", lambda: pd.DataFrame({"a": [1]}))
    before = (tmp_path / "run" / "meta.json").read_bytes()
    with pytest.raises(InterpError, match=r"another run \(seed is 0 there and 1 here\)"):
        Run.open(tmp_path / "run", "s", Config(seed=1))
    with pytest.raises(InterpError, match="another run, of the study s"):
        Run.open(tmp_path / "run", "t", Config())
    with pytest.raises(InterpError, match="another run;"):
        Run.open(tmp_path / "run", "s", Config(), files={"facts": "new"})
    assert (tmp_path / "run" / "meta.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InterpError, match="other files"):
        Run.open(tmp_path / "mine", "s", Config())


def test_a_changed_input_is_named(tmp_path: Path) -> None:
    hashes = {"files": {"facts": "a", "texts": "b"}, "checkpoints": {"base": "c"}}
    run = Run.open(tmp_path / "run", "s", Config(), **hashes)
    run.table("t", lambda: pd.DataFrame({"a": [1]}))
    hashes = {"files": {"facts": "x", "texts": "b"}, "checkpoints": {"base": "y"}}
    with pytest.raises(InterpError, match=r"contents of facts changed; the weights of base chan"):
        Run.open(tmp_path / "run", "s", Config(), **hashes)


def test_a_first_try_that_computed_nothing_does_not_block_the_corrected_one(tmp_path: Path) -> None:
    first = Run.open(tmp_path / "run", "s", Config(seed=0))
    (tmp_path / "run" / "answers").mkdir()  # as studies make them before the first table
    second = Run.open(tmp_path / "run", "s", Config(seed=1))
    assert second.read_meta()["config"] == {"seed": 1}
    for late in (
        lambda: first.table("t", lambda: pd.DataFrame({"a": [1]})),
        lambda: first.finish(verdict=["x"]),
    ):  # were the first still at work, it must not write into the second
        with pytest.raises(InterpError, match="another run was begun"):
            late()
    second.finish(verdict=["x"])
    with pytest.raises(InterpError, match="another run"):
        Run.open(tmp_path / "run", "s", Config(seed=2))


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(InterpError, match="a file stands there"):
        Run.open(file, "s", Config())
    with pytest.raises(InterpError, match="cannot write to the folder"):
        Run.open(file / "below", "s", Config())
    with pytest.raises(InterpError, match="cannot write to the folder"):
        Run.open(Path("/proc/interp"), "s", Config())  # root may write nearly anywhere else


@dataclass(frozen=True)
class Files:
    facts: Path | None = None
    texts: Path | None = None
    rollouts: tuple[Path, ...] = ()
    out: Path = Path("elsewhere")


def test_input_files_of_one_name_each_count(tmp_path: Path) -> None:
    """Two files called data.jsonl: a change of either makes another run, in every study."""
    config = Files(*(tmp_path / name / "data.jsonl" for name in ("a", "b")))
    for file in (config.facts, config.texts):
        assert file is not None
        file.parent.mkdir()
        file.write_text(str(file))
    config = replace(config, rollouts=(config.facts, config.texts))
    before = digests(config)
    assert before["facts"] == before["rollouts[0]"] != before["texts"] == before["rollouts[1]"]
    config.facts.write_text("changed")
    after = digests(config)
    assert {name for name in before if before[name] != after[name]} == {"facts", "rollouts[0]"}


def test_a_folder_counts_by_its_json_lines_and_out_never(tmp_path: Path) -> None:
    for name in ("dev.jsonl", "train.jsonl", "notes.txt"):
        (tmp_path / name).write_text(name)
    assert set(digests(Files(facts=tmp_path, out=tmp_path))) == {
        "facts/dev.jsonl",
        "facts/train.jsonl",
    }
    assert digests(Files()) == {}


def test_a_missing_input_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match=r"none\.jsonl, given as texts: No such file"):
        digests(Files(texts=tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(InterpError, match=r"latin\.jsonl, given as texts, is no UTF-8 text"):
        digests(Files(texts=tmp_path / "latin.jsonl"))


def test_finish_keeps_facts_in_meta(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", "s", Config())
    assert json.loads((run.path / "meta.json").read_text())["finished"] is False
    run.finish(verdict=["x"])
    meta = json.loads((run.path / "meta.json").read_text())
    assert meta["finished"] is True
    assert meta["facts"] == {"verdict": ["x"]}
    assert meta["config"] == {"seed": 0}


def test_report_escapes_every_text_and_needs_no_network(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    figure = tmp_path / "f.png"
    figure.write_bytes(b"\x89PNG")
    section = Section(
        attack, [attack], pd.DataFrame({attack: [attack], "x": [0.123456]}), [(figure, attack)]
    )
    page = write_report(tmp_path / "r.html", attack, [attack], [section], {attack: attack})
    text = page.read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 6
    assert "0.123" in text
    assert "http" not in text
