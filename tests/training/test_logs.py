"""Logs: valid JSON lines, a resumed file equal to an uninterrupted one, one progress line, and the two services."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path

import pytest

from align_jax import registry
from align_jax.config.job_sections import LogConfig
from align_jax.errors import UserError
from align_jax.training.logs import MetricsLog, find_sink, progress, read_metrics
from align_jax.training.logs.sink import Sink
from tests.terminals import Terminal


def _metrics(step: int) -> dict[str, float]:
    return {"loss": 1.0 / (step + 1), "rewards/chosen": 0.25, "rewards/rejected": -0.5, "rewards/accuracies": 0.75}


def _run(folder, steps, **options):
    with MetricsLog(folder, total_steps=10, progress=False, **options) as log:
        for step in steps:
            log.log(step, _metrics(step))


def test_one_object_a_step(tmp_path):
    _run(tmp_path / "new" / "run", range(3))
    lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": step, **_metrics(step)} for step in range(3)]


def test_each_line_is_on_disk_at_once(tmp_path):
    log = MetricsLog(tmp_path, total_steps=10, progress=False)
    log.log(1, {"loss": 2.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    log.close()


def test_a_file_that_is_removed_begins_anew(tmp_path, capsys):
    with MetricsLog(tmp_path, total_steps=10, progress=False) as log:
        log.log(1, {"loss": 2.0})
        (tmp_path / "metrics.jsonl").unlink()
        log.log(2, {"loss": 1.0})
        log.log(3, {"loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 3]
    assert capsys.readouterr().err.count("was removed while it was in use: it begins anew at step 2") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_hold_is_null(tmp_path, value):
    with MetricsLog(tmp_path, total_steps=1, progress=False) as log:
        log.log(1, {"loss": value})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path, cut):
    _run(tmp_path / "whole", range(11))
    _run(tmp_path / "killed", range(8))
    path = tmp_path / "killed" / "metrics.jsonl"
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    _run(tmp_path / "killed", range(6, 11), resume_step=5)
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_fresh_start_empties_the_file(tmp_path):
    _run(tmp_path, range(4))
    _run(tmp_path, range(2))
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]


def test_a_broken_line_is_named(tmp_path):
    _run(tmp_path, range(2))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('{"step": 1', '{"stop": 1'))
    with pytest.raises(UserError, match=r"metrics.jsonl:2: not a line of metrics: .*stop"):
        MetricsLog(tmp_path, total_steps=5, resume_step=5)


def test_every_skips_steps_but_never_an_evaluation_or_the_last(tmp_path):
    with MetricsLog(tmp_path, total_steps=10, every=4, progress=False) as log:
        for step in range(11):
            log.log(step, {"loss": 1.0} | ({"eval/loss": 2.0} if step == 5 else {}))
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [0, 4, 5, 8, 10]


def test_an_inactive_log_writes_nothing(tmp_path, capsys):
    with MetricsLog(tmp_path / "run", total_steps=2, active=False) as log:
        log.log(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists() and capsys.readouterr().err == ""


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="run.dir: cannot write to .*file"):
        MetricsLog(tmp_path / "file", total_steps=1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the device that is always full")
def test_a_full_disk_is_a_clear_error(tmp_path):
    log = MetricsLog(tmp_path, total_steps=9, progress=False)
    log._sinks[0]._file = file = open("/dev/full", "a")
    with pytest.raises(UserError, match="cannot write the metrics of step 3: .*No space left"):
        log.log(3, {"loss": 1.0})
    with pytest.raises(OSError):
        file.close()


def _timed(step: int, compiled: float = 0.0) -> dict[str, float]:
    return _metrics(step) | {
        "time/step_seconds": 2.0,
        "time/tokens_per_second": 12_300.0,
        "time/compile_seconds": compiled,
        "memory/peak_bytes": 3 * 2**30,
    }


def test_the_progress_bar_shows_what_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with MetricsLog(tmp_path, total_steps=10, resume_step=4, stream=stream) as log:
        assert stream.screen[-1].startswith("step 4/10 |") and stream.screen[-1].endswith("|")
        for step in range(5, 9):
            log.log(step, _timed(step))
        assert stream.screen == [stream.screen[-1]] and len(stream.screen[-1]) == 119
        numbers = "00:04 left loss 0.11 chosen 0.25 rejected -0.50 acc 0.75 12.3k tok/s 3.00GiB"
        assert stream.screen[-1].startswith("step 8/10 |█") and stream.screen[-1].endswith(f"| {numbers}")
        for step in (9, 10):
            log.log(step, _timed(step))
    assert stream.screen[0].startswith("step 10/10 |█") and "left" not in stream.screen[0] and stream.screen[1:] == [""]


def test_at_80_columns_the_bar_has_room_and_names(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with MetricsLog(tmp_path, total_steps=120, stream=stream) as log:
        for step in range(100, 103):
            log.log(step, _timed(step))
        bar = stream.screen[-1]
    assert len(bar) == 79 and len(bar.split("|")[1]) >= 5
    assert bar.endswith("| 00:36 left loss 0.01 chosen 0.25 rejected -0.50 acc 0.75")


def test_a_terminal_without_block_characters_has_a_bar_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    stream.encoding = "ascii"
    with MetricsLog(tmp_path, total_steps=2, stream=stream) as log:
        log.log(1, _timed(1))
    assert stream.screen[0].isascii() and "|##" in stream.screen[0]


def test_without_a_terminal_there_are_few_plain_lines(tmp_path, monkeypatch):
    clock = iter([float(second) for second in range(100)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with MetricsLog(tmp_path, total_steps=25, stream=stream) as log:
        log.log(0, {"eval/loss": 3.0})
        for step in range(1, 26):
            log.log(step, _timed(step))
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert [line.split(":")[0] for line in lines] == [f"step {step}/25" for step in (1, 11, 21, 25)]
    assert "left" not in lines[0] + lines[3] and lines[1].endswith(", 00:28 left")
    assert lines[1].startswith("step 11/25: loss 0.08 chosen 0.25 rejected -0.50 acc 0.75 12.3k tok/s 3.00GiB")


@pytest.mark.parametrize("term, width", [("dumb", "80"), ("xterm", "0"), ("xterm", "")])
def test_a_terminal_without_a_width_has_plain_lines(tmp_path, monkeypatch, term, width):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", term)
    stream = Terminal()
    with MetricsLog(tmp_path, total_steps=2, stream=stream) as log:
        log.log(1, _timed(1))
    assert "\r" not in stream.getvalue() and stream.screen[0].startswith("step 1/2: loss 0.50")


def test_the_time_left_counts_no_compilation_and_no_first_step():
    pace = progress.Pace(100)
    pace.add({"time/compile_seconds": 5.0, "eval/loss": 1.0})  # before the first step
    for seconds, compiled in ((90.0, 80.0), (40.0, 110.0)):  # the first step, and one that meets a new shape
        pace.add({"time/step_seconds": seconds, "time/compile_seconds": compiled, "time/tokens_per_second": 1.0})
        assert pace.left(10) == "" and pace.tokens_per_second == 0
    for seconds in (1.0, 3.0):
        pace.add({"time/step_seconds": seconds, "time/compile_seconds": 110.0, "time/tokens_per_second": 40 / seconds})
    assert pace.left(10) == "03:00" and pace.tokens_per_second == 20
    pace.add({"time/step_seconds": 60.0, "time/compile_seconds": 111.0})
    assert pace.left(10) == "03:00"


@pytest.mark.parametrize("every, left", [(None, "03:20"), (30, "04:20"), (50, "03:40")])
def test_the_time_left_counts_the_evaluations_to_come(every, left):
    pace = progress.Pace(100, every)
    for seconds in (30.0, 20.0):  # the first one compiled
        pace.add({"time/eval_seconds": seconds, "time/step_seconds": 2.0})
    assert pace.left(10) == left


def test_memory_falls_back_to_the_process():
    parts = progress.numbers({"loss": 1.0, "beliefs/js_distance": 0.0625})
    assert parts[:2] == ["loss 1.00", "js-dist 0.06"] and parts[2].endswith("iB") and float(parts[2][:-3]) > 0


@pytest.mark.parametrize(
    "value, text",
    [(0.694, "0.69"), (-12.34, "-12.3"), (0.0, "0.00"), (1.2e-5, "1e-05"), (1234.5, "1.23e+03"), (float("nan"), "nan")],
)
def test_numbers_are_short(value, text):
    assert progress.short(value) == text


def test_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"log.tensorboard needs tensorboardX: pip install 'align-jax\[tensorboard\]'"):
        _run(tmp_path, range(1, 4), tensorboard=True)


def test_tensorboard_files_hold_the_scalars(tmp_path):
    _run(tmp_path, range(1, 4), tensorboard=True)
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    content = path.read_bytes()
    assert content.count(b"rewards/chosen") == 3 and content.count(b"loss") == 3


class _FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.calls: list = []

    def init(self, **options):
        self.calls.append(("init", options))
        return self

    def log(self, metrics, step):
        self.calls.append(("log", step, metrics))

    def finish(self):
        self.calls.append(("finish",))


def test_weights_and_biases_gets_the_metrics_and_resumes_its_run(tmp_path, monkeypatch):
    fake = _FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    options = {"wandb_project": "p", "wandb_name": "n", "config": {"run": {"seed": 1}}}
    _run(tmp_path, [1], **options)
    _run(tmp_path, [2], resume_step=1, **options)
    kinds = [call[0] for call in fake.calls]
    assert kinds == ["init", "log", "finish"] * 2
    first, second = (call[1] for call in fake.calls if call[0] == "init")
    assert first == second and first["resume"] == "allow" and len(first["id"]) == 32
    assert (first["project"], first["name"], first["config"]) == ("p", "n", {"run": {"seed": 1}})
    assert fake.calls[4] == ("log", 2, _metrics(2))


def test_samples_reach_the_sinks_that_take_them(tmp_path, monkeypatch):
    logged = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **_: run, Table=lambda columns, data: (columns, data))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricsLog(tmp_path, total_steps=9, progress=False, tensorboard=True, wandb_project="p") as log:
        log.samples(3, [{"prompt": "who ?", "response": "you", "tokens": 2}])
    assert logged == [(3, {"samples": (["prompt", "response"], [["who ?", "you"]])})]
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert b"who ?" in path.read_bytes() and (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_missing_wandb_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log.wandb_project needs wandb: pip install 'align-jax\[wandb\]'"):
        MetricsLog(tmp_path, total_steps=1, wandb_project="p")
    with pytest.raises(UserError, match="needs wandb"):
        find_sink("wandb").check()
    find_sink("jsonl").check()


def test_each_file_with_a_sink_is_known_by_its_name():
    assert sorted(registry.table("align_jax.training.logs", Sink)) == ["jsonl", "progress", "tensorboard", "wandb"]


OWN = """
from align_jax.training.logs import find_sink, Sink

class Own(Sink):
    def __init__(self, context):
        self.file = (context.run_dir / "own.txt").open("a")
        self.file.write(f"{context.total_steps} {context.resume_step} {context.config['run']['seed']}\\n")
    def write(self, step, metrics):
        self.file.write(f"{step} {metrics['loss']}\\n")
    def close(self):
        self.file.close()
"""


def test_a_sink_of_ones_own_gets_the_run_and_its_metrics(tmp_path, monkeypatch):
    (tmp_path / "own_sinks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    for steps, resume in (([1, 2], None), ([3], 2)):
        _run(tmp_path, steps, every=1, sinks=["own_sinks:Own"], config={"run": {"seed": 7}}, resume_step=resume)
    assert (tmp_path / "own.txt").read_text().splitlines() == ["10 None 7", "1 0.5", "2 0.3333333333333333", "10 2 7", "3 0.25"]
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_sinks_are_found_by_name_and_opened_once(tmp_path, monkeypatch):
    fake = _FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = {"log": {"wandb_project": "from config"}}
    _run(tmp_path, [1], tensorboard=True, sinks=["tensorboard", "wandb", "jsonl"], config=config)
    assert fake.calls[0][1]["project"] == "from config"
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbored", "log.sinks: 'tensorbored' is unknown; did you mean tensorboard\\? choose one of jsonl, progress"),
        ("a b:C", "log.sinks: 'a b:C': there is no module"),
        ("not_a_module:C", "log.sinks: 'not_a_module:C': there is no module .*PYTHONPATH"),
        ("json:Missing", "log.sinks: 'json:Missing': .* has no 'Missing'"),
    ],
)
def test_a_sink_that_is_not_there_is_named(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        MetricsLog(tmp_path, total_steps=1, sinks=[name])


def test_a_sink_is_checked_with_the_config():
    with pytest.raises(UserError, match="log.sinks: 'csv' is unknown"):
        LogConfig(sinks=["csv"])
    assert LogConfig(sinks=["jsonl", "own_sinks:Own"]).sinks == ["jsonl", "own_sinks:Own"]
