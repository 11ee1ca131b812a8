"""The jobs of a notebook, one call each.

run = train(config)                 # or all rounds, where the config has a `rounds` section
table = evaluate(config)            # a list of dicts
rows = generate(config)             # or texts: generate(model, prompts, tokenizer=...)
rows = score(config)
export(run.folder, "out")
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from align_jax.config import Config
from align_jax.recipes.evaluate import evaluate
from align_jax.recipes.export import export
from align_jax.recipes.generate import generate
from align_jax.recipes.rounds import Rounds, rounds
from align_jax.recipes.score import score
from align_jax.recipes.train import Run
from align_jax.recipes.train import train as train_once

__all__ = ["Rounds", "Run", "evaluate", "export", "generate", "score", "train"]


def train(config: Config | str | os.PathLike | Mapping[str, Any]) -> Run | Rounds:
    """Trains as the config says: one run, or with a `rounds` section on-policy rounds of them.

    Args:
      config: what `Config.of` takes, or gives; `model`, `data.train` and `objective` have no defaults.

    Returns:
      The run: folder, steps, whether it is finished, the last metrics and their history.

    Raises:
      UserError: anything that the user can mend, see the message; what was trained before it is kept.
    """
    config = Config.of(config)
    return train_once(config) if config.rounds is None else rounds(config)
