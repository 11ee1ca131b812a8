"""An objective in a file outside the package trains, is killed, resumes, evaluates, exports and generates like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import align_jax
from align_jax.cli import main
from align_jax.experiments import opinions
from align_jax.recipes.folder import RunFolder
from align_jax.training.logs import TIMING_PREFIXES, read_metrics

ROOT = Path(__file__).parents[2]
SHAPE = dict(vocab_size=130, width=16, mlp_width=24, layers=1, heads=2, kv_heads=1, head_size=8, max_length=64)

# Of 15 lines, as a user writes it.
OBJECTIVE = '''
import dataclasses

import jax.numpy as jnp

from align_jax.objectives.sets import SetObjective


@dataclasses.dataclass(frozen=True)
class Squared(SetObjective):
    """Rewards that should equal the scores, up to a scale."""

    scale: float = 1.0

    def loss(self, logps, ref, scores, mask):
        error = self.beta * (logps - ref) - self.scale * scores
        return jnp.sum(jnp.where(mask, error**2, 0.0), axis=-1)
'''

# Rows, slots, labels and loss that the package has none of: an order of answers without any score.
RANKING = '''
import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from align_jax.data.arrange import Arrangement, Filled, Label
from align_jax.data.formats import Example, Format
from align_jax.objectives import Objective


class Ranked(Format):
    def parse(self, row):
        return Example(row["question"], tuple(row["best_first"]))


@dataclasses.dataclass(frozen=True)
class Ranking(Arrangement):
    @property
    def labels(self):
        return {"rank": Label("int32", ("K",))}

    def fill(self, index, item, example, arranger):
        segments, cut = arranger.segments(example, range(len(example.responses)))
        return Filled(segments, {"rank": np.arange(len(segments), dtype=np.int32)}, cut)


@dataclasses.dataclass(frozen=True)
class RankLoss(Objective):
    arrangement: ClassVar[Ranking] = Ranking()
    beta: float = 0.1

    def __call__(self, logps, batch, statistic=None):
        rewards = jnp.where(batch.mask, self.beta * (logps - batch.labels["ref_logps"]), 0.0)
        weights = jnp.where(batch.mask, 1.0 / (1.0 + batch.labels["rank"]), 0.0)
        exists = batch.mask.any(-1).astype(jnp.float32)
        return {"loss": (jnp.sum((rewards - weights) ** 2, -1), exists), "rewards/best": (rewards[:, 0], exists)}
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The user's folder, which is the current directory and nowhere on Python's path: objectives, data, a config."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "squared_objective.py").write_text(OBJECTIVE)
    (folder / "ranking_objective.py").write_text(RANKING)
    opinions.write_tokenizer(folder / "tokenizer")
    for name, seed, count in (("train", 1, 24), ("eval", 2, 6)):
        rows = list(opinions.rows(count, seed, uniform=True))
        answers = [[row["accept_response"], row["reject_response"], "yes ."][: 2 + i % 2] for i, row in enumerate(rows)]
        groups = [
            {"prompt": row["prompt"], "responses": texts, "scores": [1.0, 0.0, 0.5][: len(texts)]}
            for row, texts in zip(rows, answers, strict=True)
        ]
        opinions.write_rows(folder / f"{name}.jsonl", groups)
        ranked = [{"question": g["prompt"], "best_first": g["responses"]} for g in groups]
        opinions.write_rows(folder / f"ranked-{name}.jsonl", ranked)
    opinions.write_rows(folder / "prompts.jsonl", [{"prompt": "city parks"}, {"prompt": "bike lanes"}])
    config = {
        "run": {"dir": "run", "seed": 3},
        "model": {"config": SHAPE, "tokenizer": "tokenizer", "dtype": "float32"},
        "reference": {"cache_dir": "reference"},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl", "max_prompt_tokens": 24, "max_response_tokens": 24},
        "objective": {"name": "squared_objective:Squared", "beta": 0.2, "scale": 0.5},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "schedule": "constant"},
        "train": {"steps": 30, "groups_per_step": 4, "eval_every": 15},
        "checkpoint": {"every": 3},
        "evaluate": {"samples": 2, "max_new_tokens": 4, "resamples": 20, "plots": False},
        "generate": {"prompts": "prompts.jsonl", "output": "out.jsonl", "max_new_tokens": 4},
        "log": {"progress": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    # What pip installs as `align-jax`: its own folder, not the current one, is on the path.
    (folder / "bin").mkdir()
    (folder / "bin" / "align-jax").write_text("import sys\nfrom align_jax.cli import main\nsys.exit(main())\n")
    return folder


@pytest.fixture(autouse=True)
def at_home(world, monkeypatch):
    """The user's folder as the current directory of this process too."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != ""])
    yield
    for name in ("squared_objective", "ranking_objective"):
        sys.modules.pop(name, None)


def command(*argv):
    return [sys.executable, "bin/align-jax", "train", "config.yaml", *map(str, argv)]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def metrics_of(run):
    lines = read_metrics(Path(run) / "metrics.jsonl")
    return [{k: v for k, v in m.items() if not k.startswith(TIMING_PREFIXES)} for m in lines]


@pytest.fixture(scope="module")
def killed(world):
    """A run that was killed after a checkpoint, and resumed by the same command."""
    process = subprocess.Popen(command(), cwd=world, env=environment(), stderr=subprocess.PIPE, text=True)
    while not RunFolder(world / "run").steps:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command(), cwd=world, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "resumed from the checkpoint" in done.stderr, done.stderr
    return world / "run"


@pytest.mark.slow
def test_killed_and_resumed_it_has_the_metrics_of_a_whole_run(killed):
    assert main(["train", "config.yaml", "--run.dir", "whole"]) == 0
    whole = metrics_of("whole")
    assert [m["step"] for m in whole] == list(range(31)) and whole == metrics_of(killed)
    # At the first step policy and reference agree: the loss is that of the scores alone, (1 + 0 [+ 0.25]) / 4 of each group.
    assert 0.25 <= whole[1]["loss"] <= 0.3125 and whole[30]["loss"] < whole[1]["loss"]


@pytest.mark.slow
def test_the_run_folder_knows_it_by_the_name_that_was_given(killed):
    stored = yaml.safe_load((killed / "config.yaml").read_text())
    assert stored["objective"] == {"name": "squared_objective:Squared", "beta": 0.2, "scale": 0.5, "reference_free": False}


@pytest.mark.slow
def test_it_evaluates_exports_and_generates(killed, capsys):
    assert main(["evaluate", "config.yaml"]) == 0
    models = json.loads((killed / "evaluation.json").read_text())["models"]
    assert set(models) == {"start", "run"} and models["run"]["step"] == 30
    assert {"rewards/accuracies", "kl/reference"} <= models["run"]["metrics"].keys()
    assert main(["export", "run", "exported"]) == 0
    assert align_jax.load_model("exported", dtype="float32").config.width == 16
    assert main(["generate", "config.yaml"]) == 0
    assert "the model is that of step 30" in capsys.readouterr().err
    assert [len(json.loads(line)["responses"]) for line in Path("out.jsonl").read_text().splitlines()] == [1, 1]


@pytest.mark.slow
def test_without_its_file_the_run_says_what_to_do(killed, capsys):
    hidden = Path("squared_objective.py").rename("elsewhere.txt")
    sys.modules.pop("squared_objective", None)
    try:
        assert main(["export", "run", "other"]) == 2
    finally:
        hidden.rename("squared_objective.py")
    said = capsys.readouterr().err
    assert "run/config.yaml" in said and "objective.name: 'squared_objective:Squared': there is no module" in said
    assert "put it back" in said and "PYTHONPATH" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "code, message",
    [
        ("from align_jax.objectives import Objective\nclass Mine(Objective):\n    pass\n", "has no `arrangement`"),
        ("from align_jax.objectives import MPO\nclass Mine(MPO):\n    gamma: float = 1.0\n", "decorate 'bad_objective:Mine'"),
        ("class Mine:\n    pass\n", "is no objective: it must be a subclass of align_jax.objectives.base.Objective"),
    ],
)
def test_what_is_no_objective_is_refused_with_its_place(world, capsys, code, message):
    (world / "bad_objective.py").write_text(code)
    sys.modules.pop("bad_objective", None)
    assert main(["train", "config.yaml", "--objective.name", "bad_objective:Mine"]) == 2
    said = capsys.readouterr().err
    assert "--objective.name: " in said and message in said


@pytest.mark.slow
def test_own_rows_slots_and_labels_in_one_file(world, capsys):
    own = ["--objective.name", "ranking_objective:RankLoss", "--objective.scale", "null", "--run.dir", "ranked",
           "--data.format", "ranking_objective:Ranked", "--data.train", "ranked-train.jsonl",
           "--data.eval", "ranked-eval.jsonl"]  # fmt: skip
    assert main(["train", "config.yaml", *own, "--train.steps", "3", "--train.eval_every", "3"]) == 0
    assert main(["train", "config.yaml", *own, "--train.steps", "6", "--train.eval_every", "3"]) == 0
    assert "resumed from the checkpoint of step 3" in capsys.readouterr().err
    lines = metrics_of("ranked")
    assert [m["step"] for m in lines] == list(range(7))
    # Measured as what is trained, since nothing else reads such rows: at the start (1 + 1/4 [+ 1/9]) of each group.
    assert 1.25 <= lines[0]["eval/loss"] <= 1.3612 and lines[0]["eval/rewards/best"] == 0
    assert lines[6]["eval/loss"] < lines[0]["eval/loss"]
    assert main(["evaluate", "config.yaml", *own]) == 0
    assert "rewards/best" in json.loads(Path("ranked/evaluation.json").read_text())["models"]["run"]["metrics"]
    assert main(["train", "config.yaml", *own, "--data.format", "prompts", "--run.dir", "none"]) == 2
    assert "'prompts' has no responses" in capsys.readouterr().err
