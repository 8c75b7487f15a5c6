"""All contestants in one process, in a new random order every round, compared round by round."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Held:
    """What one call leaves its caller holding.

    Args:
        tensors: by site; contestants that read the same site share its name.
        logits: apart, because some contestants return them unasked.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


@dataclass(frozen=True)
class Contestant:
    """A named way of doing the job.

    Args:
        name: as it stands in the table.
        call: does the job once.
        asked: bytes of what was asked for (None where nothing is kept).
        target: (largest median ratio, largest upper bound) promised.
        reference: who it is compared with, where that is not the section's reference.
    """

    name: str
    call: Callable[[], Held]
    asked: int | None = None
    target: tuple[float, float] | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Ratio:
    """A median ratio over rounds with its bootstrap 95 % interval and the rounds' quartiles."""

    median: float
    low: float
    high: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True)
class Timing:
    """Seconds of each contestant in each round: wall clock, and CPU time of the process."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]

    @property
    def rounds(self) -> int:
        """How many rounds were measured."""
        return len(next(iter(self.wall.values())))

    def ratio(self, name: str, reference: str, clock: str = "wall") -> Ratio:
        """`name` relative to `reference` in the same round."""
        seconds = self.wall if clock == "wall" else self.cpu
        return median_ratio(np.array(seconds[name]) / np.array(seconds[reference]))

    def milliseconds(self, name: str) -> float:
        """Median wall time."""
        return 1e3 * float(np.median(self.wall[name]))


def median_ratio(ratios: np.ndarray, resamples: int = 4000) -> Ratio:
    """Median of the ratios; the interval by the percentile bootstrap over rounds."""
    draws = np.random.default_rng(0).integers(0, len(ratios), (resamples, len(ratios)))
    medians = np.median(ratios[draws], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    first, third = np.percentile(ratios, [25, 75])
    return Ratio(float(np.median(ratios)), float(low), float(high), float(first), float(third))


def alternate(
    contestants: Iterable[Contestant], *, seconds: float, rounds: tuple[int, int], seed: int = 0
) -> Timing:
    """Time everyone once a round until `seconds` have passed, within the bounds on `rounds`.

    What a call returns is dropped after its clock has stopped, and garbage is collected between
    rounds only, so that nobody pays for somebody else's.
    """
    everyone = list(contestants)
    order = random.Random(seed)
    wall: dict[str, list[float]] = {one.name: [] for one in everyone}
    cpu: dict[str, list[float]] = {one.name: [] for one in everyone}
    start = time.monotonic()
    with torch.no_grad():
        for one in everyone:  # warm up, lazy checks included
            one.call()
        gc.disable()
        try:
            for number in range(rounds[1]):
                if number >= rounds[0] and time.monotonic() - start > seconds:
                    break
                gc.collect()
                for one in order.sample(everyone, len(everyone)):
                    began, spent = time.perf_counter(), time.process_time()
                    held = one.call()
                    wall[one.name].append(time.perf_counter() - began)
                    cpu[one.name].append(time.process_time() - spent)
                    del held
        finally:
            gc.enable()
    return Timing(wall, cpu)


def disagreement(contestants: Iterable[Contestant]) -> dict[str, float]:
    """Largest absolute difference of each contestant's tensors and logits to the first one's.

    A benchmark of two things that do not compute the same says nothing, so this is measured.
    """
    seen: dict[str, Tensor] = {}
    found: dict[str, float] = {}
    with torch.no_grad():
        for one in contestants:
            held = one.call()
            values = {**held.tensors, **({} if held.logits is None else {"logits": held.logits})}
            gaps = [
                float((value.reshape(seen[key].shape) - seen[key]).abs().max())
                for key, value in values.items()
                if key in seen
            ]
            if gaps:
                found[one.name] = max(gaps)
            for key, value in values.items():
                seen.setdefault(key, value)
    return found
