"""Checkpoints stored as changes come back bit for bit."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from studies.organisms import changes

BITS = st.lists(st.tuples(*[st.integers(-(2**15), 2**15 - 1)] * 2), min_size=1, max_size=40)


def of_bits(bits: list[int]) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16)


@given(BITS)
def test_any_bits_come_back(tmp_path_factory: pytest.TempPathFactory, bits: list) -> None:
    """Both zeros, infinities and every NaN included."""
    before, after = ({"w": of_bits(list(side))} for side in zip(*bits, strict=True))
    file = tmp_path_factory.mktemp("changes") / "step-1.xz"
    changes.write(file, before, after)
    assert torch.equal(
        changes.read(file, before)["w"].view(torch.int16), after["w"].view(torch.int16)
    )


def test_names_and_shapes_come_back_and_little_is_stored_for_little_change(tmp_path: Path) -> None:
    before = {"b": torch.randn(64, 64).bfloat16(), "a": torch.randn(7).bfloat16()}
    after = {"b": before["b"].clone(), "a": before["a"].clone()}
    after["b"][3, 4] *= 2
    changes.write(tmp_path / "x.xz", before, after)
    back = changes.read(tmp_path / "x.xz", before)
    assert list(back) == ["b", "a"]
    assert all(torch.equal(back[name], after[name]) for name in back)
    assert (tmp_path / "x.xz").stat().st_size < 200


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    before = {"w": torch.zeros(4, dtype=torch.bfloat16)}
    with pytest.raises(ValueError, match="differ in tensors or shapes"):
        changes.write(tmp_path / "x.xz", before, {"w": torch.zeros(5, dtype=torch.bfloat16)})
    with pytest.raises(ValueError, match=r"not torch\.float32"):
        changes.write(tmp_path / "x.xz", before, {"w": torch.zeros(4)})
    changes.write(tmp_path / "x.xz", before, before)
    with pytest.raises(ValueError, match="does not belong to this checkpoint of 5 weights"):
        changes.read(tmp_path / "x.xz", {"w": torch.zeros(5, dtype=torch.bfloat16)})
