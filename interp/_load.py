"""`load`: a decoder and its tokenizer from a folder or the hub, or around a module you hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from interp._errors import InterpError, folders_near, nearest, neither_folder_nor_hub
from interp._model import Model
from interp._resolve import anatomy_of


def load(
    source: str | Path | nn.Module | Model,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    check: bool = True,
    **options: Any,
) -> Model:
    """A handle on a decoder: from a folder, a hub id, or a PreTrainedModel you hold.

    The module is what transformers loads, in eval mode, untouched. Only safetensors weights are
    read, and no code from the checkpoint is run unless you pass `trust_remote_code=True`.

    Args:
        source: folder, hub id, or module; a held module is neither copied nor switched to eval,
            and a handle is given back (with `tokenizer`, if one is given).
        tokenizer: a tokenizer, or a path to one; by default the one beside the weights.
        dtype: as in transformers; by default the checkpoint's own. Not for a held module.
        device_map: as in transformers (`"auto"`, a device, a map). Not for a held module.
        revision: branch, tag or commit of a hub checkpoint.
        check: prove on four tokens, at first use, that sites are what their names promise;
            switch off for models too large for one spare forward.
        options: passed to `from_pretrained` (`quantization_config`, `attn_implementation`, ...).

    Raises:
        InterpError: an encoder or encoder-decoder, a missing or truncated shard, pickled `.bin`
            weights, nothing at that path.

    Examples:
        >>> model = interp.load("path/to/checkpoint", dtype=torch.float32)
        >>> model = interp.load(module, tokenizer=tokenizer)
    """
    held = isinstance(source, Model | torch.nn.Module)
    if held and (dtype is not None or device_map is not None):
        raise InterpError(
            "dtype and device_map say how to load a checkpoint, and a module you hold is read as "
            "it is; change it first, as with module.to(torch.bfloat16)"
        )
    if isinstance(source, Model):
        if tokenizer is None:
            return source
        return replace(source, tokenizer=_tokenizer(tokenizer, None, None, options))
    if isinstance(source, torch.nn.Module):
        anatomy_of(source)  # refuses what is no decoder
        name = str(getattr(source, "name_or_path", "") or type(source).__name__)
        return Model(source, _tokenizer(tokenizer, None, None, options), name, revision, check)
    if not isinstance(source, str | Path):
        raise InterpError(
            f"source is of type {type(source).__name__}; give a folder, a hub id or a module"
        )
    _check_dtype(dtype)
    folder = Path(source).expanduser()
    if folder.is_dir():
        source = folder
        _check_folder(folder / options.get("subfolder", ""))
    elif folder.is_file():
        raise InterpError(f"{source} is a file; give the folder it lies in: {folder.parent}")
    elif not _may_be_hub_id(str(source)):
        raise InterpError(f"no checkpoint folder at {source}; {folders_near(folder)}")
    module = _read(str(source), dtype, device_map, revision, options)
    anatomy_of(module)
    commit = getattr(module.config, "_commit_hash", None)
    return Model(
        module.eval(),
        _tokenizer(tokenizer, str(source), revision, options),
        str(source),
        commit or revision,
        check,
    )


def _check_dtype(dtype: torch.dtype | str | None) -> None:
    if dtype is None or isinstance(dtype, torch.dtype) or dtype == "auto":
        return
    if not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        names = ("bfloat16", "float16", "float32", "float64", "auto")
        raise InterpError(f"no dtype {dtype!r}; {nearest(str(dtype), names)}")


def _may_be_hub_id(source: str) -> bool:
    """`name` or `owner/name`, which may hold dots, and no path that one can walk from here."""
    parts = source.split("/")
    return len(parts) <= 2 and all(parts) and parts[0] not in (".", "..", "~")


_HUB = ("token", "cache_dir", "local_files_only", "subfolder", "force_download", "proxies")


def _hub_options(options: dict[str, Any], revision: Any) -> dict[str, Any]:
    """What says where and how to find a checkpoint's files, for its config and tokenizer too."""
    found = {name: options[name] for name in _HUB if name in options}
    found["trust_remote_code"] = options.get("trust_remote_code", False)
    return found if revision is None else {**found, "revision": revision}


def _read(source: str, dtype: Any, device_map: Any, revision: Any, options: dict[str, Any]) -> Any:
    try:
        config = AutoConfig.from_pretrained(source, **_hub_options(options, revision))
    except (OSError, ValueError) as error:
        if not Path(source).is_dir():
            raise InterpError(neither_folder_nor_hub(source, _first_line(error))) from error
        raise InterpError(f"cannot read a config from {source!r}: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise InterpError(
            f"{source!r} is an encoder-decoder model ({config.model_type}); interp reads decoders "
            f"(causal language models)"
        )
    if (
        not options.get("trust_remote_code")
        and type(config) not in AutoModelForCausalLM._model_mapping
    ):
        raise InterpError(
            f"{source!r} is of type {config.model_type!r}, which has no causal language model in "
            f"transformers; interp reads decoders"
        )
    settings = {"use_safetensors": True, **options}
    if revision is not None:
        settings["revision"] = revision
    if dtype is not None:
        settings["dtype"] = dtype
    if device_map is not None:
        settings["device_map"] = device_map
    try:
        module, report = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, **settings
        )
    except safetensors.SafetensorError as error:
        raise InterpError(f"a weight file of {source!r} is damaged: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise InterpError(f"cannot load {source!r}: {_first_line(error)}") from error
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise InterpError(
            f"{source!r} lacks {len(missing)} weights that {type(module).__name__} needs, such as "
            f"{missing[0]}; transformers would have filled them with random numbers"
        )
    return module


def _check_folder(folder: Path) -> None:
    """Refuse before loading: no weights, pickles only, missing or truncated shards."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise InterpError(
            f"{folder} holds a LoRA adapter, not a model; load its base and apply the adapter with "
            f"peft, then pass the merged module"
            if adapter
            else f"{folder} has no config.json; expected a folder written by save_pretrained"
        )
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise InterpError(
                f"{index} is damaged: {error!r}; fetch the checkpoint anew"
            ) from error
        missing = sorted(name for name in shards if not (folder / name).is_file())
        if missing:
            raise InterpError(
                f"{folder} lacks {len(missing)} of {len(shards)} shards, such as {missing[0]}; "
                f"fetch the checkpoint anew"
            )
        files = [folder / name for name in sorted(shards)]
    if not files:
        pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt")
        )
        if pickles:
            raise InterpError(
                f"{folder} has only pickled weights ({pickles[0]}), which can run code on opening; "
                f"convert them to safetensors with a loader you trust: "
                f"AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
            )
        raise InterpError(f"{folder} has a config.json but no *.safetensors weights")
    for file in files:
        _check_complete(file)


def _check_complete(file: Path) -> None:
    """Whether the file is as long as its own header says; reads the header only."""
    try:
        with safetensors.safe_open(file, framework="pt"):
            pass
    except safetensors.SafetensorError as error:
        raise InterpError(
            f"{file} is truncated or damaged ({error}); fetch that file anew"
        ) from error


def _tokenizer(given: Any, source: str | None, revision: Any, options: dict[str, Any]) -> Any:
    if given is not None and not isinstance(given, str | Path):
        return given
    path = str(given) if given is not None else source
    if path is None:
        return None
    settings = _hub_options(options, revision) if given is None else {}
    try:
        return AutoTokenizer.from_pretrained(path, **settings)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if given is not None or list(Path(path).glob("tokenizer*")):
            raise InterpError(
                f"cannot read a tokenizer from {path!r}: {_first_line(error)}"
            ) from error
        return None  # a checkpoint without one still runs on token ids


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
