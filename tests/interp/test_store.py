"""A corpus on disk: equal to capture, resumed after an interruption, never over other files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import interp
from tests.architectures import build

SITES = ["resid_post.1", "mlp_post.1"]


@pytest.fixture
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = [4, 9, 2, 7, 7, 3, 5]
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]


def run(model, prompts, folder, **more):
    more = {"batch_size": 2, "progress": False, **more}
    return interp.capture_corpus(model, prompts, SITES, folder, **more)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_store_holds_what_capture_gives(name, prompts, tmp_path) -> None:
    model = interp.load(build(name))
    store = run(model, prompts, tmp_path / "acts")
    assert len(store) == 4
    batches = [prompts[i : i + 2] for i in range(0, 7, 2)]
    for saved, batch in zip(store, batches, strict=True):
        fresh = interp.capture(model, batch, SITES)
        assert list(saved) == list(fresh)
        for site in fresh:
            assert torch.equal(saved[site], fresh[site])
        assert torch.equal(saved.tokens, fresh.tokens)
        assert torch.equal(saved.mask, fresh.mask)
        for site, ids in fresh.expert_ids.items():
            assert torch.equal(saved.expert_ids[site], ids)
    rows = torch.cat(list(store.rows("resid_post.1")))
    alone = [interp.capture(model, [p], SITES)["resid_post.1"][0] for p in prompts]
    torch.testing.assert_close(rows, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_every_batch_keeps_the_order_of_its_sites(prompts, tmp_path) -> None:
    model = interp.load(build("llama", num_hidden_layers=12))
    sites = ["resid_post.*", "z.*"]
    store = interp.capture_corpus(model, prompts, sites, tmp_path / "acts", progress=False)
    (saved,) = store
    fresh = interp.capture(model, prompts, sites)
    assert list(saved) == list(fresh)
    # Batches written before the order was kept.
    with safe_open(store.files[0], framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, store.files[0])
    (saved,) = store
    assert list(saved) == list(fresh)


def test_an_interrupted_run_continues_where_it_stopped(prompts, tmp_path) -> None:
    model = interp.load(build("llama"))
    folder = tmp_path / "acts"

    def interrupted():
        yield from prompts[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, interrupted(), folder)
    done = {file.name: file.stat().st_mtime_ns for file in interp.ActivationStore(folder).files}
    assert sorted(done) == ["batch-000000.safetensors", "batch-000001.safetensors"]
    store = run(model, prompts, folder)
    after = {file.name: file.stat().st_mtime_ns for file in store.files}
    assert len(after) == 4
    assert {name: after[name] for name in done} == done  # not computed again
    whole = run(model, prompts, tmp_path / "whole")
    for first, second in zip(store, whole, strict=True):
        assert all(torch.equal(first[site], second[site]) for site in second)
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_another_corpus_is_refused(prompts, tmp_path) -> None:
    model = interp.load(build("llama"))
    run(model, prompts, tmp_path / "acts")
    with pytest.raises(interp.InterpError, match="holds other prompts; choose a new folder"):
        run(model, [prompts[0], [50, 51], *prompts[2:4]], tmp_path / "acts")
    again = run(model, prompts, tmp_path / "acts")
    assert len(again) == 4


def test_a_foreign_folder_is_refused_and_left_alone(prompts, tmp_path) -> None:
    model = interp.load(build("llama"))
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(interp.InterpError, match="holds other files"):
        run(model, prompts, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(interp.InterpError, match=r"no activation store.*meta\.json"):
        interp.ActivationStore(tmp_path)


def test_other_arguments_are_refused_by_name(prompts, tmp_path) -> None:
    model = interp.load(build("llama"))
    run(model, prompts, tmp_path / "acts")
    with pytest.raises(interp.InterpError, match="positions"):
        run(model, prompts, tmp_path / "acts", positions="last")
    meta_file = tmp_path / "acts" / "meta.json"
    meta = json.loads(meta_file.read_text())
    meta_file.write_text(json.dumps({**meta, "schema": 99}))
    with pytest.raises(interp.InterpError, match="schema"):
        run(model, prompts, tmp_path / "acts")


def test_dtype_and_positions_apply(prompts, tmp_path) -> None:
    model = interp.load(build("llama"))
    store = run(model, prompts, tmp_path / "a", positions="last", dtype=torch.float16)
    for saved, start in zip(store, range(0, 7, 2), strict=True):
        fresh = interp.capture(model, prompts[start : start + 2], SITES, positions="last")
        assert torch.equal(saved["resid_post.1"], fresh["resid_post.1"].half())
