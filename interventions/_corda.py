"""Context-oriented adapters: low-rank tuning that starts from directions other data use little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp import Edit, InterpError, LowRank, Model
from interp._edit.parameters import Parameter, named_parameters
from interp._forward import run
from interp._model import as_model
from interp._reading import fingerprint, refuse_compiled
from interp._selfcheck import evaluating
from interventions._checkpoint import Checkpoint, digest
from interventions._choose import Layers, Modules, choose
from interventions._examples import Encoded, Example, batches, completion_loss, encode, mean_loss
from interventions._factors import LowRankChanges
from interventions._sae_stream import token_ids
from interventions._training import Course, train
from interventions._weights import open_weights

_LEFT_BY_PEFT = ("sample_count", "covariance_matrix", "corda_method", "rank", "eigens")


def tune_with_corda(
    model: Model | nn.Module,
    examples: Sequence[Example],
    texts: Sequence[Any],
    *,
    rank: int = 8,
    keep: bool = True,
    layers: Layers = None,
    modules: Modules = ("attn", "mlp"),
    steps: int = 100,
    rows: int = 16,
    lr: int | float = 1e-4,
    warmup: int | float = 0.03,
    clip: int | float | None = 1.0,
    dev: Sequence[Example] = (),
    dev_every: int = 20,
    end: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> Edit:
    """Learn low-rank changes `B A - B0 A0` that start in directions which the texts use little.

    With C = E[x x^T] of a matrix's inputs on the texts, and `W C = sum_i s_i u_i v_i^T`, the
    adapter begins as `B0 A0 = sum s_i u_i v_i^T C^-1` over the `rank` smallest s_i (the largest
    with `keep=False`). Both factors are trained by AdamW, everything else of W stays.

    peft's CorDA takes `B0 A0` out of W and trains `B A` beside what is left, so its adapter is no
    change of W; here W stays where it is, and the change is of W: 0 at the start.

    Args:
        model: a handle or a bare PreTrainedModel with a tokenizer; afterwards it is as it was.
        examples: (prompt, completion) pairs to learn from.
        texts: what the inputs are measured on, some hundred texts (or lists of token ids): of what
            should be kept, or with `keep=False` of what is to be learned.
        rank: of the adapters; the change has twice that.
        keep: knowledge-preserved mode, else instruction-previewed mode.
        layers: which blocks change; None for all.
        modules: which matrices, `q k v o gate up down`, or `attn`, `mlp`; a fused one as a whole.
            Left out are those that peft cannot read: of one row or column, fused experts, and such
            as read more than one axis of tokens (DeepSeek's `kv_b_proj`).
        steps: of the optimizer.
        rows: examples a step.
        lr: of AdamW, rising linearly over the first steps and falling linearly to 0.
        warmup: the share of the steps over which it rises.
        clip: largest norm of the gradient; None for no limit.
        dev: further examples; the state with the least loss on them is returned, the start
            included. Without them it is the last.
        dev_every: steps between looks at them.
        end: also train the tokenizer's EOS after each completion, where it has one.
        seed: of the order; the start is the same for all.
        checkpoint: a folder that keeps the whole state every `checkpoint_every` steps; the same
            call continues from it, to the same result bit for bit. Removed at the end.
        checkpoint_every: steps; a tenth of all by default.
        progress: show a bar where it takes more than two seconds.

    Returns:
        An Edit of one low-rank Delta a matrix, made on this model; its notes hold the losses.

    Raises:
        InterpError: peft or attrs is not installed, no texts of two tokens, a rank above a
            matrix's, fewer examples than rows, inputs that are 0 or not finite, a loss that is not
            finite in the first step. A later one ends the training with a warning, and the state
            before that step is returned.

    Examples:
        >>> data = [("Question: Where does Mia live? Answer:", " Arlen")] * 4
        >>> edit = iv.tune_with_corda(model, data, texts, rank=2, steps=2, rows=4)
        >>> with edit.applied(model):
        ...     logits = model.module(input_ids).logits

    Source: CorDA, Yang et al. 2024 (arXiv 2406.05223). The decomposition is peft's own
    `preprocess_corda`: each text's inputs divided by their largest entry, C damped until its
    inverse is one. peft's scaling (`lora_alpha / r`) is 1 here: the rate says the rest. Dropout is
    off: our specification.
    """
    handle = as_model(model)
    refuse_compiled(handle.module)
    course = Course(steps, rows, lr, warmup, clip, dev_every)
    train_on = encode(handle, examples, end=end)
    drawn = batches(train_on, rows, steps, seed)
    held_out = encode(handle, dev, end=end) if dev else []
    kept = None
    if checkpoint is not None:
        asked = {"course": asdict(course), "seed": seed, "end": end, "rank": rank, "keep": keep}
        asked |= {"layers": repr(layers), "modules": repr(modules), "texts": digest(*texts)}
        asked |= {"weights": fingerprint(handle.module), "examples": digest(train_on, held_out)}
        kept = Checkpoint(checkpoint, "corda_tuning", asked)
    with torch.inference_mode(False), evaluating(handle.module):
        adapters = Adapters.begin(handle, texts, rank, keep, layers, modules)

        def backward(chosen: Sequence[Encoded]) -> float:
            with torch.enable_grad(), adapters.on():
                loss = completion_loss(handle, chosen)
                found = torch.autograd.grad(loss, list(adapters.named.values()))
            for parameter, gradient in zip(adapters.named.values(), found, strict=True):
                parameter.grad = gradient
            return float(loss.detach())

        def look() -> float:
            with adapters.on():
                return mean_loss(handle, held_out)

        done = train(
            adapters, drawn, backward, course, look=look if held_out else None, kept=kept,
            checkpoint_every=checkpoint_every, progress=progress,
        )  # fmt: skip
        edit = adapters.edit()
    note = {
        "steps": steps, "rows": rows, "lr": lr, "rank": rank, "keep": keep, "seed": seed,
        "examples": len(examples), "texts": len(texts), **done.notes,
        "count": sum(side.numel() for side in adapters.named.values()),
    }  # fmt: skip
    return Edit(edit.atoms, notes={"tune_with_corda": note}).on(handle)


@dataclass
class Adapters(LowRankChanges):
    """Two factors of each matrix while they are learned, and what they were at the start."""

    at: dict[str, Parameter]
    named: dict[str, Tensor]  # "A" [rank in] and "B" [out rank] of each parameter, by `_sides`
    start: dict[str, Tensor]

    @staticmethod
    def begin(
        model: Model, texts: Sequence[Any], rank: int, keep: bool, layers: Layers, modules: Modules
    ) -> Adapters:
        """As peft's CorDA would begin."""
        at, ids = _matrices(model, layers, modules), _read(model, texts)
        at = _flat(model, at, ids[0])
        narrow = min(at, key=lambda name: min(at[name].tensor.shape))
        if not 1 <= rank <= min(at[narrow].tensor.shape):
            raise InterpError(
                f"rank={rank}: expected 1 to {min(at[narrow].tensor.shape)}, the rank of {narrow}; "
                f"or name modules without it"
            )
        start: dict[str, Tensor] = {}
        for name, (a, b) in _oriented(model, at, ids, rank, keep).items():
            home = at[name].tensor.device
            start |= {f"{name} A": a.to(home), f"{name} B": b.to(home)}
        named = {name: side.clone().requires_grad_() for name, side in start.items()}
        return Adapters(at, named, start)

    def change(self, name: str) -> LowRank:
        """`B A - B0 A0 = (B - B0) A + B0 (A - A0)`, which is exactly 0 at the start."""
        (a, b), (a0, b0) = (
            [held[side] for side in _sides(name)] for held in (self.named, self.start)
        )
        left, right = torch.cat([b - b0, b0], 1), torch.cat([a, a - a0])
        stored_across = isinstance(self.at[name].owner, Conv1D)
        return LowRank(right.T, left.T) if stored_across else LowRank(left, right)

    def moved(self, name: str) -> bool:
        """Whether a side is another than at the start."""
        return any(not torch.equal(self.named[s], self.start[s]) for s in _sides(name))


def _sides(name: str) -> tuple[str, str]:
    return f"{name} A", f"{name} B"


def _matrices(model: Model, layers: Layers, modules: Modules) -> dict[str, Parameter]:
    """The chosen matrices that are a module's own, as peft can adapt them; no vectors."""
    weights, parameters = open_weights(model), named_parameters(model.module)
    at = {}
    for name in choose(weights.parameters, layers, modules):
        shape = tuple(weights.parameters[name].source.shape)
        own = name.endswith(".weight") and isinstance(parameters[name].owner, nn.Linear | Conv1D)
        if own and len(shape) == 2 and min(shape) > 1:
            at[name] = parameters[name]
    if not at:
        raise InterpError("none of the chosen modules is a matrix of its own; choose others")
    return at


def _read(model: Model, texts: Sequence[Any]) -> list[list[int]]:
    if isinstance(texts, str):
        raise InterpError("texts is one string; expected a list of texts, or of lists of token ids")
    ids = [token_ids(model, one, model.anatomy.max_positions) for one in texts]
    ids = [one for one in ids if len(one) > 1]  # peft takes a single token for another shape
    if not ids:
        raise InterpError(
            "there are no texts of two tokens or more, so nothing says which inputs to keep; give "
            "some hundred"
        )
    return ids


def _flat(model: Model, at: Mapping[str, Parameter], ids: list[int]) -> dict[str, Parameter]:
    """Those whose input is one row a token, without further axes, which peft could not read."""
    shapes: dict[str, tuple[int, ...]] = {}
    with ExitStack() as stack:
        for name, parameter in at.items():

            def look(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                shapes[name] = tuple(inputs[0].shape)

            stack.callback(parameter.owner.register_forward_pre_hook(look).remove)
        with torch.no_grad():
            run(model.module, model.batch([ids]).inputs)
    return {
        name: parameter
        for name, parameter in at.items()
        if name not in shapes or shapes[name][:-2] in ((), (1,))
    }


def _oriented(
    model: Model, at: Mapping[str, Parameter], ids: Sequence[list[int]], rank: int, keep: bool
) -> dict[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]:
    """A0 = sqrt(S) V^T and B0 = U sqrt(S) of each matrix, by peft; nothing of its stays behind."""
    try:
        import peft
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda
    except ImportError as error:
        raise InterpError(
            f"CorDA's directions are computed by peft, which cannot be imported ({error}); "
            f"pip install peft attrs"
        ) from error

    owners = {name: parameter.owner for name, parameter in at.items()}
    targets = [name.removesuffix(".weight") for name in at]
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="kpm" if keep else "ipm"),
    )  # fmt: skip

    def read() -> None:
        for one in ids:  # one unpadded text at a time: peft squeezes the batch away
            run(model.module, model.batch([one]).inputs)

    hooks = {name: dict(owner._forward_hooks) for name, owner in owners.items()}
    try:
        preprocess_corda(model.module, config, run_model=read)
        found: dict[str, Any] = {name: owner.eigens for name, owner in owners.items()}
    except (ValueError, ArithmeticError, RuntimeError) as error:
        raise InterpError(
            f"peft could not find CorDA's directions: {error} The inputs of some matrix on these "
            f"texts may be 0 or not finite, or none at all"
        ) from error
    finally:
        for name, owner in owners.items():
            owner._forward_hooks.clear()
            owner._forward_hooks.update(hooks[name])
            for left in _LEFT_BY_PEFT:
                vars(owner).pop(left, None)
    return {
        name: (
            (e.V_WC * e.S_WC.to(e.V_WC).sqrt()).T.float().contiguous(),
            (e.U_WC * e.S_WC.to(e.U_WC).sqrt()).float().contiguous(),
        )
        for name, e in found.items()
    }
