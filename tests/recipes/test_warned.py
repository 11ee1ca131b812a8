"""Failure signatures: each warns of a run that fails, not of a healthy one, once, with what to try, in log, folder and Run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import align_jax
from align_jax.recipes.say import speaking
from align_jax.recipes.warned import FILE, WatchSignatures, read_warnings, warning_line, warning_lines
from align_jax.training.signatures import SETTLED, SIGNATURES, WINDOW

ROOT = Path(__file__).parents[2]
NAMES = [signature.name for signature in SIGNATURES]
# Of runs on real preferences and opinions, at their end.
HEALTHY = {
    "beliefs/entropy": 0.78, "beliefs/target_entropy": 0.8, "beliefs/mass": 0.989, "gradients/cancelled": 0.0,
    "consistency/accuracy": 0.6, "consistency/chance": 0.33, "consistency/repeats_statement": 0.01, "loss/std": 0.8,
    "rewards/margins": 4.2, "rewards/margins/majority": 0.82, "rewards/margins/minority": -0.07, "drift/chosen": 0.3,
    "drift/absolute": 0.34, "kl/reference_per_token": 0.44, "sets/top_accepted": 0.78,
}  # fmt: skip
FAILING = {
    "narrow_beliefs": {"beliefs/entropy": 0.3},
    "mass_off_beliefs": {"beliefs/mass": 0.7},
    "texts_off_belief": {"consistency/accuracy": 0.35},
    "repeated_statements": {"consistency/repeats_statement": 0.5},
    "cancelled_gradients": {"gradients/cancelled": 0.6},
    "minority_falls": {"rewards/margins/minority": -0.7},
    "chosen_falls": {"drift/chosen": -0.2},
    "loss_varies": {"loss/std": 5.0},
    "kl_runs_away": {"drift/chosen": 0.9},
    "sampled_kl_runs_away": {"kl/reference_per_token": 1.3},
    "one_answer": {"sets/top_accepted": 0.99},
}


def of_evaluation(metrics):
    return {f"eval/{name}": value for name, value in metrics.items()}


def watch(folder, series, steps=100, **options):
    watcher = WatchSignatures(folder, steps, **options)
    for step, metrics in series:
        watcher.record(step, dict(metrics))
    return read_warnings(folder)


def test_every_signature_has_a_run_that_fails():
    assert list(FAILING) == NAMES


@pytest.mark.parametrize("signature", SIGNATURES, ids=NAMES)
def test_a_failing_run_is_warned_of_once_and_a_healthy_one_not(signature, tmp_path, capsys):
    bad = HEALTHY | FAILING[signature.name]
    steps = (signature.steps and [bad] or []) + (signature.evaluations and [of_evaluation(bad)] or [])
    for i, metrics in enumerate(steps):
        (folder := tmp_path / str(i)).mkdir()
        (warning,) = watch(folder, [(n, metrics) for n in range(101)])
        first = int(SETTLED * 100) + (WINDOW if metrics is bad else 1)
        assert (warning["name"], warning["limit"]) == (signature.name, signature.limit)
        assert warning["step"] == max(first, int(signature.part * 100) + 1)
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"align-jax: {warning_line(warning)}" and signature.remedy in line and signature.means in line
        assert f"{signature.name} at step {warning['step']}" in line and f"{warning['value']:.3g}, " in line
    assert steps
    (healthy := tmp_path / "healthy").mkdir()
    assert watch(healthy, [(n, HEALTHY | of_evaluation(HEALTHY)) for n in range(101)]) == []


def test_one_step_in_three_is_no_signature(tmp_path):
    bad = HEALTHY | {name: value for of in FAILING.values() for name, value in of.items()}
    assert watch(tmp_path, [(n, HEALTHY if n % 3 else bad) for n in range(101)]) == []


def test_nothing_is_said_in_warm_up(tmp_path):
    bad = HEALTHY | FAILING["kl_runs_away"]
    assert watch(tmp_path, [(n, bad | of_evaluation(bad)) for n in range(51)], warmup=50) == []
    (warning,) = watch(tmp_path, [(n, bad) for n in range(101)], warmup=50)
    assert warning["step"] == 60


def test_supervised_training_may_leave_the_reference(tmp_path):
    far = of_evaluation(HEALTHY | FAILING["kl_runs_away"] | FAILING["sampled_kl_runs_away"])
    assert watch(tmp_path, [(n, far) for n in range(101)], pulled=False) == []
    assert [w["name"] for w in watch(tmp_path, [(n, far) for n in range(101)])] == ["kl_runs_away", "sampled_kl_runs_away"]


def test_what_is_absent_or_says_nothing_is_not_judged(tmp_path):
    nothing = {name: None for name in HEALTHY} | {"beliefs/entropy": float("nan")}
    no_mass = HEALTHY | {"beliefs/entropy": 0.1, "beliefs/mass": 1e-31}  # renormalised beliefs of a model that never says one
    no_majority = HEALTHY | {"rewards/margins/majority": 0.01, "rewards/margins/minority": -0.3}
    no_margin = HEALTHY | {"rewards/margins": -1.0, "drift/chosen": -0.4}
    for metrics in (nothing, {}, of_evaluation(no_mass), of_evaluation(no_majority), no_margin):
        assert watch(tmp_path, [(n, metrics) for n in range(101)]) == []


def test_a_resumed_run_goes_on_with_what_it_saw_and_said(tmp_path):
    bad = HEALTHY | FAILING["one_answer"]
    series = [(n, bad) for n in range(1, 101)]
    history = [{"step": step, **metrics} for step, metrics in series]
    assert watch(tmp_path, series[:15]) == []
    (warning,) = watch(tmp_path, series[15:], history=history[:15])
    assert warning["step"] == 20  # as if it had not been stopped
    assert watch(tmp_path, series[30:], history=history[:30]) == [warning]
    with open(tmp_path / FILE, "a") as file:
        file.write('{"name": "kl_runs')  # a kill
    assert watch(tmp_path, series[30:], history=history[:30]) == [warning]
    assert watch(tmp_path, series[:5]) == []  # another run in the same folder


def test_a_quiet_run_keeps_its_warnings(tmp_path, capsys):
    with speaking(True):
        found = watch(tmp_path, [(n, HEALTHY | FAILING["loss_varies"]) for n in range(101)])
    assert [warning["name"] for warning in found] == ["loss_varies"] and capsys.readouterr().err == ""
    assert warning_lines(found) == [
        "warning  loss_varies 5 at step 20 (limit 2): a few prompts decide the step, as where scores are not on one scale, or "
        "are wrong"
    ]


def test_the_page_has_every_signature_with_its_limit():
    page = (ROOT / "docs/signatures.md").read_text()
    for signature in SIGNATURES:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{signature.name}` "))
        side = "above" if signature.above else "below"
        assert f"{side} {signature.limit:g}" in row and signature.remedy in row and signature.reason in row


@pytest.mark.slow
def test_a_run_that_goes_wrong_says_so_in_log_folder_and_result(tmp_path, capsys):
    from align_jax.experiments import opinions

    opinions.write_tokenizer(tmp_path / "tokenizer")
    texts = ("yes , i like {}", "i am against {}")
    rows = [
        {"prompt": f"how do you feel about {topic} ?", "responses": [t.format(topic) for t in texts], "scores": [2, 1]}
        for topic in opinions.TOPICS
    ]
    shape = dict(vocab_size=130, width=16, mlp_width=24, layers=1, heads=2, kv_heads=2, head_size=8, max_length=64)
    values = {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"config": shape, "tokenizer": str(tmp_path / "tokenizer"), "dtype": "float32"},
        "reference": {"cache_dir": str(tmp_path / "reference")},
        "data": {"train": rows},
        "objective": {"name": "dpo", "beta": 0.01},
        "optimizer": {"name": "adamw", "learning_rate": 0.1, "schedule": "constant", "warmup_steps": 0},
        "train": {"steps": 14, "groups_per_step": 4},
        "log": {"progress": False, "plots": False},
    }
    run = align_jax.train(align_jax.Config.of(values))
    names = [warning["name"] for warning in run.warnings]
    assert "kl_runs_away" in names and len(set(names)) == len(names)
    assert [json.loads(line) for line in (run.folder / FILE).read_text().splitlines()] == run.warnings
    told = capsys.readouterr().err.splitlines()
    assert sum("align-jax: warning: kl_runs_away at step" in line for line in told) == 1
    assert sum(line.startswith("  warning  kl_runs_away ") for line in told) == 1
    assert "warning  kl_runs_away " in repr(run)
    again = align_jax.train(align_jax.Config.of(values, "train.steps=16"))
    assert again.warnings[: len(run.warnings)] == run.warnings and "align-jax: warning: kl_runs" not in capsys.readouterr().err
    off = align_jax.train(align_jax.Config.of(values, f"run.dir={tmp_path / 'off'}", "log.signatures=false"))
    assert off.warnings == [] and "warning" not in capsys.readouterr().err
