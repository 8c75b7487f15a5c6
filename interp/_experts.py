"""Neurons of mixture-of-experts layers: `mlp_post` as [batch pos k d_mlp], with the experts' ids.

transformers runs experts in a grouped kernel whose rows are sorted by expert; the activation
leaves the gate through one method, `_apply_gate`, and that is the seam. The rows are put back into
token order for the reader, and an edit is sorted again for the kernel, so the kernel and its speed
stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interp._errors import InterpError, UnsupportedSite
from interp._hooks import visiting
from interp._site import Site


@dataclass(frozen=True)
class ExpertPort:
    """Activations of the routed experts' neurons; shared experts are not among them.

    `expert_ids` holds, after each forward, which expert each of the k rows belongs to, as
    [batch pos k].
    """

    site: Site
    mlp: nn.Module
    experts: Any
    latest: dict[str, Tensor] = field(default_factory=dict)

    @property
    def expert_ids(self) -> Tensor:
        """Ids of the experts of the last forward: [batch pos k]."""
        return self.latest["ids"]

    @contextmanager
    def attach(self, fn: Callable[[Tensor, Site], Tensor | None], *, reads: bool) -> Iterator[None]:
        self._refuse_unknown_kernels()
        state: dict[str, Any] = {}

        def on_block(hidden: Tensor) -> None:
            state["shape"] = hidden.shape[:2]

        def on_experts(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            names = ("hidden_states", "top_k_index", "top_k_weights")
            given = dict(zip(names, args, strict=False)) | kwargs
            ids: Tensor = given["top_k_index" if "top_k_index" in given else "router_indices"]
            flat = ids.reshape(-1)
            state["order"] = torch.sort(flat)[1] if self._grouped() else None
            self.latest["ids"] = ids.reshape(*state["shape"], -1)

        def visit(gated: Tensor) -> Tensor:
            order = state["order"]
            rows = gated if order is None else torch.empty_like(gated).index_copy(0, order, gated)
            seen = rows.reshape(*self.latest["ids"].shape, -1)
            new = fn(seen, self.site)
            if new is None:
                return gated
            if new.shape != seen.shape:
                raise InterpError(
                    f"the function on {self.site} returned shape {list(new.shape)}; expected "
                    f"{list(seen.shape)}, axes batch pos expert d_mlp"
                )
            flat = new.reshape(gated.shape).to(gated.dtype)
            return flat if order is None else flat[order]

        with ExitStack() as stack:
            stack.enter_context(visiting(self.mlp, "input", on_block, reads=True))
            handle = self.experts.register_forward_pre_hook(on_experts, with_kwargs=True)
            stack.callback(handle.remove)
            stack.enter_context(_gate_visited(self.experts, visit, reads=reads))
            yield

    def _grouped(self) -> bool:
        return self.experts.config._experts_implementation == "grouped_mm"

    def _refuse_unknown_kernels(self) -> None:
        implementation = getattr(
            getattr(self.experts, "config", None), "_experts_implementation", None
        )
        if implementation not in ("grouped_mm", "batched_mm") or not getattr(
            self.experts, "has_gate", False
        ):
            raise UnsupportedSite(
                f"{self.site}: expert neurons can be read under the 'grouped_mm' and 'batched_mm' "
                f"kernels, and this model runs {implementation!r}; call "
                f"model.module.set_experts_implementation('batched_mm') first"
            )


@contextmanager
def _gate_visited(
    experts: nn.Module, visit: Callable[[Tensor], Tensor], *, reads: bool
) -> Iterator[None]:
    """Let `visit` see what the gate returns; nested contexts run edits in order, then reads."""
    visitors = experts.__dict__.get("_interp_gate_visitors")
    if visitors is None:
        plain: Callable[[Tensor], Tensor] = experts._apply_gate  # type: ignore[assignment]
        visitors = {"edits": [], "reads": []}
        experts.__dict__["_interp_gate_visitors"] = visitors

        def apply_gate(gate_up: Tensor) -> Tensor:
            gated = plain(gate_up)
            for visitor in (*visitors["edits"], *visitors["reads"]):
                gated = visitor(gated)
            return gated

        experts.__dict__["_apply_gate"] = apply_gate
    mine = visitors["reads" if reads else "edits"]
    mine.append(visit)
    try:
        yield
    finally:
        mine.remove(visit)
        if not visitors["edits"] and not visitors["reads"]:
            del experts.__dict__["_apply_gate"], experts.__dict__["_interp_gate_visitors"]
