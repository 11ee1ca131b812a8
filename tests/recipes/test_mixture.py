"""A run on a mixture: shares, metrics of each data set, and a resumed run that is the run it would have been."""

from __future__ import annotations

import json

import pytest
import yaml

from align_jax.cli import main
from align_jax.config import Config
from align_jax.experiments import opinions
from align_jax.recipes.folder import RunFolder
from align_jax.training.logs import TIMING_PREFIXES, read_metrics
from tests.recipes.test_train import SHAPE


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    opinions.write_tokenizer(folder / "tokenizer")
    for name, count, seed in (("much", 24, 1), ("little", 6, 2), ("eval", 8, 3)):
        opinions.write_rows(folder / f"{name}.jsonl", opinions.rows(count, seed, uniform=False))
    little = {"path": str(folder / "little.jsonl"), "weight": 1, "format": "gdpo"}
    train = [{"path": str(folder / "much.jsonl"), "weight": 2}, little]
    values = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "model": {"config": SHAPE, "tokenizer": str(folder / "tokenizer"), "dtype": "float32"},
        "reference": {"cache_dir": str(folder / "reference")},
        "data": {
            "train": train,
            "eval": [str(folder / "eval.jsonl"), str(folder / "little.jsonl")],
            "prompt_template": "question : {prompt}",
            "belief_template": "{id} : {belief} :",
            "max_prompt_tokens": 24,
            "max_response_tokens": 24,
        },
        "objective": {"name": "gdpo"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "schedule": "constant"},
        "train": {"steps": 6, "groups_per_step": 4},
        "checkpoint": {"every": 3},
        "log": {"progress": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def lines(run):
    lines = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(TIMING_PREFIXES)} for line in lines]


@pytest.mark.slow
def test_a_run_on_a_mixture(config, capfd):
    whole, parts = config.parent / "whole", config.parent / "parts"
    assert main(["train", str(config), "--run.dir", str(whole)]) == 0
    said = capfd.readouterr().err
    assert "much 24 (66.7%), little 6 x 2 (33.3%)" in said and "much.jsonl + " in said
    assert main(["train", str(config), "--run.dir", str(parts), "--train.steps", "3"]) == 0
    assert main(["train", str(config), "--run.dir", str(parts)]) == 0
    assert json.dumps(lines(whole)[-1]) == json.dumps(lines(parts)[-1])
    training = [line for line in lines(whole) if "loss" in line]
    names = {name for line in training for name in line}
    assert {"source/much/loss", "source/little/loss", "source/much/beliefs/js_distance"} <= names
    evaluated = next(line for line in lines(whole)[::-1] if "eval/beliefs/js_distance" in line)
    parts_of = [evaluated[f"eval/source/{name}/beliefs/js_distance"] for name in ("eval", "little")]
    assert min(parts_of) <= evaluated["eval/beliefs/js_distance"] <= max(parts_of) and parts_of[0] != parts_of[1]
    stored = RunFolder(whole).config
    assert stored.data.train == Config.of(config).data.train
    assert main(["train", str(config), "--run.dir", str(whole), "--data.train.1.weight", "2"]) != 0
    assert "data.train" in capfd.readouterr().err
