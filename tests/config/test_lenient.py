"""What a user plainly means works, with one line: what an option switches off takes along what hangs on it."""

from __future__ import annotations

import pytest

from align_jax.config import Config, load_config
from align_jax.config.early import check_early
from align_jax.config.packaged import packaged_configs
from align_jax.config.source import ConfigValues, parse_overrides
from align_jax.recipes import before

DPO = {"model": {"path": "a"}, "data": {"train": "x", "eval": "y"}, "objective": {"name": "dpo"}}
GDPO = {**DPO, "objective": {"name": "gdpo", "divergence": "js", "statement": "authors"}}


def said(values: dict, option: str) -> tuple[Config, list[str]]:
    source, overrides = ConfigValues.of(values), parse_overrides([option])
    check_early(source, overrides)
    config = load_config(source, overrides)
    config, off = config.for_training()
    return config, [*config.source.notes, *off]


@pytest.mark.parametrize(
    "values, option, gone",
    [
        ({**DPO, "log": {"samples_every": 5, "samples_prompts": 2}}, "--log.samples_every=null", ["log.samples_prompts"]),
        ({**DPO, "reference": {"live": True, "sync_every": 5, "mix": 0.5}}, "--reference.live=false", ["sync_every", "mix"]),
        ({**DPO, "reference": {"live": True, "sync_every": 5, "mix": 0.5}}, "--reference.sync_every=null", ["reference.mix"]),
        (
            {**DPO, "checkpoint": {"best_metric": "eval/loss"}, "train": {"eval_every": 5, "patience": 2}},
            "--checkpoint.best_metric=null",
            ["train.patience"],
        ),
        (
            {**DPO, "checkpoint": {"best_metric": "eval/loss"}, "train": {"eval_every": 5, "patience": 2}},
            "--train.eval_every=null",
            ["train.patience"],
        ),
        (
            {**DPO, "checkpoint": {"best_metric": "eval/loss"}, "train": {"eval_every": 5, "patience": 2}},
            "--data.eval=null",
            ["train.eval_every", "train.patience", "checkpoint.best_metric"],
        ),
        ({**GDPO, "data": {**GDPO["data"], "target_shrink": "group"}}, "--data.target=given", ["data.target_shrink"]),
        (GDPO, "--objective.calibration_weight=0", ["objective.divergence"]),
        (GDPO, "--objective.belief_weight=0", ["objective.statement"]),
        ({**DPO, "objective": {"name": "gdpo", "preference": "mpo", "alpha": 0.2}}, "--objective.preference=dpo", ["alpha"]),
        ({**DPO, "objective": {"name": "gdpo", "condition": "distribution"}}, "--objective.latent_beliefs=true", ["condition"]),
    ],
)
def test_an_option_that_switches_off_takes_along_what_hangs_on_it(values, option, gone):
    _, lines = said(values, option)
    assert len(lines) == len(gone)
    for key, line in zip(gone, lines, strict=True):
        assert f"{key}: " in line


def test_a_shipped_config_runs_for_few_steps_without_evaluation(monkeypatch):
    monkeypatch.setenv("ALIGN_JAX_DATA", "/nowhere")
    lines: list[str] = []
    monkeypatch.setattr(before, "say", lines.append)
    for name, path in packaged_configs().items():
        config = load_config(path, parse_overrides(["--train.steps=4", "--data.eval=null"]))
        if config.rounds is not None or config.objective is None:
            continue
        config, off = config.for_training()
        assert config.train.eval_every is None and len(off) <= 4, name
        before.report_warmup(config, 4)
    assert "optimizer.warmup_steps: 10 is more than the 4 steps of the run, and was cut to 1" in lines
