"""Several evaluation sets by name, texts beside them, and samples in training: one run, ended, resumed and evaluated."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import yaml

from align_jax.cli import main
from align_jax.errors import UserError
from align_jax.recipes import evaluation
from align_jax.recipes.folder import RunFolder
from align_jax.training.logs import read_metrics
from tests.data.toys import char_tokenizer, write_jsonl

pytestmark = pytest.mark.slow
SETS = ("near", "far", "held")
TEXT = "the quick fox jumps over the lazy dog and runs away from all the noise"


def rows(words, count: int) -> list[dict]:
    return [{"prompt": f"{words} {i} ?", "chosen": "yes" * (1 + i % 3), "rejected": "no way"} for i in range(count)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("sets"), char_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "texts.txt").write_text(TEXT)
    shape = dict(vocab_size=len(tokenizer), width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4, max_length=64)
    config = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "model": {"config": shape, "tokenizer": str(folder / "tokenizer"), "dtype": "float32"},
        "reference": {"cache_dir": str(folder / "reference")},
        "data": {
            "train": write_jsonl(folder / "train.jsonl", rows("train", 20)),
            "eval": {
                "near": write_jsonl(folder / "near.jsonl", rows("near", 3)),
                "far": [write_jsonl(folder / f"far{n}.jsonl", rows(f"far {n}", 2)) for n in range(2)],
                "held": 0.2,
            },
            "eval_text": str(folder / "texts.txt"),
            "max_prompt_tokens": 16,
            "max_response_tokens": 16,
        },
        "objective": {"name": "dpo"},
        "optimizer": {"name": "schedule_free", "learning_rate": 3e-2},
        "train": {"steps": 4, "groups_per_step": 4, "eval_every": 2},
        "checkpoint": {"best_metric": "eval/far/loss", "keep": 1},
        "log": {"progress": False, "plots": False, "samples_every": 2, "samples_prompts": 2, "samples_tokens": 5},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def run(world, *options) -> int:
    return main([*options[:1], str(world / "config.yaml"), *map(str, options[1:])])


@pytest.fixture(scope="module")
def trained(world):
    """Ended at step 2, as if it had been killed at step 3, and resumed."""
    assert run(world, "train", "--train.steps", 2) == 0
    with (world / "run" / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "prompt": "x", "response": "y"}) + '\n{"step": 3, "pro')
    assert run(world, "train") == 0
    return world / "run"


def test_every_set_has_its_metrics_and_the_best_checkpoint_is_by_one_of_them(trained):
    lines = read_metrics(trained / "metrics.jsonl")
    measured = [line for line in lines if "eval/near/loss" in line]
    assert [line["step"] for line in measured] == [0, 2, 4]
    for line in measured:
        assert {f"eval/{name}/{metric}" for name in SETS for metric in ("loss", "rewards/accuracies")} <= line.keys()
        assert {"eval/far/source/far0/loss", "eval/far/source/far1/loss"} <= line.keys()  # a set may be a mixture
        assert not any(name.startswith(("eval/loss", "eval/rewards")) for name in line)
    assert measured[0]["eval/near/loss"] == pytest.approx(math.log(2), abs=1e-6)
    best = min(measured[1:], key=lambda line: line["eval/far/loss"])["step"]
    assert RunFolder(trained).best_step() == best


def test_texts_tell_what_is_forgotten_since_the_reference(trained):
    measured = [line for line in read_metrics(trained / "metrics.jsonl") if "eval/text/loss" in line]
    first, last = measured[0], measured[-1]
    assert first["eval/text/forgotten"] == pytest.approx(0, abs=1e-6)
    assert last["eval/text/forgotten"] == pytest.approx(last["eval/text/loss"] - first["eval/text/loss"], abs=1e-5)
    assert abs(last["eval/text/forgotten"]) > 1e-4
    assert first["eval/text/perplexity"] == pytest.approx(math.exp(first["eval/text/loss"]), rel=1e-6)


def test_samples_of_each_step_stand_in_the_file_once(trained, world):
    lines = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 2, 2, 4, 4]
    assert {line["prompt"] for line in lines} == {"near 0 ?", "near 2 ?"}
    assert all(line["tokens"] <= 5 and line["finish_reason"] in ("length", "eos") for line in lines)


def test_the_command_evaluates_all_sets_with_what_the_run_measured(trained, world, capsys):
    out = ("--run.dir", world / "evaluated", "--evaluate.models", json.dumps({"mine": str(trained)}))
    assert run(world, "evaluate", *out, "--evaluate.samples", 0, "--evaluate.resamples", 20, "--evaluate.plots", "false") == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "/" in line]
    assert [name.split("/")[0] for name in shown] == sorted(
        [name.split("/")[0] for name in shown], key=[*SETS, "text"].index
    )  # set by set
    report = json.loads((world / "evaluated" / "evaluation.json").read_text())
    assert report["data"].keys() == report["truncated"].keys() == set(SETS) and report["texts"] == str(world / "texts.txt")
    last = read_metrics(trained / "metrics.jsonl")[-1]
    for name in ("near/loss", "far/rewards/margins", "held/loss", "text/loss", "text/perplexity", "text/forgotten"):
        assert report["models"]["mine"]["metrics"][name]["value"] == pytest.approx(last[f"eval/{name}"], abs=1e-5)


def test_without_the_first_evaluation(world):
    options = ("--run.dir", world / "later", "--train.steps", 1, "--train.eval_first", "false", "--log.samples_every", "null")
    off = ("--log.samples_prompts", 4, "--log.samples_tokens", 64, "--checkpoint.best_metric", "null", "--train.eval_every", 1)
    assert run(world, "train", *options, *off, "--data.eval", str(world / "near.jsonl"), "--data.eval_text", "null") == 0
    lines = read_metrics(world / "later" / "metrics.jsonl")
    assert [line["step"] for line in lines if "eval/loss" in line] == [1]
    assert not (world / "later" / "samples.jsonl").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (("--data.eval", "{text: 0.1}"), "data.eval: 'text' is the name of the metrics of data.eval_text"),
        (("--data.eval", "{a: 0.1, b: 0.2}"), "data.eval: a and b are both fractions of data.train"),
        (("--data.eval.near", "no/such.jsonl"), "data.eval.near: no/such.jsonl: no such file or folder"),
        (("--data.eval", "{near: {path: x.jsonl, weight: 2, lable: y}}"), "data.eval.near has no key 'lable'"),
        (("--checkpoint.best_metric", "eval/near/los"), "did you mean eval/near/loss"),
    ],
)
def test_what_cannot_be_evaluated_is_named(world, capsys, options, message):
    assert run(world, "train", "--run.dir", world / "none", *options) == 2
    assert message in capsys.readouterr().err


def test_a_reward_model_says_nothing_of_texts_and_samples_nothing(world, capsys):
    reward = ("--objective.name", "reward", "--run.dir", world / "none")
    assert run(world, "train", *reward) == 2
    assert "data.eval_text: " in (said := capsys.readouterr().err) and "a reward model gives no probability" in said
    assert run(world, "train", *reward, "--data.eval_text", "null") == 2
    assert "log.samples_every: 2, but a reward model generates nothing" in capsys.readouterr().err


@pytest.mark.parametrize("name, said", [("", "^why$"), ("near", "^data.eval.near: why$")])
def test_an_error_names_its_set_where_sets_have_names(monkeypatch, name, said):
    def refuse(*_):
        raise UserError("why")

    monkeypatch.setattr(evaluation, "eval_data", refuse)
    data = SimpleNamespace(eval_sets=lambda: {name: None})
    setup = SimpleNamespace(config=SimpleNamespace(data=data), with_data=lambda section: None)
    with pytest.raises(UserError, match=said):
        evaluation.eval_sets(setup, 1)
