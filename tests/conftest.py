"""Offline, one thread a process, one seed a test."""

from __future__ import annotations

import os

# Before anything imports transformers. HF_HUB_OFFLINE=0 in the shell lets network tests through.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", os.environ["HF_HUB_OFFLINE"])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random
from pathlib import Path

import hypothesis
import pytest
import torch

import tests.typechecker  # noqa: F401  (named in pyproject.toml, which cannot import it)

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)
# The same examples everywhere, and no failure because a machine was busy.
hypothesis.settings.register_profile("interp", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("interp")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same numbers, alone or among others."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def assets() -> Path:
    """Models and texts too large for the repository, in ../shared/assets beside the checkout."""
    path = ROOT.parent / "shared" / "assets"
    if not path.is_dir():
        pytest.skip("needs the optional assets in ../shared/assets, beside the checkout")
    return path
