"""Splits of real preferences, and what is made of their rows."""

import json

import numpy as np
import pytest

from align_jax.config import Config
from align_jax.data.formats import find_format
from align_jax.experiments import preferences
from align_jax.experiments.claim import Options
from align_jax.experiments.work import Workplace


def a_row(scores, prompt="p"):
    return {"prompt": prompt, "responses": [f"text {i}" for i in range(len(scores))], "scores": list(scores)}


def a_work(tmp_path, model):
    return Workplace(tmp_path / "own", tmp_path / "shared", tmp_path / "common", Options(model=model))


def test_rows_of_ultrafeedbacks_layout(tmp_path):
    row = {"instruction": "say", "completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 9}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert preferences.rows_of(tmp_path / "rows.jsonl") == [{"prompt": "say", "responses": ["a", "b"], "scores": [1, 9]}]


def test_a_split_is_of_prompts_and_repeatable():
    rows = [a_row([1, 2], f"p{i}") for i in range(20)]
    rest, held = preferences.split(rows, 6, seed=3)
    assert len(held) == 6 and len(rest) == 14
    assert {row["prompt"] for row in rest} | {row["prompt"] for row in held} == {row["prompt"] for row in rows}
    assert preferences.split(rows, 6, seed=3) == (rest, held) != preferences.split(rows, 6, seed=4)


def test_a_thinned_row_keeps_the_best_and_the_worst():
    row = preferences.thinned(a_row([3.0, 9.0, 1.0, 5.0, 0.0, 7.0]), 3)
    assert row["scores"][0] == 9.0 and row["scores"][-1] == 0.0 and len(row["scores"]) == 3
    assert row["responses"][0] == "text 1" and row["responses"][-1] == "text 4"
    assert sorted(preferences.thinned(a_row([2.0, 1.0]), 5)["scores"]) == [1.0, 2.0]


def test_pairs_are_all_that_mpo_contrasts():
    scores = [0.0, 10.0, 8.0, 2.0, 5.0]  # the mean is 5, which no rejected answer is above
    found = [(row["scores"][0], row["scores"][1]) for row in preferences.pairs([a_row(scores), a_row([1.0, 1.0])])]
    assert sorted(found) == sorted((a, b) for a in (10.0, 8.0) for b in (0.0, 2.0, 5.0))


@pytest.mark.parametrize("objective", [{"name": "mpo", "beta": 0.1}, {"name": "sft"}])
def test_the_config_is_one_that_the_library_takes(tmp_path, objective):
    (tmp_path / "a-model").mkdir()
    values = preferences.config(
        a_work(tmp_path, str(tmp_path / "a-model")), tmp_path / "rows.jsonl", objective, train={"steps": 3}, run={"seed": 5}
    )
    config = Config.of(values)
    assert config.train.steps == 3 and config.run.seed == 5 and config.train.groups_per_step == preferences.LARGE.groups
    assert find_format(config.data.format).evaluated_as == "mpo"


def test_figures_of_an_evaluation():
    found = {metric: {"value": 0.5, "low": None, "high": None} for metric in preferences.METRICS.values()}
    found["rewards/accuracies"] = {"value": 0.7, "low": 0.6, "high": 0.8}
    values = preferences.figures(found)
    assert values["accuracy"] == 0.7 and values["accuracy/low"] == 0.6 and "rank/low" not in values
    assert set(preferences.METRICS) <= set(values) and np.isfinite(list(values.values())).all()
