"""Splits of real preferences, and what is made of their rows."""

import json

import numpy as np
import pytest

from align_jax.config import Config
from align_jax.data.formats import find_format
from align_jax.experiments import orders, preferences
from align_jax.experiments.claim import Cell, Measurement, Options
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
    (tmp_path / "a-model/config.json").write_text("{}")
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


def _slow(rewards, scores):
    """Accuracy and Spearman's rank correlation by loops over pairs."""
    won = pairs = 0
    ranks = []
    for reward, score in zip(rewards, scores, strict=True):
        if len(set(score)) == 1:
            continue
        mean = sum(score) / len(score)
        for i, a in enumerate(score):
            for j, b in enumerate(score):
                if a > mean >= b:
                    pairs += 1
                    won += 1.0 if reward[i] > reward[j] else 0.5 if reward[i] == reward[j] else 0.0
        places = [[sum((y < x) + 0.5 * (y == x) for y in one) for x in one] for one in (reward, score)]
        ranks.append(np.corrcoef(*places)[0, 1] if len(set(reward)) > 1 else 0.0)
    return {"accuracy": won / pairs, "rank": float(np.mean(ranks))}


def test_orders_are_those_of_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    rewards, scores = rng.integers(0, 5, (20, 6)).tolist(), rng.integers(0, 4, (20, 6)).tolist()
    scores[3], rewards[4] = [2] * 6, [1] * 6
    assert orders.summed(orders.orders(rewards, scores)) == pytest.approx(_slow(rewards, scores))


def test_the_longer_answer_is_better():
    rows = [
        {"prompt": "p", "responses": ["a", "bbb", "cc"], "scores": [1.0, 9.0, 5.5]},
        {"prompt": "q", "responses": ["dddd", "e"], "scores": [0.0, 3.0]},
    ]
    lengths = [[1, 3, 2], [4, 1]]
    assert preferences.length_alone(rows) == pytest.approx(_slow(lengths, [row["scores"] for row in rows]))
    assert preferences.length_alone(rows) == pytest.approx({"accuracy": 2 / 3, "rank": 0.0})
    assert preferences.length_alone(rows, [[1, 1, 1], [1, 1]]) == pytest.approx({"accuracy": 0.5, "rank": 0.0})


def test_the_rival_that_cells_kept_comes_first(tmp_path, monkeypatch):
    kept = {"characters": {"accuracy": 0.9, "rank": 0.7}, "tokens": {"accuracy": 0.5, "rank": 0.1}, "cut": 0.93, "limit": 96}
    measured = [Measurement(Cell("a", {}), {}), Measurement(Cell("b", {}), {"rivals": kept})]
    assert preferences.rivals_of(measured, Options()) == kept
    assert "0.900" in preferences.rivals_said(kept) and "93%" in preferences.rivals_noted(kept)
    monkeypatch.delenv("ALIGN_JAX_DATA", raising=False)
    assert preferences.rivals_of(measured[:1], Options()) == {} and preferences.rivals_said({}) == ""
    (tmp_path / "preferences").mkdir()
    row = {"instruction": "p", "completions": [{"response": r, "overall_score": s} for r, s in (("long", 1), ("s", 0))]}
    (tmp_path / "preferences/eval.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.setenv("ALIGN_JAX_DATA", str(tmp_path))
    assert preferences.rivals_of(measured[:1], Options()) == {"characters": {"accuracy": 1.0, "rank": 1.0}}
    assert "cut" not in preferences.rivals_noted({"characters": kept["characters"]})


def test_an_interval_over_prompts_is_of_pairs():
    rng = np.random.default_rng(1)
    theirs = {"wins": rng.uniform(0, 6, 50).tolist(), "pairs": [10] * 50, "rank": rng.normal(size=50).tolist()}
    ours = {"wins": [w + 1 for w in theirs["wins"]], "pairs": [10] * 50, "rank": [r + 0.2 for r in theirs["rank"]]}
    # Every prompt gains the same: there is nothing that other prompts would change.
    for key, gain in (("accuracy", 0.1), ("rank", 0.2)):
        found = orders.over_prompts([ours, ours], [theirs, theirs], key)
        assert (found.value, found.low, found.high) == pytest.approx((gain, gain, gain))
    other = {**theirs, "rank": rng.normal(size=50).tolist()}
    found = orders.over_prompts([other], [theirs], "rank")
    half = 1.96 * np.std(np.subtract(other["rank"], theirs["rank"])) / 50**0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15) and found.low < found.value < found.high
