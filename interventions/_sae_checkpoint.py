"""The state of a training of SAEs: its stream of tokens and every learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interventions._checkpoint import Checkpoint, part
from interventions._sae_learner import Learner
from interventions._sae_stream import Shuffled

KIND = "sae_training"


def restored(kept: Checkpoint, stream: Shuffled, learners: Mapping[str, Learner]) -> int:
    """The steps done, with stream and learners as they were after them; 0 for none.

    Raises:
        InterpError: the folder holds another training.
    """
    found = kept.restore()
    if found is None:
        return 0
    tensors, meta = found
    stream.restore(part(tensors, "stream/"), meta["stream"])
    for name, learner in learners.items():
        learner.restore(part(tensors, f"learner/{name}/"), meta["learners"][name])
    return int(meta["step"])


def save(kept: Checkpoint, step: int, stream: Shuffled, learners: Mapping[str, Learner]) -> None:
    """Write the state after some steps, in place of the one before."""
    held, numbers = stream.state()
    tensors = {f"stream/{name}": tensor for name, tensor in held.items()}
    told: dict[str, Any] = {}
    for name, learner in learners.items():
        own, told[name] = learner.state()
        tensors |= {f"learner/{name}/{key}": tensor for key, tensor in own.items()}
    kept.save(tensors, step=step, stream=numbers, learners=told)
