"""Every key is described, and docs/config.md is what the code says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from align_jax.config import Config
from align_jax.config.describe import explain, keys, markdown, sections, table
from align_jax.config.identity import flat
from align_jax.errors import UserError
from align_jax.objectives import OBJECTIVES
from align_jax.training.optim import OPTIMIZERS

DOCS = Path(__file__).parents[2] / "docs" / "config.md"


def test_every_key_has_a_meaning():
    assert [f"{key.name} {key.of}" for key in keys() if not key.meaning] == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_key_of_a_config_is_described(objective, optimizer):
    values = {
        "model": {"path": "a/model"},
        "data": {"train": "a.jsonl", "eval": "b.jsonl"},
        "objective": {"name": objective},
        "optimizer": {"name": optimizer},
        "rounds": {"number": 1, "reward_model": "a/model"},
    }
    leave_out = {"lora"} if optimizer == "muon" else set()  # they exclude each other
    values |= {} if leave_out else {"lora": {}}
    chosen = {"objective": objective, "optimizer": optimizer}
    here = {key.name for key in keys() if key.section not in leave_out and (not key.of or chosen[key.section] in key.of)}
    nested = {name for name in here if name.startswith(("model.config.", "data.train.", "objective.N."))}
    config = Config.of(values).to_dict()
    models = {"evaluate.models"}  # names of a user's own: none here, so it has no keys
    assert here - nested == set(flat(config)) | models
    assert set(config) == set(sections()) - leave_out


def test_types_defaults_and_owners():
    described = {(key.name, key.of): key for key in keys()}
    steps = described["train.steps", ()]
    assert (steps.type, steps.default) == ("int or null", "null")
    assert described["model.dtype", ()].type == "float32, bfloat16 or float16"
    assert described["rounds.number", ()].default == "required"
    assert described["objective.name", ()].default == "required"
    assert described["optimizer.name", ()].default == "adamw"
    assert described["generate.stop", ()].type == "list of str"
    assert described["data.prompt_template", ()].default == "'{prompt}'"
    assert described["model.config.rope_scaling.factor", ()].default == "required"
    assert ("model.config.head", ()) not in described  # follows from the objective
    assert described["objective.gamma", ("simpo",)].default == "1.0"
    betas = [key for key in keys() if key.name == "objective.beta"]
    assert {key.default for key in betas} == {"0.1", "2.0", "5.0"}
    assert sorted(name for key in betas for name in key.of) == sorted(set(OBJECTIVES) - {"sft", "reward"})


def test_one_key_is_explained():
    assert explain("train.eval_every") == (
        "train.eval_every: int or null, default null\n"
        "    optimizer steps between evaluations; null evaluates before the first step and after the last one only."
    )
    assert explain("objective.gamma").startswith("objective.gamma: float (at most 1,000,000), default 1.0, of simpo\n    ")


def test_a_section_is_explained():
    text = explain("train")
    assert text.startswith("Length and batch of a run.\n")
    assert re.findall(r"^(train\.\w+):", text, re.MULTILINE) == [key.name for key in keys() if key.section == "train"]
    assert all(f"    {name}: " in explain("objective") for name in OBJECTIVES)
    assert explain("model.config").count("model.config.") >= 10


@pytest.mark.parametrize(
    "word, near",
    [
        ("train.stepz", r"did you mean train\.steps\? "),
        ("steps", r"did you mean train\.steps or bench\.steps\? "),
        ("trian", r"did you mean train\? "),
        ("train.", ""),
        ("zzzz", "`align-jax config` prints"),
    ],
)
def test_an_unknown_key_is_named(word, near):
    with pytest.raises(UserError, match=f"^--explain {re.escape(word)}: there is no such section or key; {near}"):
        explain(word)


def test_the_table_has_a_line_for_every_key():
    lines = table().splitlines()
    assert max(map(len, lines)) <= 120
    named = [line.split()[0] for line in lines if line.startswith("  ")]
    assert named == [key.short for key in keys()]
    (line,) = (line for line in lines if line.startswith("  eval_every "))
    assert re.split("  +", line.strip()) == [
        "eval_every", "int or null = null", "optimizer steps between evaluations; null evaluates before the first step...",
    ]  # fmt: skip


def test_the_page_is_up_to_date():
    assert DOCS.read_text(encoding="utf-8") == markdown(), "run: python -m align_jax.config.collect"


def test_cells_of_the_page_are_whole():
    rows = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(keys())
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {6, 7}


def test_keys_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        keys()[0].name = "x"
