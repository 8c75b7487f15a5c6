"""Edits on disk: the right model is recognised, and hostile folders are refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp import Affine, Delta, Edit, LowRank, Towards
from tests.architectures import build
from tests.oracles import plain


def example(model) -> Edit:
    atoms = [
        Affine("z.1", (1, 3), torch.rand(2, 8), torch.randn(2, 8), positions=(0, -1)),
        Affine("resid_post.2", shift=torch.randn(32), positions="generated"),
        Delta("lm_head.weight", LowRank(torch.randn(97, 2), torch.randn(2, 32)), untie=True),
        Delta("model.layers.0.mlp.up_proj.weight", Towards(torch.randn(48, 32), 0.5)),
    ]
    return Edit(atoms, notes={"why": "a test"}).on(model)


def test_a_loaded_edit_acts_as_the_saved_one(ids, tmp_path) -> None:
    model = build("llama")
    edit = example(model)
    loaded = Edit.load(edit.save(tmp_path / "edit"))
    assert loaded == edit and loaded.notes == edit.notes and loaded.made_on == edit.made_on
    with edit.applied(model, prompt_len=9):
        expected = plain.logits_of(model, ids)
    with loaded.applied(model, prompt_len=9):
        assert torch.equal(plain.logits_of(model, ids), expected)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: build("gpt2"), "a llama, and this model is a gpt2"),
        (lambda: build("llama", num_hidden_layers=2), "has model.layers.2"),
        (lambda: build("llama", intermediate_size=40), r"shape \[48,32\]; here it is \[40,32\]"),
        (lambda: build("llama", seed=1), r"weights differ .* in 30 of 30 tensors.*transfer"),
        (lambda: build("llama", rms_norm_eps=1e-3), "has rms_norm_eps = 1e-06 and not 0.001"),
    ],
)  # fmt: skip
def test_another_model_is_refused_with_the_difference(other, words) -> None:
    with pytest.raises(interp.InterpError, match=words), example(build("llama")).applied(other()):
        pass


def test_transfer_lets_other_weights_pass_and_no_other_shapes() -> None:
    edit = example(build("llama"))
    with edit.applied(build("llama", seed=1), transfer=True):
        pass
    with (
        pytest.raises(interp.InterpError, match=r"shape \[48,32\]"),
        edit.applied(build("llama", intermediate_size=40), transfer=True),
    ):
        pass


def test_one_checkpoint_in_two_dtypes_is_one_model() -> None:
    edit = example(build("llama", dtype=torch.bfloat16))
    with edit.applied(build("llama", dtype=torch.bfloat16).float()):
        pass


def test_a_model_is_recognised_under_edits_of_its_weights() -> None:
    """The weights as they were before the edits now on it are what identifies it."""
    model = build("llama")
    edit = example(model)
    with Edit([Delta("lm_head.weight", torch.ones(97, 32))]).applied(model):
        with edit.applied(model):
            pass
        assert Edit().on(model).made_on == edit.made_on


def test_a_folder_with_other_files_is_not_replaced(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(interp.InterpError, match="other files"):
        Edit([Affine("z.1", 0, 0.0)]).save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def damage(folder: Path, change) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    tensors = load_file(folder / "tensors.safetensors")
    change(meta, tensors)
    (folder / "meta.json").write_text(json.dumps(meta))
    save_file(tensors, folder / "tensors.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, t: m.update(schema=99), "schema 99, newer"),
        (lambda m, t: m.update(kind="lens"), "holds a 'lens', not a 'edit'"),
        (lambda m, t: m["atoms"][0].update(site="../../etc/passwd"), "cannot read the site"),
        (lambda m, t: m["atoms"][0].update(atom="pickle"), "an atom called 'pickle'"),
        (lambda m, t: m["atoms"][0].update(index=[1, 1]), "twice"),
        (lambda m, t: m["atoms"][0].update(index=[1, 2, 3]), "is for 2 units"),
        (lambda m, t: m["atoms"][0].pop("site"), "damaged"),
        (lambda m, t: m.update(atoms=7), "damaged"),
        (lambda m, t: m["atoms"].pop(), "tensors of no atom"),
        (lambda m, t: t.update({"0.scale": torch.full((2, 8), float("nan"))}), "NaN or infinite"),
        (lambda m, t: t.pop("0.scale"), "an affine atom is stored as"),
        (lambda m, t: t.update({"2.left": torch.ones(97, 3)}), r"got \[97, 3\] and \[2, 32\]"),
        (lambda m, t: t.update({"2.code": torch.ones(1)}), "no change is stored as"),
        (lambda m, t: t.update({"3.mask": torch.ones(2, 2)}), "mask of its shape"),
    ],
)
def test_hostile_edits_are_refused(change, words, tmp_path) -> None:
    path = example(build("llama")).save(tmp_path / "edit")
    damage(path, change)
    with pytest.raises(interp.InterpError, match=words):
        Edit.load(path)


def test_huge_headers_are_refused(tmp_path) -> None:
    path = example(build("llama")).save(tmp_path / "edit")
    data = path / "tensors.safetensors"
    data.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(interp.InterpError, match="damaged"):
        Edit.load(path)
    path = example(build("llama")).save(tmp_path / "other")
    with (path / "meta.json").open("r+b") as stream:
        stream.truncate(2**30)  # sparse: no gigabyte is written
    with pytest.raises(interp.InterpError, match="which no edit needs"):
        Edit.load(path)


@hypothesis.settings(max_examples=150)
@hypothesis.given(st.data())
def test_flipped_bytes_never_raise_anything_else(tmp_path_factory, data) -> None:
    """Any damage gives an edit or one clear error, never another exception."""
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    path = Edit([Affine("z.1", (1,), 0.0), Delta("w", torch.ones(2, 3))]).save(folder)
    file = path / data.draw(st.sampled_from(["meta.json", "tensors.safetensors"]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with contextlib.suppress(interp.InterpError):
        assert isinstance(Edit.load(path), Edit)
