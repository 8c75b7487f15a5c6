"""Any edit of foldable atoms and weight changes, anywhere, in any order: hook == bake."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp import Affine, Delta, Dense, Edit, LowRank, Sparse, Towards
from interp._bake.block import inner_shape
from interp._bake.parts import Parts
from interp._bake.plan import make_plan
from interp._edit.parameters import named_parameters
from tests.architectures import build
from tests.oracles import plain
from tests.oracles.layout import EVERY

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(5))
KINDS = ["q", "k", "v", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post"]
ENDS = ("lm_head", "embed_tokens", "wte", "word_embeddings")


class AnAffine(NamedTuple):
    kind: str
    layer: int
    scale: float | None  # None: one number for each coordinate
    shift: bool
    units: list[int]
    seed: int


class ADelta(NamedTuple):
    parameter: int
    kind: str
    amount: float
    untie: bool
    seed: int


SEEDS = st.integers(0, 9999)
AFFINES = st.builds(
    AnAffine,
    st.sampled_from([*KINDS, *KINDS, "resid_pre", "embed"]),
    st.integers(0, 3),
    st.sampled_from([None, None, 1.0, 1.0, 0.0, -1.0, 2.0]),
    st.booleans(),
    st.lists(st.integers(0, 23), max_size=3, unique=True),
    SEEDS,
)
DELTAS = st.builds(
    ADelta,
    st.integers(0, 99),
    st.sampled_from(["dense", "low rank", "sparse", "towards"]),
    st.sampled_from([0.3, 1.0]),
    st.booleans(),
    SEEDS,
)


@lru_cache(maxsize=40)
def model_of(name: str, tied: bool) -> interp.Model:
    return interp.Model(build(name, **({"tie_word_embeddings": True} if tied else {})))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def affine(model: interp.Model, what: AnAffine) -> Affine | None:
    """The atom, or nothing where this model cannot take it."""
    anatomy = model.anatomy
    layer = None if what.kind == "embed" else what.layer % anatomy.n_layers
    shape, experts, index = (anatomy.d_model,), 0, None
    if layer is not None:
        parts = Parts(model.module, anatomy)
        shape, experts = inner_shape(parts, anatomy.blocks[layer], what.kind)
    if what.kind in ("q", "k", "v", "z", "mlp_post") and what.units:
        units = sorted({unit % shape[0] for unit in what.units})
        index = [(u % experts, u) for u in units] if experts else units
        shape = (len(units), *shape[1:])
    scale = 1 + 0.4 * normal(what.seed, *shape) if what.scale is None else what.scale
    shift = 0.5 * normal(what.seed + 1, *shape) if what.shift else None
    try:
        atom = Affine(interp.Site(what.kind, layer), index, scale, shift)
        make_plan(anatomy, Edit([atom]))
    except interp.InterpError:
        return None
    return atom


def delta(model: interp.Model, what: ADelta) -> Delta:
    """A change of any of the four kinds."""
    parameters = named_parameters(model.module)
    name = sorted(parameters)[what.parameter % len(parameters)]
    shape = tuple(parameters[name].tensor.shape)
    tied = model.module.config.tie_word_embeddings and name.split(".")[-2] in ENDS
    untie = bool(what.untie and tied and len(shape) == 2)
    change: Any
    if what.kind == "sparse" and not untie:
        numel = int(torch.Size(shape).numel())
        index = torch.arange(what.seed % min(7, numel), numel, 11)
        change = Sparse(index, normal(what.seed, len(index)), shape)
    elif what.kind == "towards" and not untie:
        change = Towards(0.2 * normal(what.seed, *shape), what.amount)
    elif what.kind == "low rank" and len(shape) == 2:
        left, right = normal(what.seed, shape[0], 2), normal(what.seed + 1, 2, shape[1])
        change = LowRank(0.1 * what.amount * left, right)
    else:
        change = Dense(0.1 * what.amount * normal(what.seed, *shape))
    return Delta(name, change, untie)


@settings(max_examples=60)
@given(
    name=st.sampled_from(EVERY),
    tied=st.booleans(),
    atoms=st.lists(st.one_of(AFFINES, AFFINES, DELTAS), min_size=2, max_size=8),
    amount=st.sampled_from([1.0, 1.0, 0.5]),
    untie=st.booleans(),
)
def test_hook_equals_bake_for_random_edits(name, tied, atoms, amount, untie) -> None:
    model = model_of(name, tied and name in ("qwen2", "llama", "phi", "gpt_neox"))
    made = [
        affine(model, what) if isinstance(what, AnAffine) else delta(model, what) for what in atoms
    ]
    edit = amount * Edit([atom for atom in made if atom is not None])
    baked = interp.bake(model, edit, verify=False, untie=untie)
    with edit.applied(model):
        expected = plain.logits_of(model.module, IDS)
    found = plain.logits_of(baked, IDS)
    # Changed norms and embeddings make logits of any size, and errors of theirs.
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= 2e-5 * scale, edit
