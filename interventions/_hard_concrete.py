"""HardConcrete gates: random switches between 0 and 1 that can be learned by gradient descent."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

BETA, LOW, HIGH = 0.33, -0.1, 1.1  # temperature, and how far the gate is stretched beyond 0 and 1
_EDGE = 1e-6


def sample(log_alpha: Float[Tensor, "..."], uniform: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Gates for uniform draws u: clip(s (high - low) + low, 0, 1), s = sigmoid((logit u + a)/beta).

    >>> sample(torch.tensor([9.0, -9.0]), torch.tensor([0.5, 0.5]))
    tensor([1., 0.])
    """
    noise = uniform.clamp(_EDGE, 1 - _EDGE).logit()
    return _stretched(((noise + log_alpha) / BETA).sigmoid())


def settled(log_alpha: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The gates without noise: clip(sigmoid(a) (high - low) + low, 0, 1); 0 up to a = -2.398.

    Without the temperature, which is the estimator of Louizos et al. themselves.
    """
    return _stretched(log_alpha.sigmoid())


def open_probability(log_alpha: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """P(gate != 0) = sigmoid(a - beta log(-low / high)).

    >>> open_probability(torch.tensor(0.0)).round(decimals=3)
    tensor(0.6880)
    """
    return (log_alpha - BETA * math.log(-LOW / HIGH)).sigmoid().clamp(_EDGE, 1 - _EDGE)


def _stretched(s: Tensor) -> Tensor:
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)
