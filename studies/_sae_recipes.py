"""Ways to tune in the sae-tuning study: its conditions, and the settings tried on dev problems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies.sae_tuning import SaeTuning


@dataclass(frozen=True)
class Recipe:
    """One way to tune the target.

    Args:
        sae: what stands in the model: an SAE of the `source`, of the `target`, a `random` one, the
            `identity`; "" for SFT.
        layer: where.
        lr: of the tuning.
        steps: of it.
        d_sae: features of the SAE.
        k: of them, at a token.
        sae_tokens: it was trained on.
        grad: through the SAE.
        loss: a `token`'s mean, or a text's `sum`.
        texts: for SAE and tuning: problems with their `bare` answers, or `worked` solutions.
    """

    sae: str
    layer: int
    lr: float
    steps: int
    d_sae: int
    k: int
    sae_tokens: int
    grad: str = "full"
    loss: str = "token"
    texts: str = "bare"

    @property
    def of_sae(self) -> tuple[object, ...]:
        """What a trained SAE depends on."""
        return self.sae, self.layer, self.d_sae, self.k, self.sae_tokens, self.texts


WORKED = "SFT on worked solutions"
# name -> what is tuned, and how that differs from the first; the order is that of the report
CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "source SAE": ("SAE of the source", {}),
    "source SAE, no gradient": (
        "the same, no gradient through the SAE (the released code)",
        {"grad": "none"},
    ),
    "target SAE": ("SAE of the target itself", {"sae": "target"}),
    "random SAE": ("random SAE of the same size", {"sae": "random"}),
    "identity SAE": ("identity SAE: LoRA with KL to itself", {"sae": "identity"}),
    "SFT": ("SFT on the same problems and answers", {"sae": ""}),
    WORKED: (
        "SFT on right solutions of the same problems, with steps that no other condition sees",
        {"sae": "", "texts": "worked"},
    ),
}
# Around the first condition, one thing changed at a time; layers are added to these.
SETTINGS: dict[str, dict[str, Any]] = {
    "as above": {},
    "lr / 5": {"lr": 1 / 5},
    "lr x 4": {"lr": 4},
    "three times the steps": {"steps": 3},
    "loss summed over a text": {"loss": "sum"},
    "straight-through gradient": {"grad": "ste"},
    "k / 4": {"k": 1 / 4},
    "k x 4": {"k": 4},
    "SAE of a seventh of the tokens": {"sae_tokens": 1 / 7},
    "worked solutions as texts": {"texts": "worked"},
}


def main(config: SaeTuning, layer: int) -> Recipe:
    """The recipe of the first condition."""
    return Recipe(
        "source", layer, config.lr, config.steps, config.d_sae, config.k, config.sae_tokens
    )


def conditions(config: SaeTuning, layer: int) -> dict[str, Recipe]:
    """Every condition; worked solutions are known of the organisms' problems alone."""
    first = main(config, layer)
    return {
        name: replace(first, **changes)
        for name, (_, changes) in CONDITIONS.items()
        if name != WORKED or config.train is None
    }


def settings(config: SaeTuning, layer: int, n_layers: int) -> dict[str, Recipe]:
    """Other settings of the first condition, and every other layer."""
    first = main(config, layer)
    found = {
        name: replace(first, **{field: _scaled(first, field, by) for field, by in changes.items()})
        for name, changes in SETTINGS.items()
        if changes.get("texts") != "worked" or config.train is None
    }
    return found | {f"layer {n}": replace(first, layer=n) for n in range(n_layers) if n != layer}


def _scaled(first: Recipe, field: str, by: Any) -> Any:
    if isinstance(by, str):
        return by
    value = getattr(first, field) * by
    return value if field == "lr" else max(1, round(value))
