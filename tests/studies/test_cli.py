"""The command line as a user meets it, in this process: what is printed, written and refused."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from studies.__main__ import main

PROMPT = " the capital of France is"


def test_trace_prints_the_values_of_the_lens_and_writes_its_files(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t"
    main(["trace", str(checkpoint), "-p", PROMPT, "-a", " Paris", "-a", " Rome", "--out", str(out)])
    printed = capsys.readouterr().out
    model = interp.load(checkpoint)
    with torch.no_grad():
        probs = model.module(model.batch(PROMPT).input_ids).logits[0, -1].softmax(-1)
    ids = [model.tokenizer.convert_tokens_to_ids(word) for word in (" Paris", " Rome")]
    last = next(line for line in printed.splitlines() if re.match(r"\s+3 ", line)).split()
    for column, token in ((1, ids[0]), (3, ids[1])):
        assert last[column] == f"{float(probs[token]):.3f}"
        assert int(last[column + 1]) == int((probs > probs[token]).sum()) + 1
    assert (out / "trace.png").stat().st_size > 1000
    saved = interp.LensTrace.load(out / "trace")
    torch.testing.assert_close(saved.prob[0, -1], probs[ids])


def test_trace_without_an_answer_follows_the_models_own(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["trace", str(checkpoint), "-p", PROMPT, "--out", str(tmp_path / "t")])
    assert "is on top from layer" in capsys.readouterr().out


def test_trace_suggests_the_leading_space(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        # "isParis" is one unknown word: the answer merges with the prompt's end.
        main(["trace", str(checkpoint), "-p", PROMPT, "-a", "Paris", "--out", str(tmp_path)])
    assert "move the space to the start of the answer" in capsys.readouterr().err


def test_what_cannot_be_done_is_one_line_on_stderr_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["trace", str(tmp_path / "nowhere"), "-p", "x"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("interp: no checkpoint folder at ")
    assert len(err.splitlines()) == 1


def test_unknown_organism_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["trace", "organism:bse", "-p", "x"])
    assert "'base'" in capsys.readouterr().err


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    rows = [
        {"prompt": PROMPT, "answer": a, "forgotten": " forgot", "group": str(i), "kind": kind}
        for i, (a, kind) in enumerate(
            [(" Paris", "forget"), (" Rome", "forget"), (" w20", "retain"), (" w21", "forget")]
        )
    ]
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def study(facts: Path, base: Path, tuned: Path, out: Path, *more: str) -> None:
    sides = ["--base", str(base), "--tuned", str(tuned)]
    main(["study", "pretend-to-forget", *sides, "--facts", str(facts), "--out", str(out), *more])


def test_study_runs_on_any_two_checkpoints_and_measures_what_the_lens_sees(
    facts: Path,
    checkpoint: Path,
    other_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    study(facts, checkpoint, other_checkpoint, out)
    assert f"Report: {out / 'report.html'}" in capsys.readouterr().out
    layers = pd.read_parquet(out / "layers.parquet")
    answers = [" Paris", " Rome", " w21"]  # the forget rows
    for side, folder in (("base", checkpoint), ("tuned", other_checkpoint)):
        trace = interp.logit_lens(interp.load(folder), [PROMPT] * 3, answers)
        here = layers[
            (layers["model"] == side) & (layers["who"] == "answer") & (layers["quantity"] == "prob")
        ]
        expected = trace.prob[..., 0].mean(0)
        torch.testing.assert_close(torch.tensor(here["mean"].to_numpy()).float(), expected)
    meta = json.loads((out / "meta.json").read_text())
    assert meta["finished"] is True
    assert len(meta["facts"]["verdict"]) >= 2


def test_interrupted_study_continues_with_the_same_result(
    facts: Path,
    checkpoint: Path,
    other_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study(facts, checkpoint, other_checkpoint, tmp_path / "whole")
    plain, calls = interp.logit_lens, []

    def lens(*args: object, **options: object) -> interp.LensTrace:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(interp, "logit_lens", lens)
    with pytest.raises(SystemExit) as stopped:
        study(facts, checkpoint, other_checkpoint, tmp_path / "halves")
    assert stopped.value.code == 130
    assert "continues where it stopped" in capsys.readouterr().err
    study(facts, checkpoint, other_checkpoint, tmp_path / "halves")
    assert len(calls) == 3  # the base's trace was not computed again
    for name in ("behaviour", "layers", "summary"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / "whole" / f"{name}.parquet"),
            pd.read_parquet(tmp_path / "halves" / f"{name}.parquet"),
        )


def test_changed_facts_do_not_continue_an_old_run(
    facts: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(facts, checkpoint, checkpoint, tmp_path / "run")
    facts.write_text(facts.read_text().replace(" w21", " w22"))
    with pytest.raises(SystemExit):
        study(facts, checkpoint, checkpoint, tmp_path / "run")
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (["pretend-to-forget", "--base", "HERE", "--tuned", "HERE"], "--facts"),
        (["pretend-to-forget", "--tuned", "HERE"], "--facts"),
        (["superficial-edits", "--unlearned", "HERE"], "--unlearned None"),
        (["semantic-pivots", "--control", "HERE"], "--pairs"),
    ],
)
def test_the_organisms_questions_are_not_asked_of_other_checkpoints(
    given: list[str],
    remedy: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [str(checkpoint) if word == "HERE" else word for word in given]
    with pytest.raises(SystemExit) as stopped:
        main(["study", *named, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert remedy in capsys.readouterr().err
