"""The control of every weight edit: noise of the same norm in the same places."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp import Delta, Dense, Edit, InterpError, LowRank, Sparse
from interp._weights.nulls import generator, normal


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of a given norm, drawn when it is needed and the same every time.

    Args:
        shape: of the tensor.
        norm: its Frobenius norm.
        seed: of the draw.
        name: of the parameter: each gets noise of its own.
        mask: entries that are not 0.
    """

    shape: tuple[int, ...]
    norm: float
    seed: int
    name: str
    mask: Tensor | None = field(default=None, repr=False)

    def read(self) -> Tensor:
        """The noise in float32."""
        z = normal(self.shape, generator(self.seed, "norm-matched", self.name))
        if self.mask is not None:
            z = torch.where(self.mask, z, 0.0)
        return z * _factor(self.norm, z)


def norm_matched_random(edit: Edit, seed: int = 0) -> Edit:
    """Gaussian noise that changes the same entries by the same norm, parameter by parameter.

    `||noise_p||_F = ||change_p||_F` for every parameter p. What a task vector does and this does
    too is no property of what was learned, only of how far it goes.

    Args:
        edit: of weight changes; dense ones are read once for their norm, and noise is drawn when
            the result is applied. A low-rank change is matched by one of the same rank, a sparse
            one in the same entries.
        seed: of the draws.

    Raises:
        InterpError: an edit of activations, or a move towards a target, whose norm depends on the
            weights it meets.

    Examples:
        >>> tau = iv.task_vector("rl/", "sft/", modules="mlp")
        >>> controls = [iv.norm_matched_random(tau, seed) for seed in range(5)]
    """
    if edit.affines:
        raise InterpError(
            f"{edit.affines[0].describe()} acts on activations, which have no norm of their own to "
            f"match; give an edit of weights, such as a task vector"
        )
    atoms = [_matched(delta, number, seed) for number, delta in enumerate(edit.deltas)]
    notes = {**edit.notes, "norm_matched_random": {"seed": seed}}
    return Edit(atoms, edit.made_on, notes)


def change_norm(delta: Delta) -> float:
    """Frobenius norm of what a Delta adds, in float64 sums."""
    change = delta.change
    if isinstance(change, Dense):
        return float(change.dense().double().norm())
    if isinstance(change, LowRank):  # ||LR||^2 = tr(L'L RR'), without the product
        left, right = change.left.double(), change.right.double()
        return float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())
    if isinstance(change, Sparse):
        return float(change.values.double().norm())
    raise InterpError(
        f"{delta.describe()}: how far it moves depends on the weights it meets, so no noise "
        f"matches it; take the difference with iv.task_vector(source, base)"
    )


def _matched(delta: Delta, number: int, seed: int) -> Delta:
    norm, change, name = change_norm(delta), delta.change, f"{number}/{delta.parameter}"
    if isinstance(change, Dense):
        noise = Noise(change.shape, norm, seed, name, change.mask)
        return Delta(delta.parameter, Dense(noise), delta.untie)
    rng = generator(seed, "norm-matched", name)
    if isinstance(change, LowRank):
        left, right = normal(change.left.shape, rng), normal(change.right.shape, rng)
        drawn = Delta(delta.parameter, LowRank(left, right), delta.untie)
        own = change_norm(drawn)
        return drawn.times(norm / own if own else 0.0)
    assert isinstance(change, Sparse)
    values = normal(change.values.shape, rng)
    values = values * _factor(norm, values)
    return Delta(delta.parameter, Sparse(change.index, values, change.shape), delta.untie)


def _factor(norm: float, z: Tensor) -> float:
    own = float(z.double().norm())
    return norm / own if own else 0.0
