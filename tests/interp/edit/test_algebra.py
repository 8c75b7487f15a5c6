"""The algebra of edits: what +, * and - mean for the model, and selection, equality, words."""

from __future__ import annotations

import random
from contextlib import ExitStack

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import interp
from interp import Affine, Delta, Dense, Edit, LowRank, Sparse, Towards
from tests.architectures import build
from tests.oracles import plain

KINDS = {
    "z": (4, 8),
    "q": (4, 8),
    "v": (2, 8),
    "mlp_post": (48,),
    "resid_post": (32,),
    "mlp_out": (32,),
}
MATRICES = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (32, 48)}


def affine(draw: random.Random) -> Affine:
    kind = draw.choice(sorted(KINDS))
    shape = KINDS[kind]
    index = None
    if kind in ("z", "q", "v", "mlp_post") and draw.random() < 0.5:
        index = draw.sample(range(shape[0]), draw.randint(1, 2))
        shape = (len(index), *shape[1:])
    return Affine(
        f"{kind}.{draw.randrange(3)}",
        index,
        draw.choice([0.0, 1.0, 1.5, torch.rand(shape)]),
        draw.choice([None, torch.randn(shape)]),
        draw.choice(["all", "prompt", "last", (0, -2)]),
    )


def delta(draw: random.Random) -> Delta:
    name, (rows, columns) = draw.choice(sorted(MATRICES.items()))
    change = draw.choice(
        [
            Dense(0.1 * torch.randn(rows, columns)),
            LowRank(0.1 * torch.randn(rows, 2), torch.randn(2, columns)),
            Sparse(torch.randint(0, 30, (20,)), torch.randn(20), (rows, columns)),  # some twice
            Towards(torch.randn(rows, columns), mask=torch.rand(rows, columns) < 0.3),
        ]
    )
    return Delta(f"model.layers.{draw.randrange(3)}.{name}.weight", change)


def made(seeds: list[int]) -> Edit:
    """One atom a seed: an example shrinks by losing atoms."""
    atoms = []
    for seed in seeds:
        torch.manual_seed(seed)
        draw = random.Random(seed)
        atoms.append(draw.choice([affine, delta])(draw))
    return Edit(atoms)


several = st.lists(st.integers(0, 2**16), max_size=4)
few = hypothesis.settings(max_examples=25)


def logits_under(model, ids, *edits: Edit) -> torch.Tensor:
    with ExitStack() as stack, torch.no_grad():
        for edit in edits:
            stack.enter_context(edit.applied(model))
        return model(ids).logits


@few
@hypothesis.given(several, several)
def test_a_plus_b_is_a_then_b(first: list[int], second: list[int]) -> None:
    a, b = made(first), made(second)
    model, ids = build("llama"), torch.arange(10, 22).view(2, 6)
    torch.testing.assert_close(
        logits_under(model, ids, a + b), logits_under(model, ids, a, b), rtol=1e-4, atol=1e-4
    )


@few
@hypothesis.given(several)
def test_multiples_of_an_edit(seeds: list[int]) -> None:
    """1 * e is e, 0 * e does nothing, (s t) e is s (t e)."""
    edit = made(seeds)
    model, ids = build("llama"), torch.arange(10, 22).view(2, 6)
    assert edit * 1 == edit
    assert torch.equal(logits_under(model, ids, 0 * edit), plain.logits_of(model, ids))
    twice = logits_under(model, ids, 0.5 * (0.5 * edit))
    torch.testing.assert_close(twice, logits_under(model, ids, 0.25 * edit), rtol=1e-4, atol=1e-4)


@few
@hypothesis.given(several)
def test_the_model_comes_back_bit_for_bit(seeds: list[int]) -> None:
    edit = made(seeds)
    model, ids = build("llama"), torch.arange(10, 22).view(2, 6)
    before, logits = plain.snapshot(model), plain.logits_of(model, ids)
    logits_under(model, ids, edit)
    plain.assert_unchanged(before, model)
    with pytest.raises(KeyboardInterrupt), edit.applied(model):
        raise KeyboardInterrupt
    plain.assert_unchanged(before, model)
    assert torch.equal(plain.logits_of(model, ids), logits)


@few
@hypothesis.given(several)
def test_a_saved_edit_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, seeds: list[int]
) -> None:
    edit = made(seeds)
    path = tmp_path_factory.mktemp("edit") / "e"
    assert Edit.load(edit.save(path)) == edit


def test_the_scaled_maps_are_those_of_the_definition(ids) -> None:
    """t * (y = s x + b) is y = (1 + t (s - 1)) x + t b, against a function on the site."""
    model = build("llama")
    scale, shift = torch.rand(32), torch.randn(32)
    edit = 0.3 * Edit([Affine("resid_post.1", scale=scale, shift=shift)])

    def by_hand(x, _site):
        return (1 + 0.3 * (scale - 1)) * x + 0.3 * shift

    with interp.hooked(model, {"resid_post.1": by_hand}):
        expected = plain.logits_of(model, ids)
    torch.testing.assert_close(logits_under(model, ids, edit), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Dense(torch.full((2, 3), 0.5)), torch.full((2, 3), 0.5)),
        (Dense(torch.ones(2, 3), minus=torch.full((2, 3), 0.25)), torch.full((2, 3), 0.75)),
        (
            LowRank(torch.tensor([[1.0], [2.0]]), torch.ones(1, 3)),
            torch.tensor([[1.0] * 3, [2.0] * 3]),
        ),
        (
            Sparse(torch.tensor([4, 4]), torch.tensor([1.0, 2.0]), (2, 3)),
            torch.tensor([[0.0] * 3, [0.0, 3.0, 0.0]]),
        ),
    ],
)
def test_a_change_adds_what_it_says_times_t(change, expected) -> None:
    weight = torch.arange(6.0).view(2, 3)
    torch.testing.assert_close(change.applied_to(weight), weight + expected)
    torch.testing.assert_close(change.times(-2.0).applied_to(weight), weight - 2 * expected)


def test_a_move_to_a_target_gives_its_very_bits() -> None:
    """A difference stored beforehand would not: (b - a) + a rounds."""
    generator = torch.Generator().manual_seed(0)
    weight, target = torch.randn(2, 64, 64, generator=generator) * torch.tensor([[[1e3]], [[1e-3]]])
    assert torch.equal(Towards(target).applied_to(weight), target)
    assert not torch.equal(Dense(target, minus=weight).applied_to(weight), target)
    half = Towards(target).times(0.5).applied_to(weight)
    torch.testing.assert_close(half, (weight + target) / 2)
    mask = torch.rand(64, 64, generator=generator) < 0.5
    mixed = Towards(target, mask=mask).applied_to(weight)
    assert torch.equal(mixed, torch.where(mask, target, weight))


def test_a_change_of_bfloat16_weights_rounds_once() -> None:
    weight = torch.randn(8, 8).bfloat16()
    change = 0.01 * torch.randn(8, 8)
    assert torch.equal(Dense(change).applied_to(weight), (weight.float() + change).bfloat16())


def test_selection_by_site_and_parameter() -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    edit = Edit(
        [Affine("z.1", 0, 0.0), Affine("resid_post.2", scale=2.0), Delta(name, torch.ones(32, 48))]
    )
    assert [str(a.site) for a in edit.select("z.*").affines] == ["z.1"]
    assert edit.select("*.down_proj.weight").deltas == edit.deltas
    assert edit.select("z.1", "resid_post.*") == Edit(edit.affines)
    with pytest.raises(interp.InterpError, match=r"no atom.*'z.2'.*'z.1'"):
        edit.select("z.2")


def test_equality_looks_at_the_numbers() -> None:
    a = Edit([Affine("z.1", 0, 0.5)])
    assert a == Edit([Affine("blocks.1.attn.hook_z", (0,), torch.tensor(0.5))])
    for other in (
        Affine("z.1", 0, 0.25),
        Affine("z.1", 1, 0.5),
        Affine("z.1", 0, 0.5, positions="last"),
    ):
        assert a != Edit([other])
    assert a != "something else"


def test_an_edit_reads_like_what_it_does() -> None:
    edit = Edit(
        [Affine("z.3", (5, 2), 0.0), Affine("resid_post.6", shift=[3.0, 4.0], positions=-1)]
    )
    assert repr(edit) == "Edit(z.3, heads 5, 2: scale 0; resid_post.6: add norm 5, at tokens -1)"
    assert sum([edit, edit]) == edit + edit
    assert len(edit - edit) == 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Affine("zz.3"), "unknown site 'zz.3'; nearest valid names: 'z'"),
        (lambda: Affine("pattern.3", 0, 0.0), "pattern.3 can be read but not edited"),
        (lambda: Affine("head_out.3", 0, 0.0), "exactly at z"),
        (lambda: Affine("resid_post.1", 3, 0.0), "no heads or neurons to choose from"),
        (lambda: Affine("z.1", (1, 1), 0.0), "names unit 1 twice"),
        (lambda: Affine("z.1", (-1,), 0.0), "units count from 0"),
        (lambda: Affine("z.1", ((0, 1),), 0.0), "heads are numbers"),
        (lambda: Affine("z.1", (), 0.0), "names no unit"),
        (lambda: Affine("z.1", (0, 1), [0.0, 1.0, 2.0]), "is for 3 units, but index names 2"),
        (lambda: Affine("z.1", 0, float("nan")), "the scale at z.1 holds 1 entries that are NaN"),
        (lambda: Affine("z.1", 0, shift=[float("inf")] * 3), "the shift at z.1 holds 3 entries"),
        (lambda: Affine("resid_post.1", shift=torch.ones(3, 4)), "expected axes d_model"),
        (lambda: Affine("z.1", 0, 0.0, positions="lats"), "nearest valid names: 'last'"),
        (lambda: Affine("z.1", 0, 0.0, positions=()), "expected 'all', 'prompt'"),
        (lambda: Delta("w", torch.tensor([float("nan")])), "the change of w holds 1 entries"),
        (lambda: Delta("", torch.ones(1)), "needs a parameter's name"),
        (lambda: Sparse(torch.tensor([9]), torch.ones(1), (2, 3)), "names entries 9 to 9, outside"),
        (lambda: LowRank(torch.ones(2, 3), torch.ones(4, 5)), r"got \[2, 3\] and \[4, 5\]"),
        (lambda: float("inf") * Edit(), "cannot be taken inf times"),
    ],
)  # fmt: skip
def test_bad_atoms_say_what_is_wrong(make, words) -> None:
    with pytest.raises(interp.InterpError, match=words):
        make()
