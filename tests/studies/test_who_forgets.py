"""The study where we know who forgets; its statistics against closed forms and scipy."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

matplotlib.use("Agg")

import interp
import probes
from interp import InterpError
from probes._token_rows import token_rows
from studies import _who_forgets_bench as bench
from studies import _who_forgets_measures as measures
from studies import _who_forgets_tasks as tasks
from studies import _who_forgets_verdict as verdicts
from studies import organisms
from studies.__main__ import main
from studies._who_forgets_checkpoints import Checkpoint, checkpoints, last_of
from studies.who_forgets import WhoForgets, run
from tests.architectures import build
from tests.interp.weights.helpers import noisy

PEOPLE = 36


@pytest.fixture(scope="module")
def world(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, a run that moves far from it (`far`) and one that hardly moves (`near`), with tasks.

    The base is right on task "known" by construction: its answers are its own. The new task is one
    that nobody can do, so that all are as good at it.
    """
    folder = tmp_path_factory.mktemp("who-forgets")
    base = build("llama")
    states = {"base": base}
    for step, scale in ((1, 4e-3), (2, 8e-3), (3, 1.6e-2)):
        states[f"far/checkpoint-{step}"] = noisy(base, 10 * scale, seed=step)
        states[f"near/checkpoint-{step}"] = noisy(base, scale, seed=10 + step)
    for name, model in states.items():
        model.save_pretrained(folder / name)
        for file in checkpoint.glob("*token*"):
            shutil.copy(file, folder / name)
    model = interp.load(folder / "base")
    prompts = [f" w{20 + i} the capital of France is" for i in range(PEOPLE)]
    with torch.no_grad():
        best = model.module(model.batch(prompts).input_ids).logits[:, -1].argmax(-1)
    lines = [
        {"task": "known", "prompt": p, "answer": model.tokenizer.decode(t), "group": f"p{i}"}
        for i, (p, t) in enumerate(zip(prompts, best.tolist(), strict=True))
    ]
    lines += [{**line, "task": "wrong", "answer": " <b>bold</b>"} for line in lines]
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    problems = [{"prompt": f" the w{30 + i} of", "answer": "nowhere"} for i in range(30)]
    (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, problems)))
    return folder


def config(world: Path, out: Path, sft: str = "far", rl: str = "near") -> WhoForgets:
    return WhoForgets(
        base=str(world / "base"), sft=(str(world / sft),), rl=(str(world / rl),),
        tasks=world / "tasks.jsonl", problems=world / "problems.jsonl", out=out, count=30,
        samples=1, max_new_tokens=3, texts=6, draws=1,
    )  # fmt: skip


def test_who_moved_far_forgets_more_and_the_verdict_turns_with_the_roles(
    world: Path, tmp_path: Path
) -> None:
    folder = run(config(world, tmp_path / "run"))
    verdict = folder.read_meta()["facts"]["verdict"]
    assert (
        sum("“SFT forgets more than RL”" in line and ": held at" in line for line in verdict) == 1
    )
    assert "Left out, since the base is not above chance there: wrong" in verdict[1]
    table = pd.read_parquet(folder.path / "checkpoints.parquet").set_index("checkpoint")
    assert list(table.index[1:]) == [f"{r}@{s}" for r in ("far", "near") for s in (1, 2, 3)]
    far, near = (table.loc[[f"{r}@{s}" for s in (1, 2, 3)]] for r in ("far", "near"))
    for name in ("l2", "l1", "spectral", "forward", "tv", "lost_nats"):
        assert far[name].is_monotonic_increasing and far[name].min() > near[name].min(), name
    assert (table["new"] == 0).all() and table.loc["base", "lost_nats"] == 0
    # FM by the library's own measure: accuracies of stages (before, after) on (old, new) task.
    by_task = pd.read_parquet(folder.path / "by_task.parquet").set_index("checkpoint")
    at = by_task.loc["far@3"]
    fm = probes.forgetting_measure([[at["before"], 0.0], [at["after"], 0.0]])
    assert table.loc["far@3", "lost_accuracy"] == pytest.approx(-fm) and fm < 0
    assert at["nats"] == pytest.approx(table.loc["far@3", "lost_nats"])
    page = (folder.path / "report.html").read_text()
    assert page.count("data:image/png") == 4 and "How this could mislead" in page
    assert any("styles are known of the organisms' problems only" in line for line in verdict)
    # A second run reads what is there; another seed or other checkpoints are another run.
    file = folder.path / "written" / "far_1.parquet"
    before = file.stat().st_mtime_ns
    assert run(config(world, tmp_path / "run")).read_meta()["facts"]["verdict"] == verdict
    assert file.stat().st_mtime_ns == before
    turned = config(world, tmp_path / "run", sft="near/checkpoint-3", rl="far/checkpoint-3")
    with pytest.raises(InterpError, match="another run"):
        run(turned)
    again = run(replace(turned, out=tmp_path / "turned")).read_meta()["facts"]["verdict"]
    assert any("“SFT forgets more" in line and "the opposite did" in line for line in again)


def test_shipped_organisms_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft, rl = (f"{name}@{organisms.steps(name)[-1]}" for name in ("sft", "rl"))
    arguments = ["--sft", f"organism:{sft}", "--rl", f"organism:{rl}", "--smoke"]
    main(["study", "who-forgets", *arguments, "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "A smoke run" in printed and "it takes four checkpoints" in printed
    styles = pd.read_parquet(tmp_path / "run" / "styles.parquet")
    share = styles[styles["checkpoint"] == sft].set_index("style")["share"]
    assert share["running"] > 0.5  # the style that SFT's teacher wrote in
    assert styles.groupby("checkpoint")["share"].sum().tolist() == pytest.approx([1, 1, 1])


def test_answers_are_those_of_greedy_decoding_and_log_softmax(checkpoint: Path) -> None:
    model = interp.load(checkpoint)
    prompts = [" the", " the capital of France is", " w40 w41", " of France"]
    answers = []
    for prompt in prompts:  # greedy, step by step
        ids = model.batch(prompt).input_ids
        for _ in range(2):
            with torch.no_grad():
                best = model.module(ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], 1)
        answers.append("".join(model.tokenizer.convert_ids_to_tokens(ids[0, -2:].tolist())))
    answers[2] = " Paris Rome"
    rows = list(token_rows([model], prompts, answers, vocab=model.anatomy.d_vocab))
    right, logprob = bench.answer_all(model, rows)
    assert right == [True, True, False, True]
    for row, found in zip(rows, logprob, strict=True):
        with torch.no_grad():
            logits = model.module(torch.tensor([row.ids])).logits[0].double()
        steps = [
            float(logits[i].log_softmax(-1)[row.ids[i + 1]]) for i in range(row.start, row.stop)
        ]
        assert found == pytest.approx(sum(steps), abs=1e-4) and len(steps) == 2


def test_weight_distances_by_hand(tmp_path: Path) -> None:
    base, tuned = build("llama"), noisy(build("llama"), 1e-2)
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
    found = bench.weight_distances(str(tmp_path / "base"), {"a": str(tmp_path / "tuned")}).iloc[0]
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("base", "tuned"))
    d = {name: (b[name].double() - a[name].double()) for name in a}
    l1 = sum(x.abs().sum() for x in d.values()) / sum(x.double().abs().sum() for x in a.values())
    l2 = sum(x.square().sum() for x in d.values()) / sum(
        x.double().square().sum() for x in a.values()
    )
    assert found["l1"] == pytest.approx(float(l1)) and found["l2"] == pytest.approx(float(l2**0.5))
    inside = [n for n in a if ".layers." in n and a[n].ndim == 2]
    two = [
        float(torch.linalg.matrix_norm(d[n], 2) / torch.linalg.matrix_norm(a[n].double(), 2))
        for n in inside
    ]
    assert found["spectral"] == pytest.approx(np.mean(two), rel=1e-5)
    bf16 = sum(int((a[n].bfloat16() == b[n].bfloat16()).sum()) for n in a)
    assert found["changed"] == pytest.approx(1 - bf16 / sum(x.numel() for x in a.values()), abs=0.1)


def test_noise_has_the_norm_of_the_change_tensor_by_tensor(world: Path, tmp_path: Path) -> None:
    made = bench.Bench(config(world, tmp_path), tmp_path / "noise")
    noise = made.noise(str(world / "far" / "checkpoint-3"), "far", 0).module.state_dict()
    a, b = (load_file(world / n / "model.safetensors") for n in ("base", "far/checkpoint-3"))
    for name in a:
        moved, wanted = (noise[name] - a[name]).norm(), (b[name] - a[name]).norm()
        assert float(moved / wanted) == pytest.approx(1, abs=4 / math.sqrt(a[name].numel())), name
        assert abs(float(torch.cosine_similarity(
            (noise[name] - a[name]).flatten(), (b[name] - a[name]).flatten(), 0
        ))) < 5 / math.sqrt(a[name].numel())  # fmt: skip


def test_every_task_counts_alike_and_groups_are_the_evidence() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(1.0, 1.0, 100), rng.normal(3.0, 2.0, 400)
    values, names = [*small, *large], ["a"] * 100 + ["b"] * 400
    found = measures.mean_over_tasks(values, names, list(range(500)), seed=0)
    assert found.mean == pytest.approx((small.mean() + large.mean()) / 2)
    half = 1.96 * math.sqrt(small.var() / 100 + large.var() / 400) / 2
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    # Forty people asked ten times each alike are forty, not four hundred.
    few = np.repeat(rng.normal(0, 1, 40), 10)
    people = np.repeat(np.arange(40), 10).tolist()
    wide = measures.mean_over_tasks(few, ["a"] * 400, people, seed=0)
    assert (wide.high - wide.low) / 2 == pytest.approx(1.96 * few.std() / math.sqrt(40), rel=0.15)
    assert math.isnan(measures.mean_over_tasks([1.0, 0.0], ["a", "b"], ["x", "y"], seed=0).low)


def test_entropy_of_styles_and_rank_correlation_are_scipys() -> None:
    from scipy.stats import entropy, spearmanr

    def written(shares: tuple[int, ...]) -> pd.DataFrame:
        names = [s for s, n in zip("abc", shares, strict=True) for _ in range(n)]
        groups = [str(i % 40) for i in range(len(names))]
        return pd.DataFrame({"style": names, "group": groups, "solved": [s == "a" for s in names]})

    before, after = written((40, 40, 40)), written((110, 10, 0))
    found = measures.style_entropy(before, after, seed=0)
    assert found["entropy"] == pytest.approx(entropy([110, 10]))
    assert found["entropy_change"] == pytest.approx(entropy([110, 10]) - math.log(3))
    assert found["entropy_change_low"] < found["entropy_change"] < found["entropy_change_high"] < 0
    rows = {row["style"]: row for row in measures.styles(after, seed=0)}
    assert rows["a"]["share"] == pytest.approx(110 / 120) and rows["a"]["accuracy"] == 1
    assert rows[measures.NO_STYLE]["solutions"] == 0 and "accuracy" not in rows[measures.NO_STYLE]
    assert measures.rank_correlation([1, 2, 3], [4, 5, 9]) == (pytest.approx(1), 1 / 6)
    one, other = [3.0, 1.0, 2.0, 5.0, 4.0], [2.0, 1.0, 4.0, 3.0, 5.0]
    rho, p = measures.rank_correlation(one, other)
    assert rho == pytest.approx(spearmanr(one, other).statistic) and 0 < p < 1
    assert math.isnan(measures.rank_correlation([1, 1, 1], [1, 2, 3])[0])


def test_a_predictor_that_rests_on_one_run_is_found_out() -> None:
    x = np.linspace(0, 1, 12)
    y, runs = 1 + x - 2 * x**2, [f"r{i // 4}" for i in range(12)]
    other = np.random.default_rng(0).normal(size=12)
    whole, least, most = measures.margin_of_fit(list(y), list(x), list(other), runs)
    residual = y - np.polyval(np.polyfit(other, y, 2), other)
    assert whole == pytest.approx(np.square(residual).sum() / np.square(y - y.mean()).sum())
    assert 0 < least <= most <= 1 and least <= whole + 0.5


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [([0.1, 0.2], [1, 1], 1), ([-2, -1], [-0.1, -0.2], -1), ([0.1, -0.1], [1, 1], 0),
     ([math.nan], [math.nan], 0), ([], [], 0)],
)  # fmt: skip
def test_a_side_is_taken_only_where_every_run_agrees(low: list, high: list, found: int) -> None:
    assert verdicts.side(pd.DataFrame({"x_low": low, "x_high": high}), "x") == found


def pairs(method: str, nats: tuple[float, float, float], why: str) -> pd.DataFrame:
    row = {"method": method, "than": "sft", "one": method, "other": "sft@20", "why": why}
    row |= {"seed": 0, "new": 0.1, "new_low": -0.1, "new_high": 0.3}
    return pd.DataFrame([row | dict(zip(("nats", "nats_low", "nats_high"), nats, strict=True))])


@pytest.mark.parametrize(
    ("method", "nats", "said"),
    [
        ("sft_midfrozen", (-0.2, -0.3, -0.1), "MLPs lessens forgetting” (2507.10616, which calls "
         "its own result inconclusive): held"),
        ("sft_midfrozen", (0.2, 0.1, 0.3), "did not hold, the opposite did"),
        ("sft_qk", (-0.2, -0.3, -0.1), "did not hold, the opposite did"),
        ("sft_qk", (0.0, -0.1, 0.1), "not shown"),
        ("lora", (-0.2, -0.3, -0.1), "“lora forgets less than SFT of all”"),
    ],
)  # fmt: skip
def test_partial_trainings_are_judged_at_the_nearest_accuracy(
    method: str, nats: tuple[float, float, float], said: str
) -> None:
    table = pairs(method, nats, verdicts.MATCHED)
    other = pairs(method, (9.0, 8.0, 10.0), verdicts.SAME_STEPS)  # reported, but does not decide
    (line,) = verdicts._frozen(pd.concat([other, table]))
    assert said in line and "+9.0000" in line
    (line,) = verdicts._frozen(table.assign(new_low=0.05))  # not the same accuracy
    assert "could not be tested" in line


def test_organisms_expand_to_every_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"base": [], "sft": [10, 20], "sft-seed1": [10], "sft_qk": [20], "rl": [4, 60]}
    monkeypatch.setattr(organisms, "names", lambda: list(there))
    monkeypatch.setattr(organisms, "steps", lambda name: there[name])
    found = checkpoints("organism:base", {})
    assert [(c.method, c.name, c.seed, c.source) for c in found] == [
        ("sft", "sft@10", 0, "organism:sft@10"),
        ("sft", "sft@20", 0, "organism:sft@20"),
        ("sft", "sft-seed1@10", 1, "organism:sft-seed1@10"),
        ("rl", "rl@4", 0, "organism:rl@4"),
        ("rl", "rl@60", 0, "organism:rl@60"),
        ("sft_qk", "sft_qk@20", 0, "organism:sft_qk@20"),
    ]
    assert [c.name for c in last_of(found)] == ["sft@20", "sft-seed1@10", "rl@60", "sft_qk@20"]
    for source, message in (
        ("organism:lr", "no organism 'lr'; .*'rl'"),
        ("organism:rl@5", "no checkpoint 5 of 'rl'; there are 4, 60"),
    ):
        with pytest.raises(InterpError, match=message):
            checkpoints("organism:base", {"rl": [source]})


def test_folders_of_checkpoints_are_runs(tmp_path: Path) -> None:
    for step in (100, 20):
        (tmp_path / "a" / "run" / f"checkpoint-{step}").mkdir(parents=True)
    (tmp_path / "b" / "run").mkdir(parents=True)
    found = checkpoints("base/", {"rl": [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]})
    assert [(c.name, c.seed) for c in found] == [
        ("run@20", 0), ("run@100", 0), ("run (2)", 1),
    ]  # fmt: skip
    assert len({c.slug for c in found}) == 3
    with pytest.raises(InterpError, match="name what was trained from it: --sft FOLDER"):
        checkpoints("base/", {"sft": [], "rl": []})
    with pytest.raises(InterpError, match="compared with SFT of all weights: name --sft too"):
        checkpoints("base/", {"sft": [], "frozen": [str(tmp_path / "a")]})


def test_the_nearest_checkpoint_is_the_nearest_in_accuracy() -> None:
    def solved(count: int) -> pd.DataFrame:
        return pd.DataFrame({"solved": [i < count for i in range(10)], "group": list("abcdefghij")})

    states = [Checkpoint("sft", "sft", 0, n, "") for n in (1, 2, 3)]
    one = Checkpoint("rl", "rl", 0, 9, "")
    written = {"rl@9": solved(6)} | {
        f"sft@{n}": solved(count) for n, count in ((1, 2), (2, 5), (3, 9))
    }
    assert measures.Measured({}, written, 0).nearest(one, states).name == "sft@2"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no question"),
        ('{"task": "a", "prompt": "b"}', "line 2 is no question .*'answer'"),
        ('{"task": "a", "prompt": "b", "answer": ""}', "line 2: task, prompt and answer must not"),
        ('{"task": "a", "prompt": "b", "answer": "c", "chance": 1}', "below 1"),
        ('{"task": "a", "prompt": "b", "answer": "c", "chance": "x"}', "line 2 is no question"),
    ],
)
def test_bad_questions_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"task": "a", "prompt": "b", "answer": "c"}\n' + line)
    with pytest.raises(InterpError, match=message):
        tasks.read_items(file)
    file.write_text("\n")
    with pytest.raises(InterpError, match="holds no questions"):
        tasks.read_items(file)


def test_what_cannot_be_asked_leaves_no_folder(world: Path, tmp_path: Path) -> None:
    good = config(world, tmp_path / "run")
    for change, message in (
        ({"tasks": None}, "say what they may forget: --tasks FILE"),
        ({"problems": None}, "say what they learnt: --problems FILE"),
        ({"sft": (), "rl": ()}, "the base is no organism"),
    ):
        with pytest.raises(InterpError, match=message):
            run(replace(good, **change))
        assert not (tmp_path / "run").exists()


def test_old_tasks_of_the_world_hold_their_answers() -> None:
    items = tasks.organism_items(20, seed=0)
    names = list(dict.fromkeys(item.task for item in items))
    assert len(names) == 9 and all(len(tasks.of_tasks(items, [n])) == 20 for n in names)
    from studies.organisms.world import World

    people = {person.name: person for person in World(0).people}
    for item in items:
        if item.task.startswith("facts"):
            split = people[item.group].split.replace("_", " ")
            assert item.task.startswith(f"facts: {split}") and item.group in item.prompt
            assert item.answer in dict(people[item.group].values).values() and item.ends
        if item.task.startswith("boxes"):
            assert item.answer.strip() in item.prompt and 1 / 6 <= item.chance <= 1 / 3
    assert items == tasks.organism_items(20, seed=0) != tasks.organism_items(20, seed=1)
