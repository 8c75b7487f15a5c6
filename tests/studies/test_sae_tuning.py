"""The sae-tuning study: its measures on numbers known beforehand, and that all of it runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from interp import InterpError
from studies._sae_bench import CONDITIONS, Bench
from studies.sae_tuning import SaeTuning, _outcome, _table, run


def answers(name: str, solved: list[int], samples: int = 2) -> pd.DataFrame:
    """Problem i solved in the first solved[i] of its samples."""
    rows = [
        {"kind": "problem", "group": str(i), "value": float(s < count), "tokens": 1,
         "control": control, "condition": name, "seed": 0, "seconds": 3.0, "changes": 4}
        for control in ("", "greedy")
        for i, count in enumerate(solved)
        for s in range(samples)
    ]  # fmt: skip
    text = {"kind": "text", "group": "0", "value": 6.0, "tokens": 3, "control": ""}
    return pd.concat([pd.DataFrame(rows), pd.DataFrame([rows[0] | text])], ignore_index=True)


def test_shares_are_of_rls_gain_over_the_same_problems() -> None:
    """RL solves twice as often as the target; half of that gain, all of it, none of it."""
    target, source = [0] * 40 + [1] * 40, [1] * 40 + [2] * 40
    known = {"target": answers("target", target), "source": answers("source", source)}
    given = {name: answers(name, target) for name in CONDITIONS}
    given["source SAE"] = answers("source SAE", [1] * 40 + [1] * 40)
    given["target SAE"] = answers("target SAE", source)
    table = _table(pd.concat(list(given.values())), known, SaeTuning()).set_index("condition")
    assert table["share"].to_dict() == pytest.approx(
        dict.fromkeys(CONDITIONS, 0.0) | {"source SAE": 0.5, "target SAE": 1.0}
    )
    half = table.loc["source SAE"]
    assert half["share_low"] < 0.5 < half["share_high"] < 0.97
    assert half["gain"] == pytest.approx(0.25) == half["over_random"]
    assert half["text_loss"] == pytest.approx(2.0)
    assert _outcome(half, 0.97, 0.5) == "did not hold"
    assert _outcome(table.loc["target SAE"], 0.97, 0.5) == "held"
    assert "could not be tested" in _outcome(half, 0.97, 0.0)


def test_reasoning_features_are_counted_as_the_paper_does() -> None:
    """Token by token; and the markers lie where the text says."""
    bench = Bench(SaeTuning(smoke=True, target="organism:base", source="organism:base"))
    scan = bench.reasoning_features().set_index("layer")
    prompt, answer = bench.examples[0]
    acts = bench.source.tokenizer(prompt + answer)["input_ids"]
    words = [bench.source.tokenizer.decode([t]).strip() for t in acts]
    opening = len(words) - 1 - words[::-1].index(":") if ":" in words else words.index("Solution:")
    import interp

    for layer in (0, 3):
        sae = bench.saes[str(layer)]
        z = sae.encode(interp.capture(bench.source, [prompt + answer], sae.site)[sae.site][0]) > 0
        closing = max(i for i, w in enumerate(words) if w == "answer")
        count = 0
        for j in range(sae.d_sae):
            on = {t for t in range(1, len(words)) if bool(z[t, j])}
            count += on == {opening, closing}
        assert scan.loc[layer, "features"] == count


def test_a_smoke_run_writes_its_report(tmp_path: Path) -> None:
    config = SaeTuning(out=tmp_path / "run", smoke=True)
    folder = run(config)
    page = (folder.path / "report.html").read_text()
    assert all(name in page for name in CONDITIONS)
    facts = folder.read_meta()["facts"]["verdict"]
    assert any("nothing to learn but rounding; 0 matrices changed" in line for line in facts)
    assert any("GRPO" in line for line in facts)


def test_models_of_ones_own_need_problems(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match="say what they are tuned on and tested with: --train"):
        _ = Bench(SaeTuning(target="elsewhere")).examples
    with pytest.raises(InterpError, match="layer=9: the target has layers 0 to 5"):
        _ = Bench(SaeTuning(layer=9)).layer
