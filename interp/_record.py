"""Records on disk: tensors.safetensors, meta.json, table.parquet; written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp._errors import InterpError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
FILES = frozenset({"tensors.safetensors", "meta.json", "table.parquet"})


def provenance(**more: Any) -> dict[str, Any]:
    """What any record says of its origin: schema and library versions, plus `more`."""
    names = ("interp-toolkit", "torch", "transformers")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # running from a source tree
            versions[name] = "unknown"
    return {"schema": SCHEMA, "versions": versions, **more}


@contextmanager
def replacing(path: str | Path, files: Set[str] = FILES) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the context ends well.

    Until then whatever stood at `path` stays; after an error it still does, and the temporary
    folder is gone. Only an earlier record is ever replaced: a folder with none but such `files`.

    Raises:
        InterpError: `path` is a file, or a folder that holds anything but a record.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and not {p.name for p in path.iterdir()} <= files):
        raise InterpError(
            f"{path} holds other files, which saving here would delete; choose another folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch
        old = None
        if path.exists():
            old = path.with_name(f".{path.name}.old{os.getpid()}")
            path.rename(old)
        scratch.rename(path)
        path.chmod(0o755)
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file under a temporary name, then rename."""
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def save_record(
    path: str | Path,
    kind: str,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    table: pd.DataFrame | None = None,
) -> Path:
    """Write one record folder; tensors are stored contiguous and apart from each other."""
    path = Path(path)
    with replacing(path) as folder:
        separate = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        storages = [tensor.untyped_storage().data_ptr() for tensor in separate.values()]
        if len(set(storages)) < len(storages):
            separate = {name: tensor.clone() for name, tensor in separate.items()}
        save_file(separate, folder / "tensors.safetensors")
        text = json.dumps({**provenance(kind=kind), **meta}, indent=1)
        (folder / "meta.json").write_text(text, encoding="utf-8")
        if table is not None:
            table.to_parquet(folder / "table.parquet")
    return path


def load_record(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of a record folder.

    Raises:
        InterpError: nothing there, another kind of record, a newer schema, a damaged file.
    """
    path = Path(path)
    meta_path, tensor_path = path / "meta.json", path / "tensors.safetensors"
    if not meta_path.is_file() or not tensor_path.is_file():
        raise InterpError(
            f"{path} is not a saved record: expected meta.json and tensors.safetensors in it"
        )
    try:
        meta = json.loads(meta_path.read_text(encoding="utf-8"))
        tensors = load_file(tensor_path)
        if not isinstance(meta, dict):
            raise ValueError("meta.json holds no object")
    except (ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise InterpError(
            f"{path} is damaged and cannot be read ({error}); write it anew"
        ) from error
    if meta.get("kind") != kind:
        raise InterpError(f"{path} holds a {meta.get('kind')!r}, not a {kind!r}")
    if not isinstance(meta.get("schema", 0), int) or meta.get("schema", 0) > SCHEMA:
        raise InterpError(
            f"{path} was written with schema {meta['schema']}, newer than the {SCHEMA} known here; "
            f"upgrade interp-toolkit"
        )
    return tensors, meta
