"""The prompts of a data set of any format, for sampling responses to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from align_jax.data.config import DataConfig
from align_jax.data.encode import plain_key
from align_jax.data.look import read_rows
from align_jax.data.opened import open_data
from align_jax.data.tallies import Tallies

_BESIDE = ("group", "context", "tools", "documents")


def distinct_prompts(
    config: DataConfig, which: str, spool_dir: Path, beliefs: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, str]], tuple[str, ...]]:
    """Reads the prompts of a data set, each row and each prompt once, in order.

    Args:
      config: the data section. which: `train` or `eval`. spool_dir: where streamed rows are kept.
      beliefs: with the `options` of each prompt and their `probabilities` (p*), where the rows say or `data.target` estimates
        them.

    Returns:
      `{"prompt"}` of each, with `group`, `context`, `tools` and `documents` where the row has them; the malformed rows that
      were skipped; lines about what was read.

    Raises:
      UserError: as `GroupDataset` does.
    """
    # an empty answer is no reason to leave its prompt out
    source, data_format, _ = open_data(dataclasses.replace(config, on_empty="keep"), which, spool_dir)
    found: dict[str, dict[str, Any]] = {}
    bad: list[dict[str, str]] = []
    tallies = Tallies()
    for _, example in read_rows(source, data_format.read, config.on_bad_row, bad):
        more = {name: getattr(example, name) for name in _BESIDE if getattr(example, name)}
        key = plain_key(example)
        if beliefs and example.opinion is not None:
            tallies.add(example)
            given = example.opinion.probabilities
            more |= {"options": example.opinion.options, "probabilities": given} if key not in found else {}
        found.setdefault(key, {"prompt": example.prompt, **more})
    notes = (*source.notes, *data_format.notes())
    if beliefs:
        targets, more_notes = tallies.targets(config)
        notes += tuple(more_notes)
        for key, target in targets.items():
            if found[key]["probabilities"] is None or config.target == "estimate":
                found[key]["probabilities"] = target.mean.tolist()
    if data_format.shares is not None and data_format.shares.weights is not None:
        notes += ("weights have no effect: every prompt is taken once",)
    return list(found.values()), bad, notes
