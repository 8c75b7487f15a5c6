"""Rollouts for the studies: sampled from a checkpoint, or read from files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from interp import InterpError, Model
from probes import Rollout

EXAMPLE = '{"problem": "7", "text": "2 + 2 = 4; answer 4", "correct": true}'
_ROWS = 384  # sequences generated at once


def sample(
    model: Model,
    prompts: Sequence[str],
    samples: int,
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    progress: bool = True,
) -> list[list[str]]:
    """`samples` continuations of each prompt, drawn from the whole distribution.

    Prompts of similar length are generated together; the order of the answer is that of the
    prompts. The global random state stays as it is.

    Raises:
        InterpError: logits that are not finite.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = max(1, _ROWS // samples)
    written: list[list[str]] = [[] for _ in prompts]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chunks = range(0, len(order), size)
        for at in tqdm(chunks, desc=f"sample {model.name}", disable=not progress):
            chosen = order[at : at + size]
            try:
                texts = model.generate(
                    [prompts[i] for i in chosen],
                    max_new_tokens=max_new_tokens,
                    do_sample=True,
                    temperature=temperature,
                    top_k=0,
                    top_p=1.0,
                    num_return_sequences=samples,
                )
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                raise InterpError(
                    f"{model.name} has logits that are not finite, so nothing can be sampled"
                ) from error
            for row, i in enumerate(chosen):
                written[i] = texts[row * samples : (row + 1) * samples]
    return written


def read_rollouts(paths: Sequence[Path]) -> list[Rollout]:
    """Rollouts from JSON lines: `problem text`, and optionally `model correct prompt`.

    A missing model is the file's name without its ending.

    Raises:
        InterpError: an unreadable file or line, naming it, or a field of the wrong kind.
    """
    rollouts: list[Rollout] = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InterpError(f"cannot read the rollouts file {path}: {error}") from error
        found = [
            _rollout(line, path, number)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        if not found:
            raise InterpError(f"{path} holds no rollouts; expected lines such as {EXAMPLE}")
        rollouts += found
    return rollouts


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "problem": (lambda v: isinstance(v, str | int) and not isinstance(v, bool), "a text or number"),
    "text": (lambda v: isinstance(v, str), "a text"),
    "model": (lambda v: isinstance(v, str) and bool(v), "a text"),
    "correct": (lambda v: isinstance(v, bool) or v is None, "true, false or null"),
    "prompt": (lambda v: isinstance(v, str), "a text"),
}


def _rollout(line: str, path: Path, number: int) -> Rollout:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InterpError(f"{path} line {number} is no JSON object: {error}") from error
    if not isinstance(row, dict):
        raise InterpError(f"{path} line {number} is no JSON object; expected one as {EXAMPLE}")
    missing = [name for name in ("problem", "text") if name not in row]
    if missing:
        raise InterpError(
            f"{path} line {number} lacks {', '.join(missing)}; expected an object such as {EXAMPLE}"
        )
    given = {"model": path.stem} | {name: row[name] for name in _KINDS if name in row}
    for name, (right, expected) in _KINDS.items():
        if name in given and not right(given[name]):
            raise InterpError(
                f"{path} line {number}: {name} is {given[name]!r}; expected {expected}"
            )
    return Rollout(**given | {"problem": str(given["problem"])})
