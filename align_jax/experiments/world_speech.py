"""What a model of the world believes, and whether the texts that it writes for a belief are of that belief."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.experiments import survey, world
from align_jax.experiments.work import Workplace

NEW_TOKENS = 24


def hear(work: Workplace, values: Mapping[str, Any], run: str | None, asked: Sequence[world.Topic], samples: int) -> dict:
    """Asks a trained model about every topic, and lets it write for every belief.

    Args:
      values: the config it was trained with. run: name of its run; None: the model that `values` names.
      samples: texts of a topic and belief.

    Returns:
      `distances` to the true distributions, one a topic, and their mean `distance`; `predicted` distributions; `mass` on
      beliefs; `consistency`, the share of texts that are of the belief they were given (chance: 1 / beliefs); a few `texts`.
    """
    rows = survey.speak(work, values, run, asked, samples, NEW_TOKENS)
    firsts, begins = [], 0
    for topic in asked:
        firsts.append(rows[begins])
        begins += len(topic.options)
    distances = [survey.distance(row["distribution"], topic.probs) for row, topic in zip(firsts, asked, strict=True)]
    topics = [topic for topic in asked for _ in topic.options]
    return {
        "distance": float(np.mean(distances)),
        "distances": distances,
        "predicted": [row["distribution"] for row in firsts],
        "mass": float(np.mean([row["mass"] for row in firsts])),
        "consistency": consistency(rows),
        "texts": [
            {"prompt": topic.prompt, "belief": topic.options[row["belief"]], "text": row["texts"][0]}
            for topic, row in list(zip(topics, rows, strict=True))[:4]
        ],
    }


def consistency(rows: Sequence[Mapping[str, Any]]) -> float:
    """The share of `texts` that express the `belief` of their row; a text of no belief or of two counts as wrong."""
    return float(np.mean([world.belief_of(text) == row["belief"] for row in rows for text in row["texts"]]))
