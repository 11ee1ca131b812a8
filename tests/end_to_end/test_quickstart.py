"""The quick start, a few steps of it, from a folder that is not the repository."""

from __future__ import annotations

import json

import pytest

from align_jax.config import load_config
from align_jax.experiments import quickstart

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

    distance, exported = capsys.readouterr().out.splitlines()
    before, after = (float(word) for word in distance.split() if word.startswith("0."))
    assert distance == f"Jensen-Shannon distance to the group's beliefs: {before:.3f} before, {after:.3f} after GDPO"
    assert 0 < before < 1 and 0 < after < 1
    assert exported.startswith("exported model: runs/quickstart/model (")

    folder = small / "runs/quickstart"
    lines = [json.loads(line) for line in (folder / "gdpo/metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["eval/beliefs/js_distance"] for line in lines if "eval/beliefs/js_distance" in line}
    assert list(measured) == [0, 3, 6] and f"{measured[0]:.3f}" == f"{before:.3f}" and f"{measured[6]:.3f}" == f"{after:.3f}"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (folder / "model").iterdir()}


def test_it_replaces_no_other_folder(small):
    other = small / "runs/quickstart/base"
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="runs/quickstart/base is not a run folder"):
        quickstart.main([])
    assert (other / "thesis.txt").read_text() == "years of work"
