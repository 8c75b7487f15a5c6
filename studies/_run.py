"""A run folder: what a study computed, figures and report, resumable after an interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import InterpError, LensTrace
from interp._record import provenance, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Run:
    """One study's folder; every step is computed once and read back when the study runs again.

    Steps are written under a temporary name and renamed, so a step that stands there is whole.

    Examples:
        >>> run = Run.open(Path("runs/f1"), "pretend-to-forget", config)
        >>> table = run.table("behaviour", lambda: measure(...))
    """

    path: Path
    study: str
    meta: dict[str, Any]

    @staticmethod
    def open(path: Path, study: str, config: Any, **more: Any) -> Run:
        """Begin a run, or continue one that was begun with the same configuration.

        Args:
            path: the folder.
            study: the study's name.
            config: a dataclass; all its fields but `out` identify the run.
            more: further facts that identify it, such as hashes of input files.

        Raises:
            InterpError: the folder holds another run or other files.
        """
        asked = json.loads(json.dumps(_plain(config) | more, default=str))
        asked.pop("out", None)
        meta_path = path / "meta.json"
        if path.exists() and any(path.iterdir()):
            before = _read_meta(meta_path)
            if before.get("study") != study or before.get("config") != asked:
                raise InterpError(
                    f"{path} holds {'another run' if before else 'other files'}; choose another "
                    f"folder with --out, or delete it"
                )
            return Run(path, study, before)
        path.mkdir(parents=True, exist_ok=True)
        meta = provenance(study=study, config=asked, finished=False)
        write_text(meta_path, json.dumps(meta, indent=1))
        return Run(path, study, meta)

    def table(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table of this run, computed if it is not there yet."""
        import pandas as pd

        file = self.path / f"{name}.parquet"
        if not file.exists():
            scratch = file.with_name(f".{file.name}.{os.getpid()}")
            compute().to_parquet(scratch)
            scratch.replace(file)
        return pd.read_parquet(file)

    def trace(self, name: str, compute: Callable[[], LensTrace]) -> LensTrace:
        """A lens trace of this run, computed if it is not there yet."""
        folder = self.path / name
        if not folder.exists():
            compute().save(folder)
        return LensTrace.load(folder)

    def figure(self, name: str, draw: Callable[[], Figure]) -> Path:
        """A figure of this run, always drawn anew: figures are cheap, their data is not."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        file = self.path / f"{name}.png"
        scratch = self.path / f".{os.getpid()}.{file.name}"
        figure = draw()
        figure.savefig(scratch, dpi=150)
        plt.close(figure)
        scratch.replace(file)
        return file

    def read_meta(self) -> dict[str, Any]:
        """What meta.json says now."""
        return _read_meta(self.path / "meta.json")

    def finish(self, **facts: Any) -> None:
        """Mark the run as finished and keep its headline facts in meta.json."""
        meta = {**self.meta, "finished": True, "facts": facts}
        write_text(self.path / "meta.json", json.dumps(meta, indent=1, default=str))


def digests(config: Any) -> dict[str, str]:
    """Short hashes of the files that a configuration names, so that changed ones are noticed.

    Args:
        config: a dataclass; every field but `out` that holds a path, or several, names files. Of a
            folder its .jsonl files count.

    Returns:
        Hash by field, `facts`; of several files by `rollouts[0]`, of a folder's by
        `questions/dev.jsonl`. Not by file name: two files may share one.

    Raises:
        InterpError: a file that is not there or cannot be read.
    """
    found = {}
    for field in dataclasses.fields(config):
        given = getattr(config, field.name)
        if field.name == "out":
            continue
        if isinstance(given, Path):
            found |= _hashes(field.name, given)
        elif isinstance(given, tuple):
            for index, one in enumerate(given):
                if isinstance(one, Path):
                    found |= _hashes(f"{field.name}[{index}]", one)
    return found


def _hashes(name: str, path: Path) -> dict[str, str]:
    files = {f"{name}/{file.name}": file for file in sorted(path.glob("*.jsonl"))}
    return {
        key: _hash(name, file) for key, file in (files if path.is_dir() else {name: path}).items()
    }


def _hash(name: str, file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InterpError(f"cannot read {file}, given as {name}: {error.strerror}") from error


def _plain(config: Any) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "out"}


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
