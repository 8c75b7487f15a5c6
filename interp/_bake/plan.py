"""From an edit to what each tensor of the baked checkpoint is: one planner for memory and disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from interp._anatomy import Anatomy
from interp._bake.block import fold_block, inner_shape, scale_norm
from interp._bake.forms import Form, Forms
from interp._bake.ledger import Ledger, Slot, Unfoldable
from interp._bake.maps import Map, compose
from interp._bake.parts import Parts
from interp._bake.recipe import Recipe
from interp._edit.affine import Affine
from interp._edit.change import Change
from interp._edit.delta import Delta
from interp._edit.edit import Edit
from interp._errors import InterpError, nearest
from interp._ports import open_port
from interp._site import Site

TIED = (
    "the embedding is also the head, so moving it would move the logits; untie=True stores the two "
    "apart"
)


@dataclass(frozen=True)
class Plan:
    """What to write.

    Args:
        recipes: tensors that differ from the base or are new, by name.
        form: class, config and tensors of the result.
        slots: which part of which atom went where.
        untied: whether the embedding and the head are stored apart from now on.
        canonical: each name of a tensor of the base -> the first name of that tensor.
    """

    recipes: Mapping[str, Recipe]
    form: Form
    slots: tuple[Slot, ...]
    untied: bool
    canonical: Mapping[str, str]


def make_plan(anatomy: Anatomy, edit: Edit, *, untie: bool = False) -> Plan:
    """Plan an edit's folding; numbers of the module are not looked at, so it may be a meta one.

    Raises:
        Unfoldable: naming every atom that cannot be folded, the reason, and the way out.
        InterpError: an edit of another model.
        UnsupportedSite: a site that this architecture does not have.
    """
    module = anatomy.module
    parts = Parts(module, anatomy)
    changes, untied = _changes(parts, edit.deltas, untie)
    ledger = Ledger(Forms(parts))
    for affine in edit.affines:
        _check_site(anatomy, affine.site)
    maps = _maps(parts, _foldable_at_all(acting(edit).affines, ledger))
    for block in anatomy.blocks:
        last = block.index + 1 == anatomy.n_layers
        after = maps("resid_post", block.index)
        after = after if last else after.then(maps("resid_pre", block.index + 1))

        def here(kind: str, layer: int = block.index) -> Map:
            return maps(kind, layer)

        fold_block(parts, block, here, after, ledger)
    _fold_start(parts, maps, ledger, tied=len(parts.tied_to(parts.embedding)) > 1 and not untied)
    _refuse(edit, ledger, type(module).__name__)
    slots = [Slot(delta.describe(), "change", delta.parameter) for delta in edit.deltas]
    recipes, form = _recipes(parts, ledger, changes, untied)
    return Plan(recipes, form, (*slots, *ledger.slots), untied, parts.canonical)


def acting(edit: Edit) -> Edit:
    """The edit without the maps that change nothing, wherever they are."""
    moving = [
        atom
        for atom in edit.atoms
        if isinstance(atom, Delta)
        or atom.scales
        or (atom.shift is not None and bool(atom.shift.any()))
    ]
    return replace(edit, atoms=tuple(moving))


def _check_site(anatomy: Anatomy, site: Site) -> None:
    if site.layer is not None and site.layer >= anatomy.n_layers:
        raise InterpError(f"{site}: this model has layers 0 to {anatomy.n_layers - 1}")
    open_port(anatomy, site)  # refuses what this architecture lacks


def _foldable_at_all(affines: tuple[Affine, ...], ledger: Ledger) -> list[Affine]:
    """The atoms that act everywhere; the others are refused."""
    found = []
    for affine in affines:
        if affine.positions != "all":
            ledger.refuse([affine], "it acts at some positions only, and weights act at all")
        elif affine.per_prompt:
            ledger.refuse([affine], "its shift differs from prompt to prompt")
        else:
            found.append(affine)
    return found


def _maps(parts: Parts, affines: list[Affine]) -> Callable[[str, int | None], Map]:
    """What the atoms at each site do together."""
    anatomy = parts.anatomy
    by_site: dict[Site, list[Affine]] = {}
    for affine in affines:
        by_site.setdefault(_same_tensor(affine.site, anatomy), []).append(affine)

    def maps(kind: str, layer: int | None) -> Map:
        found = by_site.get(Site(kind, layer))
        if found is None:
            return Map()
        shape: tuple[int, ...] = (anatomy.d_model,)
        experts = 0
        if layer is not None:
            shape, experts = inner_shape(parts, anatomy.blocks[layer], kind)
        return compose(found, shape, experts)

    return maps


def _same_tensor(site: Site, anatomy: Anatomy) -> Site:
    """Without a table of positions the embedding is what block 0 reads: one tensor, one order."""
    return Site("resid_pre", 0) if site.layer is None and anatomy.positions is None else site


def _fold_start(
    parts: Parts, maps: Callable[[str, int | None], Map], ledger: Ledger, *, tied: bool
) -> None:
    """Fold what happens before the first block: embedding, its norm, its projection, positions."""
    anatomy = parts.anatomy
    start, table = maps("resid_pre", 0), anatomy.positions
    if table is not None:
        both, name = maps("embed", None).then(start), parts.name(table, "weight")
        if start.scale is not None:
            ledger.scale(name, start.scale, start.scaling)
        if both.shift is not None:
            ledger.shift(name, both.shift, both.shifting)
        start = Map(both.scale, None, both.scaling)
    norm, projection = parts.embedding_norm, anatomy.project_in
    if norm is not None:
        scale_norm(norm, start, ledger)
        if start.shift is not None:
            ledger.shift(norm.bias, start.shift, start.shifting)
    elif projection is not None:
        if start.scale is not None:
            linear = parts.linear(projection)
            ledger.scale(linear.weight, linear.rows(start.scale), start.scaling)
        ledger.refuse(start.shifting, ledger.no_bias())
    elif tied:
        ledger.refuse(start.scaling + start.shifting, TIED)
    else:
        if start.scale is not None:
            ledger.scale(parts.embedding, start.scale, start.scaling)
        if start.shift is not None:
            ledger.shift(parts.embedding, start.shift / parts.embedding_scale, start.shifting)


def _changes(
    parts: Parts, deltas: tuple[Delta, ...], untie: bool
) -> tuple[dict[str, tuple[Change, ...]], bool]:
    """The changes of each tensor in order, and whether tied tensors come apart."""
    embedding = parts.tied_to(parts.embedding)
    untied = untie and len(embedding) > 1
    for delta in deltas:
        if delta.parameter not in parts.parameters:
            known = nearest(delta.parameter, parts.parameters)
            raise InterpError(f"this model has no parameter {delta.parameter!r}; {known}")
        shape = tuple(parts.parameters[delta.parameter].tensor.shape)
        if shape != tuple(delta.change.shape):
            raise InterpError(
                f"{delta.parameter} has shape {list(shape)} here and {list(delta.change.shape)} in "
                f"the edit: it was made for another model"
            )
        names = parts.tied_to(delta.parameter)
        if delta.untie and len(names) > 1:
            if names != embedding:
                raise InterpError(
                    f"{delta.parameter} is tied to {names[0]}, and only an embedding and its head "
                    f"can be stored apart"
                )
            untied = True
    found: dict[str, tuple[Change, ...]] = {}
    for delta in deltas:
        names = [delta.parameter] if delta.untie else parts.tied_to(delta.parameter)
        for name in names if untied else [parts.canonical[delta.parameter]]:
            found[name] = (*found.get(name, ()), delta.change)
    return found, untied


def _recipes(
    parts: Parts, ledger: Ledger, changes: Mapping[str, tuple[Change, ...]], untied: bool
) -> tuple[dict[str, Recipe], Form]:
    forms = ledger.forms
    form = forms.settle(ledger.folds, untied=untied)
    embedding = parts.tied_to(parts.embedding)
    recipes = {}
    for name, shape in form.shapes.items():
        apart = untied and name in embedding
        source = parts.canonical.get(name)
        if source is not None and source != name and not apart:
            continue  # the other end of a tied tensor
        same = source == name and name not in changes and name not in ledger.folds
        if not same:
            recipes[name] = Recipe(source, shape, changes.get(name, ()), ledger.folds.get(name))
    return recipes, form


def _refuse(edit: Edit, ledger: Ledger, architecture: str) -> None:
    if not ledger.refusals:
        return
    reasons = "; ".join(f"({r.atom.describe()}) {r.reason}" for r in ledger.refusals)
    raise Unfoldable(
        f"{len(ledger.refusals)} of the edit's {len(edit)} atoms cannot be folded into the weights "
        f"of {architecture}: {reasons}. Keep those as an edit (edit.applied(model)), and bake the "
        f"others: edit.select(...)",
        ledger.refusals,
    )
