"""`align-jax train` and `export` as a user runs them: on generated opinions, killed, resumed, on meshes, exported."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from align_jax import terminal
from align_jax.cli import main
from align_jax.data.arrange import Pair, SplitPair
from align_jax.experiments import opinions
from align_jax.files import fingerprint_files
from align_jax.objectives import OBJECTIVES
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.say import part_of_a_job
from align_jax.training.checkpoint import Checkpointer, flatten_names
from align_jax.training.logs import TIMING_PREFIXES, read_metrics
from tests.processes import finish, start_two

ROOT = Path(__file__).parents[2]
SHAPE = dict(vocab_size=130, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4, max_length=128)
STEPS = 6
LONG = ("--train.steps", 40, "--checkpoint.every", 4, "--data.eval", "null")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Generated data, a tokenizer, and the config of a short GDPO run with a checkpoint every second step."""
    folder = tmp_path_factory.mktemp("world")
    opinions.write_tokenizer(folder / "tokenizer")
    opinions.write_rows(folder / "train.jsonl", opinions.rows(40, 1, uniform=False))
    opinions.write_rows(folder / "eval.jsonl", opinions.rows(8, 2, uniform=False))
    config = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "model": {"config": SHAPE, "tokenizer": str(folder / "tokenizer"), "dtype": "float32"},
        "reference": {"cache_dir": str(folder / "reference")},
        "data": {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "eval.jsonl"),
            "format": "gdpo",
            "prompt_template": "question : {prompt}",
            "belief_template": "{id} : {belief} :",
            "max_prompt_tokens": 24,
            "max_response_tokens": 24,
        },
        "objective": {"name": "gdpo"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "schedule": "constant"},
        "train": {"steps": STEPS, "groups_per_step": 8},
        "checkpoint": {"every": 2, "keep": 3},
        "log": {"progress": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return folder, path


def train(config, *overrides):
    return main(["train", str(config), *map(str, overrides)])


def command(config, run, *more):
    return [sys.executable, "-c", "import sys; from align_jax.cli import main; sys.exit(main())", "train", str(config),
            "--run.dir", str(run), *map(str, more)]  # fmt: skip


@pytest.fixture(scope="module")
def whole(world):
    """An uninterrupted run."""
    folder, config = world
    assert train(config, "--run.dir", folder / "whole") == 0
    return folder / "whole"


def parameters(run):
    """Every array of the newest checkpoint, as stored."""
    import orbax.checkpoint as ocp

    step = max(int(p.name) for p in (run / "checkpoints").glob("[0-9]*"))
    stored = ocp.PyTreeCheckpointer().restore(run / "checkpoints" / str(step) / "state")
    return step, {name: np.asarray(value) for name, value in flatten_names(stored)[0].items()}


def assert_same_run(a, b):
    step, first = parameters(a)
    assert (step, first.keys()) == (parameters(b)[0], parameters(b)[1].keys())
    for name, value in parameters(b)[1].items():
        assert np.array_equal(value, first[name]), name
    lines = [[{k: v for k, v in m.items() if not k.startswith(TIMING_PREFIXES)} for m in read_metrics(run / "metrics.jsonl")]
             for run in (a, b)]  # fmt: skip
    assert lines[0] == lines[1]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def wait_for_step(run, step, process):
    for _ in range(4000):
        file = run / "metrics.jsonl"
        if file.exists() and any(m["step"] >= step for m in read_metrics(file)):
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("the run did not get there")


def test_a_run_writes_what_it_promises(whole):
    metrics = read_metrics(whole / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(STEPS + 1))
    promised = {"loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
                "logps/rejected", "beliefs/js_distance", "beliefs/mass", "tokens/padding", "grad_norm", "learning_rate",
                "time/data_fraction", "time/tokens_per_second"}  # fmt: skip
    assert promised <= metrics[1].keys()
    assert {"eval/beliefs/js_distance", "eval/rewards/accuracies"} <= metrics[0].keys() & metrics[-1].keys()
    # At the first step policy and reference agree: no margin, and the preference term is ln 2.
    assert metrics[1]["loss/preference"] == pytest.approx(np.log(2), abs=1e-6)
    assert (whole / "config.yaml").exists() and (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [m["step"] for m in metrics if "time/eval_seconds" in m] == [0, STEPS]


def test_what_a_user_reads(world, capsys):
    folder, config = world
    run = folder / "told"
    assert train(config, "--run.dir", run, "--train.steps", 2, "--train.eval_every", 1, "--log.progress", True) == 0
    lines = capsys.readouterr().err.splitlines()
    kinds = [
        "align-jax: data.train: ",
        "align-jax: data.eval: ",
        "step 0: eval loss ",
        "align-jax: compiling the training step",
        ("align-jax: compiled the training step", "align-jax: read from the compilation cache: "),
        "step 1: eval loss ",
        "step 1/2: loss ",
        "step 2: eval loss ",
        "align-jax: trained to step 2 of 2",
        "  took     ",
        "  loss     ",
        f"  folder   {run}",
        f"  picture  {run / 'curves.png'}",
        "  next",
        f"    align-jax evaluate {run}",
    ]
    places = [next((n for n, line in enumerate(lines) if line.startswith(kind)), -1) for kind in kinds]
    assert places == sorted(places) and -1 not in places, list(zip(kinds, places, strict=True))
    first, last = (next(line for line in lines if line.startswith(f"step {n}: ")) for n in (0, 2))
    assert first.endswith("before training") and "belief distance" in first
    assert last.count("before training") == 1 and "accuracy" in last
    said = next(line for line in lines if line.startswith("  took"))
    assert " compiling (" in said and said.endswith(" in 3 evaluations")


def test_nothing_that_takes_long_is_silent(world, capsys, monkeypatch):
    folder, config = world
    enter = terminal.Watch.__enter__

    def said_at_once(watch):
        # its thread says it after a while, which what is as short as here may not last
        if watch._show:
            terminal.write_line(terminal.PREFIX + watch.text(), watch.stream)
        return enter(watch)

    monkeypatch.setattr(terminal.Watch, "__enter__", said_at_once)
    more = ("--train.steps", 1, "--log.progress", True, "--reference.cache_dir", folder / "watched cache", "--run.seed", 11)
    assert train(config, "--run.dir", folder / "watched", *more) == 0
    said = capsys.readouterr().err
    for what in ("reading data.train ... ", "loading the weights of fresh model ... ", "reference log-probs: 0 of 8 rows, ",
                 "evaluating: 0 of 8 rows, ", "writing the last checkpoint ... ",
                 "choosing the shapes of batches ... "):  # fmt: skip
        assert f"align-jax: {what}" in said, what
    assert "\r" not in said
    assert train(config, "--run.dir", folder / "watched too", *more, "--log.progress", False) == 0
    said = capsys.readouterr().err
    assert "trained to step 1 of 1" in said and "step 0: eval loss" in said and " of 8 rows, " not in said


@pytest.fixture(scope="module")
def long(world):
    """An uninterrupted run of enough steps that a kill finds it at work."""
    folder, config = world
    assert train(config, "--run.dir", folder / "long", *LONG) == 0
    return folder / "long"


@pytest.mark.slow
def test_killed_before_a_checkpoint_and_after_one_it_ends_with_the_same_bits(world, long):
    folder, config = world
    run = folder / "killed"
    for after in (False, True):
        process = subprocess.Popen(command(config, run, *LONG), env=environment(), stderr=subprocess.PIPE, text=True)
        wait_for_step(run, 1, process)
        while after and not RunFolder(run).steps:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert RunFolder(run).steps
    done = subprocess.run(command(config, run, *LONG), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed from the checkpoint" in done.stderr and "reused from" in done.stderr
    assert_same_run(long, run)


@pytest.mark.slow
def test_sigterm_saves_and_exits_0(world):
    folder, config = world
    run = folder / "stopped"
    process = subprocess.Popen(
        command(config, run, "--train.steps", 100000), env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for_step(run, 3, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    stopped = [line for line in said.splitlines() if "stopped by SIGTERM" in line]
    last = read_metrics(run / "metrics.jsonl")[-1]["step"]
    assert len(stopped) == 1 and f"after step {last} of 100000" in stopped[0]
    with Checkpointer(run / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == last


@pytest.mark.slow
def test_eight_devices_give_the_same_metrics(world, whole):
    """On one mesh, then on another."""
    folder, config = world
    run, four = folder / "mesh", ("--mesh.data", 2, "--mesh.fsdp", 2)
    assert train(config, "--run.dir", run, *four, "--mesh.tensor", 2, "--train.steps", STEPS // 2) == 0
    assert train(config, "--run.dir", run, *four, "--mesh.sequence", 2) == 0
    for one, many in zip(read_metrics(whole / "metrics.jsonl"), read_metrics(run / "metrics.jsonl"), strict=True):
        for name in one.keys() - {"tokens/padding"}:
            if one[name] is None:  # nothing to average, such as no minority in the batch
                assert many[name] is None
            elif not name.startswith(TIMING_PREFIXES):
                assert many[name] == pytest.approx(one[name], abs=1e-4, rel=1e-4), (one["step"], name)


@pytest.mark.slow
def test_two_processes_train_as_one_and_stop_together(world, whole):
    folder, config = world
    run = folder / "processes"
    more = ("--train.steps", 100000, "--mesh.data", 2, "--mesh.fsdp", 2, "--reference.cache_dir", folder / "reference2")
    more += ("--checkpoint.every", "null", "--checkpoint.minutes", 0.01, "--checkpoint.keep", 100)
    processes = start_two(["train", config, "--run.dir", run, *more])
    try:
        wait_for_step(run, STEPS, processes[0])
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        said = finish(processes)
    found = read_metrics(run / "metrics.jsonl")
    assert f"stopped by SIGTERM after step {found[-1]['step']} of 100000" in said[0] and "stopped" not in said[1]
    with Checkpointer(run / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == found[-1]["step"]
        assert len(checkpoints.steps()) > 1  # by the clock, and at one step on both: a save is of all processes
    for one, two in zip(read_metrics(whole / "metrics.jsonl"), found, strict=False):
        shared = {name for name in one.keys() & two.keys() if not name.startswith((*TIMING_PREFIXES, "tokens/padding"))}
        assert "eval/loss" in shared if one["step"] == 0 else "loss" in shared
        for name in shared:
            if one[name] is None:
                assert two[name] is None
            else:
                assert two[name] == pytest.approx(one[name], abs=1e-4, rel=1e-4), (one["step"], name)


@pytest.mark.slow
def test_accumulation_gives_the_same_metrics(world, whole):
    folder, config = world
    run = folder / "accumulated"
    assert train(config, "--run.dir", run, "--train.accumulation_steps", 4) == 0
    for one, cut in zip(read_metrics(whole / "metrics.jsonl"), read_metrics(run / "metrics.jsonl"), strict=True):
        if "loss" in one:
            assert cut["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.slow
def test_export_loads_in_transformers_with_the_same_logits(world, whole):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import align_jax

    folder, _ = world
    assert main(["export", str(whole), str(folder / "exported")]) == 0
    tokens = np.arange(24).reshape(2, 12)
    theirs = AutoModelForCausalLM.from_pretrained(folder / "exported", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
        said = theirs.generate(torch.tensor(tokens), max_new_tokens=4, do_sample=False)
    assert said.shape == (2, 16)
    ours = align_jax.load_model(folder / "exported", dtype="float32")(tokens)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    _, stored = parameters(whole)
    np.testing.assert_array_equal(theirs.model.embed_tokens.weight.detach().numpy(), stored["trainable.embed"])
    assert AutoTokenizer.from_pretrained(folder / "exported").eos_token == "</s>"


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        {"name": "sft"},
        {"name": "kto"},
        {"name": "mpo", "alpha": 0.2},
        {"name": "ordered_mpo", "levels": 2},
        {"name": "infonca"},
        {"name": "nca"},
        {"name": "gdpo", "preference": "kto"},
        {"name": "gdpo", "preference": "mpo"},
    ],
    ids=lambda o: f"{o['name']}{o.get('preference', '')}",
)
def test_objectives_train(world, objective):
    folder, config = world
    values = yaml.safe_load(config.read_text())
    values["objective"] = objective
    values["data"].pop("eval")
    values["train"]["steps"] = 4
    values["run"]["dir"] = str(folder / f"run-{objective['name']}{objective.get('preference', '')}")
    path = folder / "objective.yaml"
    path.write_text(yaml.safe_dump(values))
    assert train(path) == 0
    metrics = read_metrics(Path(values["run"]["dir"]) / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    assert all(np.isfinite(m["loss"]) and m["grad_norm"] > 0 for m in metrics)


@pytest.mark.slow
def test_every_pair_objective_trains_as_a_term(world, tmp_path):
    folder, config = world
    found = {name: cls for name, cls in OBJECTIVES.items() if cls.arrangement in (Pair(), SplitPair())}
    assert len(found) > 18
    values = yaml.safe_load(config.read_text())
    values["objective"] = [{"name": name, "weight": 0.1, "beta": 0.1} for name in found]
    values["data"].pop("eval")
    values["train"]["steps"] = 4
    values["run"]["dir"] = str(folder / "run-pairs")
    path = tmp_path / "objective.yaml"
    path.write_text(yaml.safe_dump(values))
    assert train(path) == 0
    metrics = read_metrics(folder / "run-pairs" / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    for name in found:
        losses = [m[f"{name}/loss"] for m in metrics]
        assert np.isfinite(losses).all() and len(set(losses)) > 1, name
    for m in metrics:
        assert m["grad_norm"] > 0 and m["loss"] == pytest.approx(sum(0.1 * m[f"{name}/loss"] for name in found), rel=1e-4)


def test_gdpo_trains_and_measures_on_rows_without_labels(world, capsys):
    folder, config = world
    values = yaml.safe_load(config.read_text())
    rows = [json.loads(line) for line in Path(values["data"]["train"]).read_text().splitlines()]
    kept = ("prompt", "options", "accept_response", "reject_response")
    unlabelled = [{name: row[name] for name in kept} for row in rows]
    values["data"] |= {"train": str(folder / "unlabelled.jsonl"), "eval": 0.2}
    Path(values["data"]["train"]).write_text("".join(json.dumps(row) + "\n" for row in unlabelled))
    values["train"] |= {"steps": 2, "eval_every": 2}
    values["run"]["dir"] = str(folder / "unlabelled")
    path = folder / "unlabelled.yaml"
    path.write_text(yaml.safe_dump(values))
    assert train(path) == 2
    assert "unlabelled.jsonl:1: fields 'accept_choice_id'" in capsys.readouterr().err
    options = {"latent_beliefs": True, "preference": "kto", "calibrate": "id", "statement": "authors", "divergence": "js"}
    more = [word for name, value in options.items() for word in (f"--objective.{name}", str(value).lower())]
    assert train(path, "--data.belief_template", "{id} : {belief} :", *more) == 0
    lines = read_metrics(folder / "unlabelled" / "metrics.jsonl")
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines if "loss" in line)
    last = next(line for line in reversed(lines) if "eval/loss" in line)
    assert 0 < last["eval/latent/entropy"] < np.log(len(rows[0]["options"])) and last.get("eval/beliefs/js_distance") is None
    shares = [value for name, value in last.items() if name.startswith("eval/latent/share/")]
    assert sum(shares) == pytest.approx(1, abs=1e-5) and last.get("eval/latent/agreement") is None


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(world, capsys):
    folder, config = world
    bad = ("--optimizer.learning_rate", 1e3, "--optimizer.weight_decay", 1e3, "--train.steps", 20, "--train.max_skipped", 3)
    assert train(config, "--run.dir", folder / "nan", *bad) == 2
    said = capsys.readouterr().err
    assert "loss is" in said and "checkpoint" in said
    assert f"Rows of the batch: {folder / 'train.jsonl'}:" in said
    assert "It is skipped step 4 of the run, more than train.max_skipped=3." in said
    kept = [json.loads(line) for line in (folder / "nan" / "skipped_rows.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in kept}) == 4 and len(kept) >= 4 * 8
    assert kept[0]["where"].startswith(f"{folder / 'train.jsonl'}:") and kept[0]["row"]["prompt"]
    lines = read_metrics(folder / "nan" / "metrics.jsonl")
    bad = [line["skipped"] for line in lines if line["step"] and None in (line["loss"], line["grad_norm"])]
    assert bad == [1, 2, 3] and lines[-1]["skipped"] == 3  # which rows overflow is chance, from weights as large as these


def test_groups_without_contrast_are_no_data_for_what_contrasts(world, tmp_path, capsys):
    folder, config = world
    rows = [{"prompt": f"q{i}", "responses": ["a", "b"], "scores": [5, 5]} for i in range(16)]
    opinions.write_rows(tmp_path / "level.jsonl", rows)
    level = ("--data.train", tmp_path / "level.jsonl", "--data.format", "groups", "--data.eval", "null", "--train.steps", 1)
    assert train(config, "--run.dir", tmp_path / "none", *level, "--objective.name", "mpo") == 2
    said = capsys.readouterr().err
    assert "none of the 16 groups has two different scores and texts, which the objective contrasts" in said
    assert not (tmp_path / "none").exists()
    with part_of_a_job():  # the next round may have other scores
        assert train(config, "--run.dir", tmp_path / "round", *level, "--objective.name", "mpo") == 0


def test_a_best_metric_that_no_checkpoint_has_is_refused(world, capsys):
    folder, config = world
    assert train(config, "--run.dir", folder / "best", "--checkpoint.best_metric", "eval/loss") == 2
    assert "checkpoint.best_metric: 'eval/loss' is measured every train.eval_every=None steps" in capsys.readouterr().err


def test_a_best_metric_that_does_not_exist_is_refused_at_once(world, capsys):
    folder, config = world
    assert train(config, "--run.dir", folder / "typo", "--checkpoint.best_metric", "rewards/accuracy") == 2
    said = capsys.readouterr().err
    assert "checkpoint.best_metric: there is no metric 'rewards/accuracy'; did you mean rewards/accuracies? there are " in said
    assert not (folder / "typo").exists()  # no step's work was done for nothing


@pytest.mark.slow
def test_resumed_with_other_numerics_it_goes_on_and_with_other_rows_it_is_refused(world, capsys):
    folder, config = world
    run, data = folder / "edited", folder / "edited.jsonl"
    shutil.copy(folder / "train.jsonl", data)
    more = ("--run.dir", run, "--data.train", data, "--data.eval", "null")
    assert train(config, *more, "--train.steps", 1) == 0
    assert train(config, *more, "--train.steps", 2, "--model.remat", "full", "--train.accumulation_steps", 2) == 0
    data.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    capsys.readouterr()
    assert train(config, *more, "--train.steps", 3) == 2
    said = capsys.readouterr().err
    assert f"data.train: {data} holds other rows than when the run" in said and "(40 groups then, 39 now)" in said
    assert [m["step"] for m in read_metrics(run / "metrics.jsonl") if m["step"]] == [1, 2]


@pytest.mark.slow
def test_texts_longer_than_the_context_are_said(world, capsys):
    folder, config = world
    for length, said in ((48, False), (12, True)):
        more = ("--run.dir", folder / f"context{length}", "--model.config.max_length", length, "--data.eval", "null")
        assert train(config, *more, "--train.steps", 1) == 0
        assert (f"more than the model's context of {length}" in capsys.readouterr().err) == said


def test_weights_that_differ_anywhere_have_other_fingerprints(tmp_path):
    values = np.zeros(1 << 20, np.uint8)
    (tmp_path / "a.safetensors").write_bytes(values)
    before = fingerprint_files(tmp_path.glob("*"))
    values[777_777] = 1
    (tmp_path / "a.safetensors").write_bytes(values)
    assert fingerprint_files(tmp_path.glob("*")) != before
    values[777_777] = 0
    (tmp_path / "a.safetensors").write_bytes(values)
    assert fingerprint_files(tmp_path.glob("*")) == before


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(world, capsys):
    folder, config = world
    values = yaml.safe_load(config.read_text())
    values["model"]["config"]["vocab_size"] = 64
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    assert train(path, "--run.dir", folder / "small") == 2
    assert "vocabulary ends at 63" in capsys.readouterr().err


def test_evaluate_prints_the_metrics_of_the_newest_checkpoint(world, whole, capsys):
    _, config = world
    assert main(["evaluate", str(config), "--run.dir", str(whole), "--evaluate.samples", "0"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["start", "run"] and any(line.startswith("beliefs/js_distance ") for line in lines)
    metrics = read_metrics(whole / "metrics.jsonl")
    models = json.loads((whole / "evaluation.json").read_text())["models"]
    assert models["run"]["step"] == STEPS
    for name, logged in (("start", metrics[0]), ("run", metrics[-1])):
        found = models[name]["metrics"]["beliefs/js_distance"]["value"]
        assert found == pytest.approx(logged["eval/beliefs/js_distance"], rel=1e-5)


def test_another_run_in_the_folder_is_refused(world, whole, capsys):
    _, config = world
    assert train(config, "--run.dir", whole, "--objective.beta", 0.7) == 2
    assert "objective.beta=0.1, but objective.beta=0.7" in capsys.readouterr().err


def test_a_finished_run_says_so(world, whole, capsys):
    _, config = world
    assert train(config, "--run.dir", whole) == 0
    said = capsys.readouterr().err
    assert f"is complete: step {STEPS} of {STEPS}" in said and f"align-jax export {whole} {whole}/export" in said


def test_a_bad_row_is_named_or_skipped_and_listed(world, capsys):
    folder, config = world
    lines = (folder / "train.jsonl").read_text().splitlines()
    broken = {**json.loads(lines[4]), "accept_choice_id": 9}
    (folder / "bad.jsonl").write_text("\n".join([*lines[:4], json.dumps(broken), *lines[5:]]) + "\n")
    bad = ("--data.train", folder / "bad.jsonl")
    assert train(config, "--run.dir", folder / "bad", *bad) == 2
    assert f"{folder / 'bad.jsonl'}:5: field 'accept_choice_id': 9" in capsys.readouterr().err
    assert train(config, "--run.dir", folder / "bad", *bad, "--data.on_bad_row", "skip", "--train.steps", 1) == 0
    listed = [json.loads(line) for line in (folder / "bad" / "bad_rows.train.jsonl").read_text().splitlines()]
    assert len(listed) == 1 and listed[0]["where"].endswith("bad.jsonl:5")


@pytest.mark.parametrize(
    "argv, text",
    [
        (["nonsense"], "unknown command 'nonsense'"),
        (["train"], "give a config"),
        (["train", "missing.yaml"], "missing.yaml"),
        (["export", "nowhere", "out"], "nowhere is not a run folder"),
        (["experiment", "nothing"], "'nothing' is not one of quickstart"),
    ],
)
def test_bad_commands_get_one_line(argv, text, capsys):
    assert main(argv) == 2
    assert text in capsys.readouterr().err
