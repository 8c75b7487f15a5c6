"""The folder of a baked checkpoint: written under a temporary name, with the base's other files."""

from __future__ import annotations

import fnmatch
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp._errors import InterpError

# What holds for the edited model as for its base: how to write its tokens, and what one may do
# with it. Weights, code and measurements of the base do not.
_KEPT = (
    "tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken", "spiece*",
    "generation_config.json", "chat_template*", "*.jinja", "*processor_config.json", "license*",
    "notice*", "use_policy*",
)  # fmt: skip


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the context ends well, and vanishes otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield scratch
        if out.is_dir():
            out.rmdir()  # empty, as check_free made sure
        scratch.chmod(0o755)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_free(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        InterpError: a file, or a folder with something in it.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InterpError(f"{out} is there already; choose another folder, or remove it first")


def copy_others(base: Path, out: Path) -> None:
    """Tokenizer, generation settings, chat template, license; and the base's card beside ours.

    Raises:
        InterpError: a link that leads out of the checkpoint.
    """
    for file in sorted(base.iterdir()):
        name = file.name.lower()
        if not file.is_file() or not any(fnmatch.fnmatchcase(name, kept) for kept in _KEPT):
            continue
        if name.endswith(".py") or (out / file.name).exists():
            continue
        _check_inside(file, base)
        shutil.copyfile(file, out / file.name)
    if (base / "README.md").is_file():
        _check_inside(base / "README.md", base)
        shutil.copyfile(base / "README.md", out / "README-base.md")


def _check_inside(file: Path, base: Path) -> None:
    """The hub's cache keeps files as links into its own `blobs`; any other way out is a trap."""
    real, home = file.resolve(), base.resolve()
    if not real.is_relative_to(home) and not real.is_relative_to(home.parent.parent / "blobs"):
        raise InterpError(
            f"{file} is a link that leads out of the checkpoint, to {real}; put the file itself "
            f"there if it belongs to it"
        )
