"""The life of a run: stopped, saved, refused, resumed with more steps, ended early; and what its folder holds then."""

import dataclasses
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import align_jax
from align_jax.cli import main
from align_jax.cost.compilations import so_far
from align_jax.errors import UserError
from align_jax.lock import Holder
from align_jax.parallel.stop import StopSignal
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.in_training import InTraining
from align_jax.recipes.source import StoredModel
from align_jax.recipes.summary import Told
from align_jax.recipes.training import Training
from align_jax.training.logs import read_metrics
from align_jax.training.logs.sink import Sink
from tests.recipes.test_train import STEPS, assert_same_run, environment, train, wait_for_step, whole, world  # noqa: F401

NO_EVAL = ("--data.eval", "null")


class PressCtrlC(Sink):
    """Presses Ctrl-C once, when a step is logged; the handlers that are there hear it."""

    at = 3

    def write(self, step, metrics):
        if step == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_in_python_ctrl_c_saves_and_is_raised_again_and_the_same_call_goes_on(world, whole):  # noqa: F811
    _, config = world
    folder, handler = whole.with_name("pressed"), signal.getsignal(signal.SIGINT)
    pressed = align_jax.Config.of(config, f"run.dir={folder}", f"log.sinks=[{__name__}:PressCtrlC]")
    with pytest.raises(KeyboardInterrupt):
        align_jax.train(pressed)
    assert signal.getsignal(signal.SIGINT) is handler
    assert RunFolder(folder).steps[-1] == PressCtrlC.at + 1  # the step that was being computed when the one before was logged
    run = align_jax.train(align_jax.Config.of(config, f"run.dir={folder}"))
    assert run.finished and run.steps == STEPS
    assert_same_run(whole, folder)


@pytest.mark.slow
def test_ctrl_c_in_the_terminal(world):  # noqa: F811
    folder, config = world
    run = folder / "terminal"
    command = [sys.executable, "-m", "align_jax", "train", str(config), "--run.dir", str(run), "--train.steps", "100000"]
    process = subprocess.Popen([*command, *NO_EVAL], env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_step(run, 3, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in said
    last = read_metrics(run / "metrics.jsonl")[-1]["step"]
    assert "stopping after this step; Ctrl-C again stops now" in said
    assert f"stopped by Ctrl-C after step {last} of 100000; checkpoint saved" in said
    assert RunFolder(run).steps[-1] == last and not (run / ".lock").exists()


def test_a_second_run_in_the_folder_is_refused_until_the_first_is_gone(world, capsys):  # noqa: F811
    folder, config = world
    run = folder / "taken"
    code = """
import sys
from pathlib import Path
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.in_training import InTraining
from align_jax.recipes.source import StoredModel
from align_jax.recipes.training import Training
with RunFolder(Path(sys.argv[1])).claimed():
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(run)]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n", first.stderr.read()
        assert train(config, "--run.dir", run, *NO_EVAL) == 2
        assert f"run.dir: {run} is in use by process {first.pid} on " in capsys.readouterr().err
        first.kill()
    assert train(config, "--run.dir", run, "--train.steps", 1, *NO_EVAL) == 0
    assert f"process {first.pid} on " in (said := capsys.readouterr().err) and "is gone: its lock is taken over" in said
    assert not (run / ".lock").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        (("--data.train", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--data.eval", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--checkpoint.best_metric", "eval/loss"), "is measured every train.eval_every=None steps"),
        (("--data.prompt_template", "{prompt} {context}"), "prompt_template uses"),
        (("--train.patience", "2"), "--train.patience: 2 evaluations without a better checkpoint.best_metric"),
    ],
)
def test_a_refused_run_leaves_nothing(world, capsys, more, message):  # noqa: F811
    folder, config = world
    assert train(config, "--run.dir", folder / "new" / "refused", *more) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "new").exists()


def test_ctrl_c_before_the_first_step_stops_at_once_and_leaves_nothing(world, monkeypatch):  # noqa: F811
    folder, config = world
    monkeypatch.setattr("align_jax.recipes.train.in_training_evaluation", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        align_jax.train(align_jax.Config.of(config, f"run.dir={folder / 'early'}"))
    assert not (folder / "early").exists()


def test_sigterm_before_the_first_step_stops_at_once_and_leaves_nothing(world, monkeypatch, capsys):  # noqa: F811
    folder, config = world
    monkeypatch.setattr("align_jax.recipes.train.in_training_evaluation", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        align_jax.train(align_jax.Config.of(config, f"run.dir={folder / 'ended'}"))
    assert ended.value.code == 143 and "stopped by SIGTERM; nothing is lost that was made" in capsys.readouterr().err
    assert not (folder / "ended").exists()


def test_a_sigterm_that_several_processes_agree_on_while_they_start_is_said(world, monkeypatch, capsys):  # noqa: F811
    """They cannot stop at once, each by itself: they ask between the parts of a start, with which compilation begins."""
    folder, config = world
    monkeypatch.setattr(StopSignal, "requested", lambda stop: True)
    with pytest.raises(SystemExit) as ended:
        align_jax.train(align_jax.Config.of(config, f"run.dir={folder / 'starting'}"))
    said = capsys.readouterr().err
    assert ended.value.code == 143 and "stopped by SIGTERM before a step of this start" in said
    assert "data.train" not in said and not (folder / "starting").exists()


def test_a_run_that_has_all_its_steps_reads_neither_model_nor_data(world, whole, capsys, monkeypatch):  # noqa: F811
    _, config = world
    monkeypatch.setattr("align_jax.recipes.train.Setup.of", lambda *_: pytest.fail("the model is read"))
    assert train(config, "--run.dir", whole) == 0
    assert f"{whole} is complete: step 6 of 6" in capsys.readouterr().err


def test_what_stood_in_the_folder_of_a_refused_run_stays(world):  # noqa: F811
    folder, config = world
    run = folder / "mine"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    (run / "config.yaml").write_text("of an earlier start")
    assert train(config, "--run.dir", run, "--data.train", "nowhere.jsonl") == 2
    left = {path.name: path.read_text() for path in run.iterdir()}
    assert left == {"notes.txt": "mine", "config.yaml": "of an earlier start"}


def test_another_beta_is_refused_before_model_and_data_are_read(world, whole, capsys, monkeypatch):  # noqa: F811
    _, config = world
    monkeypatch.setattr("align_jax.recipes.train.Setup.of", lambda *_: pytest.fail("the model is read"))
    assert train(config, "--run.dir", whole, "--objective.beta", 0.7) == 2
    assert "objective.beta=0.1, but objective.beta=0.7" in capsys.readouterr().err


def test_what_is_compared_with_of_a_reference_is_what_its_files_hold(tmp_path):
    source = StoredModel.__new__(StoredModel)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    object.__setattr__(source, "folder", tmp_path)
    object.__setattr__(source, "shape", SimpleNamespace(quantize=None))
    config = SimpleNamespace(objective=SimpleNamespace(needs_reference=True))
    found = []
    for content in (b"weights", b"others!", b"weights"):
        (tmp_path / "model.safetensors").write_bytes(content)
        setup = SimpleNamespace(live=None, config=config, reference=source)
        found.append(Training(setup, None, None, 1, None, None).compared_with)
    assert found[0] == found[2] != found[1]
    setup.config.objective.needs_reference = False
    assert Training(setup, None, None, 1, None, None).compared_with is None


def test_metrics_that_no_checkpoint_has_are_kept(world, capsys):  # noqa: F811
    folder, config = world
    run = folder / "killed"
    run.mkdir()
    texts = '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n', '{"step": 1, "loss": 9.0}\n'
    for number, text in enumerate(texts, start=1):
        (run / "metrics.jsonl").write_text(text)
        align_jax.train(align_jax.Config.of(config, f"run.dir={run}", "train.steps=1", "data.eval=null", "log.quiet=false"))
        assert (run / f"metrics.jsonl.{number}").read_text() == text
        assert f"they are kept as {run}/metrics.jsonl.{number}" in capsys.readouterr().err
        assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1]
        (run / "checkpoints").rename(run / f"elsewhere{number}")


@pytest.mark.slow
def test_more_steps_compile_nothing_and_what_becomes_of_the_schedule_is_said(world, capsys):  # noqa: F811
    folder, config = world
    common = ("--run.dir", folder / "longer", *NO_EVAL, "--optimizer.schedule", "cosine", "--optimizer.warmup_steps", 3)
    assert train(config, *common, "--train.steps", 2) == 0
    assert "optimizer.warmup_steps: 3 is more than the 2 steps of the run, and was cut to 1" in capsys.readouterr().err
    # What a start that resumes needs beside the step, such as a restored state, is compiled once.
    assert train(config, *common, "--train.steps", 4) == 0
    said = capsys.readouterr().err
    assert "the cosine schedule ends at step 4 now, not 2: step 3 goes on at a learning rate of 0.01 instead of 0" in said
    before = so_far()
    assert train(config, *common, "--train.steps", 9) == 0
    assert (so_far() - before).compiled == 0
    rates = [line["learning_rate"] for line in read_metrics(folder / "longer" / "metrics.jsonl")]
    assert len(rates) == 9 and rates[-1] == pytest.approx(1e-2 * 0.067, rel=0.01)  # the last but one of the cosine to step 9
    assert train(config, *common, "--train.steps", 5) == 0
    assert "has 9 steps already, and train.steps is 5: nothing to do" in capsys.readouterr().err


@pytest.mark.slow
def test_more_steps_keep_their_rates_where_the_schedule_keeps_its_length(world, capsys):  # noqa: F811
    folder, config = world
    common = ("--run.dir", folder / "kept", *NO_EVAL, "--optimizer.schedule", "cosine", "--train.steps")
    assert train(config, *common, 4) == 0
    capsys.readouterr()
    assert train(config, *common, 6) == 0
    assert "optimizer.schedule_steps: 4 keeps it as it was" in capsys.readouterr().err
    shutil.rmtree(folder / "kept")
    assert train(config, *common, 4) == 0
    assert train(config, *common, 6, "--optimizer.schedule_steps", 4) == 0
    assert "schedule ends" not in capsys.readouterr().err
    rates = [line["learning_rate"] for line in read_metrics(folder / "kept" / "metrics.jsonl")]
    assert rates == pytest.approx([1e-2 * (1 + np.cos(np.pi * min(t, 4) / 4)) / 2 for t in range(6)], abs=1e-9)


def test_without_evaluations_what_needs_them_is_off_and_said(world, capsys):  # noqa: F811
    folder, config = world
    best = ("--checkpoint.best_metric", "eval/loss", "--train.patience", 3)
    assert train(config, "--run.dir", folder / "off", "--train.steps", 1, "--train.eval_every", 1, *best, *NO_EVAL,
                 "--data.eval_split", "dev") == 0  # fmt: skip
    said = capsys.readouterr().err
    for key in ("train.eval_every: 1", "train.patience: 3", "checkpoint.best_metric: eval/loss", "data.eval_split: dev"):
        assert f"{key} is off, since data.eval is not set" in said
    assert "eval/loss" not in read_metrics(folder / "off" / "metrics.jsonl")[-1]


@pytest.mark.slow
def test_patience_ends_a_run_also_over_a_resume_and_the_best_checkpoint_is_exported(world, capsys):  # noqa: F811
    """The loss of evaluations falls from step to step, so the largest one is that of step 1."""
    folder, config = world
    run, out = folder / "patient", folder / "best"
    options = ("--run.dir", run, "--train.eval_every", 1, "--checkpoint.best_metric", "eval/loss",
               "--checkpoint.best_mode", "max", "--checkpoint.every", "null", "--checkpoint.keep", 1)  # fmt: skip
    assert train(config, *options, "--train.steps", 2, "--train.patience", 3) == 0
    assert train(config, *options, "--train.steps", 9, "--train.patience", 3) == 0
    said = capsys.readouterr().err
    assert "ended early: eval/loss was largest at step 1 (" in said and "no better in 3 evaluations since" in said
    assert "the checkpoint with the best eval/loss is that of step 1" in said
    assert f"align-jax export {run} {run}/export --step best" in said
    assert RunFolder(run).steps == [1, 4]
    assert train(config, *options, "--train.steps", 9, "--train.patience", 3) == 0
    assert "ended early at step 4: nothing to do; train.patience above 3 goes on" in capsys.readouterr().err
    assert main(["export", str(run), str(out), "--step", "best"]) == 0
    assert f"exported step 1 of {run}" in capsys.readouterr().err
    assert main(["export", str(run), str(out)]) == 2
    assert "holds a model already; give another folder, or replace it with --overwrite" in capsys.readouterr().err
    assert main(["export", str(run), str(out), "--overwrite"]) == 0
    assert f"exported step 4 of {run}" in capsys.readouterr().err


def test_best_needs_a_metric(whole):  # noqa: F811
    with pytest.raises(UserError, match="was trained without checkpoint.best_metric; give a step, one of"):
        align_jax.export(whole, whole / "out", "best")


def test_bad_rows_are_listed_once_the_run_has_begun(world):  # noqa: F811
    folder, config = world
    lines = (folder / "train.jsonl").read_text().splitlines()
    (folder / "mixed.jsonl").write_text("\n".join([*lines[:30], "{}"]) + "\n")
    mixed = ("--run.dir", folder / "mixed", "--data.train", folder / "mixed.jsonl", "--data.on_bad_row", "skip")
    assert train(config, *mixed, "--data.eval", "nowhere.jsonl") == 2
    assert not (folder / "mixed").exists()
    assert train(config, *mixed, "--train.steps", 1, *NO_EVAL) == 0
    assert len((folder / "mixed" / "bad_rows.train.jsonl").read_text().splitlines()) == 1


def test_a_checkpoint_of_another_run_is_refused(world, whole, tmp_path, capsys):  # noqa: F811
    _, config = world
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    mark = RunFolder(run).mark
    (run / "run.json").write_text('{"id": "0badcafe"}')
    assert train(config, "--run.dir", run, "--train.steps", STEPS + 1, *NO_EVAL) == 2
    said = capsys.readouterr().err
    assert f"checkpoints/{STEPS} was written by run {mark}, and {run} is the folder of run 0badcafe" in said
    (run / "run.json").write_text("not json")
    with pytest.raises(UserError, match="run.json: not valid JSON.*; remove the file, and the run takes the id"):
        RunFolder(run).check_written_here(mark, STEPS)
    (run / "run.json").unlink()  # of an earlier version, or removed
    RunFolder(run).check_written_here(None, STEPS)
    assert RunFolder(run).mark is None
    RunFolder(run).check_written_here(mark, STEPS)
    assert RunFolder(run).mark == mark


def test_a_run_whose_folder_was_taken_over_saves_nothing_more(world, tmp_path, capsys):  # noqa: F811
    _, config = world
    run = tmp_path / "run"
    taken = align_jax.Config.of(config, f"run.dir={run}", "data.eval=null", f"log.sinks=[{__name__}:TakeOver]")
    with pytest.raises(UserError, match="was taken over by process 7 on other"):
        align_jax.train(taken)
    assert RunFolder(run).steps == [2]


class TakeOver(Sink):
    """Another machine takes the folder after step 3."""

    def write(self, step, metrics):
        if step == 3:
            holder = dataclasses.replace(Holder.own(), host="other", process=7, token="theirs")
            (self.context.run_dir / ".lock").write_bytes(holder.as_line())


def test_stopped_within_an_evaluation_it_saves_and_the_next_start_makes_it(world, whole, tmp_path, capsys, monkeypatch):  # noqa: F811
    """SIGTERM comes with the first batch of the evaluation of step 4, an hour of them in large."""
    _, config = world
    run, asked = tmp_path / "run", []
    more = ("--run.dir", run, "--train.eval_every", 2, "--train.steps", 4, "--data.eval_split", "null")
    measured = InTraining.__call__

    def stopped(self, *weights):
        asked.append(len(asked))
        if len(asked) == 3:  # before step 1, of steps 2 and 4
            signal.raise_signal(signal.SIGTERM)
        return measured(self, *weights)

    monkeypatch.setattr(InTraining, "__call__", stopped)
    assert train(config, *more) == 0
    said = capsys.readouterr().err
    assert "stopped by SIGTERM after step 4 of 4 within its evaluation, which the next start makes; checkpoint saved" in said
    lines = read_metrics(run / "metrics.jsonl")
    assert RunFolder(run).steps[-1] == 4 and "eval/loss" in lines[2] and "eval/loss" not in lines[4]
    assert train(config, *more) == 0
    again = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in again] == [0, 1, 2, 3, 4] and again[:4] == lines[:4]
    assert again[4] == {**again[4], **{k: v for k, v in lines[4].items() if not k.startswith("time/")}}
    assert np.isfinite(again[4]["eval/loss"]) and len(asked) == 4
    assert train(config, *more) == 0 and "is complete: step 4 of 4" in capsys.readouterr().err


def test_a_program_learns_of_a_sigterm_that_came_when_its_run_was_done(world, monkeypatch):  # noqa: F811
    folder, config = world
    here = f"run.dir={folder / 'late'}"
    config = align_jax.Config.of(config, here, "train.steps=1", "data.eval=null", "train.eval_every=null")
    end = Told.end

    def late(told, *given):
        signal.raise_signal(signal.SIGTERM)
        end(told, *given)

    monkeypatch.setattr(Told, "end", late)
    run = align_jax.train(config)
    monkeypatch.undo()
    assert run.finished and run.stopped and not align_jax.train(config).stopped
