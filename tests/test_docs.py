"""Every example in a docstring and in the README runs; the README says what the run says."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import interp
import interventions
import probes
from studies import organisms

ROOT = Path(__file__).parents[1]


class AnyOutput(doctest.OutputChecker):
    """An example that states no output may print anything; a stated one must match."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def modules() -> list[str]:
    found = []
    for package in (interp, probes, interventions):
        found += [package.__name__]
        found += [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [name for name in found if "adapters." not in name]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [t for t in doctest.DocTestFinder().find(module) if t.examples]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples may use without saying where it comes from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "checkpoint").symlink_to(organisms.path("base"))
    (tmp_path / "base").symlink_to(organisms.path("base"))
    (tmp_path / "sft").symlink_to(organisms.path("base"))
    (tmp_path / "adapter").symlink_to(organisms.path("unlearn"))
    module, tokenizer = organisms.load("base")
    organisms.load("unlearn")[0].bfloat16().save_pretrained(tmp_path / "rl")
    model = interp.load(module, tokenizer=tokenizer)
    texts = [f"Question: Where does number {i} live? Answer:" for i in range(40)]
    return {
        "interp": interp,
        "iv": interventions,
        "probes": probes,
        "torch": torch,
        "Site": interp.Site,
        "module": module,
        "tokenizer": tokenizer,
        "model": model,
        "texts": texts,
        "rollouts": [
            {"problem": p, "model": m, "text": f"{p} + {i} = {p + i}; {m} {i}", "correct": i < 2}
            for p in (1, 2)
            for m in ("base", "rl")
            for i in range(4)
        ],
        "prompt": texts[0],
        "batch": model.batch(texts[:2]),
        "input_ids": model.batch(texts[0]).input_ids,
    }


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name: str, names: dict[str, Any]) -> None:
    if name.endswith("_numba"):
        pytest.importorskip("numba", reason="an optional kernel")
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(AnyOutput(), optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in sorted(examples(module), key=lambda t: t.lineno or 0):
        test.globs = {**vars(module), **names}
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_readme_python_runs(names: dict[str, Any]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    for page in ("concepts.md", "attribution.md"):
        blocks += re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    assert len(blocks) >= 3
    scope: dict[str, Any] = dict(names)
    for block in blocks:
        exec(block, scope)


def stand_ins(names: dict[str, Any]) -> dict[str, Any]:
    """What the blocks of a page leave to the reader: a tuned model, facts, who was right."""
    tuned = interp.load(organisms.load("unlearn")[0], tokenizer=names["tokenizer"])
    where = "Question: Where does {} live? Answer:"
    homes = {"Mia": " Arlen", "Tom": " Borem", "Sue": " Arlen", "Max": " Borem"}
    # Of any words: a covariance of 384 neurons needs as many different keys.
    words = torch.randint(10, len(names["tokenizer"]), (12, 64)).tolist()
    read = {
        name: interp.capture(model, names["texts"], "resid_post.*", positions="last")
        for name, model in (("acts_base", names["model"]), ("acts_tuned", tuned))
    }
    x = read["acts_base"]["resid_post.3"][:, 0]
    return names | {
        **read,
        "x": x,
        "x_new": x,
        "prompts": names["texts"],
        "labels": ["even", "odd"] * 20,
        "entities": list(range(40)),
        "base": names["model"],
        "tuned": tuned,
        "target": tuned,
        "texts": [names["tokenizer"].decode(ids) for ids in words],
        "unrelated_texts": names["texts"][:2],
        "more_facts": [
            probes.Fact(where.format(name), city, entity=name, attribute="city")
            for name, city in homes.items()
        ],
        "right_before": [True, True, True, False],
        "right_after": [True, False, False, True],
        "people": ["Mia", "Mia", "Tom", "Sue"],
    }


@pytest.mark.parametrize(
    "page",
    ["forgetting", "behaviour", "knowledge-edits", "weight-edits", "bake", "probes", "patching"],
)
def test_blocks_of_a_page_run_as_written(page: str, names: dict[str, Any]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.S)
    assert blocks
    scope = stand_ins(names)
    for block in blocks:
        exec(block, scope)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def calls() -> list[tuple[str, ast.Call]]:
    """(page, call) of every call of ours in running text and tables."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        for span in re.findall(r"`((?:interp|probes|iv)\.\w+\(.*?\))`", text):
            for node in ast.walk(ast.parse(span, mode="eval")):
                ours = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                if ours and ast.unparse(node.func.value) in ("interp", "probes", "iv"):
                    found.append((path.name, node))
    return found


def test_calls_in_running_text_fit_the_signatures() -> None:
    packages = {"interp": interp, "probes": probes, "iv": interventions}
    assert len(calls()) > 20
    for page, call in calls():
        package, _, name = ast.unparse(call.func).partition(".")
        signature = inspect.signature(getattr(packages[package], name))
        given = [a for a in call.args if ast.unparse(a) != "..."]
        # `f()` and `f(x, ...)` name a function; anything else is to be typed as it stands.
        whole = bool(call.args) and len(given) == len(call.args)
        bind = signature.bind if whole else signature.bind_partial
        try:
            bind(*given, **{k.arg: k.value for k in call.keywords if k.arg})
        except TypeError as error:
            pytest.fail(f"{page}: {ast.unparse(call)}: {error}")


def test_the_records_that_cannot_be_saved_are_named() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text()
    sentence = re.search(r"Without `\.save` are (.*?)\. ", text)
    assert sentence is not None
    results = {
        name: value
        for package in (interp, probes, interventions)
        for name, value in vars(package).items()
        if name in package.__all__ and hasattr(value, "table")
    }
    unsaved = {name for name, value in results.items() if not hasattr(value, "save")}
    assert set(re.findall(r"`(\w+)`", sentence[1])) - {"SAE"} == unsaved


def test_readme_says_what_the_committed_run_says() -> None:
    command = [sys.executable, str(ROOT / "docs" / "update_readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
