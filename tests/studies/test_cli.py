"""The command line as a user meets it, in this process: what is printed, written and refused."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from studies import _study
from studies.__main__ import main
from studies._catalogue import QUESTIONS
from studies._catalogue import study as study_of

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


def test_a_bad_facts_file_does_not_block_the_corrected_one(
    facts: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = facts.read_text()
    facts.write_text(f"{right}\nno JSON")
    with pytest.raises(SystemExit):
        study(facts, checkpoint, checkpoint, tmp_path / "run")
    assert "line 5 is no JSON object" in capsys.readouterr().err
    facts.write_text(right)
    study(facts, checkpoint, checkpoint, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()


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


# What the console script does, in a process of its own; whatever imports torch is interrupted.
_INTERRUPTED = """
import sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from studies.__main__ import main
main(sys.argv[1:])
"""


def run_without_torch(*given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, *given], capture_output=True, text=True, timeout=120
    )


def test_help_and_version_need_no_torch() -> None:
    shown = run_without_torch("study", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    words = " ".join(shown.stdout.replace("│", " ").split())
    for name, question in QUESTIONS.items():
        assert f"{name} {question}" in words
    shown = run_without_torch("--help")
    assert shown.returncode == 0
    for command in ("trace", "diff", "bake", "study", "demo"):
        assert f"• {command} " in shown.stdout
    assert re.fullmatch(r"interp-toolkit \d\S+\n", run_without_torch("--version").stdout)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["study", "who-forgets"], "continues where it stopped"),
        (["diff", "a", "b"], "continues where it stopped"),
        (["trace", "a", "-p", "x"], "begins anew"),
        (["bake", "a", "b", "--out", "c"], "begins anew"),
    ],
)
def test_an_interruption_while_importing_is_one_sentence(given: list[str], said: str) -> None:
    stopped = run_without_torch(*given)
    assert stopped.stderr == f"interp: interrupted; the same command {said}\n"
    assert stopped.returncode == 130


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_study_asks_the_question_that_help_shows(name: str) -> None:
    configuration, run = study_of(name)
    module = sys.modules[configuration.__module__]
    assert (module.NAME, module.run) == (name, run)
    assert configuration.__doc__ == QUESTIONS[name]
    config = configuration()
    assert config.out == Path("runs") / name
    assert _study.apart(config) is config
    smoke = dataclasses.replace(config, smoke=True)
    assert _study.apart(smoke).out == Path("runs") / f"{name}-smoke"
    named = dataclasses.replace(smoke, out=Path("elsewhere"))
    assert _study.apart(named) is named


def test_every_study_is_in_the_catalogue() -> None:
    folder = Path(_study.__file__).parent
    modules = [f for f in folder.glob("*.py") if re.search(r"^NAME = ", f.read_text(), re.M)]
    assert {file.stem.replace("_", "-") for file in modules} == set(QUESTIONS)


def test_what_cannot_be_read_or_written_is_one_sentence(
    facts: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    here = str(checkpoint)
    sides = ["--base", here, "--tuned", here]
    for given, said in (
        (["study", "pretend-to-forget", *sides, "--facts", "nofile.jsonl"], "nofile.jsonl, given"),
        (["study", "pretend-to-forget", *sides, "--facts", str(facts)], "a file stands there"),
        (["study", "sft-vs-rl-weights"], "a file stands there"),
        (["trace", here, "-p", PROMPT], "a file stands there"),
        (["diff", here, here], "a file stands there"),
        (["diff", here], "nothing to compare"),
        (["diff", here, here, "--workers", "0"], "--workers 0: expected at least 1"),
        (["study", "sft-vs-rl-weights", "--workers", "-1"], "--workers -1: expected at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*given, "--out", str(file)])
        assert stopped.value.code == 2
        *bars, last = capsys.readouterr().err.splitlines()
        assert last.startswith("interp: ") and said in last, given
        assert all(not line or "Loading weights" in line for line in bars), given
    assert file.read_text() == "mine"
