"""A corpus of activations on disk, written a batch at a time and read the same way."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from interp._activations import Activations, from_saved
from interp._batch import as_plain, several
from interp._errors import InterpError
from interp._record import SCHEMA, provenance, write_text
from interp._site import Site


@dataclass(frozen=True)
class ActivationStore:
    """Activations of a corpus in a folder; iterating gives one batch of `Activations` at a time.

    Examples:
        >>> _ = interp.capture_corpus(model, texts, "resid_post.3", "acts/", progress=False)
        >>> store = interp.ActivationStore("acts/")
        >>> sum(len(rows) for rows in store.rows("resid_post.3"))      # real tokens
    """

    path: Path | str

    def __post_init__(self) -> None:
        if not (self.folder / "meta.json").is_file():
            raise InterpError(f"{self.path} is no activation store: it has no meta.json")

    @property
    def folder(self) -> Path:
        """The folder as a path."""
        return Path(self.path)

    @property
    def meta(self) -> dict[str, Any]:
        """Model, sites, positions and whether the corpus was finished."""
        return json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))

    @property
    def files(self) -> list[Path]:
        """The batches in order."""
        return sorted(self.folder.glob("batch-*.safetensors"))

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Activations]:
        meta = self.meta
        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                order = json.loads((opened.metadata() or {}).get("order", "[]"))
            yield from_saved(tensors, meta, order)

    def rows(self, site: str | Site) -> Iterator[Tensor]:
        """The real positions of one site, a batch at a time: [token ...]."""
        name = str(Site.parse(site))
        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                yield opened.get_tensor(name)[opened.get_tensor("mask").bool()]


def write_store(
    path: Path,
    prompts: Iterable[Any],
    compute: Callable[[list[Any]], Activations],
    batch_size: int,
    meta: dict[str, Any],
    *,
    progress: bool,
) -> ActivationStore:
    """Compute and write what is missing; `capture_corpus` documents it."""
    _prepare(path, meta)
    total = -(-len(prompts) // batch_size) if hasattr(prompts, "__len__") else None  # type: ignore
    count = 0
    bar = tqdm(_chunks(prompts, batch_size), total=total, unit="batch", disable=not progress)
    for count, chunk in enumerate(bar, start=1):
        file = path / f"batch-{count - 1:06d}.safetensors"
        digest = hashlib.sha256(json.dumps(chunk).encode()).hexdigest()
        if _already(file, digest):
            continue
        acts = compute(chunk)
        tensors = {str(site): tensor.contiguous() for site, tensor in acts.tensors.items()}
        tensors |= {f"expert_ids:{site}": ids for site, ids in acts.expert_ids.items()}
        tensors |= {"tokens": acts.tokens, "mask": acts.mask}
        scratch = file.with_name(f".{file.name}.{os.getpid()}")
        order = json.dumps([str(site) for site in acts.tensors])  # a file sorts by name
        save_file(tensors, scratch, metadata={"prompts": digest, "order": order})
        scratch.replace(file)
    if len(ActivationStore(path)) > count:
        raise InterpError(f"{path} holds more batches than this corpus has; choose a new folder")
    write_text(path / "meta.json", json.dumps(_described(meta) | {"batches": count}, indent=1))
    return ActivationStore(path)


def _described(meta: dict[str, Any]) -> dict[str, Any]:
    return provenance(kind="activation_store") | meta


def _prepare(path: Path, meta: dict[str, Any]) -> None:
    """An empty folder, or one that was begun with the same arguments."""
    if path.is_file():
        raise InterpError(f"{path} is a file; choose an empty or new folder")
    if path.exists() and any(path.iterdir()):
        try:
            before = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            before = {}
        if before.get("kind") != "activation_store":
            raise InterpError(f"{path} holds other files; choose an empty or new folder")
        differing = [key for key in meta if before.get(key) != meta[key]]
        if before.get("schema") != SCHEMA or differing:
            raise InterpError(
                f"{path} was begun with another {' and '.join(differing) or 'schema'}; choose a "
                f"new folder, or delete this one"
            )
        return
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / "meta.json", json.dumps(_described(meta), indent=1))


def _already(file: Path, digest: str) -> bool:
    if not file.is_file():
        return False
    with safe_open(file, framework="pt") as opened:
        if (opened.metadata() or {}).get("prompts") == digest:
            return True
    raise InterpError(f"{file} holds other prompts; choose a new folder for another corpus")


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield several([as_plain(item) for item in chunk], "prompts")
