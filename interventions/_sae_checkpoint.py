"""The state of a training of SAEs on disk, so that an interrupted one continues."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp import InterpError
from interp._record import load_record, save_record
from interventions._sae_learner import Learner
from interventions._sae_stream import Shuffled

KIND = "sae_training"


class Checkpoint:
    """A folder with the last state that was written whole.

    Args:
        path: the folder.
        asked: what identifies the training.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path, self.asked = path, json.loads(json.dumps(asked))

    def restore(self, stream: Shuffled, learners: Mapping[str, Learner]) -> int:
        """The steps done, with stream and learners as they were after them; 0 for none.

        Raises:
            InterpError: the folder holds another training.
        """
        if not (self.path / "meta.json").is_file():
            return 0
        tensors, meta = load_record(self.path, KIND)
        if meta["asked"] != self.asked:
            differing = [k for k in self.asked if meta["asked"].get(k) != self.asked[k]]
            raise InterpError(
                f"{self.path} holds the state of another training (another "
                f"{' and '.join(differing)}); choose a new folder, or delete this one"
            )
        stream.restore(_part(tensors, "stream/"), meta["stream"])
        for name, learner in learners.items():
            learner.restore(_part(tensors, f"learner/{name}/"), meta["learners"][name])
        return int(meta["step"])

    def save(self, step: int, stream: Shuffled, learners: Mapping[str, Learner]) -> None:
        """Write the state after some steps, in place of the one before."""
        held, numbers = stream.state()
        tensors = {f"stream/{name}": tensor for name, tensor in held.items()}
        meta: dict[str, Any] = {"asked": self.asked, "step": step, "stream": numbers}
        meta["learners"] = {}
        for name, learner in learners.items():
            own, meta["learners"][name] = learner.state()
            tensors |= {f"learner/{name}/{key}": tensor for key, tensor in own.items()}
        save_record(self.path, KIND, tensors, meta)

    def remove(self) -> None:
        """The training is done."""
        if self.path.exists():
            shutil.rmtree(self.path)


def _part(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
