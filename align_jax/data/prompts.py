"""The prompts of a data set of any format, for sampling responses to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from align_jax.data.config import DataConfig
from align_jax.data.encode import plain_key
from align_jax.data.look import read_rows
from align_jax.data.opened import open_data

_BESIDE = ("group", "context", "tools", "documents")


def distinct_prompts(
    config: DataConfig, which: str, spool_dir: Path
) -> tuple[list[dict[str, Any]], list[dict[str, str]], tuple[str, ...]]:
    """Reads the prompts of a data set, each row and each prompt once, in order.

    Args:
      config: the data section. which: `train` or `eval`. spool_dir: where streamed rows are kept.

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
    for _, example in read_rows(source, data_format.read, config.on_bad_row, bad):
        more = {name: getattr(example, name) for name in _BESIDE if getattr(example, name)}
        found.setdefault(plain_key(example), {"prompt": example.prompt, **more})
    notes = (*source.notes, *data_format.notes())
    if data_format.shares is not None and data_format.shares.weights is not None:
        notes += ("weights have no effect: every prompt is taken once",)
    return list(found.values()), bad, notes
