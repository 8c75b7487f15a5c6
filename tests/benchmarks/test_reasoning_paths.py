"""The reasoning-path benchmarks run at a tiny size and compare equal things."""

from benchmarks import reasoning_paths


def test_both_ways_to_chrf_agree() -> None:
    result = reasoning_paths.chrf(quick=True)
    assert result["found"]["largest difference"] < 1e-9
    assert "sacreBLEU" in reasoning_paths.markdown("chrf", result, {"cores": 2})


def test_every_stage_of_the_graph_runs() -> None:
    result = reasoning_paths.graph_here(quick=True, controls=True)
    assert [row["promised"] for row in result["rows"]] == [True, True, False, False]
    assert result["peak_bytes"] > 2**20
    assert "600 steps of 16 dimensions" in result["what"]
