"""Proof, on four tokens, that the sites mean what their names promise in this very model.

Lazy (on first use of a model) and once per module. What fails is refused by name afterwards; the
rest stays usable. `interp.load(..., check=False)` switches it off for models too large for a spare
forward.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from interp._anatomy import Anatomy, Block
from interp._errors import UnsupportedSite
from interp._forward import every_module, run
from interp._ports import ModulePort, open_port
from interp._site import KINDS, Site

_VERDICTS: weakref.WeakKeyDictionary[nn.Module, tuple[Anatomy, dict[str, str]]] = (
    weakref.WeakKeyDictionary()
)


def verdicts(anatomy: Anatomy) -> dict[str, str]:
    """What cannot be trusted in this model: site kind or `unembed` -> the reason.

    An empty dictionary means that identity hooks left the logits bit-equal, that the parts add up
    to the stream, that heads add up to the output projection and that `unembed` of the last
    stream gives the model's logits.
    """
    found = _VERDICTS.get(anatomy.module)
    if found is None or found[0] is not anatomy:  # its parts have changed since
        found = _VERDICTS[anatomy.module] = (anatomy, _check(anatomy))
    return found[1]


def _check(anatomy: Anatomy) -> dict[str, str]:
    device = anatomy.home
    ids = torch.arange(4, device=device)[None] % anatomy.d_vocab
    exact = torch.autocast(device.type, enabled=False)
    with torch.no_grad(), evaluating(anatomy.module), exact:
        plain = run(anatomy.module, {"input_ids": ids}).logits
        seen, hooked = _run_with_identities(anatomy, ids)
        if not bool(plain.isfinite().all()):
            return {"unembed": f"its logits hold NaN or infinity, {_first_bad(anatomy, seen)}"}
        found = {}
        if not torch.equal(plain, hooked):
            found["hooks"] = f"identity hooks moved the logits by {_gap(hooked, plain):.1e}"
        last = seen[Site("resid_post", anatomy.n_layers - 1)]
        error = _gap(anatomy.unembed(last).to(plain.device), plain)
        if not error <= _tolerance(plain):
            found["unembed"] = (
                f"unembedding the last residual stream misses the model's logits by {error:.1e} "
                f"of their size"
            )
        for block in anatomy.blocks:
            found.update(_check_block(block, seen))
        found.update(_check_fused(anatomy, ids, seen))
    return found


def _first_bad(anatomy: Anatomy, seen: dict[Site, Tensor]) -> str:
    for layer in range(anatomy.n_layers):
        if not bool(seen[Site("resid_pre", layer)].isfinite().all()):
            return "from the embedding on" if layer == 0 else f"from block {layer - 1} on"
        if not bool(seen[Site("resid_post", layer)].isfinite().all()):
            return f"from block {layer} on"
    return "although the residual stream is finite"


def _run_with_identities(anatomy: Anatomy, ids: Tensor) -> tuple[dict[Site, Tensor], Tensor]:
    """Every site's tensor, and the logits with an identity edit at each site that has one."""
    seen: dict[Site, Tensor] = {}

    def identity(tensor: Tensor, site: Site) -> Tensor | None:
        seen[site] = tensor.clone()
        return tensor.clone() if site in exact else None

    exact = set()
    with ExitStack() as stack:
        for site in _sites(anatomy):
            try:
                port = open_port(anatomy, site)
                stack.enter_context(port.attach(identity, reads=False))
            except UnsupportedSite:
                continue
            # Dividing by Granite's multiplier again is exact only to a rounding.
            if isinstance(port, ModulePort) and port.multiplier == 1.0:
                exact.add(site)
        logits = run(anatomy.module, {"input_ids": ids}).logits
    return seen, logits


def _sites(anatomy: Anatomy) -> Iterator[Site]:
    for kind in KINDS:
        if kind == "embed":
            yield Site("embed")
        elif kind not in ("pattern", "mlp_post"):  # nothing here to compare them with
            yield from (Site(kind, block.index) for block in anatomy.blocks)


def _check_block(block: Block, seen: dict[Site, Tensor]) -> dict[str, str]:
    """Sums within one block: stream + attention + MLP, and heads within attention."""

    def of(kind: str) -> Tensor | None:
        return seen.get(Site(kind, block.index))

    found: dict[str, str] = {}
    pre, mid, post = of("resid_pre"), of("resid_mid"), of("resid_post")
    attn, mlp, heads = of("attn_out"), of("mlp_out"), of("head_out")
    assert pre is not None and post is not None
    if attn is not None and mlp is not None:
        error = _gap(pre + attn + mlp, post)
        if not error <= _tolerance(post):
            reason = f"resid_pre + attn_out + mlp_out misses resid_post by {error:.1e} of its size"
            found.update(attn_out=reason, mlp_out=reason)
    if attn is not None and mid is not None:
        error = _gap(pre + attn, mid)
        if not error <= _tolerance(post):
            found["resid_mid"] = f"resid_pre + attn_out misses resid_mid by {error:.1e} of its size"
    if heads is not None and block.o_proj is not None:
        z = of("z")
        assert z is not None
        project = block.o_proj.forward
        whole = project(z.flatten(-2)) - project(torch.zeros_like(z).flatten(-2))
        error = _gap(heads.sum(dim=2), whole)
        if not error <= _tolerance(post):
            found["head_out"] = f"heads miss the output projection by {error:.1e} of its size"
    return found


def _check_fused(anatomy: Anatomy, ids: Tensor, seen: dict[Site, Tensor]) -> dict[str, str]:
    """Where one projection gives queries, keys and values: whether they were told apart.

    Nothing in a module tree says in which order they lie (CodeGen's is its own), but pattern @ v
    is z only if the values are the values.
    """
    block = next((b for b in anatomy.blocks if b.qkv and b.qkv.layout != "separate"), None)
    if block is None or block.qkv is None:
        return {}
    found: dict[Site, Tensor] = {}
    site = Site("pattern", block.index)
    try:
        with open_port(anatomy, site).attach(_into(found), reads=True):
            run(anatomy.module, {"input_ids": ids})
    except UnsupportedSite:
        return {}
    v, z = seen[Site("v", block.index)], seen[Site("z", block.index)]
    heads = v.repeat_interleave(z.shape[2] // v.shape[2], dim=2)
    error = _gap(torch.einsum("bhqk,bkhd->bqhd", found[site].to(heads.dtype), heads), z)
    if error <= _tolerance(z):
        return {}
    reason = (
        f"pattern @ v misses z by {error:.1e} of its size, so queries, keys and values lie "
        f"otherwise in their common projection than we know"
    )
    return dict.fromkeys("qkv", reason)


def _into(found: dict[Site, Tensor]) -> Callable[[Tensor, Site], None]:
    def keep(tensor: Tensor, site: Site) -> None:
        found[site] = tensor.clone()

    return keep


def _gap(given: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    expected = expected.float()
    scale = float(expected.abs().max()) or 1.0
    return float((given.float() - expected).abs().max()) / scale


def _tolerance(tensor: Tensor) -> float:
    return max(1e-4, 8 * torch.finfo(tensor.dtype).eps)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout off, whatever mode each submodule is in, and back."""
    modes = [(child, True) for child in every_module(module) if child.training]
    if modes:
        module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode
