"""From sites, units and spans to a list of patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from interp._errors import InterpError, UnsupportedSite, nearest
from interp._experts import ExpertPort
from interp._hooked import ports_of
from interp._model import Model
from interp._patch.spans import PatchPositions, Span, Spans, find_spans
from interp._ports import Port
from interp._site import Site, expand

HEADS = ("q", "k", "v", "pattern", "z")
PATCHABLE = (
    "resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out",
    "resid_post",
)  # fmt: skip
Units = tuple[int, ...]
Groups = Sequence[Sequence[int]] | Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Place:
    """A part of a run: a site, perhaps some of its heads or neurons only, at some positions.

    Args:
        site: one site, such as `"z.3"`.
        units: heads or neurons; None for all.
        positions: `"together"` (all), `"last"`, an index, or indices; counted in real tokens,
            negative from the prompt's end; a list of lists gives each prompt its own.

    Examples:
        >>> Place("z.3", [5], "last")
        Place(site='z.3', units=[5], positions='last')
    """

    site: str | Site
    units: Sequence[int] | None = None
    positions: str | int | Sequence[int] | Sequence[Sequence[int]] = "together"


@dataclass(frozen=True)
class Part:
    """A place with everything resolved: `at` holds each prompt's positions."""

    site: Site
    units: Units | None
    at: Sequence[Span]


@dataclass(frozen=True)
class Patch:
    """What is patched at once: where its effect goes in the record, and its parts."""

    name: str
    span: int
    unit: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """All patches to be measured.

    Args:
        patches: in the order of names, spans, units.
        shape: name -> (spans, units).
        units: name -> the heads or neurons of each unit; empty where a site is patched whole.
        spans: names of the spans, and where they are.
    """

    patches: list[Patch]
    shape: dict[str, tuple[int, int]]
    units: dict[str, list[Units]]
    spans: Spans

    @property
    def sites(self) -> list[Site]:
        """Every site that some patch writes."""
        return list(dict.fromkeys(part.site for patch in self.patches for part in patch.parts))

    def with_patches(self, patches: list[Patch]) -> Plan:
        """The same plan for other prompts."""
        return replace(self, patches=patches)


def grid(
    model: Model,
    sites: str | Site | Iterable[str | Site],
    spans: Spans,
    groups: Groups | None,
    window: Mapping[str, int] | None = None,
) -> Plan:
    """One patch for each site, span and unit.

    Args:
        model: in which the patches go.
        sites: site patterns.
        spans: of positions.
        groups: the units of sites with heads or neurons, for all or by site; by default each head,
            and the neurons of a layer together.
        window: kind -> how many layers around one are patched together (default 1).

    Raises:
        SiteNotFound: an unknown name.
        UnsupportedSite: a site that cannot be patched, with the reason.
        InterpError: a head or neuron that there is not, groups for other sites.
    """
    found = _ports(model, sites)
    if groups is not None and not any(_has_units(site) for site in found):
        raise InterpError("groups are heads or neurons, and no site asked for has any")
    patches, shape, units = [], {}, {}
    for site in found:
        chosen = _units_of(model, site, groups)
        name = str(site)
        units[name] = chosen
        shape[name] = (len(spans.names), max(1, len(chosen)))
        layers = _around(site, found, (window or {}).get(site.kind, 1))
        for span, at in enumerate(spans.at):
            for unit, members in enumerate(chosen or [None]):
                parts = tuple(Part(other, members, at) for other in layers)
                patches.append(Patch(name, span, unit, parts))
    return Plan(patches, shape, units, spans)


def of_prompts(patches: Sequence[Patch], prompts: Sequence[int]) -> list[Patch]:
    """The same patches for some of the prompts, which become prompts 0, 1, ..."""
    known: dict[int, list[Span]] = {}  # many parts share their positions

    def chosen(at: Sequence[Span]) -> list[Span]:
        return known.setdefault(id(at), [at[prompt] for prompt in prompts])

    return [
        replace(patch, parts=tuple(replace(part, at=chosen(part.at)) for part in patch.parts))
        for patch in patches
    ]


def joint(
    model: Model, named: Mapping[str, Sequence[Place]], partner: Sequence[Sequence[int]]
) -> Plan:
    """One patch for each name: all its places at once.

    Raises:
        InterpError: a name without places, something else than places.
    """
    patches = []
    if not named:
        raise InterpError("an empty mapping: nothing to patch; name places, or give sites")
    for name, places in named.items():
        given = [places] if isinstance(places, Place) else list(places)
        if not given or not all(isinstance(one, Place) for one in given):
            raise InterpError(
                f"{name!r} names {given!r}; expected places such as interp.Place('z.3', [5], "
                f"'last'), which are then patched together"
            )
        patches.append(Patch(name, 0, 0, parts_of(model, given, partner)))
    shape = dict.fromkeys(named, (1, 1))
    spans = Spans(["joint"], [[() for _ in partner]])
    return Plan(patches, shape, {name: [] for name in named}, spans)


def parts_of(
    model: Model, places: Sequence[Place], partner: Sequence[Sequence[int]]
) -> tuple[Part, ...]:
    """Places with their sites, units and positions found.

    Raises:
        InterpError: several sites in a place, a unit or a position that there is not.
    """
    parts = []
    for place in places:
        found = list(_ports(model, place.site))
        if len(found) != 1:
            raise InterpError(f"a place is one site, and {str(place.site)!r} means {len(found)}")
        (site,) = found
        if place.units is not None and not _has_units(site):
            raise InterpError(f"{site} has no heads or neurons, so units={place.units!r} is void")
        units = None if place.units is None else _checked(model, site, place.units)
        (at,) = find_spans(_as_mapping(place.positions), partner).at
        parts.append(Part(site, units, at))
    return tuple(parts)


def n_heads(model: Model, site: Site) -> int:
    """Heads of a site that has them: fewer at k and v where keys are shared."""
    block = model.anatomy.blocks[site.layer or 0]
    if block.qkv is not None and site.kind in ("q", "k", "v"):
        return block.qkv.n_heads if site.kind == "q" else block.qkv.n_kv_heads
    return block.n_heads


def _as_mapping(positions: object) -> PatchPositions:
    """A list means its positions together, where `find_spans` would take one at a time."""
    if positions == "each":
        raise InterpError("a place is patched at once, so positions='each' is void in it")
    return positions if isinstance(positions, str | int) else {"place": positions}


def _ports(model: Model, sites: str | Site | Iterable[str | Site]) -> dict[Site, Port]:
    for site, _ in expand(sites, model.anatomy.n_layers):
        if site.kind not in PATCHABLE:
            hint = {"embed": "; patch 'resid_pre.0'", "head_out": "; patch 'z', a head's output"}
            raise UnsupportedSite(
                f"{site} cannot be patched{hint.get(site.kind, '')}: "
                f"{nearest(site.kind, PATCHABLE)}"
            )
    ports = ports_of(model, sites)
    for site, port in ports.items():
        if isinstance(port, ExpertPort):
            raise UnsupportedSite(
                f"{site}: tokens of another prompt are routed to other experts, so there is no "
                f"neuron to put a value into; patch 'mlp_out.{site.layer}'"
            )
    return ports


def _has_units(site: Site) -> bool:
    return site.kind in HEADS or site.kind == "mlp_post"


def _units_of(model: Model, site: Site, groups: Groups | None) -> list[Units]:
    if not _has_units(site):
        return []
    if isinstance(groups, Mapping):
        groups = groups.get(str(site), groups.get(site.kind))
    if groups is None:
        return [(head,) for head in range(n_heads(model, site))] if site.kind in HEADS else []
    return [_checked(model, site, group) for group in groups]


def _checked(model: Model, site: Site, units: Sequence[int]) -> Units:
    try:
        found = tuple(sorted({int(unit) for unit in units}))
    except (TypeError, ValueError) as error:
        raise InterpError(
            f"{site}: a group is a list of heads or neurons, got {units!r}"
        ) from error
    size = n_heads(model, site) if site.kind in HEADS else None
    if not found or found[0] < 0 or (size is not None and found[-1] >= size):
        raise InterpError(
            f"{site}: units {list(units)!r}; expected at least one"
            + ("" if size is None else f", of {size} heads (0 to {size - 1})")
        )
    return found


def _around(site: Site, found: Mapping[Site, Port], width: int) -> list[Site]:
    """The layers around one: as many below as above, one more below where the width is even."""
    layer = site.layer or 0
    layers = range(layer - width // 2, layer + (width + 1) // 2)
    return [Site(site.kind, one) for one in layers if Site(site.kind, one) in found]
