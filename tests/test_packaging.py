"""What an installation holds, and what importing it does not do.

The four import names are generic: a stray file, or a second distribution under the same name, would
shadow them silently.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

DISTRIBUTION = "interp-toolkit"
PACKAGES = ("interp", "interventions", "probes", "studies")
# Seconds to import each; wanted only by some calls.
LAZY = (
    "captum", "datasets", "matplotlib", "networkx", "nnsight", "peft", "plotly", "sklearn",
    "transformer_lens", "trl", "tyro",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built without a network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def _info(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """The wheel's METADATA."""
    return Parser().parsestr(_info(wheel, "METADATA"))


def test_wheel_holds_exactly_the_four_packages(wheel: zipfile.ZipFile, metadata: Message) -> None:
    tops = {Path(name).parts[0] for name in wheel.namelist()}
    assert tops == {*PACKAGES, f"interp_toolkit-{metadata['Version']}.dist-info"}


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_holds_every_source_file(wheel: zipfile.ZipFile, root: Path, package: str) -> None:
    sources = {p.relative_to(root).as_posix() for p in (root / package).rglob("*.py")}
    assert sources <= set(wheel.namelist())
    assert {f"{package}/__init__.py", f"{package}/py.typed"} <= set(wheel.namelist())


def test_wheel_holds_the_organisms_weights(wheel: zipfile.ZipFile, root: Path) -> None:
    weights = root / "studies" / "organisms" / "weights"
    on_disk = {p.relative_to(root).as_posix() for p in weights.rglob("*") if p.is_file()}
    shipped = {
        name for name in wheel.namelist() if Path(name).is_relative_to(weights.relative_to(root))
    }
    # An unfinished training run keeps its optimizer there; it stays at home.
    assert shipped == {name for name in on_disk if not name.endswith("state.pt")}


def test_wheel_holds_no_caches(wheel: zipfile.ZipFile) -> None:
    assert not [n for n in wheel.namelist() if "__pycache__" in n or n.endswith(".pyc")]


def test_console_script(wheel: zipfile.ZipFile) -> None:
    lines = _info(wheel, "entry_points.txt").split("\n")
    assert "interp = studies.__main__:main" in lines


def test_extra_all_reaches_every_job(metadata: Message) -> None:
    wanted: dict[str, set[str]] = {}  # extra to requirements; hatchling writes nested extras out
    for text in metadata.get_all("Requires-Dist") or []:
        requirement, _, marker = text.partition(";")
        if "extra" in marker:
            extra = marker.split("'")[1]
            wanted.setdefault(extra, set()).add(requirement.strip())
    jobs = set(wanted) - {"all", "dev", "studies"}
    assert jobs == {"cli", "fast", "plot", "probes", "report", "train"}
    needed = jobs - {"fast"}  # changes no result
    assert wanted["all"] == wanted["studies"] == set().union(*(wanted[job] for job in needed))


def test_every_dependency_is_pinned_once_within_its_range(root: Path, metadata: Message) -> None:
    packaging = pytest.importorskip("packaging.requirements")
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    pinned = dict(pins)
    assert len(pinned) == len(pins)
    for text in metadata.get_all("Requires-Dist") or []:
        requirement = packaging.Requirement(text)
        if requirement.name != DISTRIBUTION:
            assert requirement.specifier.contains(pinned[requirement.name]), text


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_claims_our_names(package: str) -> None:
    # An editable install lists no files under the four names; a real one lists them once.
    owners = importlib.metadata.packages_distributions().get(package, [DISTRIBUTION])
    assert set(owners) == {DISTRIBUTION}


def _python(code: str, cwd: Path) -> Any:
    """What `code` prints as JSON in a fresh interpreter that is not started in the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_installation_exposes_nothing_else_of_the_checkout(root: Path, tmp_path: Path) -> None:
    code = (
        "import json, importlib.util as u\n"
        "find = lambda n: getattr(u.find_spec(n), 'origin', None)\n"
        "print(json.dumps({n: find(n) for n in ('tests', 'benchmarks', 'docs')}))"
    )
    found = _python(code, tmp_path)
    assert not [p for p in found.values() if p and Path(p).is_relative_to(root)], found


@pytest.mark.parametrize("package", PACKAGES)
def test_import_loads_nothing_heavy(package: str, tmp_path: Path) -> None:
    loaded = _python(f"import json, sys, {package}\nprint(json.dumps([*sys.modules]))", tmp_path)
    assert not set(LAZY) & set(loaded)


def test_import_has_no_side_effect(tmp_path: Path) -> None:
    """Seeds, dtypes, threads, hooks, warnings, logging and environment are as they were."""
    code = """
import json, logging, os, random, sys, warnings
import numpy, pandas, torch, tqdm.auto, transformers.modeling_utils  # what these do is theirs

def state():
    return {
        "torch rng": torch.get_rng_state().tolist()[:64],
        "python rng": hash(random.getstate()),
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "hooks": [repr(sys.excepthook), repr(sys.displayhook)],
        "warnings": len(warnings.filters),
        "logging": [repr(h) for h in logging.getLogger().handlers],
        "environment": {name: hash(value) for name, value in os.environ.items()},
    }

before = state()
import interp
after = state()
print(json.dumps([k for k in before if before[k] != after[k]]))
"""
    assert _python(code, tmp_path) == []
