"""`align-jax checkpoints`: what there is, and whether it is whole."""

import json
import os

import jax.numpy as jnp
import pytest

from align_jax.cli import main
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.manifest import MANIFEST


@pytest.fixture
def run(tmp_path):
    with Checkpointer(tmp_path / "checkpoints", keep=5) as checkpointer:
        for step in (2, 4, 10):
            checkpointer.save(step, {"w": jnp.ones(2000)}, {"run": "cafe"}, {"loss": 1 / step, "eval/loss": float("nan")})
    return tmp_path


def test_checkpoints_are_listed_with_what_is_wrong_with_them(run, capsys):
    (run / "checkpoints/2" / MANIFEST).unlink()
    (run / "checkpoints/12.orbax-checkpoint-tmp-3").mkdir()
    assert main(["checkpoints", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["step"] for one in found] == [2, 4, 10, 12]
    assert [one["state"] for one in found] == ["unlisted", "whole", "whole", "unfinished"]
    assert found[1]["metrics"] == {"loss": 0.25, "eval/loss": None} and found[1]["run"] == "cafe"
    assert found[1]["bytes"] > 8000 and 0 <= found[1]["age_s"] < 600
    largest = max((p for p in (run / "checkpoints/10").rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, 100)
    assert main(["checkpoints", str(run)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "age", "size", "state", "metrics"]
    assert lines[2].split()[0] == "4" and lines[2].endswith("whole  loss 0.25")
    name = largest.relative_to(run / "checkpoints/10")
    assert lines[3].split()[0] == "10" and f"damaged  its file {name} has 100 bytes" in lines[3]


def test_a_folder_without_checkpoints_is_refused(tmp_path, capsys):
    assert main(["checkpoints", str(tmp_path)]) == 2
    assert main(["checkpoints", str(tmp_path / "nowhere")]) == 2
    assert "no checkpoint yet" in (said := capsys.readouterr().err) and "nowhere: no such folder" in said
