"""The studies by name, each with its question: what help needs without importing any of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studies._run import Run

QUESTIONS = {
    "head-edits": (
        "Do gated edits of heads learn more from few examples than LoRA, and find the right heads?"
    ),
    "pretend-to-forget": "Does an unlearned model still hold the answer in its middle layers?",
    "reasoning-paths": "Does RL squeeze and SFT expand reasoning paths?",
    "reasoning-vectors": (
        "Does the difference of an RL and an SFT model carry RL's ability to another model?"
    ),
    "sae-tuning": "Does tuning around a frozen SAE of an RL model carry RL's gain to its base?",
    "same-circuit": "Does fine-tuning enhance the same circuit, or build another?",
    "semantic-pivots": (
        "Does a translation that was never taught go through a third language's word?"
    ),
    "sft-vs-rl-weights": (
        "What did SFT and RL change in the weights, and what would noise have changed?"
    ),
    "shortcut-neurons": (
        "Which neurons carry a shortcut, and what does pruning them cost and gain?"
    ),
    "superficial-edits": (
        "Does an edited or unlearned model still hold the old answer, and where?"
    ),
    "tune-what-matters": "Which weights should one tune, to learn the new and keep the old?",
    "where-it-forgets": (
        "Which facts did a tuned model lose, and in which layers does it still hold them?"
    ),
    "who-forgets": "Does SFT forget more than RL, and what predicts how much?",
}


def study(name: str) -> tuple[type, Callable[[Any], Run]]:
    """A study's frozen configuration and the function that answers it into a run folder.

    Of `head-edits` these are `HeadEdits` and `run` of the module `studies.head_edits`.
    """
    module = importlib.import_module(f"studies.{name.replace('-', '_')}")
    return getattr(module, name.title().replace("-", "")), module.run
