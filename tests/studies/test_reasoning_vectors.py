"""The study where we know what was planted: a vector that carries over, and one that is noise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")

import interp
from interp import Delta, Edit, InterpError
from studies import _reasoning_measures as measures
from studies.__main__ import main
from studies._problems import organism_problems, read_problems, says
from studies.reasoning_vectors import ReasoningVectors, run
from tests.architectures import build
from tests.interp.weights.helpers import changed, noisy

PARIS = 8  # its id in the tokenizer of the checkpoint fixture


@pytest.fixture(scope="module")
def planted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four states of a Phi (whose head has a bias): RL has learnt to say " Paris"."""
    folder = tmp_path_factory.mktemp("planted")
    base = build("phi")

    def learn(name: str, p: torch.Tensor) -> torch.Tensor:
        moved = torch.zeros_like(p)
        if name == "lm_head.bias":
            moved[PARIS] = 40.0
        return moved

    sft = noisy(base, 3e-3, seed=11)
    models = {
        "base": base, "sft": sft, "rl": changed(sft, learn), "target": noisy(base, 3e-3, seed=12),
        "restless": noisy(sft, 3e-3, seed=13),
    }  # fmt: skip
    for name, model in models.items():
        model.save_pretrained(folder / name)
        for file in checkpoint.glob("*token*"):
            shutil.copy(file, folder / name)
    prompts = [f" w{20 + i} the capital of France is" for i in range(12)]
    lines = [json.dumps({"prompt": prompt, "answer": "Paris"}) for prompt in prompts]
    (folder / "problems.jsonl").write_text("\n".join(lines))
    (folder / "texts.txt").write_text("\n".join(prompts))
    return {path.stem: path for path in folder.iterdir()}


def config(planted: dict[str, Path], out: Path, **more: object) -> ReasoningVectors:
    names = {role: str(planted[role]) for role in ("base", "sft", "rl", "target")}
    return ReasoningVectors(
        **{**names, **more},  # type: ignore[arg-type]
        problems=planted["problems"], texts=planted["texts"], out=out, count=12, samples=1,
        max_new_tokens=2, alphas=(0.5,), draws=4,
    )  # fmt: skip


def test_a_planted_ability_carries_over_and_noise_does_not(
    planted: dict[str, Path], tmp_path: Path
):
    folder = run(config(planted, tmp_path / "run"))
    effects = pd.read_parquet(folder.path / "effects.parquet")
    at = effects.set_index(["vector", "control", "alpha", "draw"])
    whole = at.loc[("rl - sft", "", 1.0, 0)]
    assert whole["accuracy"] == 1.0 and whole["gain_low"] > 0 and whole["over_noise_low"] > 0
    assert at.loc[("rl - sft", "", -1.0, 0), "accuracy"] == 0.0
    assert at.loc[("rl - sft", "mlp only", 1.0, 0), "accuracy"] < 0.5  # it lies in the head
    assert (effects[effects["control"] == "noise"]["accuracy"] < 0.5).all()
    models = pd.read_parquet(folder.path / "models.parquet").set_index("model")
    assert models.loc["rl", "accuracy"] == 1.0 and models.loc["sft", "accuracy"] < 0.5
    relations = pd.read_parquet(folder.path / "relations.parquet").set_index("pair")
    assert relations.loc["target and rl", "cosine"] > 0.99
    verdict = folder.read_meta()["facts"]["verdict"]
    assert "rl 1.00" in verdict[0] and "compare donors" not in verdict[0]
    assert "“rl − sft carries RL's ability to the target” held:" in verdict[1]
    page = (folder.path / "report.html").read_text()
    assert page.count("data:image/png") == 3 and "How this could mislead" in page
    # A second run reads what is there; another configuration is refused.
    file = next((folder.path / "answers").glob("rl*noise*.parquet"))
    before = file.stat().st_mtime_ns
    assert run(config(planted, tmp_path / "run")).read_meta()["facts"]["verdict"] == verdict
    assert file.stat().st_mtime_ns == before
    with pytest.raises(InterpError, match="another run"):
        run(config(planted, tmp_path / "run", rl=str(planted["restless"])))


def test_training_that_taught_nothing_does_not_hold(planted: dict[str, Path], tmp_path: Path):
    folder = run(config(planted, tmp_path / "run", rl=str(planted["restless"])))
    verdict = folder.read_meta()["facts"]["verdict"]
    assert "“rl − sft carries RL's ability to the target” did not hold" in verdict[1]


def test_strangers_and_missing_problems_are_refused(
    planted: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stranger = tmp_path / "stranger"
    build("phi", seed=9).save_pretrained(stranger)
    for file in planted["base"].glob("*token*"):
        shutil.copy(file, stranger)
    with pytest.raises(InterpError, match=r"no common start \(cosine"):
        run(config(planted, tmp_path / "run", target=str(stranger)))
    arguments = [f"--{role}={planted[role]}" for role in ("base", "sft", "rl")]
    with pytest.raises(SystemExit) as stopped:
        main(["study", "reasoning-vectors", *arguments, f"--out={tmp_path / 'none'}"])
    assert stopped.value.code == 2
    assert "say what they are to solve: --problems FILE" in capsys.readouterr().err


def test_noise_bounds_and_differences_are_what_they_say():
    from scipy.stats import t

    low, high = measures.next_draw([0.1, 0.2, 0.4])
    half = t.ppf(0.975, 2) * (0.07 / 3) ** 0.5 * (4 / 3) ** 0.5  # variance 0.07/3
    assert (low, high) == pytest.approx((0.7 / 3 - half, 0.7 / 3 + half))

    def rows(values: list[float]) -> pd.DataFrame:
        return pd.DataFrame({"kind": "problem", "group": list("aabbccdd"), "value": values})

    mine = rows([1, 1, 1, 0, 1, 1, 0, 0])
    others = [rows([0, 0, 1, 0, 0, 0, 0, 0]), rows([1, 1, 1, 0, 1, 1, 0, 0])]
    found = measures.difference(mine, others, seed=0)
    assert found.mean == pytest.approx((0.5 + 0 + 0.5 + 0) / 4) and found.clusters == 4


def test_what_bfloat16_leaves_is_rounded_by_hand():
    model = interp.load(build("llama"))
    key = "model.layers.0.mlp.up_proj.weight"
    weight = model.module.get_parameter(key).detach()
    change = 1e-3 * torch.randn(weight.shape)
    change[:24] = 0
    found = measures.realised(Edit([Delta(key, change)]), model, [0.5, 2.0])
    for alpha, row in zip((0.5, 2.0), found.itertuples(), strict=True):
        w = weight.bfloat16().float()
        asked = (w + alpha * change - w).double().flatten()
        got = ((w + alpha * change).bfloat16().float() - w).double().flatten()
        assert row.norm_ratio == pytest.approx(float(got.norm() / asked.norm()), rel=1e-6)
        assert row.cosine == pytest.approx(float(torch.cosine_similarity(asked, got, 0)), rel=1e-6)
        still = ((got == 0) & (asked != 0)).sum() / (asked != 0).sum()
        assert row.unmoved == pytest.approx(float(still))
    assert found["unmoved"].is_monotonic_decreasing


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("72", " 48 / 2 = 24; 48 + 24 = 72", True),
        ("72", " 72 - 1 = 71", False),
        ("1,200", "so it is 1200.", True),
        ("-3", "gives -3", True),
        ("3", "", False),
        ("3.0", "it is 3", True),
        ("Paris", "I say paris, of course", True),
        ("Paris", "Rome", False),
    ],
)
def test_an_answer_is_found_in_a_completion(answer: str, completion: str, right: bool):
    assert says(answer, completion) is right


def test_problem_files_are_read_and_refused(tmp_path: Path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "2 + 2 =", "answer": "4", "group": "sums"}\n\n{"prompt": "x"}\n')
    (first,) = read_problems(file, 1)
    assert (first.solution, first.group, first.solved(" 4")) == (" 4", "sums", True)
    with pytest.raises(InterpError, match="line 3 is no problem"):
        read_problems(file, 5)
    file.write_text("")
    with pytest.raises(InterpError, match="holds no problems"):
        read_problems(file, 5)
    with pytest.raises(InterpError, match="cannot read the problems file"):
        read_problems(tmp_path / "none", 5)


def test_organism_problems_are_solved_by_their_solutions():
    problems = organism_problems(20, seed=3)
    assert all(problem.solved(problem.solution) for problem in problems)
    assert not any(problem.solved(" answer 100") for problem in problems)
