"""The probe benchmark's contestants make the same predictions."""

from __future__ import annotations

from benchmarks import probe
from benchmarks._measure import disagreement


def test_the_sweep_predicts_what_the_loop_of_scikit_learn_predicts() -> None:
    gaps = disagreement(probe.contestants(*probe.data(2, 200, 30)))
    assert gaps["probes.sweep"] == gaps["probes.sweep with its controls"] == 0
    timing, again = probe.once(probe.one_fold(*probe.data(1, 200, 30)))
    assert again == {"LinearProbe.fit": 0}
    assert timing.rounds == 1


def test_quick_measures_everyone() -> None:
    sweep, fold = probe.run(quick=True, seconds=0).sections
    assert sweep.title == "a sweep of 120 examples, d = 24"
    assert [len(sweep.rows), len(fold.rows)] == [5, 3]
    assert all(row["milliseconds"] > 0 for row in sweep.rows + fold.rows)
