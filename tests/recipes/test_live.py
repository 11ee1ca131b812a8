"""Training with a live reference as a user runs it: the table's numbers, a reference that moves, stopped and resumed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from align_jax.config import Config
from align_jax.config.sections import ReferenceConfig
from align_jax.errors import UserError
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.round_job import Job
from align_jax.training.logs import read_metrics
from tests.recipes.test_train import STEPS, parameters, train, whole, world  # noqa: F401

LIVE = ("--reference.live", "true")
MOVES = (*LIVE, "--reference.sync_every", 2, "--reference.mix", 0.6)


def test_rounds_hand_the_reference_on_as_it_was_asked_for():
    config = Config.of(
        {
            "model": {"path": "a/model"},
            "data": {"train": "a.jsonl", "eval": "b.jsonl"},
            "objective": {"name": "mpo"},
            "rounds": {"number": 2, "reward_model": "a/reward", "reference": "run"},
            "reference": {"live": True, "sync_every": 2, "cache_dir": "kept"},
        }
    )
    job = Job(config, "a/model", [], None)
    assert job.reference() == ReferenceConfig(path="a/model", live=True, sync_every=2, cache_dir="kept")
    of_round = dataclasses.replace(config, rounds=dataclasses.replace(config.rounds, reference="round"))
    assert dataclasses.replace(job, config=of_round).reference() == config.reference


@pytest.mark.slow
def test_a_live_reference_gives_what_the_table_gives_and_may_take_its_place(world, whole, capsys):  # noqa: F811
    folder, config = world
    run = folder / "live"
    assert train(config, "--run.dir", run, "--train.steps", 2, "--data.eval", "null") == 0
    assert train(config, "--run.dir", run, *LIVE, "--data.eval", "null") == 0
    said = capsys.readouterr()
    assert "is in memory beside the policy" in said.out + said.err
    step, arrays = parameters(run)
    assert step == STEPS and not any(name.startswith("reference") for name in arrays)
    for name, value in parameters(whole)[1].items():
        np.testing.assert_allclose(arrays[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    for one, two in zip(read_metrics(run / "metrics.jsonl"), read_metrics(whole / "metrics.jsonl")[1:], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_reference_that_moves_resumes_bit_for_bit(world, whole):  # noqa: F811
    folder, config = world
    for run, stops in (("moving", (STEPS,)), ("moving-stopped", (3, STEPS))):
        for steps in stops:
            assert train(config, "--run.dir", folder / run, *MOVES, "--train.steps", steps) == 0
    (_, first), (_, second) = (parameters(folder / run) for run in ("moving", "moving-stopped"))
    assert first.keys() == second.keys() and {name for name in first if name.startswith("reference.")}
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name
    policy, reference = first["trainable.embed"], first["reference.embed"]
    assert np.any(policy != reference)
    last = read_metrics(folder / "moving" / "metrics.jsonl")[-1]
    still = read_metrics(whole / "metrics.jsonl")[-1]
    assert last["eval/rewards/margins"] not in (0, still["eval/rewards/margins"])  # measured from where the reference is
    other = Config.of(RunFolder(folder / "moving").config, "reference.mix=0.5", f"run.dir={folder / 'moving'}")
    with pytest.raises(UserError, match="reference.mix=0.6, but reference.mix=0.5 was given"):
        RunFolder(folder / "moving").check(other)


@pytest.mark.slow
def test_a_reference_of_few_bits_is_near_the_policy_and_the_same_live_and_as_a_table(world, whole, capsys):  # noqa: F811
    folder, config = world
    few = ("--reference.quantize", "int8", "--data.eval", "null", "--train.steps", 3)
    for name, more in (("few", ()), ("few-live", LIVE)):
        assert train(config, "--run.dir", folder / name, *few, *more) == 0
    assert "is in memory beside the policy, in int8" in capsys.readouterr().err
    found = [[line["loss"] for line in read_metrics(folder / name / "metrics.jsonl")] for name in ("few", "few-live")]
    plain = [line["loss"] for line in read_metrics(whole / "metrics.jsonl")[1:4]]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[0], plain, rtol=1e-2)
    margins = [read_metrics(folder / name / "metrics.jsonl")[0]["rewards/margins"] for name in ("few", "few-live")]
    assert margins[0] != 0 and margins[1] == pytest.approx(margins[0], rel=1e-3)  # of a reference that were the policy, 0
    assert train(config, "--run.dir", folder / "few-live", *few[:4], *LIVE) == 0  # goes on from step 3
    assert train(config, "--run.dir", folder / "refused", "--reference.path", folder / "few", *few) == 2
    assert "is a run; weights in few bits are read from Hugging Face's format" in capsys.readouterr().err
