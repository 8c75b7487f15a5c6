"""What an nnsight trace needs to know: which modules to read, in which order, and the inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer

from interp._batch import Batch
from interp._errors import InterpError, UnsupportedSite
from interp._forward import accepted, may_stop_early
from interp._hooked import ports_of
from interp._hooks import _TAPS
from interp._model import Model, as_model
from interp._ports import ModulePort
from interp._site import KINDS, Site

Read = tuple[str, str]  # path of a module, "input" or "output"


@dataclass(frozen=True)
class Traced:
    """An nnsight model beside the handle that knows its sites.

    Args:
        envoy: the nnsight model.
        handle: a module of the same layout, perhaps without weights, and the tokenizer.
        remote: passed to `trace` as it is.
    """

    envoy: Any
    handle: Model
    remote: bool | str

    def reads(
        self, sites: str | Site | Iterable[str | Site]
    ) -> dict[Site, tuple[Read, ModulePort]]:
        """What to read for each site, in the order in which a forward meets them.

        Raises:
            UnsupportedSite: a site that is no module's input or output, with the reason.
        """
        paths = {id(module): path for path, module in self.handle.module.named_modules()}
        found: dict[Site, tuple[Read, ModulePort]] = {}
        ports = ports_of(self.handle, sites)
        for site in sorted(ports, key=lambda s: (-1 if s.layer is None else s.layer, _order(s))):
            port = ports[site]
            if not isinstance(port, ModulePort):
                raise UnsupportedSite(
                    f"{site} cannot be read through nnsight: {_REASONS[site.kind]}"
                )
            found[site] = (paths[id(port.module)], port.side), port
        return found

    def path(self, module: nn.Module | None) -> str | None:
        """Where a module stands in the tree; None for None."""
        return next((p for p, m in self.handle.module.named_modules() if m is module), None)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments of `trace`: the forward's inputs, and where to run it."""
        where = {"remote": self.remote} if self.remote else {}
        return {**accepted(self.handle.module, batch.inputs), "use_cache": False, **where}

    @property
    def stoppable(self) -> bool:
        """Whether the forward may end after the last read."""
        return may_stop_early(self.handle.module)


_REASONS = {
    "pattern": (
        "attention probabilities are no module's input or output; interp.capture reads them where "
        "the weights are"
    ),
    "head_out": (
        "it is z times the output projection's weight, which need not be here; read 'z' and "
        "multiply where the weights are"
    ),
    "mlp_post": (
        "the neurons of experts are no module's input or output; interp.capture reads them where "
        "the weights are"
    ),
}


def _order(site: Site) -> int:
    return KINDS.index(site.kind)


def open_traced(model: Any, remote: bool | str) -> Traced:
    """An nnsight model as given or named, or one over a shell of a plain model.

    The shell is a tree of new module objects that hold the same tensors, so that nnsight replaces
    `forward` there and the model you hold keeps its own.

    Raises:
        InterpError: not a model; a plain model without its weights, with open hooks, or to be run
            remotely without a tokenizer.
    """
    import nnsight

    if isinstance(model, str | Path):
        # The task and tokenizer are named, because nnsight 0.8 does not find them by itself
        # offline or with every transformers 5.
        name = str(model)
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = nnsight.TransformersModel(name, task="text-generation", tokenizer=tokenizer)
    if isinstance(model, nnsight.Envoy):
        return _given(model, remote)
    if not isinstance(model, Model | nn.Module):
        raise InterpError(
            f"cannot trace a {type(model).__name__}; give a hub id or folder, an nnsight model, an "
            f"interp.Model or a PreTrainedModel"
        )
    handle = as_model(model)
    name = type(handle.module).__name__
    if any(parameter.is_meta for parameter in handle.module.parameters()):
        raise InterpError(
            f"{name} has weights on the meta device or offloaded to disk; for a model that is not "
            f"here pass its hub id and remote=True"
        )
    if any(_TAPS.get(module) for module in handle.module.modules()):
        raise InterpError(
            "functions are hooked on this model, and nnsight reads modules before their hooks run; "
            "close interp.hooked or edit.applied first, or use interp.capture, which sees edits"
        )
    shell = _shell(handle.module)
    if not remote:
        return Traced(nnsight.NNsight(shell), handle, remote)
    if handle.tokenizer is None:
        raise InterpError(
            f"remote={remote!r} sends a trace of an nnsight.TransformersModel, which needs a "
            f"tokenizer; pass interp.load(module, tokenizer=...) or a hub id"
        )
    tokenizer = copy.deepcopy(handle.tokenizer)  # nnsight changes its padding side
    return Traced(nnsight.TransformersModel(shell, tokenizer=tokenizer), handle, remote)


def _given(envoy: Any, remote: bool | str) -> Traced:
    module = envoy._module
    if remote and not hasattr(type(envoy), "to_model_key"):
        raise InterpError(
            f"remote={remote!r} with a {type(envoy).__name__}, which names no checkpoint; wrap it "
            f"as nnsight.TransformersModel(...), or pass its hub id"
        )
    here = not any(parameter.is_meta for parameter in module.parameters())
    handle = Model(
        module,
        getattr(envoy, "tokenizer", None),
        str(getattr(envoy, "repo_id", None) or type(module).__name__),
        getattr(envoy, "revision", None),
        check=here and not remote,
    )
    return Traced(envoy, handle, remote)


def _shell(module: nn.Module) -> nn.Module:
    held: list[Tensor] = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in held})
