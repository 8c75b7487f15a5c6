"""Where the shipped organisms lie, and how one becomes a plain checkpoint again.

A folder under weights/ holds a plain checkpoint (base), a peft adapter (unlearn), or a bfloat16
checkpoint and those along its training as changes (`studies.organisms.changes`) from its parent.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Path(__file__).parent / "weights"
PARENTS = {
    "base": None, "unlearn": "base", "shortcut": "base", "twin": "base",
    "sft": "base", "rl": "base", "sft_rl": "sft@20",
    "sft_midfrozen": "base", "sft_qk": "base", "random_labels": "base",
    "boxes": "base", "boxes_tuned": "boxes@0", "dictionary": None, "dictionary_no_anchor": None,
}  # fmt: skip
_PLAIN = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def names() -> list[str]:
    """The organisms shipped; further training seeds are called "rl-seed1"."""
    seeds = [sorted(p.name for p in WEIGHTS.glob(f"{family}-seed*")) for family in PARENTS]
    return [
        name
        for family, more in zip(PARENTS, seeds, strict=True)
        for name in (family, *more)
        if (WEIGHTS / name / "metrics.json").is_file()
    ]


def parse(name: str, seed: int | None = None, step: int | None = None) -> tuple[str, int | None]:
    """A name without its step, and the step: ("rl-seed1", 15) of "rl-seed1@15"."""
    bare, _, at = name.partition("@")
    if seed:
        bare = f"{bare}-seed{seed}"
    if bare not in names():
        raise ValueError(f"no organism {bare!r}; there are {', '.join(names())}")
    if at:
        step = int(at) if at.isdigit() else -1
    if step is not None and step not in steps(bare):
        along = ", ".join(map(str, steps(bare))) or "none, only its last"
        raise ValueError(f"no checkpoint {at or step} of {bare!r}; there are {along}")
    return bare, step


def parent(name: str) -> str | None:
    """What an organism was tuned from: "base" for "rl-seed1", "sft-seed1@20" for "sft_rl-seed1".

    A name may end in a step: "boxes@20" is a checkpoint along the training of "boxes".
    """
    family, _, seed = name.partition("-seed")
    above = PARENTS[family]
    bare, at, step = (above or "").partition("@")
    return f"{bare}-seed{seed}{at}{step}" if f"{bare}-seed{seed}" in names() else above


def steps(name: str) -> list[int]:
    """The optimizer steps of which a checkpoint is shipped, the last included; [] if only that."""
    found = (re.fullmatch(r"step-(\d+)\.xz", p.name) for p in (WEIGHTS / name).glob("step-*.xz"))
    return sorted(int(match[1]) for match in found if match)


def files(name: str) -> list[Path]:
    """The files under weights/ that make up an organism, its ancestors' first."""
    bare, _ = parse(name)
    above = parent(bare)
    own = [p for p in sorted((WEIGHTS / bare).iterdir()) if p.suffix in (".safetensors", ".xz")]
    return [*(files(above) if above else ()), *own]


def path(name: str, *, seed: int | None = None, step: int | None = None) -> Path:
    """A folder that transformers or peft can read: the shipped one, or a plain copy made of it.

    An adapter on the base is its own folder (unlearn). What is shipped as changes is written once
    as a plain bfloat16 checkpoint to a cache: $XDG_CACHE_HOME or ~/.cache, or where neither can be
    written to, the temporary folder.
    """
    bare, step = parse(name, seed, step)
    folder = WEIGHTS / bare
    return folder if not steps(bare) else _plain_copy(bare, step)


def state(name: str, step: int | None = None) -> dict[str, Tensor]:
    """The bfloat16 weights of an organism that is shipped whole or as changes."""
    from safetensors.torch import load_file

    from studies.organisms import changes

    name, step = parse(name, step=step)
    shipped = steps(name)
    if not shipped:
        return load_file(WEIGHTS / name / "model.safetensors")
    now = state(parent(name) or "base")
    # A checkpoint is stored against the one before it, the first against the parent.
    for at in shipped:
        if step is None or at <= step:
            now = changes.read(WEIGHTS / name / f"step-{at}.xz", now)
    return now


def _plain_copy(name: str, step: int | None) -> Path:
    from safetensors.torch import save_file

    last = step if step is not None else steps(name)[-1]
    digest = hashlib.sha256()
    for file in files(name):
        digest.update(file.name.encode() + file.read_bytes())
    place = _cache() / f"{name}-step{last}-{digest.hexdigest()[:12]}"
    if (place / "model.safetensors").is_file():
        return place
    scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    for plain in _PLAIN:
        shutil.copyfile(WEIGHTS / "base" / plain, scratch / plain)
    save_file(state(name, last), scratch / "model.safetensors", metadata={"format": "pt"})
    try:
        scratch.rename(place)  # whole or not at all; another process may have been first
    except OSError:
        shutil.rmtree(scratch)
    return place


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    wanted = (Path(home) if home else Path.home() / ".cache") / "interp-toolkit" / "organisms"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError:
        wanted = Path(tempfile.gettempdir()) / "interp-toolkit-organisms"
        wanted.mkdir(exist_ok=True)
    return wanted
