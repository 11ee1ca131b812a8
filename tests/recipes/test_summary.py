"""What is said of a run: its evaluations as they come, and its summary."""

from __future__ import annotations

import dataclasses

import pytest

from align_jax.config import Config
from align_jax.recipes import summary
from align_jax.recipes.rounds import Rounds
from align_jax.recipes.say import part_of_a_job, speaking
from align_jax.recipes.summary import Told, evaluation_line, evaluation_table, loss_line, next_commands, rounds_table
from align_jax.recipes.train import Run

FIRST = {"step": 0, "eval/loss": 0.6931, "eval/rewards/accuracies": 0.5, "eval/rewards/margins": 0.0,
         "eval/logps/chosen": -100.0}  # fmt: skip
LAST = {"step": 30, "loss": 0.5, "eval/loss": 0.61, "eval/rewards/accuracies": 0.71, "eval/rewards/margins": 0.8,
        "eval/logps/chosen": -120.5}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    rows = "pairs.jsonl"
    return Config.of({"run": {"dir": str(tmp_path / "my run")}, "model": {"path": "m"}, "objective": {"name": "dpo"},
                      "data": {"train": rows, "eval": rows, "format": "pairs"}})  # fmt: skip


def test_an_evaluation_is_one_line_with_its_change():
    assert evaluation_line(0, FIRST, None) == "step 0: eval loss 0.693, accuracy 0.500, margin 0.000, before training"
    assert evaluation_line(30, LAST, FIRST) == (
        "step 30: eval loss 0.610 (0.693 before training), accuracy 0.710 (0.500), margin 0.800 (0.000)"
    )
    resumed = evaluation_line(30, LAST, FIRST | {"step": 10, "eval/loss": None})
    assert resumed == "step 30: eval loss 0.610, accuracy 0.710 (0.500 at step 10), margin 0.800 (0.000)"
    gdpo = evaluation_line(5, {"eval/loss": 2.0, "eval/beliefs/js_distance": 0.1234, "eval/beliefs/mass": 0.9}, None)
    assert gdpo == "step 5: eval loss 2.000, belief distance 0.123"
    assert evaluation_line(5, {"eval/mine": 1.0, "time/eval_seconds": 3.0}, None) == "step 5: mine 1.000"


def test_several_sets_are_told_one_after_the_other():
    first = {"step": 0, "eval/a/loss": 0.7, "eval/a/rewards/accuracies": 0.5, "eval/b/loss": 0.8, "eval/text/loss": 1.5,
             "eval/a/loss/part": 1.0}  # fmt: skip
    last = {**first, "step": 9, "eval/b/loss": 0.6, "eval/text/forgotten": 0.2}
    assert evaluation_line(9, last, first) == (
        "step 9: a: eval loss 0.700 (0.700 before training), accuracy 0.500 (0.500); b: eval loss 0.600 (0.800); "
        "loss on texts 1.500 (1.500)"
    )
    names = [line.split("  ")[0] for line in evaluation_table(first, last).splitlines()[2:]]
    assert names == ["a: eval loss", "a: accuracy", "b: eval loss", "loss on texts"]


def test_the_loss_is_a_mean_at_both_ends():
    history = [{"step": n, "loss": float(n)} for n in range(1, 41)] + [{"step": 41, "loss": None}]
    assert loss_line(history) == "loss     5.500 -> 35.500 (means of the first and the last 10 logged steps)"
    assert loss_line(history[:3]) == "loss     1.000 -> 3.000 (the first and the last logged step)"
    assert loss_line([FIRST]) == ""


def test_the_table_has_what_both_evaluations_have():
    lines = evaluation_table(FIRST | {"eval/beliefs/mass": 1.0}, LAST).splitlines()
    assert lines[0].split() == ["before", "training", "at", "step", "30", "change"]
    assert [line.split() for line in lines[2:]] == [
        ["eval", "loss", "0.693", "0.610", "-0.083"],
        ["accuracy", "0.500", "0.710", "+0.210"],
        ["margin", "0.000", "0.800", "+0.800"],
        ["log-prob", "of", "the", "chosen", "-100.0", "-120.5", "-20.500"],
    ]
    assert evaluation_table({"step": 0}, LAST) == ""


def test_the_next_commands_can_be_pasted(config, tmp_path):
    folder = tmp_path / "my run"
    evaluate, generate, export = next_commands(config, folder)
    assert evaluate == f"align-jax evaluate '{folder}'"
    assert generate == f"align-jax generate '{folder}' --prompt \"Once upon a time\""
    assert export == f"align-jax export '{folder}' '{folder}/export'"
    reward = dataclasses.replace(config, objective=Config.of({"objective": {"name": "reward"}}).objective)
    assert [line.split()[1] for line in next_commands(reward, folder)] == ["evaluate", "export"]
    for none in (None, Config.of({"data": {"train": [{"prompt": "a"}]}}).data.train):  # a command cannot read rows of Python
        no_data = dataclasses.replace(config, data=dataclasses.replace(config.data, eval=none))
        assert [line.split()[1] for line in next_commands(no_data, folder)] == ["generate", "export"]


def test_a_run_is_told(config, tmp_path, capsys, monkeypatch):
    clock = iter([0.0, 10.0, 13.0, 20.0, 22.5, 200.0])
    told = Told(config, lambda: next(clock))
    found = [told.measured(lambda params, m=metrics: dict(m))({}) for metrics in (FIRST, LAST)]
    assert [metrics["time/eval_seconds"] for metrics in found] == [3.0, 2.5]
    told.evaluated(0, found[0])
    told.evaluated(30, found[1])
    monkeypatch.setattr(summary, "so_far", lambda: told._before)
    told.notes.append("a note")
    told.end(tmp_path, [FIRST, {"step": 1, "loss": 0.7}, LAST])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 0: ") and lines[1].startswith("step 30: eval loss 0.610 (0.693 before training)")
    assert lines[2:4] == ["  took     3 min 20 s, of that 5.5 s in 2 evaluations",
                          "  loss     0.700 -> 0.500 (the first and the last logged step)"]  # fmt: skip
    assert [line.split()[0] for line in lines[6:]] == (
        ["eval", "accuracy", "margin", "log-prob", "a", "folder", "picture", "next", "align-jax", "align-jax", "align-jax"]
    )
    assert (tmp_path / "curves.png").exists() and max(map(len, lines[2:10])) < 80


def test_a_part_of_a_job_and_a_quiet_one_say_no_summary(config, tmp_path, capsys):
    for within in (part_of_a_job(), speaking(True)):
        (tmp_path / "curves.png").unlink(missing_ok=True)
        with within:
            Told(config).end(tmp_path, [FIRST, LAST])
        assert (tmp_path / "curves.png").exists() and capsys.readouterr().err == ""


def test_no_picture_where_none_is_wanted(config, tmp_path, capsys):
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, plots=False))
    Told(config).end(tmp_path, [FIRST, LAST])
    assert not (tmp_path / "curves.png").exists() and "  picture " not in capsys.readouterr().err


def test_a_run_and_rounds_are_printed(tmp_path):
    run = Run(tmp_path, 30, True, {}, [FIRST, {"step": 1, "loss": 0.7}, LAST])
    lines = repr(run).splitlines()
    assert lines[0] == f"Run in {tmp_path}: 30 steps, finished" and lines[1].startswith("loss     0.700 -> 0.500")
    assert str(run) == repr(run) and "accuracy" in lines[5]
    unfinished = repr(Run(tmp_path, 0, False, {}, []))
    assert unfinished == f"Run in {tmp_path}: 0 steps, not finished; train(config) goes on"
    line = {f"eval/{name}{end}": value for name in ("reward", "gain", "kl") for end, value in
            (("", 0.5), ("_low", 0.25), ("_high", 0.75))}  # fmt: skip
    history = [{"round": number, "eval/length": 12.4, **line} for number in (0, 1)]
    table = [[cell for cell in line.split("  ") if cell] for line in rounds_table(history).splitlines()]
    interval = "0.500 [0.250, 0.750]"
    assert [[cell.strip() for cell in line] for line in table[2:]] == [
        ["start", interval, "0.5", "12"], ["1", interval, interval, "0.5", "12"]
    ]  # fmt: skip
    assert repr(Rounds(tmp_path, True, history)).splitlines()[0] == f"Rounds in {tmp_path}: 1 made, finished"
