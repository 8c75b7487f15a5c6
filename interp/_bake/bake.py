"""`bake`: an edit folded into weights, so that a plain checkpoint gives the edited logits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from interp._bake.folder import check_free, copy_others, new_folder
from interp._bake.layout import layout_of
from interp._bake.memory import assemble, quiet
from interp._bake.plan import Plan, acting, make_plan
from interp._bake.report import BakeReport, report_of
from interp._bake.stream import shard_names, stream
from interp._bake.verify import Expected, confirm, expect
from interp._edit.applied import applications
from interp._edit.edit import Edit
from interp._edit.identity import identity_of, identity_on_disk
from interp._errors import InterpError
from interp._hooked import ports_of
from interp._load import load
from interp._model import Model, as_model
from interp._record import write_text
from interp._resolve import anatomy_of
from interp._weights.checkpoint import local_folder, open_checkpoint


@overload
def bake(
    model: Model | nn.Module,
    edit: Edit,
    *,
    out: None = None,
    verify: bool = True,
    transfer: bool = False,
    untie: bool = False,
) -> Any: ...


@overload
def bake(
    model: Model | nn.Module | str | Path,
    edit: Edit,
    *,
    out: str | Path,
    verify: bool = True,
    transfer: bool = False,
    untie: bool = False,
) -> BakeReport: ...


def bake(
    model: Model | nn.Module | str | Path,
    edit: Edit,
    *,
    out: str | Path | None = None,
    verify: bool = True,
    transfer: bool = False,
    untie: bool = False,
) -> Any:
    """A plain checkpoint whose logits are those of `model` with `edit` applied.

    Every atom is folded into weights: scales into the rows or columns of a projection, shifts into
    the last bias before the point where they act (`docs/bake.md` has the table). Where an
    architecture has no bias there, a config flag may add one, and a Qwen2 or Mistral without a
    sliding window becomes the Llama that it is, bit for bit. Arithmetic is float32, rounded once.
    The result is compared with the hooked model on random tokens before it is returned.

    Args:
        model: a handle or a PreTrainedModel, which stay as they are; or a checkpoint's folder or
            hub id, which is then streamed tensor by tensor.
        edit: what to fold in.
        out: write a folder there: weights, config, the base's tokenizer and other files, and a
            model card. Needed for a checkpoint on disk.
        verify: compare the logits. From disk this loads the base, then the result, one at a time.
        transfer: allow another model of the same shapes than the one the edit was made on.
        untie: store a tied embedding and head apart, where a change of the embedding needs it.

    Returns:
        Without `out` a new PreTrainedModel, in eval mode, with the record of what happened as its
        attribute `bake_report`; with `out` that record.

    Raises:
        InterpError: atoms that cannot be folded, all named, with the reasons; a quantised,
            offloaded or adapted model; logits that differ; something at `out`.
        UnsupportedSite: a site that this architecture does not have.

    Examples:
        >>> edit = interp.Edit([interp.Affine("z.1", (2,), scale=0.0)])
        >>> baked = interp.bake(model, edit)
        >>> report = interp.bake("base/", edit, out="edited/")
        >>> report.verification.difference < 1e-4
        True
    """
    if isinstance(model, str | Path):
        if out is None:
            raise InterpError(
                f"baking {model} from disk writes a folder, so give out=...; "
                f"interp.bake(interp.load({str(model)!r}), edit) gives a model in memory"
            )
        return _bake_folder(model, edit, Path(out), verify, transfer, untie)
    handle = as_model(model)
    if out is not None:
        check_free(Path(out))
    baked, report = _bake_module(handle, edit, verify, transfer, untie)
    if out is None:
        baked.bake_report = report
        return baked
    return _write_module(baked, handle, report, Path(out))


def _bake_module(
    model: Model, edit: Edit, check: bool, transfer: bool, untie: bool
) -> tuple[Any, BakeReport]:
    module = model.module
    _refuse_unfoldable(module)
    if edit.made_on:
        here = identity_of(module, model.name)
        for identity in edit.made_on:
            identity.check(here, transfer=transfer)
    ports_of(model, [affine.site for affine in edit.affines])  # refuses what is not there
    plan = make_plan(model.anatomy, edit, untie=untie)
    expected = expect(model, acting(edit)) if check else None
    baked, realised = assemble(module, plan)
    found = None if expected is None else confirm(Model(baked), expected)
    return baked, report_of(model.name or type(module).__name__, edit, plan, realised, found)


def _refuse_unfoldable(module: Any) -> None:
    if hasattr(module, "get_base_model"):
        raise InterpError(
            "an adapter is on this model; merge it first (merge_and_unload), then bake the result"
        )
    if applications(module):
        raise InterpError(
            f"an edit is on this model already, {applications(module)[-1].edit!r}; undo it first, "
            f"and bake the sum of the two"
        )
    for name, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise InterpError(
                f"{name} is offloaded, so it cannot be read here; bake from the checkpoint's "
                f"folder: interp.bake('folder/', edit, out=...)"
            )
        if not tensor.is_floating_point() and name in dict(module.named_parameters()):
            raise InterpError(
                f"{name} is quantised ({tensor.dtype}), and an edit folds into numbers, not codes; "
                f"load the model in a floating-point dtype"
            )


def _write_module(baked: Any, model: Model, report: BakeReport, out: Path) -> BakeReport:
    with new_folder(out) as scratch, quiet():
        baked.save_pretrained(scratch)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(scratch)
        write_text(scratch / "README.md", report.card())
    return replace(report, path=out)


def _bake_folder(
    source: str | Path, edit: Edit, out: Path, check: bool, transfer: bool, untie: bool
) -> BakeReport:
    check_free(out)
    folder = local_folder(source)
    checkpoint = open_checkpoint(folder)
    meta = _meta_of(folder)
    if edit.made_on:
        here = identity_on_disk(checkpoint, str(source))
        for identity in edit.made_on:
            if here is not None:
                identity.check(here, transfer=transfer)
    plan = make_plan(anatomy_of(meta), edit, untie=untie)
    layout = layout_of(checkpoint, plan)
    loaded = _loaded(folder) if check or layout is None else None
    expected: Expected | None = None
    if check and loaded is not None:
        ports_of(loaded, [affine.site for affine in edit.affines])
        expected = expect(loaded, acting(edit))
    with new_folder(out) as scratch:
        if layout is not None:
            loaded = None  # one model at a time
            realised = stream(layout, folder, scratch)
            _write_config(folder, plan, scratch)
        else:
            assert loaded is not None
            module, loaded = loaded.module, None
            baked, realised = assemble(module, plan, keep=False)
            del module
            with quiet():
                baked.save_pretrained(scratch, max_shard_size=_largest(folder))
            del baked
        copy_others(folder, scratch)
        found = None if expected is None else confirm(_loaded(scratch), expected)
        report = report_of(
            str(source), edit, plan, realised, found, out, streamed=layout is not None
        )
        write_text(scratch / "README.md", report.card())
    return report


def _meta_of(folder: Path) -> Any:
    """The module without its numbers."""
    if not (folder / "config.json").is_file():
        raise InterpError(f"{folder} has no config.json; expected what save_pretrained writes")
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InterpError(f"cannot make a model of {folder}: {reason}") from error


def _write_config(folder: Path, plan: Plan, out: Path) -> None:
    """The base's own file where nothing in it changes."""
    config = plan.form.config
    own = hasattr(config, "auto_map")  # points to code that is not copied
    if not plan.form.changed and not own:
        shutil.copyfile(folder / "config.json", out / "config.json")
        return
    if own:
        del config.auto_map
    config.save_pretrained(out)


def _largest(folder: Path) -> int:
    """Bytes of the base's largest weight file: the result's are no larger."""
    return max((folder / name).stat().st_size for name in shard_names(folder))


def _loaded(folder: Path) -> Model:
    with quiet():
        return load(folder)
