"""`objective.name: reward` from training to export, and `align-jax score`, as a user runs them."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
import yaml

from align_jax.cli import main
from align_jax.training.logs import read_metrics
from tests.data.toys import char_tokenizer, write_jsonl
from tests.hf import models

ROWS = [
    {"prompt": f"question {i} ?", "responses": ["yes" * (i + 1), "no way", "ok"][: 2 + i % 2], "scores": [9, 2, 5][: 2 + i % 2]}
    for i in range(6)
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A language model, a tokenizer without a padding token, six groups, and the config of a short reward run."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = char_tokenizer()
    # a checkpoint that pads with its end of texts, as many do
    model = models.torch_model("llama2", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=2)
    tokenizer.save_pretrained(models.save(model, folder / "base"))
    config = {
        "run": {"dir": str(folder / "run"), "seed": 1},
        "model": {"path": str(folder / "base"), "dtype": "float32"},
        "reference": {"cache_dir": str(folder / "reference")},
        "data": {"train": write_jsonl(folder / "rows.jsonl", ROWS), "eval": str(folder / "rows.jsonl")},
        "objective": {"name": "reward", "center": 0.01},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "schedule": "constant"},
        "train": {"steps": 4, "groups_per_step": 6},
        "checkpoint": {"every": 2, "keep": 3},
        "log": {"progress": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def run(command, world, *overrides):
    return main([command, str(world / "config.yaml"), *map(str, overrides)])


@pytest.fixture(scope="module")
def trained(world):
    assert run("train", world) == 0
    return world / "run"


@pytest.fixture(scope="module")
def exported(world, trained):
    assert main(["export", str(trained), str(world / "exported")]) == 0
    return world / "exported"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(tokenizer, rows=ROWS):
    """Token ids of every conversation: BOS, prompt, response, EOS."""
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    return [[1, *ids(r["prompt"]), *ids(text), 2] for r in rows for text in r["responses"]]


def test_the_loss_falls_and_accuracy_is_measured(trained):
    metrics = read_metrics(trained / "metrics.jsonl")
    assert metrics[-1]["loss"] < 0.8 * metrics[1]["loss"]
    promised = {"rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "rewards/mean"}
    assert promised <= metrics[1].keys() and "logps/chosen" not in metrics[1]
    assert metrics[-1]["eval/rewards/accuracies"] >= metrics[0]["eval/rewards/accuracies"]
    assert metrics[-1]["eval/rewards/margins"] > metrics[0]["eval/rewards/margins"]


@pytest.mark.slow
def test_a_resumed_run_ends_alike(world, trained):
    other = world / "resumed"
    assert run("train", world, "--run.dir", other, "--train.steps", 2) == 0
    assert run("train", world, "--run.dir", other) == 0
    losses = [[m["loss"] for m in read_metrics(d / "metrics.jsonl") if "loss" in m] for d in (trained, other)]
    assert losses[0] == losses[1]


def test_transformers_scores_the_export_alike_in_a_padded_batch(world, exported):
    """Padded by the exported tokenizer, on either side; the scores are those of `align-jax score` on the run."""
    output = world / "by-run.jsonl"
    assert run("score", world, "--score.input", world / "rows.jsonl", "--score.output", output, "--score.logps", "false",
               "--score.reward_model", world / "run") == 0  # fmt: skip
    ours = [score for row in lines(output) for score in row["scores"]]
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        exported, output_loading_info=True, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert type(model).__name__ == "LlamaForSequenceClassification" and model.config.num_labels == 1
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    for side in ("right", "left"):
        tokenizer.padding_side = side
        padded = tokenizer.pad({"input_ids": texts(tokenizer)}, return_tensors="pt")
        with torch.no_grad():
            np.testing.assert_allclose(ours, model.eval()(**padded).logits[:, 0].numpy(), atol=1e-4)
    assert np.ptp(ours) > 0.1 and not (exported / "generation_config.json").exists()


def test_an_exported_reward_model_starts_another_run(world, exported, trained):
    again = world / "again"
    assert run("train", world, "--run.dir", again, "--model.path", exported, "--train.steps", 1) == 0
    first, last = read_metrics(again / "metrics.jsonl")[0], read_metrics(trained / "metrics.jsonl")[-1]
    assert first["eval/rewards/margins"] == pytest.approx(last["eval/rewards/margins"], rel=1e-4)


def causal(world, *more):
    """The overrides of a config whose objective is for language models."""
    return ("--objective.name", "dpo", "--objective.center", "null", "--run.dir", world / "none", *more)


@pytest.mark.slow
def test_score_writes_a_training_file(world, exported):
    """Log-probs as transformers has them, implicit rewards against another reference, and the reward model's scores."""
    other = world / "other"
    if not other.exists():
        model = models.torch_model("llama2", vocab_size=len(char_tokenizer()))
        with torch.no_grad():
            model.lm_head.weight.mul_(0.5)
        models.save(model, other)
    output = world / "scored.jsonl"
    assert run("score", world, *causal(world), "--score.input", world / "rows.jsonl", "--score.output", output,
               "--score.reward_model", exported, "--reference.path", other, "--objective.beta", 0.3) == 0  # fmt: skip
    rows = lines(output)
    assert [r["prompt"] for r in rows] == [r["prompt"] for r in ROWS] and [len(r["scores"]) for r in rows] == [2, 3] * 3
    assert [r["previous_scores"] for r in rows] == [r["scores"] for r in ROWS]
    tokenizer = char_tokenizer()
    own = [n for r in rows for n in r["lengths"]]
    for column, folder in (("logps", world / "base"), ("ref_logps", other)):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        expected = []
        for ids, n in zip(texts(tokenizer), own, strict=True):
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            expected.append(float(logps[torch.arange(len(ids) - 1), torch.tensor(ids[1:])][-n:].sum()))
        np.testing.assert_allclose([x for r in rows for x in r[column]], expected, atol=1e-3)
    for row in rows:
        np.testing.assert_allclose(row["implicit_rewards"], 0.3 * (np.subtract(row["logps"], row["ref_logps"])), atol=1e-9)
    assert sorted(p.name for p in world.glob("scored.jsonl*")) == ["scored.jsonl", "scored.jsonl.settings.json"]
    assert run("train", world, "--data.train", output, "--run.dir", world / "from-scored", "--train.steps", 1) == 0


def test_score_goes_on_where_it_was(world, exported, monkeypatch, capsys):
    from align_jax.recipes import score_passes
    from align_jax.scoring.scorer import FixedScorer

    output, whole = world / "cut.jsonl", world / "whole.jsonl"
    options = causal(world, "--score.input", world / "rows.jsonl", "--score.reward_model", exported)
    assert run("score", world, *options, "--score.output", whole) == 0
    monkeypatch.setattr(score_passes, "BLOCK", 2)
    calls, original = [], FixedScorer.groups

    def failing(self, groups, rows):
        if self.scorer.config.head == "score":
            calls.append(len(groups))
            if len(calls) == 2:
                raise KeyboardInterrupt
        return original(self, groups, rows)

    monkeypatch.setattr(FixedScorer, "groups", failing)
    assert run("score", world, *options, "--score.output", output) == 130
    assert "scores: 2 of 6 rows are kept" in capsys.readouterr().err
    assert run("score", world, *options, "--score.output", output) == 0
    assert calls == [2, 2, 2, 2]
    for a, b in zip(lines(whole), lines(output), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(a["scores"], b["scores"], atol=1e-5)
        np.testing.assert_allclose(a["logps"], b["logps"], atol=1e-4)
    assert run("score", world, *options, "--score.output", output) == 0 and calls == [2, 2, 2, 2]


@pytest.mark.parametrize(
    "rows, overrides, message",
    [
        ([], (), "in.jsonl is empty"),
        ([{"prompt": "a", "responses": ["\ud83d"]}], (), "in.jsonl:1: half a character"),
        ([{"prompt": "a", "responses": ["b"], "_index": 0}], (), "in.jsonl:1: the column '_index' is used by unfinished"),
        ([{"prompt": "a", "responses": ["b"]}, {"prompt": "a"}], (), "in.jsonl:2: field 'responses' is missing"),
        ([{"prompt": "a", "responses": []}], (), "in.jsonl:1: field 'responses': expected a list that is not empty"),
        ([{"prompt": "a", "responses": ["b" * 300]}], (), "in.jsonl:1: .* has 303 tokens, more than the 256 of the model's"),
        ([{"prompt": "a", "responses": ["b"]}], ("--score.reward_model", "BASE"), "it is a language model; supported: Llama"),
        (
            [{"prompt": "a", "responses": ["b"]}],
            ("--objective.name", "reward", "--objective.center", "0"),
            "'reward' trains a reward model, which has no log-probs",
        ),
        ([{"prompt": "a", "responses": ["b"]}], ("--score.logps", "false"), "leaves nothing to compute"),
        ([{"prompt": "a", "responses": ["b"]}], ("--run.dir", "RUN"), "run.dir: .* is the run of a reward model"),
    ],
)
def test_bad_input_is_one_line(world, trained, capsys, tmp_path, rows, overrides, message):
    given = tmp_path / "in.jsonl"
    write_jsonl(given, rows)
    capsys.readouterr()
    options = [{"BASE": world / "base", "RUN": trained}.get(x, x) for x in overrides]
    output = tmp_path / "out.jsonl"
    assert run("score", world, *causal(world), "--score.input", given, "--score.output", output, *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("align-jax score: ") and re.search(message, error), error
    assert not output.exists()


def test_a_reward_model_is_evaluated(world, trained, capsys):
    assert run("evaluate", world, "--evaluate.resamples", 0) == 0
    output = capsys.readouterr()
    assert "a reward model generates nothing" in output.err and "kl/reference" not in output.out
    value = read_metrics(trained / "metrics.jsonl")[-1]["eval/rewards/accuracies"]
    [line] = [line for line in output.out.splitlines() if line.startswith("rewards/accuracies ")]
    assert line.split()[-1] == f"{value:.3f}"


def test_an_exported_reward_model_is_evaluated_as_its_run(world, trained, exported, capsys):
    models = json.dumps({"run": str(trained), "exported": str(exported)})
    few = ("--evaluate.resamples", 0, "--data.max_response_tokens", 12)
    assert run("evaluate", world, "--run.dir", world / "both", "--evaluate.models", models, *few) == 0
    output = capsys.readouterr()
    for line in output.out.splitlines()[2:]:
        if len(words := line.split()) == 3:
            assert words[1] == words[2], line
    cut = json.loads((world / "both" / "evaluation.json").read_text())["truncated"]
    assert cut["responses"] > 0
    assert f"and 12 tokens: {cut['prompts']} prompts and {cut['responses']} responses" in output.err


def test_a_reward_model_of_two_outputs_is_refused_before_any_pass(world, exported, tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    two = tmp_path / "two"
    shutil.copytree(exported, two)
    weights = load_file(two / "model.safetensors")
    save_file(weights | {"score.weight": np.repeat(weights["score.weight"], 2, axis=0)}, two / "model.safetensors")
    config = json.loads((two / "config.json").read_text())
    given, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(given, [{"prompt": "a", "responses": ["b"]}])
    files = ("--score.input", given, "--score.output", output, "--score.reward_model", two)
    for labels, problem in ((config["id2label"], "its score head has 2 outputs"), ({"0": "a", "1": "b"}, "names 2 outputs")):
        (two / "config.json").write_text(json.dumps(config | {"id2label": labels}))
        assert run("score", world, *causal(world), *files) == 2
        assert problem in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "two"]
    options = causal(world), ("--score.input", given, "--score.output", given, "--score.reward_model", exported)
    assert run("score", world, *options[0], *options[1]) == 2
    assert "score.output: " in (error := capsys.readouterr().err) and "is score.input, too" in error


def test_skipped_rows_are_named_and_the_others_scored(world, exported, tmp_path, capsys):
    rows = [ROWS[0], {"prompt": "no responses"}, ROWS[1]]
    given, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_jsonl(given, rows)
    options = ("--score.logps", "false", "--score.reward_model", exported, "--data.on_bad_row", "skip")
    assert run("score", world, "--score.input", given, "--score.output", output, *options) == 0
    assert "1 malformed row left out: " in (error := capsys.readouterr().err) and "in.jsonl:2: field 'responses'" in error
    assert [row["prompt"] for row in lines(output)] == [ROWS[0]["prompt"], ROWS[1]["prompt"]]
    assert all(len(row["scores"]) == len(row["responses"]) for row in lines(output))
    write_jsonl(given, rows[1:2])
    assert run("score", world, "--score.input", given, "--score.output", tmp_path / "none.jsonl", *options) == 2
    assert "all 1 rows are malformed" in capsys.readouterr().err


def test_a_reward_run_generates_nothing(world, trained, tmp_path, capsys):
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}])
    options = ("--generate.prompts", prompts, "--generate.output", tmp_path / "o.jsonl")
    assert run("generate", world, *options) == 2
    assert run("generate", world, *causal(world), *options, "--run.dir", trained) == 2
    errors = capsys.readouterr().err
    assert "'reward' trains a reward model, which generates nothing" in errors and "is the run of a reward model" in errors
