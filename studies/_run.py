"""A run folder: what a study computed, figures and report, resumable after an interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import InterpError, LensTrace
from interp._record import provenance, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_HASHED = {"files": "the contents of", "checkpoints": "the weights of"}
_NAMED, _LONGEST = 3, 60  # differences that are named, characters of a setting


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

        A folder in which a run was begun but nothing computed is begun anew.

        Args:
            path: the folder.
            study: the study's name.
            config: a dataclass; all its fields but `out` identify the run.
            more: further facts that identify it, such as hashes of input files.

        Raises:
            InterpError: the folder holds another run, naming what differs, or other files; or it
                cannot be written.
        """
        asked = json.loads(json.dumps(_plain(config) | more, default=str))
        asked.pop("out", None)
        meta_path = path / "meta.json"
        create(path)
        before = _read_meta(meta_path)
        if before.get("study") == study and before.get("config") == asked:
            return Run(path, study, before)
        files = [file for file in path.rglob("*") if not file.is_dir()]
        only_begun = files == [meta_path] and before.get("finished") is False
        if files and not only_begun:
            raise InterpError(
                f"{path} holds {_difference(before, study, asked)}; choose another folder with "
                f"--out, or delete it"
            )
        meta = provenance(study=study, config=asked, finished=False)
        write_text(meta_path, json.dumps(meta, indent=1))
        return Run(path, study, meta)

    def table(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table of this run, computed if it is not there yet."""
        import pandas as pd

        file = self.path / f"{name}.parquet"
        if not file.exists():
            scratch = file.with_name(f".{file.name}.{os.getpid()}")
            table = compute()
            self._check_ours()
            table.to_parquet(scratch)
            scratch.replace(file)
        return pd.read_parquet(file)

    def trace(self, name: str, compute: Callable[[], LensTrace]) -> LensTrace:
        """A lens trace of this run, computed if it is not there yet."""
        folder = self.path / name
        if not folder.exists():
            trace = compute()
            self._check_ours()
            trace.save(folder)
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
        self._check_ours()
        meta = {**self.meta, "finished": True, "facts": facts}
        write_text(self.path / "meta.json", json.dumps(meta, indent=1, default=str))

    def _check_ours(self) -> None:
        """That no other run was begun here since: a folder with nothing in it may be."""
        if self.read_meta().get("config") != self.meta["config"]:
            raise InterpError(
                f"another run was begun in {self.path} in the meantime; choose another folder "
                f"with --out"
            )


def create(folder: Path) -> Path:
    """The folder of results, made if it is not there; refused before the work and not after it.

    Raises:
        InterpError: a file stands there, or nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "a file stands there" if folder.is_file() else error.strerror
        raise InterpError(f"cannot write to the folder {folder} (--out): {reason}") from error
    return folder


def digests(config: Any) -> dict[str, str]:
    """Short hashes of the files that a configuration names, so that changed ones are noticed.

    Args:
        config: a dataclass; every field but `out` that holds a path, or several, names files. Of a
            folder its .jsonl files count.

    Returns:
        Hash by field, `facts`; of several files by `rollouts[0]`, of a folder's by
        `questions/dev.jsonl`. Not by file name: two files may share one.

    Raises:
        InterpError: a file that is not there, cannot be read, or is no UTF-8 text.
    """
    found: dict[str, str] = {}
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
        contents = file.read_bytes()
        contents.decode("utf-8")
    except OSError as error:
        raise InterpError(f"cannot read {file}, given as {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InterpError(
            f"{file}, given as {name}, is no UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    return hashlib.sha256(contents).hexdigest()[:16]


def _plain(config: Any) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "out"}


def _difference(before: dict[str, Any], study: str, asked: dict[str, Any]) -> str:
    """What a folder holds that is not this run, in words."""
    if not before:
        return "other files"
    if before.get("study") != study:
        return f"another run, of the study {before.get('study')}"
    there = before.get("config") or {}
    names = [n for n in {**there, **asked} if n not in _HASHED and there.get(n) != asked.get(n)]
    said = [f"{n} is {_shown(there, n)} there and {_shown(asked, n)} here" for n in names]
    for kind, title in _HASHED.items():  # of a file that was exchanged its field says so already
        old, new = there.get(kind) or {}, asked.get(kind) or {}
        said += [f"{title} {n} changed" for n in old if n in new and old[n] != new[n]]
    if not said:
        return "another run"
    more = f"; {len(said) - _NAMED} more differ" if len(said) > _NAMED else ""
    return f"another run ({'; '.join(said[:_NAMED])}{more})"


def _shown(config: dict[str, Any], name: str) -> str:
    text = json.dumps(config[name], ensure_ascii=False) if name in config else "not known"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
