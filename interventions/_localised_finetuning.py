"""Localised fine-tuning: one projection trained on all facts, breadth first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp import Delta, Dense, Edit, InterpError, Model
from interp._answers import teacher_forced
from interp._attribute_sweep import _frozen
from interp._edit.change import wide
from interp._edit.parameters import named_parameters
from interp._forward import accepted
from interp._model import as_model
from interp._selfcheck import evaluating
from interventions._choose import choose
from interventions._examples import Encoded
from interventions._rewrite import Rewrite, requests_of
from interventions._weights import open_weights


def localised_finetuning(
    model: Model | nn.Module,
    rewrites: Sequence[Rewrite],
    layer: int,
    module: str = "down",
    *,
    lr: int | float = 5e-4,
    epochs: int = 25,
    batch_size: int = 100,
    stop_below: int | float = 1e-2,
    end: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """Fine-tune one projection of one layer on all facts, in epochs over mini-batches.

    Minimises by Adam the cross-entropy of the answer's tokens, `-(1/|o|) sum_t log P(o_t | prompt,
    o_<t)`, averaged over a batch. Breadth first: every epoch passes over all facts, where older
    uses of fine-tuning as an editor trained on one fact to the end and then on the next.

    Args:
        model: a handle or a bare PreTrainedModel with a tokenizer; left as it is.
        rewrites: facts.
        layer: which block.
        module: `q k v o gate up down`, by the names of `iv.task_vector`.
        lr: of Adam.
        epochs: over all facts, at most.
        batch_size: facts a step.
        stop_below: a batch whose loss is below this takes no step; an epoch whose mean is ends it.
        end: also train the tokenizer's EOS after each answer, where it has one.
        seed: of the order.
        progress: show a bar where it takes more than two seconds.

    Returns:
        An Edit of one dense Delta, made on this model.

    Raises:
        InterpError: as for `rome`; no such projection, or one that is stored in several tensors; a
            loss that is not finite.

    Examples:
        >>> facts = [iv.Rewrite("Question: Where does {} live? Answer:", "Mia Stone", " Arlen")]
        >>> iv.localised_finetuning(model, facts, 2, epochs=2)
        Edit(model.layers.2.mlp.down_proj.weight: dense)

    Source: LocFT-BF (arXiv 2509.22072) and its code, which appends EOS and stops at 1e-2. It tunes
    the down projection of layer 22 of Llama 3 8B and of layer 6 of Qwen2.5 7B.
    """
    handle = as_model(model)
    if epochs < 1 or batch_size < 1 or not lr > 0:
        raise InterpError(
            f"epochs={epochs}, batch_size={batch_size}, lr={lr}: expected at least 1, at least 1, "
            f"and more than 0"
        )
    name, mask = _parameter(handle, layer, module)
    requests = requests_of(handle, list(rewrites), "last", (), (), seed)
    stop = handle.tokenizer.eos_token_id if end else None
    examples = [
        Encoded(r.rows[0].ids, (*r.answer, *(() if stop is None else (stop,)))) for r in requests
    ]
    weight = named_parameters(handle.module)[name].tensor.detach()
    change = torch.zeros_like(weight, dtype=wide(weight.dtype)).requires_grad_()
    optimizer = torch.optim.Adam([change], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    history: list[float] = []
    with (
        torch.inference_mode(False),
        evaluating(handle.module),
        _frozen(handle.module),
        tqdm(total=epochs, desc="epochs", delay=2, leave=False, disable=not progress) as bar,
    ):
        for epoch in range(epochs):
            losses: list[tuple[float, int]] = []
            for chosen in torch.randperm(len(examples), generator=generator).split(batch_size):
                with torch.enable_grad():
                    tuned = (weight.to(change.dtype) + change).to(weight.dtype)
                    loss = _loss(handle, name, tuned, [examples[i] for i in chosen.tolist()])
                losses.append((float(loss.detach()), len(chosen)))
                if not bool(loss.isfinite()):
                    raise InterpError(
                        f"the loss is {losses[-1][0]} in epoch {epoch}; lower lr={lr}, or look for "
                        f"NaN in the model's weights"
                    )
                if losses[-1][0] < stop_below:
                    continue
                (gradient,) = torch.autograd.grad(loss, [change])
                change.grad = gradient if mask is None else gradient * mask.to(gradient)
                optimizer.step()
            history.append(sum(value * n for value, n in losses) / len(examples))
            bar.update()
            if history[-1] < stop_below:
                break
    note = {"facts": len(examples), "layer": layer, "module": module, "lr": lr, "loss": history}
    kept = None if mask is None else mask.cpu()
    delta = Delta(name, Dense(change.detach().cpu(), mask=kept))
    return Edit([delta], notes={"localised_finetuning": note}).on(handle)


def _loss(model: Model, name: str, weight: Tensor, examples: Sequence[Encoded]) -> Tensor:
    """Mean over sequences of the mean cross-entropy of their answers' tokens."""
    prompts = model.batch([list(one.prompt) for one in examples])
    answers = [[list(one.completion)] for one in examples]
    batch, teacher = teacher_forced(model, prompts, answers)
    inputs = {**accepted(model.module, batch.inputs), "use_cache": False}
    logits = torch.func.functional_call(model.module, {name: weight}, (), inputs).logits
    chosen = logits[teacher.rows, teacher.columns]
    precise = chosen if chosen.dtype == torch.float64 else chosen.float()
    tokens = teacher.tokens.to(precise.device)
    each = torch.nn.functional.cross_entropy(precise, tokens, reduction="none")
    share = torch.tensor([1 / len(one.completion) for one in examples])[teacher.rows]
    return (each * share.to(each)).sum() / len(examples)


def _parameter(
    model: Model, layer: int, module: str
) -> tuple[str, Float[Tensor, "..."] | Tensor | None]:
    """The weight of one projection, and which of its entries where it holds others too."""
    opened = open_weights(model)
    chosen = choose(opened.parameters, layers=layer, modules=module)
    shapes = {name: tuple(opened.parameters[name].source.shape) for name in chosen}
    matrices = [name for name, shape in shapes.items() if len(shape) > 1]
    if len(matrices) != 1 or len(shapes[matrices[0]]) > 2:
        raise InterpError(
            f"{module!r} of layer {layer} is {len(matrices)} matrices or one for each expert; name "
            f"one projection, such as 'down' or 'o', of a dense layer"
        )
    return matrices[0], opened.mask_of(matrices[0], chosen[matrices[0]])
