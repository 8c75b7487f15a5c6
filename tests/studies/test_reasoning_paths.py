"""The study on planted rollouts, on the shipped organisms, and on files that are not right."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")

import interp
from interp import InterpError
from probes import ReasoningGraph
from studies import _reasoning_paths_measures as measures
from studies.__main__ import main
from studies._rollouts import read_rollouts, sample
from studies.reasoning_paths import ReasoningPaths, run
from tests.probes.reasoning_graphs import rollouts


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """base, a squeezed rl and an expanded sft, over thirty problems; the text is no markup."""
    folder = tmp_path_factory.mktemp("rollouts")
    made = rollouts(0, models={"base": 0.25, "rl": 0.6, "sft": 0.02}, samples=10, steps=5)
    rng = np.random.default_rng(0)
    return [
        written(
            folder / f"{model}.jsonl",
            [
                {
                    "problem": r.problem,
                    "text": r.text.replace("step", "<b>step"),
                    "correct": bool(rng.random() < 0.5),
                }
                for r in made
                if r.model == model
            ],
        )
        for model in ("base", "rl", "sft")
    ]


def test_files_with_a_planted_squeeze_and_expansion(files: list[Path], tmp_path: Path) -> None:
    config = ReasoningPaths(
        rollouts=tuple(files), separator=";", draws=6, k=400, out=tmp_path / "run"
    )
    folder = run(config)
    verdict = folder.read_meta()["facts"]["verdict"]
    ratios = pd.read_parquet(folder.path / "ratios.parquet").set_index(
        ["model", "quantity", "sampling"]
    )
    assert ratios.loc[("rl", "visits", "visits"), "low"] > 1.3
    assert ratios.loc[("sft", "visits", "visits"), "high"] < 0.9
    assert any(line.startswith("“RL steepens the rank decay”: held") for line in verdict)
    assert any(line.startswith("“SFT flattens the rank decay”: held") for line in verdict)
    assert not any("Yardstick" in line for line in verdict)
    page = (folder.path / "report.html").read_text()
    assert "&lt;b&gt;step" in page and "<b>step" not in page
    assert page.count("data:image/png") == 4
    graph = ReasoningGraph.load(folder.path / "graph")
    assert graph.meta["nodes"] == 300 and graph.models == ["base", "rl", "sft"]
    # A second run reads what is there; other options or other files are another run.
    before = (folder.path / "graph" / "meta.json").stat().st_mtime_ns
    assert run(config).path == folder.path
    assert (folder.path / "graph" / "meta.json").stat().st_mtime_ns == before
    with pytest.raises(InterpError, match="another run"):
        run(ReasoningPaths(rollouts=tuple(files[:2]), separator=";", draws=6, out=tmp_path / "run"))


def test_one_file_without_verdicts_is_described_and_not_compared(tmp_path: Path) -> None:
    file = written(
        tmp_path / "base.jsonl",
        [{"problem": p, "text": f"a{p}\nb{i}\nc"} for p in range(3) for i in range(4)],
    )
    folder = run(ReasoningPaths(rollouts=(file,), draws=2, out=tmp_path / "run"))
    assert folder.read_meta()["facts"]["verdict"] == [
        "Only base is given, so there is nothing to compare it with."
    ]
    assert "whether it is correct" in (folder.path / "report.html").read_text()


def test_checkpoints_are_sampled_at_every_temperature_and_verified(tmp_path: Path) -> None:
    config = ReasoningPaths(
        sft="organism:unlearn", rl="organism:base", problems=2, samples=4, draws=2, k=6,
        out=tmp_path / "run",
    )  # fmt: skip
    folder = run(config)
    behaviour = pd.read_parquet(folder.path / "behaviour.parquet")
    assert behaviour["model"].tolist() == [
        f"{label}, T={t}" for label in ("base", "sft", "rl") for t in ("1", "0.6")
    ]
    assert (behaviour["samples"] == 8).all()
    from studies.organisms import arithmetic
    from studies.organisms.world import World

    problems = World(seed=0).problems(2, "test", seed=0)
    for row in pd.read_parquet(folder.path / "rollouts-base-1.parquet").itertuples():
        problem = problems[int(row.problem)]
        assert row.prompt == problem.prompt
        assert row.correct == arithmetic.verify(problem, row.text)
    one, other = (
        pd.read_parquet(folder.path / f"rollouts-{label}-1.parquet")["text"].tolist()
        for label in ("base", "rl")
    )
    assert one != other  # the same weights, but independent samples
    verdict = folder.read_meta()["facts"]["verdict"]
    assert any(line.startswith("Yardstick: base, T=0.6") for line in verdict)
    # Two problems give no interval, so nothing may be claimed.
    assert not any("steepens the decay" in line or "flattens the decay" in line for line in verdict)


def test_command_line(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["study", "reasoning-paths", "--separator", ";", "--smoke"]
    arguments += [part for file in files[:2] for part in ("--rollouts", str(file))]
    main([*arguments, "--out", str(tmp_path / "run")])
    assert "A smoke run" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["study", "reasoning-paths", "--rollouts", str(tmp_path / "no"), "--out", "x"])
    assert "cannot read the rollouts file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(
            [
                "study",
                "reasoning-paths",
                "--sft",
                "organism:base",
                "--rl",
                "organism:lr",
                "--out",
                str(tmp_path / "x"),
            ]
        )
    assert "no organism 'lr'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperatures": ()}, "expected one or more"),
        ({"temperatures": (1.0, 0.0)}, "all above 0"),
        ({"samples": 0}, "40 problems and 0 samples"),
        ({"rl": "organism:lr"}, "no organism 'lr'"),
    ],
)
def test_what_cannot_be_sampled_leaves_no_folder(
    tmp_path: Path, wrong: dict[str, object], message: str
) -> None:
    given = {"sft": "organism:base", "rl": "organism:base", "out": tmp_path / "run"} | wrong
    with pytest.raises(InterpError, match=message):
        run(ReasoningPaths(**given))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no JSON object"),
        ("[1]", "line 2 is no JSON object; expected one as"),
        ('{"problem": 1}', "line 2 lacks text"),
        ('{"text": "a"}', "line 2 lacks problem"),
        ('{"problem": 1, "text": 2}', "line 2: text is 2; expected a text"),
        ('{"problem": true, "text": "a"}', "line 2: problem is True; expected a text or number"),
        ('{"problem": 1, "text": "a", "correct": "yes"}', "expected true, false or null"),
        ('{"problem": 1, "text": "a", "model": ""}', "line 2: model is ''"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "rl.jsonl"
    file.write_text('{"problem": 1, "text": "a;b"}\n' + line, encoding="utf-8")
    with pytest.raises(InterpError, match=message):
        read_rollouts([file])


def test_files_name_their_model_unless_lines_do(tmp_path: Path) -> None:
    one = written(tmp_path / "rl.jsonl", [{"problem": 1, "text": "a", "correct": None}])
    two = written(tmp_path / "x.jsonl", [{"problem": "1", "text": "b", "model": "sft", "id": 4}])
    found = read_rollouts([one, two])
    assert [(r.problem, r.model, r.correct) for r in found] == [
        ("1", "rl", None),
        ("1", "sft", None),
    ]
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InterpError, match="holds no rollouts"):
        read_rollouts([tmp_path / "empty.jsonl"])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_models_distribution(checkpoint: Path, temperature: float) -> None:
    model = interp.load(checkpoint)
    prompts = [" the capital of France is", " the capital"]
    state = torch.get_rng_state()
    texts = sample(
        model, prompts, 400, temperature=temperature, max_new_tokens=1, seed=0, progress=False
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(row) for row in texts] == [400, 400]
    with torch.no_grad():
        logits = model.module(**model.batch(prompts).inputs).logits
    last = model.batch(prompts).lengths - 1
    for row, (place, found) in enumerate(zip(last.tolist(), texts, strict=True)):
        probs = (logits[row, place] / temperature).softmax(-1)
        special = set(model.tokenizer.all_special_ids)
        for token in probs.topk(5).indices.tolist():
            if token not in special:
                p = float(probs[token])
                share = sum(t == model.tokenizer.decode([token]) for t in found) / 400
                assert abs(share - p) < 4.5 * (p * (1 - p) / 400) ** 0.5
    again = sample(
        model, prompts, 400, temperature=temperature, max_new_tokens=1, seed=0, progress=False
    )
    assert again == texts


def test_logits_that_are_not_finite_are_one_sentence(checkpoint: Path) -> None:
    model = interp.load(checkpoint, check=False)
    with torch.no_grad():
        model.module.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InterpError, match="logits that are not finite"):
        sample(model, [" the"], 2, temperature=1.0, max_new_tokens=2, seed=0, progress=False)


def table(**ways: tuple[float, float, float]) -> pd.DataFrame:
    """Ratios of one model: (low, high, z) by quantity, alike in all samplings."""
    return pd.DataFrame(
        [
            {
                "model": "rl", "base": "base", "quantity": quantity, "sampling": sampling,
                "ratio": (low * high) ** 0.5, "low": low, "high": high, "ratio_null": 1.0, "z": z,
                "problems": 40,
            }
            for quantity, (low, high, z) in ways.items()
            for sampling in measures.SAMPLINGS
        ]
    )  # fmt: skip


UP, DOWN, NONE = (1.5, 2.0, 6.0), (0.3, 0.5, -6.0), (0.9, 1.2, 0.5)


@pytest.mark.parametrize(
    ("ways", "label", "said"),
    [
        ({"visits": UP, "degree": UP}, "rl", "“RL steepens the rank decay”: held here."),
        (
            {"visits": UP, "degree": NONE},
            "rl",
            "held in part here. rl steepens the decay of visits",
        ),
        ({"visits": NONE, "degree": NONE}, "rl", "not shown here. rl cannot be told from base"),
        ({"visits": DOWN, "degree": DOWN}, "rl", "did not hold, the opposite did here"),
        ({"visits": UP, "degree": DOWN}, "rl", "held for some and the opposite for others"),
        ({"visits": DOWN, "degree": DOWN}, "sft", "“SFT flattens the rank decay”: held here."),
        ({"visits": (1.5, 2.0, 2.0)}, "rl", "not shown"),  # the null could do it
        ({"visits": (0.99, 3.0, 6.0)}, "rl", "not shown"),  # the interval has 1
        ({"visits": UP}, "other", "rl steepens the decay of visits."),
    ],
)
def test_only_what_interval_and_null_allow_is_claimed(
    ways: dict[str, tuple[float, float, float]], label: str, said: str
) -> None:
    assert said in measures.decay_verdict(table(**ways), "rl", "base", label)


def test_steeper_only_as_sampled_is_not_claimed() -> None:
    rows = table(visits=UP)
    rows.loc[rows["sampling"] == "length", ["ratio", "low", "high", "z"]] = [1.0, 0.9, 1.1, 0.0]
    assert "not shown" in measures.decay_verdict(rows, "rl", "base", "rl")
    rows.loc[rows["sampling"] == "length", ["ratio", "low", "high", "z"]] = float("nan")
    assert "not shown" in measures.decay_verdict(rows, "rl", "base", "rl")


def test_what_the_paper_expects_of_a_label() -> None:
    labels = ("rl", "RL-seed1", "rl@15", "sft", "sft-rl", "unlearn", "earl")
    assert [measures.expected(label) for label in labels] == [1, 1, 1, -1, 0, 0, 0]
