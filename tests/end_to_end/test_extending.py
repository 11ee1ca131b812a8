"""docs/extending.md: its files are written to a folder, and a run uses all of them."""

import json
import re
import sys
from pathlib import Path

import jax
import pytest
import yaml

import align_jax
from align_jax.cli import main
from align_jax.models import Decoder, ModelConfig, init_weights
from align_jax.recipes.folder import RunFolder
from tests.data.toys import char_tokenizer, write_jsonl

DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"
SHAPE = ModelConfig(vocab_size=128, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4, max_length=64)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with the document's files, a tiny model and data; it is the current one."""
    for name, code in re.findall(r"```python\n# (mine/\w+\.py)\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    assert len(list((tmp_path / "mine").iterdir())) == 7
    model = Decoder(SHAPE, init_weights(SHAPE, jax.random.key(0)), dtype="float32")
    align_jax.save_model(model, tmp_path / "model", tokenizer=char_tokenizer())
    rows = [{"question": f"q{i}", "answers": {"good": 5, "so so": 2, "bad": 1}} for i in range(4)]
    config = {
        "run": {"dir": "run"},
        "model": {"path": "model", "dtype": "float32"},
        "data": {"train": write_jsonl(tmp_path / "rows.jsonl", rows), "eval": str(tmp_path / "rows.jsonl"),
                 "max_prompt_tokens": 8, "max_response_tokens": 8},
        "objective": {"name": "dpo"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 2, "groups_per_step": 2},
        "evaluate": {"samples": 0, "plots": False},
        "log": {"progress": False},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


OWN = ["--objective.name", "mine.objective:MarginDPO", "--data.format", "mine.format:Votes", "--log.sinks", "[mine.sink:Csv]",
       "--evaluate.metrics", "[mine.metric:Reversed]"]  # fmt: skip


@pytest.mark.slow
def test_a_run_with_one_file_of_every_kind(work):
    assert all(word.strip("[]") in DOCUMENT.read_text(encoding="utf-8") for word in OWN)
    assert main(["train", "config.yaml", *OWN, "--objective.margin", "0.25"]) == 0
    assert main(["train", "config.yaml", *OWN, "--objective.margin", "0.25", "--train.steps", "3"]) == 0  # resumes
    history = RunFolder(work / "run").history
    assert [line["step"] for line in history] == [0, 1, 2, 3]
    # At the first step policy and reference agree: -log sigmoid(-margin).
    assert history[1]["loss"] == pytest.approx(0.8259, abs=1e-3)
    assert 0 <= history[-1]["eval/rewards/reversed"] <= 1
    assert (work / "run" / "loss.csv").read_text().count("\n") == len(history)
    assert main(["evaluate", "config.yaml", *OWN]) == 0
    metrics = json.loads((work / "run" / "evaluation.json").read_text())["models"]["run"]["metrics"]
    assert metrics["rewards/reversed"]["value"] == pytest.approx(history[-1]["eval/rewards/reversed"])
    assert main(["export", "run", "out"]) == 0 and (work / "out" / "model.safetensors").exists()


def test_an_objective_with_labels_of_its_own(work):
    own = ["--objective.name", "mine.ranking:PlackettLuce", "--data.format", "mine.format:Votes", "--data.eval", "null"]
    assert main(["train", "config.yaml", *own]) == 0
    # Three responses that are equally likely to be first, then two: log 3 + log 2.
    assert RunFolder(work / "run").history[0]["loss"] == pytest.approx(1.7918, abs=1e-3)


def test_an_experiment_of_ones_own(work, capsys):
    assert main(["experiment", "mine.experiment:main", "--steps", "3"]) == 0
    assert capsys.readouterr().out == "measured --steps 3\n"
    assert main(["experiment", "mine.experiment:other"]) == 2
    assert "has no 'other'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--evaluate.metrics", "[mine.metric:Missing]", "evaluate.metrics: 'mine.metric:Missing': .* has no 'Missing'"),
        ("--evaluate.metrics", "[sets]", "evaluate.metrics: 'sets' is measured anyway"),
        ("--log.sinks", "[mine.metric:Reversed]", "log.sinks: 'mine.metric:Reversed' is no sink"),
    ],
)
def test_what_is_not_there_is_named(work, capsys, option, value, message):
    assert main(["train", "config.yaml", *OWN, option, value]) == 2
    assert re.search(message, capsys.readouterr().err)
