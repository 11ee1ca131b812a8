"""The quick start, a few steps of it, from a folder that is not the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align_jax.config import load_config
from align_jax.experiments import quickstart
from align_jax.recipes.train import Run

SMALL = [("train.steps", 4), ("train.groups_per_step", 8), ("optimizer.warmup_steps", 2), ("log.progress", False)]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Few rows, and few steps of both stages; what `main` is given comes last."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "ROWS", {"base": 64, "train": 48, "eval": 16})
    monkeypatch.setattr(
        quickstart, "load_config", lambda path, overrides=(), **options: load_config(path, [*SMALL, *overrides], **options)
    )
    return tmp_path


@pytest.mark.slow
def test_the_quick_start_runs_anywhere(small, capsys):
    assert quickstart.main(["--train.steps", "6", "--train.eval_every", "3"]) == 0

    distance, drawn, exported = capsys.readouterr().out.splitlines()
    before, after = (float(word) for word in distance.split() if word.startswith("0."))
    assert distance == f"Jensen-Shannon distance to the group's beliefs: {before:.3f} before, {after:.3f} after GDPO"
    assert 0 < before < 1 and 0 < after < 1
    assert exported.startswith("exported model: runs/quickstart/model (")

    folder = small / "runs/quickstart"
    assert drawn == "picture of the beliefs: runs/quickstart/beliefs.png"
    assert (folder / "beliefs.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (folder / "gdpo/metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["eval/beliefs/js_distance"] for line in lines if "eval/beliefs/js_distance" in line}
    assert list(measured) == [0, 3, 6] and f"{measured[0]:.3f}" == f"{before:.3f}" and f"{measured[6]:.3f}" == f"{after:.3f}"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (folder / "model").iterdir()}


def test_all_stages_are_kept_below_a_folder(small, monkeypatch, capsys):
    trained, exported = [], []

    def run(config):
        trained.append(config)
        history = [{"eval/beliefs/js_distance": 0.3}]
        return Run(Path(config.run.dir), config.train.steps, True, {}, history)

    monkeypatch.setattr(quickstart, "train", run)
    monkeypatch.setattr(quickstart.beliefs_picture, "draw", lambda config, *paths: f"drawn {' '.join(map(str, paths))}")
    monkeypatch.setattr(quickstart, "export", lambda *paths, overwrite: exported.append(tuple(map(str, paths))))
    assert quickstart.main(["--run.dir", "here/it", "--train.steps", "6"]) == 0
    base, gdpo = trained
    assert (base.run.dir, base.data.train, base.model.tokenizer) == ("here/it/base", "here/it/base.jsonl", "here/it/tokenizer")
    assert (gdpo.run.dir, gdpo.model.path, gdpo.train.steps) == ("here/it/gdpo", "here/it/base-model", 6)
    assert (gdpo.data.train, gdpo.data.eval) == ("here/it/train.jsonl", "here/it/eval.jsonl")
    assert exported == [("here/it/base", "here/it/base-model"), ("here/it/gdpo", "here/it/model")]
    assert [path.name for path in small.iterdir()] == ["here"] and (small / gdpo.data.eval).exists()
    out = capsys.readouterr().out
    assert "exported model: here/it/model" in out and "drawn here/it/base-model here/it/model here/it/beliefs.png" in out


def test_it_replaces_no_other_folder(small):
    other = small / "runs/quickstart/base"
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="runs/quickstart/base is not a run folder"):
        quickstart.main([])
    assert (other / "thesis.txt").read_text() == "years of work"
