"""What a run that began before a choice was there goes on with."""

from __future__ import annotations

import dataclasses
import re

import pytest

from align_jax.config import Config
from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.recipes.before import made_already, report_unheld, with_its_choices
from align_jax.recipes.folder import RunFolder
from align_jax.training.manifest import write_manifest

BASE = {"model": {"path": "a/model"}, "data": {"train": "rows.jsonl"}, "objective": {"name": "dpo"}}


def begun(tmp_path, text: str) -> RunFolder:
    """A folder with a checkpoint, and this as its config."""
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(text)
    return RunFolder(tmp_path)


@pytest.fixture
def config(tmp_path):
    return Config.of(BASE, "optimizer.weight_decay=0.1", f"run.dir={tmp_path}")


def test_a_fresh_model_that_no_family_holds_is_told_before_it_is_trained(config, capsys):
    fresh = dataclasses.replace(config, model=dataclasses.replace(config.model, path=None))
    shape = ModelConfig(vocab_size=64, width=8, mlp_width=8, layers=2, heads=2, kv_heads=1, head_size=4)
    report_unheld(fresh, shape)
    report_unheld(config, dataclasses.replace(shape, experts=2, active_experts=1, fused=True))
    assert not capsys.readouterr().err
    report_unheld(fresh, dataclasses.replace(shape, experts=2, active_experts=1, fused=True))
    assert "the model cannot be exported" in capsys.readouterr().err


def test_a_new_run_decays_matrices_and_keeps_to_it(config, tmp_path, capsys):
    fresh = with_its_choices(config, RunFolder(tmp_path))
    assert fresh.optimizer.decayed == "matrices"
    folder = begun(tmp_path, fresh.to_yaml())
    again = with_its_choices(config, folder)
    assert again == fresh and not capsys.readouterr().err
    folder.check(again)


def test_a_run_of_before_goes_on_with_the_embeddings_and_says_so(config, tmp_path, capsys):
    folder = begun(tmp_path, re.sub(r" +decayed: .*\n", "", config.to_yaml()))
    assert "decayed" not in (tmp_path / "config.yaml").read_text()
    resumed = with_its_choices(config, folder)
    assert resumed.optimizer.decayed == "embeddings"
    assert "optimizer.decayed: embeddings, since this run began when" in capsys.readouterr().err
    folder.check(resumed)
    with pytest.raises(UserError, match="optimizer.decayed='embeddings', but optimizer.decayed='matrices' was given"):
        folder.check(with_its_choices(Config.of(config, "optimizer.decayed=matrices"), folder))


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_without_weight_decay_there_is_nothing_to_choose(tmp_path, optimizer):
    plain = Config.of(BASE, f"run.dir={tmp_path}", f"optimizer.name={optimizer}")
    folder = begun(tmp_path, re.sub(r" +decayed: .*\n", "", plain.to_yaml()))
    assert with_its_choices(plain, folder) == plain
    folder.check(plain)


@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "in a mixture"])
def test_wpo_keeps_the_alignment_that_its_run_began_with(config, tmp_path, capsys, mixed):
    values = [{"name": "sft", "weight": 0.1}, {"name": "wpo", "weight": 1.0}] if mixed else {"name": "wpo"}
    config = Config.of({**BASE, "objective": values}, f"run.dir={tmp_path}")
    of = lambda config: getattr(config.objective, "terms", (config.objective,))[-1].alignment  # noqa: E731
    fresh = with_its_choices(config, RunFolder(tmp_path))
    assert of(config) is None and of(fresh) == "sampled"
    folder = begun(tmp_path, re.sub(r" +alignment: .*\n", "", config.to_yaml()))
    resumed = with_its_choices(config, folder)
    assert of(resumed) == "none" and "objective.alignment: none, as this run began" in capsys.readouterr().err
    folder.check(resumed)
    with pytest.raises(UserError, match="alignment='none', but objective.*alignment='sampled' was given"):
        folder.check(fresh)


def test_a_copy_that_was_broken_off_is_not_the_end_of_a_run(tmp_path):
    plain = Config.of(BASE, f"run.dir={tmp_path}", "train.steps=4")
    folder, newest = begun(tmp_path, plain.to_yaml()), tmp_path / "checkpoints" / "4"
    assert made_already(folder, plain) is None
    (newest / "weights").write_bytes(bytes(100))
    write_manifest(newest)
    assert made_already(folder, plain) == 4
    (newest / "weights").write_bytes(bytes(50))
    assert made_already(folder, plain) is None


def test_checkpoints_without_the_config_of_their_run_are_refused(tmp_path):
    plain = Config.of(BASE, f"run.dir={tmp_path}")
    folder = begun(tmp_path, plain.to_yaml())
    folder.check(plain)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match="holds checkpoints, and no config.yaml that says of which run; put it back"):
        RunFolder(tmp_path).check(plain)
