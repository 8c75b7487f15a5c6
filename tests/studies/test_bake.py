"""`interp bake` as a user meets it: what is printed, written and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interp
from interp import Affine, Edit
from studies import organisms
from studies.__main__ import main


def test_bake_writes_a_checkpoint_and_says_what_went_where(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "edited"
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    width = interp.load(checkpoint).anatomy.d_model
    atoms = [Affine("z.1", (0,), scale=0.0), Affine("resid_post.0", shift=torch.ones(width))]
    saved = Edit(atoms).save(tmp_path / "fitting")
    capsys.readouterr()
    main(["bake", str(checkpoint), str(saved), "--out", str(out)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "z.1, head 0: scale 0" in printed and "logits differ from the edited model's" in printed
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before
    model, baked = interp.load(checkpoint), interp.load(out)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad(), Edit(atoms).applied(model):
        expected = model.module(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(baked.module(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert "z.1" in (out / "README.md").read_text()


def test_an_organism_can_be_baked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = Edit([Affine("mlp_post.2", (1, 2, 3), scale=0.0)]).save(tmp_path / "edit")
    main(["bake", "organism:base", str(saved), "--out", str(tmp_path / "out"), "--no-verify"])
    assert "not compared" in capsys.readouterr().out
    weight = "model.layers.2.mlp.down_proj.weight"
    baked = interp.load(tmp_path / "out").module.state_dict()[weight]
    expected = organisms.load("base")[0].state_dict()[weight].clone()
    expected[:, [1, 2, 3]] = 0
    assert torch.equal(baked.float(), expected)


def test_what_cannot_be_baked_is_one_line_and_status_2(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = Edit([Affine("resid_post.0", scale=0.5)]).save(tmp_path / "edit")
    with pytest.raises(SystemExit) as stopped:
        main(["bake", str(checkpoint), str(saved), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("interp: 1 of the edit's 1 atoms cannot be folded")
    assert not (tmp_path / "out").exists()
