"""`align-jax evaluate` as a user runs it: several models, every metric, the files, and what is wrong with the input."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import yaml
from transformers import AutoTokenizer

import align_jax
from align_jax import cli
from align_jax.config import Config
from align_jax.errors import UserError
from align_jax.experiments import opinions
from align_jax.generation import generate
from align_jax.models import Decoder, ModelConfig, init_weights
from align_jax.recipes.evaluate import say_leaks, side_by_side
from align_jax.recipes.evaluation import EvalData
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.setup import Setup
from align_jax.recipes.source import StoredModel, TrainedModel
from align_jax.training.logs import read_metrics
from tests.processes import finish, start_two

SHAPE = dict(vocab_size=130, width=16, mlp_width=24, layers=1, heads=2, kv_heads=1, head_size=8, max_length=96)
PER_SET = {"sets/log_likelihood", "rewards/accuracies", "rewards/best_of_n", "rewards/rank_correlation", "rewards/margins",
           "length/reward_correlation", "length/score_correlation", "length/controlled_accuracy", "kl/reference"}  # fmt: skip
BY_GROUP = ("beliefs/js_distance", "beliefs/js_distance_sampled", "rewards/accuracies", "consistency/accuracy")
PER_BELIEF = {"beliefs/mass", "rewards/accuracies/majority", "rewards/accuracies/minority", "rewards/margins/majority",
              "rewards/margins/minority", *BY_GROUP,
              *(f"{name}/{group}" for name in BY_GROUP for group in ("north", "south", "worst_group"))}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Opinions of two groups and scored answers, a config of each, a run of three steps, and its model as a folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    opinions.write_tokenizer(folder / "tokenizer")
    for name, seed, count in (("train", 1, 200), ("eval", 2, 16)):
        rows = [row | {"group": ("north", "south")[i % 2]} for i, row in enumerate(opinions.rows(count, seed, uniform=False))]
        opinions.write_rows(folder / f"{name}.jsonl", rows)
    groups = [
        {
            "prompt": row["prompt"],
            "responses": [row["accept_response"], row["reject_response"], "yes"],
            "scores": [i % 3, 1, 0.5],
        }
        for i, row in enumerate(opinions.rows(7, 3, uniform=True))
    ]
    opinions.write_rows(folder / "groups.jsonl", groups)
    common = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "model": {"config": SHAPE, "tokenizer": str(folder / "tokenizer"), "dtype": "float32"},
        "reference": {"cache_dir": str(folder / "reference")},
        "log": {"progress": False},
        "evaluate": {"samples": 4, "max_new_tokens": 6, "resamples": 50},
    }
    data = {"max_prompt_tokens": 24, "max_response_tokens": 24}
    beliefs = {
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"), "format": "gdpo", **data,
                 "prompt_template": "question : {prompt}", "belief_template": "{id} : {belief} :"},
        "objective": {"name": "gdpo"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "schedule": "constant"},
        "train": {"steps": 3, "groups_per_step": 8, "eval_every": 3},
        "checkpoint": {"every": 3},
    }  # fmt: skip
    sets = {"data": {"eval": str(folder / "groups.jsonl"), **data}, "train": {"groups_per_step": 8}}
    (folder / "beliefs.yaml").write_text(yaml.safe_dump(common | beliefs))
    (folder / "sets.yaml").write_text(yaml.safe_dump(common | sets | {"run": {"dir": str(folder / "sets"), "seed": 3}}))
    assert cli.main(["train", str(folder / "beliefs.yaml"), "--evaluate.training_samples", "4"]) == 0
    assert cli.main(["export", str(folder / "run"), str(folder / "exported")]) == 0
    fresh = align_jax.load_model(folder / "exported", dtype="float32")
    weights = init_weights(fresh.config, jax.random.key(5), param_dtype="float32")
    align_jax.save_model(Decoder(fresh.config, weights, dtype="float32"), folder / "base", tokenizer=folder / "tokenizer")
    return folder


def evaluate(config: Path, *overrides) -> int:
    return cli.main(["evaluate", str(config), *map(str, overrides)])


def report(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def columns(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """The header and the rows of a printed table."""
    header, _, *lines = text.splitlines()
    cells = [[cell for cell in line.replace("  ", "\t").split("\t") if cell.strip()] for line in lines]
    return header.split(), {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


def test_beliefs_of_several_models_in_one_table(world, capsys):
    models = f"{{run: {world / 'run'}, exported: {world / 'exported'}}}"
    assert evaluate(world / "beliefs.yaml", "--evaluate.models", models) == 0
    header, table = columns(capsys.readouterr().out)
    assert header == ["run", "exported"]
    found = report(world / "run")
    metrics = found["models"]["run"]["metrics"]
    assert table.keys() == metrics.keys() >= PER_BELIEF
    # A run folder and its export are the same model.
    assert metrics == found["models"]["exported"]["metrics"] and all(len(set(cells)) == 1 for cells in table.values())
    assert found["models"]["run"]["step"] == 3 and found["judge"]["balanced_accuracy"] > 0.9
    for name, e in metrics.items():
        assert e["low"] is None or e["low"] <= e["high"], name
        assert table[name][0].startswith(f"{e['value']:.3f}".removeprefix("-")) or e["value"] < 0
    worst = metrics["beliefs/js_distance/worst_group"]["value"]
    assert worst == max(metrics[f"beliefs/js_distance/{g}"]["value"] for g in ("north", "south"))
    # Training evaluated by the same code.
    last = read_metrics(world / "run" / "metrics.jsonl")[-1]
    assert {f"eval/{name}" for name in metrics} == {name for name in last if name.startswith("eval/")}
    for name, e in metrics.items():
        assert last[f"eval/{name}"] == pytest.approx(e["value"], rel=1e-4, abs=1e-6), name
    rows = [json.loads(line) for line in open(world / "run/evaluation/samples-run.jsonl", encoding="utf-8")]
    assert all(sum(r["drawn"]) == 4 and r["beliefs"] == [0, 1, 2, 3] and len(r["judged"]) == 4 for r in rows)
    for name in ("belief_distance", "belief_reliability"):
        assert (world / f"run/evaluation/{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_plain_install_measures_the_rest_and_says_what_is_missing(world, capsys, monkeypatch):
    for package in ("matplotlib", "sklearn"):
        monkeypatch.setitem(sys.modules, package, None)
    assert evaluate(world / "beliefs.yaml", "--evaluate.resamples", 0, "--run.dir", world / "plain") == 0
    captured = capsys.readouterr()
    assert "beliefs/js_distance_sampled" in captured.out and "consistency" not in captured.out
    said = [line for line in captured.err.splitlines() if "pip install" in line]
    assert said == [
        "align-jax: the consistency of texts and beliefs is not measured: evaluate.judge: classifier needs sklearn: pip "
        "install 'align-jax[judge]', or set evaluate.judge: none",
        "align-jax: no pictures were drawn: a picture needs matplotlib: pip install 'align-jax[plots]'",
    ]
    assert not list((world / "plain").rglob("*.png"))


@pytest.mark.slow
def test_sets_of_a_trained_model_and_of_the_reference(world, capsys):
    name = "trained & new"
    models = {"base": str(world / "base"), name: str(world / "exported")}
    base = ("--model.path", world / "base", "--model.config", "null", "--evaluate.models", json.dumps(models))
    assert evaluate(world / "sets.yaml", *base) == 0
    header, table = columns(capsys.readouterr().out)
    assert header == ["base", *name.split()] and table.keys() >= PER_SET
    values = {metric: e["value"] for metric, e in report(world / "sets")["models"]["base"]["metrics"].items()}
    # Policy and reference are one model.
    assert values["kl/reference"] == pytest.approx(0, abs=1e-4) and values["rewards/accuracies"] == 0.5
    assert -math.log(3) <= values["sets/log_likelihood"] <= -math.log(3 / 2) and values["rewards/rank_correlation"] == 0
    metrics = report(world / "sets")["models"][name]["metrics"]
    assert metrics["kl/reference"]["value"] > 0.01 and metrics["kl/reference"]["low"] < metrics["kl/reference"]["high"]
    assert metrics["rewards/margins"]["value"] != 0
    assert (world / "sets" / "evaluation" / "samples-trained_new.jsonl").exists()
    for plot in ("agreement", "reward_and_length", "reward_and_score"):
        assert (world / f"sets/evaluation/{plot}.png").read_bytes()[:4] == b"\x89PNG"


QUICK = ("--evaluate.samples", 0, "--evaluate.resamples", 0, "--evaluate.plots", "false")


def test_several_configs_make_one_table(world, capsys):
    other, changed = world / "sets2.yaml", yaml.safe_load((world / "sets.yaml").read_text())
    changed["run"]["dir"] = str(world / "sets2")
    changed["evaluate"]["models"] = {"base": str(world / "base"), "other": str(world / "exported")}
    other.write_text(yaml.safe_dump(changed))
    assert evaluate(world / "beliefs.yaml", other, *QUICK) == 0
    output = capsys.readouterr().out
    header, *lines = output.splitlines()
    assert header.split() == ["start", "run", "base", "other"]
    titles = [i for i, line in enumerate(lines) if line.startswith("-- ")]
    assert [f"{world / name}" in lines[i] for i, name in zip(titles, ("eval.jsonl", "groups.jsonl"), strict=True)] == [True] * 2
    first, second = lines[titles[0] : titles[1]], lines[titles[1] :]
    for part, metric, folder, model in ((first, "beliefs/mass", "run", "run"), (second, "rewards/best_of_n", "sets2", "other")):
        cells = next(line for line in part if line.startswith(metric)).split()[1:]
        value = report(world / folder)["models"][model]["metrics"][metric]["value"]
        assert cells[header.split().index(model)] == f"{value:.3f}"
        assert cells.count("-") == 2
    capsys.readouterr()
    changed["run"]["dir"] += "/../run"
    other.write_text(yaml.safe_dump(changed))
    assert evaluate(world / "beliefs.yaml", other, *QUICK) == 2
    assert "would both write to" in capsys.readouterr().err
    assert evaluate(world / "sets.yaml", *QUICK, "--evaluate.models", "{a b: x, a_b: y}") == 2
    assert "'a b' and 'a_b' would share the file samples-a_b.jsonl" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_evaluate_as_one(world, capsys):
    models = ("--evaluate.models", f"{{run: {world / 'run'}}}", "--evaluate.plots", "false")
    sets = ("--model.path", world / "base", "--model.config", "null", "--evaluate.models", f"{{run: {world / 'exported'}}}")
    four, cut = ("--mesh.data", 2, "--mesh.fsdp", 2), ("--mesh.sequence", 4)  # of one shard, which both processes hold
    for config, mesh, more in (("beliefs.yaml", cut, models), ("sets.yaml", four, (*sets, "--evaluate.plots", "false"))):
        folders = [world / f"{name}-{config}" for name in ("one", "two")]
        assert evaluate(world / config, *more, "--run.dir", folders[0]) == 0
        table = capsys.readouterr().out
        arguments = ["evaluate", world / config, *more, "--run.dir", folders[1], *mesh]
        finish(start_two(arguments))
        one, two = (report(folder)["models"]["run"]["metrics"] for folder in folders)
        assert one.keys() == two.keys() and all(name in table for name in one)
        for name in one:
            assert two[name]["value"] == pytest.approx(one[name]["value"], rel=1e-3, abs=1e-4), name


def test_without_samples_or_a_checkpoint(world, capsys):
    assert evaluate(world / "sets.yaml", *QUICK) == 0
    assert "has no checkpoint: evaluating the starting model alone" in capsys.readouterr().err
    found = report(world / "sets")
    metrics = found["models"]["start"]["metrics"]
    assert PER_SET - metrics.keys() == {"kl/reference"}
    assert all(e["low"] is e["high"] is None for e in metrics.values())


@pytest.mark.slow
def test_ids_beyond_the_tokenizer_are_never_sampled(world, monkeypatch):
    folder, drawn = world, []

    def kept(*args, **options):
        drawn.extend(token for of_prompt in generate(*args, **options) for s in of_prompt for token in s.tokens.tolist())
        return generate(*args, **options)

    monkeypatch.setattr("align_jax.evaluation.samples.generate", kept)
    known = len(AutoTokenizer.from_pretrained(folder / "tokenizer"))
    larger = ("--model.config.vocab_size", known + 70, "--reference.cache_dir", folder / "masked")
    assert evaluate(folder / "sets.yaml", "--run.dir", folder / "masked", *larger) == 0
    assert len(drawn) > 50 and max(drawn) < known


def test_an_endpoint_that_is_not_there_keeps_the_rest(world, capsys):
    url = "http://127.0.0.1:9/v1"
    dead = ("--evaluate.judge", url, "--evaluate.judge_model", "m", "--evaluate.plots", "false", "--evaluate.resamples", 9)
    assert evaluate(world / "beliefs.yaml", *dead, "--run.dir", world / "dead") == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "evaluate.judge" in line]
    assert len(lines) == 1 and url in lines[0] and "no answer" in lines[0] and "0 of" in lines[0]
    assert "beliefs/js_distance_sampled" in captured.out and "consistency/accuracy" not in captured.out
    assert "consistency/repeats_statement" in captured.out  # the texts are there, and need no judge for it
    assert "beliefs/js_distance" in report(world / "dead")["models"]["start"]["metrics"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--data.eval", "EMPTY"], "empty.jsonl"),
        (["--evaluate.models", "{a: nowhere}"], "evaluate.models: a: model path 'nowhere' is no folder here"),
        (["--evaluate.models", "{a: FOLDER}"], "is neither a run folder (config.yaml, checkpoints/) nor a Hugging Face folder"),
        (["--evaluate.judge", "oracle"], "'oracle' is neither classifier, none nor a URL"),
        (["--evaluate.judge", "http://x"], "the endpoint http://x needs a model name"),
        (["--evaluate.judge_model", "m"], "evaluate.judge_model: 'm' is used by a judge at a URL only"),
        (["--evaluate.samples", "-1"], "-1 must be at least 0"),
        (["--evaluate.sample", "1"], "did you mean sample"),
    ],
)
def test_bad_input_is_one_line(world, capsys, overrides, message):
    (world / "empty.jsonl").write_text("")
    names = {"EMPTY": str(world / "empty.jsonl")}
    assert evaluate(world / "sets.yaml", *[names.get(o, o.replace("FOLDER", str(world))) for o in overrides]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("align-jax: ")]
    assert len(error) == 1 and error[0].startswith("align-jax evaluate: ") and message in error[0], error


def test_a_model_of_another_shape_is_refused(world, capsys):
    values = yaml.safe_load((world / "sets.yaml").read_text())
    values["model"]["config"]["layers"] = 2
    values["evaluate"]["models"] = {"mine": str(world / "exported")}
    (world / "other.yaml").write_text(yaml.safe_dump(values))
    assert evaluate(world / "other.yaml") == 2
    assert "evaluate.models: mine: " in (error := capsys.readouterr().err) and "another shape" in error


def test_a_model_that_fails_loses_none_of_those_before(world, capsys, monkeypatch):
    broken, load = world / "broken", StoredModel.load
    shutil.copytree(world / "exported", broken)

    def failing(self, *arguments):
        if self.folder == broken:
            raise UserError(f"{broken / 'model.safetensors'}: gone")
        return load(self, *arguments)

    monkeypatch.setattr(StoredModel, "load", failing)
    models = json.dumps({"good": str(world / "exported"), "bad": str(broken)})
    assert evaluate(world / "sets.yaml", "--evaluate.models", models, "--run.dir", world / "partial", *QUICK) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert list(report(world / "partial")["models"]) == ["good"]


def test_a_model_that_cannot_be_read_is_refused_before_any_work(world, capsys):
    broken = world / "unreadable"
    broken.mkdir()
    (broken / "config.json").write_text((world / "exported" / "config.json").read_text())
    (broken / "model.safetensors").write_bytes(b"nothing")
    models = json.dumps({"good": str(world / "exported"), "bad": str(broken)})
    assert evaluate(world / "sets.yaml", "--evaluate.models", models, "--run.dir", world / "none", *QUICK) == 2
    assert re.search("evaluate.models: bad: .*model.safetensors: truncated", capsys.readouterr().err)
    assert not (world / "none").exists()


def test_prompts_as_long_as_the_context_are_refused_before_anything_is_sampled():
    def data(*lengths):
        setup = SimpleNamespace(source=SimpleNamespace(shape=SimpleNamespace(max_length=16)))
        rows = [SimpleNamespace(prompt=[1] * length) for length in lengths]
        config = SimpleNamespace(data=SimpleNamespace(max_prompt_tokens=16))
        return SimpleNamespace(setup=setup, dataset=rows, units=range(len(rows)), config=config, key="data.eval")

    EvalData.check_room(data(3, 15), "evaluate.samples")
    with pytest.raises(UserError, match=r"evaluate.samples: .* 2 prompts .* 16 tokens; lower data.max_prompt_tokens \(16\)"):
        EvalData.check_room(data(3, 16, 15, 17), "evaluate.samples")


def test_runs_share_a_table_where_model_reference_data_and_beta_are_the_same(capsys):
    values = {"model": {"path": "a/model"}, "data": {"train": "t.jsonl", "eval": 0.1}, "objective": {"name": "dpo"}}
    names = ["runs/a", "elsewhere/b"]
    configs = [Config.of(values, f"run.dir={name}", f"model.tokenizer={name}/tokenizer") for name in names]
    joined = side_by_side(configs, names)
    assert joined.evaluate.models == {"start": "a/model", "a": "runs/a", "b": "elsewhere/b"}
    assert joined.run.dir == "runs/evaluate-a-b"
    assert side_by_side(configs, ["x/a", "y/a"]).evaluate.models == {"start": "a/model", "x/a": "x/a", "y/a": "y/a"}
    assert side_by_side([configs[0], Config.of(configs[1], "objective.beta=0.3", "data.eval=0.2")], names) is None
    assert "not in one table, since the runs differ in data, objective.beta" in capsys.readouterr().err
    assert side_by_side([Config.of(config, "run.dir=here") for config in configs], names).run.dir == "here"
    assert side_by_side([Config.of(config, "evaluate.models={a: x}") for config in configs], names) is None
    assert "evaluate.models says what the columns are" in capsys.readouterr().err


def test_prompts_that_a_run_may_have_seen_are_said(tmp_path, capsys):
    values = {"model": {"path": "a/model"}, "data": {"train": "t.jsonl", "eval": 0.1}, "objective": {"name": "dpo"}}
    config = Config.of(values, f"run.dir={tmp_path}")
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    shape = ModelConfig(vocab_size=9, width=8, mlp_width=8, layers=1, heads=2, kv_heads=1, head_size=4)
    source = TrainedModel(shape=shape, tokenizer_at=None, key="run", run=RunFolder(tmp_path))
    say_leaks(config, {"run": source})
    assert not capsys.readouterr().err
    say_leaks(Config.of(config, "data.eval=0.2"), {"run": source})
    assert "trained with another data.eval, 0.1: it may have seen the prompts" in capsys.readouterr().err
    say_leaks(Config.of(config, "data.eval=other.jsonl"), {"run": source})
    assert not capsys.readouterr().err


def test_a_report_that_was_stopped_takes_no_whole_ones_place(world, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    (run / "evaluation.json").unlink(missing_ok=True)
    how = ("--run.dir", run, "--evaluate.samples", 0, "--evaluate.plots", False)
    both = ("--evaluate.models", f"{{run: {run}, exported: {world / 'exported'}}}")
    load = Setup.load

    def stopped(self, source):
        if source.describe() == str(world / "exported"):
            raise KeyboardInterrupt
        return load(self, source)

    def stop() -> str:
        with monkeypatch.context() as patched, pytest.raises((KeyboardInterrupt, SystemExit)):
            patched.setattr(Setup, "load", stopped)
            raise SystemExit(evaluate(world / "beliefs.yaml", *how, *both))
        return capsys.readouterr().err

    assert f"{run / 'evaluation.json'} has run" in stop()  # there is none of before
    assert report(run)["unfinished"] == ["exported"] and list(report(run)["models"]) == ["run"]
    (run / "evaluation.unfinished.json").write_text("{}")
    assert evaluate(world / "beliefs.yaml", *how, *both) == 0
    whole = report(run)
    assert "unfinished" not in whole and list(whole["models"]) == ["run", "exported"]
    assert not (run / "evaluation.unfinished.json").exists()
    assert f"{run / 'evaluation.unfinished.json'} has run" in stop()
    assert report(run) == whole
    assert json.loads((run / "evaluation.unfinished.json").read_text())["unfinished"] == ["exported"]
