"""The mask finds the heads that were planted, on models written by hand."""

from __future__ import annotations

import pytest
import torch

import interp
import interventions as iv
from tests.oracles import plain
from tests.oracles.copying import VOCAB, copying


def task(n: int = 64, length: int = 5) -> iv.Desideratum:
    generator = torch.Generator().manual_seed(1)
    base = torch.randint(1, VOCAB, (n, length), generator=generator)
    source = torch.randint(1, VOCAB, (n, length), generator=generator)
    source[:, 0] = 1 + (base[:, 0] + 3) % (VOCAB - 1)
    return iv.Desideratum(base, source, source[:, 0].tolist())


@pytest.mark.parametrize("writers", [((1, 2),), ((0, 3), (1, 0))])
def test_planted_heads_are_found(writers) -> None:
    mask = iv.learn_head_mask(
        copying(writers, noise=0.005), task(), penalty=0.05, epochs=3, batch_size=8
    )
    assert tuple(mask.heads) == writers
    assert mask.accuracy == mask.every == 1.0
    assert mask.none == 0.0
    assert float(mask.random.mean()) < 0.5


def test_a_higher_price_buys_fewer_heads() -> None:
    model = copying(((0, 0), (0, 3), (1, 0), (1, 2)), noise=0.005)
    sizes, right = [], []
    for penalty in (0.0, 0.3, 100.0):
        mask = iv.learn_head_mask(model, task(), penalty=penalty, epochs=3, batch_size=8)
        sizes.append(len(mask.heads))
        right.append(mask.accuracy)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 0
    assert right == sorted(right, reverse=True) and right[0] == 1.0 and right[-1] == 0.0


def test_the_mask_says_what_patching_says() -> None:
    model, wanted = copying(((1, 2),), noise=0.005), task(16)
    mask = iv.learn_head_mask(model, wanted, penalty=0.05, epochs=5, batch_size=4)
    target = interp.Accuracy(wanted.targets)
    eff = interp.patch(model, wanted.source, wanted.base, {"mask": mask.places}, target)
    assert torch.equal(eff["mask"], torch.ones(16))
    assert float(eff.corrupted.max()) == 0.0


def test_prompts_of_several_lengths_and_all_positions() -> None:
    one, other = task(32, 5), task(32, 4)
    mask = iv.learn_head_mask(
        copying(noise=0.005), [one, other], penalty=0.05, epochs=3, batch_size=8
    )
    assert mask.heads == [(1, 2)] and mask.meta["prompts"]["test"] == 16
    everywhere = iv.learn_head_mask(
        copying(noise=0.005), one, positions="all", penalty=0.05, epochs=3, batch_size=8
    )
    assert everywhere.heads == [(1, 2)] and everywhere.places[0].positions == "together"


def test_the_model_is_left_as_it_was_and_the_record_survives(tmp_path) -> None:
    model = copying(noise=0.005)
    before = plain.snapshot(model)
    mask = iv.learn_head_mask(model, task(16), epochs=1, batch_size=4)
    plain.assert_unchanged(before, model)
    again = iv.HeadMask.load(mask.save(tmp_path / "mask"))
    assert torch.equal(again.weight, mask.weight) and again.heads == mask.heads
    assert torch.equal(again.random, mask.random) and again.history == mask.history
    assert again.meta == mask.meta and again.accuracy == mask.accuracy
    assert list(mask.table().columns) == ["layer", "head", "weight", "taken"]
    assert len(mask.table()) == 8


def test_refusals() -> None:
    model, whole = copying(), task(8)
    with pytest.raises(interp.InterpError, match="4 prompts; a split into three needs at least 8"):
        iv.learn_head_mask(model, task(4))
    with pytest.raises(interp.InterpError, match="8 base and 7 source prompts"):
        iv.learn_head_mask(model, iv.Desideratum(whole.base, whole.source[:7], 1))
    with pytest.raises(interp.InterpError, match=r"pair 0: the base has 5 tokens.*positions='all'"):
        unequal = iv.Desideratum(whole.base, whole.source[:, :4], 1)
        iv.learn_head_mask(model, unequal, positions="all")
    with pytest.raises(interp.InterpError, match="epochs=0"):
        iv.learn_head_mask(model, whole, epochs=0)
