"""Records on disk: read back as written, replaced whole, and refused when damaged."""

from __future__ import annotations

import json
import re

import pytest
import torch

import interp
from interp._record import load_record, replacing, save_record, write_text
from tests.architectures import build
from tests.interp.weights.helpers import noisy, saved


@pytest.fixture
def acts(ids) -> interp.Activations:
    sites = ["resid_post.*", "mlp_post.1", "pattern.0", "embed"]
    return interp.capture(build("mixtral"), ids, sites, logits=True)


@pytest.fixture
def trace(ids) -> interp.LensTrace:
    return interp.logit_lens(build("llama"), ids, [[5, 6], [7, 8]], positions=[0, -1])


def test_activations_read_back_bit_for_bit(acts, tmp_path) -> None:
    loaded = interp.Activations.load(acts.save(tmp_path / "acts"))
    assert set(loaded) == set(acts)
    for site, tensor in acts.items():
        assert torch.equal(loaded[site], tensor)
    for site, experts in acts.expert_ids.items():
        assert torch.equal(loaded.expert_ids[site], experts)
    assert torch.equal(loaded.logits, acts.logits)
    assert torch.equal(loaded.tokens, acts.tokens)
    assert torch.equal(loaded.mask, acts.mask)
    assert loaded.meta["sites"] == acts.meta["sites"]


def test_sites_keep_their_order_on_disk(ids, tmp_path) -> None:
    """A file sorts by name, layer 10 before layer 2; a record of twelve layers does not."""
    model = interp.load(build("llama", num_hidden_layers=12))
    acts = interp.capture(model, ids, ["z.*", "resid_post.*", "embed"])
    assert [site.layer for site in acts if site.kind == "z"] == list(range(12))
    folder = acts.save(tmp_path / "acts")
    assert list(interp.Activations.load(folder)) == list(acts)
    backwards = interp.Activations(
        dict(reversed(acts.tensors.items())), tokens=acts.tokens, mask=acts.mask
    )
    again = interp.Activations.load(backwards.save(tmp_path / "backwards"))
    assert list(again) == list(acts)[::-1]
    # A record written before the order was kept is read as a forward pass meets its sites.
    meta = json.loads((folder / "meta.json").read_text())
    del meta["order"]
    (folder / "meta.json").write_text(json.dumps(meta))
    loaded = interp.Activations.load(folder)
    assert list(loaded) == list(acts)
    assert "order" not in loaded.meta


def test_views_of_one_tensor_are_saved_apart(tmp_path) -> None:
    base = torch.arange(12.0).view(1, 3, 4)
    acts = interp.Activations(
        {interp.Site("resid_pre", 1): base, interp.Site("resid_post", 0): base},
        tokens=torch.zeros(1, 3, dtype=torch.long),
        mask=torch.ones(1, 3, dtype=torch.bool),
    )
    loaded = interp.Activations.load(acts.save(tmp_path / "a"))
    assert torch.equal(loaded["resid_pre.1"], base)
    assert torch.equal(loaded["resid_post.0"], base)


def test_a_lens_trace_reads_back_bit_for_bit(trace, tmp_path) -> None:
    loaded = interp.LensTrace.load(trace.save(tmp_path / "trace"))
    assert loaded.table().equals(trace.table())
    assert loaded.answers == trace.answers
    assert loaded.tokens == trace.tokens
    assert torch.equal(loaded.top_logprob, trace.top_logprob)


def test_the_saved_table_is_the_records_own(trace, tmp_path) -> None:
    import pandas as pd

    folder = trace.save(tmp_path / "trace")
    assert pd.read_parquet(folder / "table.parquet").equals(trace.table())


@pytest.mark.parametrize("damage", ["meta", "tensors", "empty", "missing"])
def test_a_damaged_folder_is_refused_with_its_path(damage, acts, tmp_path) -> None:
    folder = acts.save(tmp_path / "acts")
    tensors = folder / "tensors.safetensors"
    if damage == "meta":
        (folder / "meta.json").write_text("{")
    elif damage == "tensors":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "empty":
        tensors.write_bytes(b"")
    else:
        tensors.unlink()
    with pytest.raises(interp.InterpError, match=r"damaged|not a saved record") as raised:
        interp.Activations.load(folder)
    assert str(folder) in str(raised.value)


def test_another_kind_and_a_newer_schema_are_refused(acts, trace, tmp_path) -> None:
    folder = trace.save(tmp_path / "trace")
    with pytest.raises(interp.InterpError, match="'lens_trace', not a 'activations'"):
        interp.Activations.load(folder)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "schema": 99}))
    with pytest.raises(interp.InterpError, match=r"schema 99, newer.*upgrade"):
        interp.LensTrace.load(folder)


def test_saving_replaces_an_earlier_record_whole(tmp_path) -> None:
    first = {"a": torch.zeros(2), "b": torch.ones(2)}
    save_record(tmp_path / "r", "thing", first, {})
    save_record(tmp_path / "r", "thing", {"a": torch.ones(3)}, {})
    tensors, _ = load_record(tmp_path / "r", "thing")
    assert list(tensors) == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_a_write_that_fails_leaves_the_old_record_and_no_scratch(tmp_path) -> None:
    save_record(tmp_path / "r", "thing", {"a": torch.zeros(2)}, {})
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "r") as scratch:
        (scratch / "meta.json").write_text("half")
        raise KeyboardInterrupt
    tensors, _ = load_record(tmp_path / "r", "thing")
    assert torch.equal(tensors["a"], torch.zeros(2))
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_saving_over_anything_else_is_refused(tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target in ("folder", "file"):
        with pytest.raises(interp.InterpError, match="would delete"):
            save_record(tmp_path / target, "thing", {"a": torch.zeros(1)}, {})
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_is_written_whole(tmp_path) -> None:
    write_text(tmp_path / "f", "one")
    write_text(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_activations_say_what_they_hold(acts) -> None:
    table = acts.table().set_index("site")
    real = acts["resid_post.1"]
    assert table.loc["resid_post.1", "rms"] == pytest.approx(float(real.square().mean().sqrt()))
    assert table.loc["resid_post.1", "bytes"] == real.numel() * 4
    assert table.loc["mlp_post.1", "axes"] == "batch pos expert d_mlp"
    assert torch.equal(acts.stack("resid_post")[1], real)
    assert "resid_post.1" in acts
    assert "z.1" not in acts
    with pytest.raises(interp.SiteNotFound, match=r"resid_pre\.1 was not captured.*resid_post\.1"):
        acts["resid_pre.1"]
    with pytest.raises(interp.SiteNotFound, match="no 'z' was captured"):
        acts.stack("z")


def test_a_record_says_in_one_line_what_it_is(ids, trace, tmp_path) -> None:
    """And is itself and nothing else: tensors cannot be compared to one truth value."""
    base, tuned = build("llama"), noisy(build("llama"))
    model = interp.Model(base)
    off = interp.Edit([interp.Affine("z.1", (0,), 0.0)])
    effects = interp.side_effects(model, off, ids.tolist())
    paths = {name: saved(module, tmp_path / name) for name, module in [("a", base), ("b", tuned)]}
    paths["c"] = saved(noisy(base, seed=5), tmp_path / "c")
    runs = interp.diff(paths["a"], {"sft": paths["b"], "rl": paths["c"]})
    n_rows = len(runs.table())
    shared = interp.compare(runs)
    batch = model.batch([[5, 6], [7, 8, 9]])
    says = {
        trace: "LensTrace(logit lens: 4 rows, 4 layers; answers '[5]', '[6]')",
        effects: f"SideEffects(2 texts, 22 tokens; KL {float(effects.kl.mean()):.3g} nats a token",
        interp.logit_attribution(model, ids, 5): "LogitAttribution(2 prompts, 8 components; answ",
        interp.replay(model, ids): "Replay(2 prompts, 11 positions, 3 blocks)",
        interp.LinearLens(torch.zeros(3, 32, 32)): "LinearLens(linear: 3 layers, d_model 32)",
        runs: f"WeightDiff(a to sft, rl; {n_rows} rows)",
        shared: f"WeightComparison(sft, rl; {len(shared.table())} rows)",
        batch: "Batch(2 prompts of 2 to 3 tokens)",
    }
    assert len(says) == 8
    for record, said in says.items():
        assert repr(record).startswith(said), repr(record)
        assert len(repr(record)) < 200 and "\n" not in repr(record)
        assert record == record and (record is trace or record != trace)
    report = interp.bake(paths["a"], off, out=tmp_path / "baked")
    assert re.fullmatch(
        r"BakeReport\(a: 1 tensor changed, 0 new; logits differ by \S+ at most\)", repr(report)
    )
