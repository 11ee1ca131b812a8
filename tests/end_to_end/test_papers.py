"""docs/papers.md: what every row says to write is a config, and every objective has a row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from align_jax.config import Config
from align_jax.objectives import OBJECTIVES, name_of

PAGE = (Path(__file__).parents[2] / "docs" / "papers.md").read_text()
ROWS = [re.split(r" \| ", line.strip("| ")) for line in PAGE.splitlines() if re.match(r"\| [^-|]", line)][1:]
BASE = {"model": {"path": "a/model"}, "data": {"train": "rows.jsonl"}}


def config_of(row):
    values = {name: dict(keys) for name, keys in BASE.items()}
    for text in re.findall(r"`(\w+: [^`]*)`", row[2]):
        for section, keys in yaml.safe_load(text).items():
            values[section] = {**values.get(section, {}), **keys} if isinstance(keys, dict) else keys
    return Config.of(values)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_row_loads(row):
    assert len(row) == 4
    config = config_of(row)
    assert name_of(config.objective) == "+".join(re.findall(r"name: (\w+)", row[2]))
    if "TR-DPO" in row[0]:
        assert config.reference.sync_every


def test_every_objective_has_a_row():
    found = [config_of(row).objective for row in ROWS]
    assert {term.name for one in found for term in getattr(one, "terms", (one,))} == set(OBJECTIVES)
