"""Workers, interruption and death change nothing in a result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp._diff import DiffOptions, diff
from interp._errors import InterpError
from interp._weights import engine
from interp._weights.engine import run_tasks
from interp._weights.measure import Task, measure
from interp._weights.measurement import Measurement, load_measurement, save_measurement
from tests.interp.weights.dying import measure_always_killed, measure_once_killed
from tests.interp.weights.helpers import noisy, pair, saved

OPTIONS = DiffOptions(tiers=("cheap",))


def tasks(base: str, tuned: str, options: DiffOptions = OPTIONS) -> list[Task]:
    names = [f"layers.{i}.{m}.weight" for i in range(3) for m in ("q", "o", "up")]
    return [Task(base, tuned, name, options, nbytes=100) for name in names]


def same(one: list[Measurement], two: list[Measurement]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert repr(a.row) == repr(b.row) and repr(a.heads) == repr(b.heads)
        assert set(a.vectors) == set(b.vectors)
        for name, vector in a.vectors.items():
            assert torch.equal(vector, b.vectors[name])


def test_a_worker_killed_midway_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """kill -9 on one of two workers: bit for bit the result of one process."""
    base, tuned = pair(tmp_path)
    monkeypatch.setenv("DYING_MARKER", str(tmp_path / "killed"))
    heavy = replace(OPTIONS, tiers=("spectral", "overlap"), draws=5)
    work = [*tasks(base, tuned), *tasks(base, tuned, heavy)]
    alone = run_tasks(measure, work, progress=False)
    found = run_tasks(measure_once_killed, work, workers=2, progress=False)
    assert (tmp_path / "killed").exists()
    same(alone, found)


def test_a_task_that_always_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "_ATTEMPTS", 1)
    base, tuned = pair(tmp_path)
    two = tasks(base, tuned)[:2]
    with pytest.raises(InterpError, match=r"1 workers died on layers\.0\.\w+\.weight .*-9"):
        run_tasks(measure_always_killed, two, workers=2, progress=False)


def test_finished_work_is_not_done_again(tmp_path: Path):
    base, tuned = pair(tmp_path)
    work = tasks(base, tuned)
    done: list[str] = []

    def counted(task: Task) -> Measurement:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(task.tensor)
        return measure(task)

    with pytest.raises(KeyboardInterrupt):
        run_tasks(counted, work, resume=tmp_path / "kept", progress=False)
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 4
    first = set(done)
    done.clear()
    done_before = 4

    def rest(task: Task) -> Measurement:
        done.append(task.tensor)
        return measure(task)

    found = run_tasks(rest, work, resume=tmp_path / "kept", progress=False)
    assert len(done) == len(work) - done_before and not first & set(done)
    same(run_tasks(measure, work, progress=False), found)


def test_kept_work_of_other_files_or_options_is_not_used(tmp_path: Path):
    base, tuned = pair(tmp_path)
    key = tasks(base, tuned)[0].key()
    assert tasks(base, tuned, DiffOptions(eta=1e-4))[0].key() != key
    other = saved(noisy(_load(base), seed=5), Path(tuned))
    assert tasks(base, other)[0].key() != key


def _load(folder: str):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def test_a_measurement_survives_the_disk(tmp_path: Path):
    base, tuned = pair(tmp_path)
    found = measure(tasks(base, tuned)[0])
    save_measurement(found, tmp_path / "x.safetensors")
    same([found], [load_measurement(tmp_path / "x.safetensors")])
    assert not list(tmp_path.glob("*.part"))


def test_chunks_and_resume_do_not_change_counts(tmp_path: Path):
    base, tuned = pair(tmp_path, "gpt2")
    one = diff(base, tuned, options=DiffOptions(chunk=64))
    two = diff(base, tuned, options=DiffOptions(chunk=1 << 20), resume=tmp_path / "kept")
    columns = ["unchanged", "sparsity", "sign_flips", "max_abs", "numel"]
    assert one.table()[columns].equals(two.table()[columns])
    again = diff(base, tuned, options=DiffOptions(chunk=1 << 20), resume=tmp_path / "kept")
    assert again.table().equals(two.table())
