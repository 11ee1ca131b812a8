"""Rounds with a judge that is not trained on: what it says, where rounds end by their KL, and which round is then taken."""

from __future__ import annotations

import json
import shutil

import pytest

from align_jax.config.identity import identity
from align_jax.config.job_sections import RoundsConfig
from align_jax.errors import UserError
from align_jax.recipes import onpolicy, rounds
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.jobs import train as train_in_python
from align_jax.recipes.round_job import EVALUATION
from tests.recipes.test_rounds import options, reward, rows, train, world  # noqa: F401

KL, GOLD = (0.0, 1.0, 3.0, 9.0), (0.1, 0.5, 0.8, 0.2)


@pytest.fixture
def evaluations(monkeypatch):
    """Rounds that only are evaluated, with the numbers above; which rounds were made is in the list."""
    made = []

    def steps_of(job, number):
        def evaluate():
            made.append(number)
            line = {"round": number, "eval/prompts": 5, "eval/samples": 2, "eval/length": 8.0, "eval/finished": 1.0}
            values = {"kl": KL[number], "reward": float(number), "gain": float(number), "gold": GOLD[number], "gold_gain": 0.0}
            for name, value in values.items():
                line |= {f"eval/{name}": value, f"eval/{name}_low": value - 0.1, f"eval/{name}_high": value + 0.1}
            (job.at(number) / "checkpoints" / "4").mkdir(parents=True)
            (job.at(number) / EVALUATION).write_text(json.dumps(line))
            return True

        return [evaluate]

    monkeypatch.setattr(rounds, "steps_of", steps_of)
    monkeypatch.setattr(rounds, "_start_folder", lambda config, root: "start")
    return made


def test_rounds_end_by_their_kl_and_a_higher_limit_goes_on(world, evaluations, tmp_path, capsys):  # noqa: F811
    _, config = world
    given = options(number=3, gold_model="judge")
    assert train(config, tmp_path, *given, "--rounds.kl_stop", 2) == 0
    said = capsys.readouterr().err
    assert evaluations == [0, 1, 2] and len(rows(tmp_path / "rounds.jsonl")) == 3
    assert "the rounds end with round 2 of 3: its KL to the start, 3, is above rounds.kl_stop=2, see" in said
    assert "gold reward 0.800 [0.700, 0.900]" in said and "gold reward [95%]" in said
    assert f"picture  {tmp_path / 'rounds.png'}" in said and (tmp_path / "rounds.png").stat().st_size > 10_000
    assert train(config, tmp_path, *given, "--rounds.kl_stop", 3) == 0
    assert evaluations == [0, 1, 2, 3] and "all rounds are done" not in capsys.readouterr().err
    assert train(config, tmp_path, *given) == 0
    assert evaluations == [0, 1, 2, 3] and "all rounds are done" in capsys.readouterr().err


def test_a_run_that_its_kl_ended_is_finished(world, evaluations, tmp_path):  # noqa: F811
    from align_jax.config import Config

    _, config = world
    given = (f"run.dir={tmp_path}", "rounds.number=3", "rounds.gold_model=judge", "rounds.kl_stop=0.5")
    found = train_in_python(Config.of(config, *given))
    assert found.finished and len(found.history) == 2


def test_the_best_round_is_said_and_taken(world, evaluations, tmp_path, capsys):  # noqa: F811
    _, config = world
    given = options(number=3, gold_model="judge")
    taken = {}
    for by in ("last", "gold", "reward"):
        assert train(config, tmp_path, *given, "--rounds.best", by) == 0
        taken[by] = RunFolder(tmp_path).chosen.path.name, capsys.readouterr().err
    assert {by: name for by, (name, _) in taken.items()} == {"last": "3", "gold": "2", "reward": "3"}
    assert "rounds.best" not in taken["last"][1]
    line = "gold is highest in round 2, 0.800 [0.700, 0.900], KL 3 to the start: export, generate and evaluate take it"
    assert line in taken["gold"][1] and f"{line};" not in taken["gold"][1]
    assert RunFolder(tmp_path).newest.path.name == "3"
    shutil.rmtree(tmp_path / "rounds" / "3" / "checkpoints")
    with pytest.raises(UserError, match="round 3 is the best by reward, but .*3 has no checkpoint any more"):
        _ = RunFolder(tmp_path).chosen


def test_a_best_round_that_is_worse_than_the_start_is_said(world, evaluations, tmp_path, capsys, monkeypatch):  # noqa: F811
    _, config = world
    monkeypatch.setitem(globals(), "GOLD", (0.9, 0.5, 0.8, 0.2))
    assert train(config, tmp_path, *options(number=3, gold_model="judge", best="gold")) == 0
    assert "take it; it is no higher than at the start, 0.900" in capsys.readouterr().err


def test_which_round_is_best():
    lines = [{"eval/gold": gold, "eval/reward": float(n)} for n, gold in enumerate((9.0, 1.0, 2.0, 2.0, 1.0))]
    assert onpolicy.best_round(lines, "gold") == 2  # the start is no round, and of equals the first went less far
    assert onpolicy.best_round(lines, "reward") == onpolicy.best_round(lines, "last") == 4
    assert onpolicy.best_round(lines[:1], "gold") == 0


def test_what_another_judge_gains_is_paired_with_the_start():
    start, now = ([{"scores": [a, a + 1]} for a in values] for values in ((0.0, 10.0, 5.0), (1.0, 11.0, 6.0)))
    found = onpolicy.reward_summary("gold", now, start)
    assert found["eval/gold"] == pytest.approx(6.5) and found["eval/gold_low"] < 6.5 < found["eval/gold_high"]
    assert [found[f"eval/gold_gain{end}"] for end in ("", "_low", "_high")] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"best": "gold"}, "rounds.best: 'gold' needs rounds.gold_model"),
        ({"gold_model": "r"}, "rounds.gold_model: r is rounds.reward_model; give one that is not trained on"),
        ({"kl_stop": 0.0}, "rounds.kl_stop"),
    ],
)
def test_what_cannot_be_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        RoundsConfig(number=1, reward_model="r", **keys)


def test_no_run_is_another_one_for_the_new_keys():
    before = {"rounds": {"number": 1, "reward_model": "r"}}
    after = {"rounds": {**before["rounds"], "gold_model": None, "kl_stop": None, "best": "last"}}
    assert identity(before) == identity(after) != identity({"rounds": {**after["rounds"], "gold_model": "g"}})
