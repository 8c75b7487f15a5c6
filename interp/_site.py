"""A site: one place in a decoder where an activation can be read or written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from interp._errors import SiteNotFound, nearest

# kind -> axes, in the order in which a forward pass meets them
AXES: dict[str, tuple[str, ...]] = {
    "embed": ("batch", "pos", "d_model"),
    "resid_pre": ("batch", "pos", "d_model"),
    "q": ("batch", "pos", "head", "d_head"),
    "k": ("batch", "pos", "head", "d_head"),
    "v": ("batch", "pos", "head", "d_head"),
    "pattern": ("batch", "head", "query", "key"),
    "z": ("batch", "pos", "head", "d_head"),
    "head_out": ("batch", "pos", "head", "d_model"),
    "attn_out": ("batch", "pos", "d_model"),
    "resid_mid": ("batch", "pos", "d_model"),
    "mlp_post": ("batch", "pos", "d_mlp"),
    "mlp_out": ("batch", "pos", "d_model"),
    "resid_post": ("batch", "pos", "d_model"),
}
KINDS = tuple(AXES)

_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_pattern": "pattern",
    "attn.hook_result": "head_out",
    "mlp.hook_post": "mlp_post",
}
_HOOK_OF_KIND = {kind: hook for hook, kind in _TRANSFORMER_LENS.items()}


@dataclass(frozen=True)
class Site:
    """A kind of activation at a layer, such as `Site("z", 3)`; prints as `z.3`.

    Args:
        kind: one of `embed resid_pre resid_mid resid_post attn_out mlp_out q k v pattern z
            head_out mlp_post`, the names TransformerLens made standard.
        layer: the block, from 0; None for `embed` only.

    Examples:
        >>> Site.parse("z.3")
        Site('z.3')
        >>> Site.parse("blocks.3.attn.hook_z") == Site("z", 3)
        True
        >>> Site("z", 3).axes
        ('batch', 'pos', 'head', 'd_head')
    """

    kind: str
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.layer is not None and not isinstance(self.layer, int):
            raise SiteNotFound(f"layer {self.layer!r}: expected a whole number, as in Site('z', 3)")
        if self.kind not in AXES:
            raise SiteNotFound(f"unknown site kind {self.kind!r}; {nearest(self.kind, KINDS)}")
        if (self.layer is None) != (self.kind == "embed"):
            raise SiteNotFound(
                f"site {self.kind!r} with layer {self.layer}: 'embed' takes no layer, every other "
                f"kind takes one; write 'embed' or '{self.kind}.3'"
            )

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the activation's axes; expert neurons add `expert` before `d_mlp`."""
        return AXES[self.kind]

    @property
    def hook_name(self) -> str:
        """The TransformerLens name: `blocks.3.attn.hook_z`."""
        if self.layer is None:
            return "hook_embed"
        return f"blocks.{self.layer}.{_HOOK_OF_KIND[self.kind]}"

    @staticmethod
    def parse(text: str | Site) -> Site:
        """Read `z.3`, `embed` or a TransformerLens hook name.

        Raises:
            SiteNotFound: naming the nearest valid kinds.
        """
        if isinstance(text, Site):
            return text
        kind, layer = _split(text)
        if layer == "*":
            raise SiteNotFound(
                f"{text!r} is a pattern over layers; name one layer, as in '{kind}.0'"
            )
        return Site(kind, None if layer is None else int(layer))

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.kind}.{self.layer}"

    def __repr__(self) -> str:
        return f"Site({str(self)!r})"


def _split(text: str) -> tuple[str, str | None]:
    """`z.3` -> (z, 3); `blocks.*.attn.hook_z` -> (z, *); `embed` -> (embed, None)."""
    if not isinstance(text, str):
        raise SiteNotFound(
            f"{text!r} is no site; expected a name such as 'resid_post.3' or 'embed'"
        )
    if text == "hook_embed":
        return "embed", None
    hook = re.fullmatch(r"blocks\.(\d+|\*)\.(.+)", text)
    if hook:
        layer, name = hook.groups()
        if name not in _TRANSFORMER_LENS:
            raise SiteNotFound(f"unknown hook name {text!r}; {nearest(name, _TRANSFORMER_LENS)}")
        return _TRANSFORMER_LENS[name], layer
    plain = re.fullmatch(r"([a-z_]+)(?:\.(-?\d+|\*))?", text)
    if not plain:
        raise SiteNotFound(
            f"cannot read the site {text!r}; expected 'kind.layer' such as 'resid_post.3', "
            f"'z.*' or 'embed'"
        )
    kind, layer_text = plain.groups()
    if kind not in AXES:
        raise SiteNotFound(f"unknown site {text!r}; {nearest(kind, KINDS)}")
    return kind, layer_text


def listed(patterns: str | Site | Iterable[str | Site]) -> list[str | Site]:
    """One site or several, as a list."""
    if isinstance(patterns, str | Site):
        return [patterns]
    if not isinstance(patterns, Iterable):
        raise SiteNotFound(
            f"{patterns!r} is no site; expected a name such as 'resid_post.3', or a list of names"
        )
    return list(patterns)


def expand(patterns: str | Site | Iterable[str | Site], n_layers: int) -> list[tuple[Site, bool]]:
    """Every site that the patterns name, in order and once, with whether a `*` named it.

    `"z.*"` and `"z"` mean every layer; negative layers count from the last.

    >>> [str(site) for site, _ in expand(["embed", "z.*", "resid_post.-1"], n_layers=2)]
    ['embed', 'z.0', 'z.1', 'resid_post.1']
    """
    found: dict[Site, bool] = {}
    for pattern in listed(patterns):
        if isinstance(pattern, Site):
            kind, layer = pattern.kind, None if pattern.layer is None else str(pattern.layer)
        else:
            kind, layer = _split(pattern)
        if kind == "embed":
            found.setdefault(Site("embed"), False)
        elif layer in (None, "*"):
            for index in range(n_layers):
                found.setdefault(Site(kind, index), True)
        else:
            index = int(layer) + (n_layers if int(layer) < 0 else 0)
            if not 0 <= index < n_layers:
                raise SiteNotFound(
                    f"site {str(pattern)!r}: this model has layers 0 to {n_layers - 1} "
                    f"(or -{n_layers} to -1)"
                )
            found[Site(kind, index)] = False
    return list(found.items())
