"""`align-jax generate` on a fresh model and a word tokenizer; and what the real model must say."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from align_jax import cli, hf
from align_jax.experiments.opinions import write_tokenizer
from align_jax.generation import Sampling, end_ids, generate, response_text
from align_jax.models import Decoder, ModelConfig, init_weights
from tests.processes import finish, start_two

MODEL = dict(vocab_size=200, width=16, mlp_width=24, layers=1, heads=2, kv_heads=1, head_size=8, max_length=40)


@pytest.fixture
def work(tmp_path):
    """A folder with a config, a tokenizer and prompts; -> a function that runs the command and returns rows or the error."""
    write_tokenizer(tmp_path / "tokenizer")
    config = {
        "model": {"config": MODEL, "tokenizer": str(tmp_path / "tokenizer"), "dtype": "float32"},
        "data": {"prompt_template": "{group} {prompt}", "belief_template": "{id} : {belief}"},
        "generate": {"prompts": str(tmp_path / "prompts.jsonl"), "output": str(tmp_path / "out.jsonl"), "max_new_tokens": 6},
        "log": {"progress": False},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return tmp_path


def run(work: Path, prompts: list[dict], *overrides: str) -> tuple[int, list[dict]]:
    (work / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    code = cli.main(["generate", str(work / "config.yaml"), *overrides])
    out = work / "out.jsonl"
    return code, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def test_prompts_in_responses_out(work, capsys):
    prompts = [{"prompt": "yes , i like solar roofs", "id": n} for n in range(3)]
    code, rows = run(work, prompts, "--generate.samples", "2", "--generate.top_p", "0.9")
    assert code == 0
    assert [row["id"] for row in rows] == [0, 1, 2] and [row["prompt"] for row in rows] == [p["prompt"] for p in prompts]
    assert all(len(row["responses"]) == 2 and all(isinstance(text, str) for text in row["responses"]) for row in rows)
    assert len({text for row in rows for text in row["responses"]}) == 6  # prompts differ by their place alone
    assert "responses to 3 prompts" in capsys.readouterr().err
    _, again = run(work, prompts, "--generate.samples", "2", "--generate.top_p", "0.9")
    assert again == rows and "has 3 of 3 prompts already" in capsys.readouterr().err


def test_prompts_on_the_command_line(work, capsys):
    _, rows = run(work, [{"prompt": "city parks"}, {"prompt": "yes city parks"}], "--generate.samples", "2")
    written = (work / "out.jsonl").read_bytes()
    capsys.readouterr()
    config, prompts = str(work / "config.yaml"), ["--prompt", "city parks", "--prompt=yes city parks"]
    assert cli.main(["generate", *prompts, config, "--generate.samples", "2"]) == 0
    lines = [f"=== {row['prompt']}\n--- 1 of 2\n{row['responses'][0]}\n--- 2 of 2\n{row['responses'][1]}\n" for row in rows]
    assert capsys.readouterr().out == "\n".join(lines) + "\n"
    assert (work / "out.jsonl").read_bytes() == written  # the config's own output is not touched

    output = work / "own.jsonl"
    assert cli.main(["generate", config, *prompts, "--generate.output", str(output), "--generate.samples", "2"]) == 0
    assert capsys.readouterr().out == ""
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--generate.alpaca_eval", "a.json"], "--generate.alpaca_eval: it is written from the file of --generate.output"),
        (["--objective.name", "reward"], "objective.name: 'reward' trains a reward model"),
        (["--prompt", ""], "--prompt: a prompt is empty"),
    ],
)
def test_prompts_on_the_command_line_that_are_refused(work, capsys, argv, message):
    assert cli.main(["generate", str(work / "config.yaml"), "--prompt", "city parks", *argv]) == 2
    assert message in capsys.readouterr().err


def test_folders_in_place_of_a_config(work, capsys, monkeypatch):
    monkeypatch.chdir(work)
    shape = ModelConfig(**MODEL)
    weights = init_weights(shape, jax.random.key(0))
    hf.save_model(Decoder(shape, weights, dtype="float32"), "exported", tokenizer="tokenizer")
    (work / "run").mkdir()
    values = json.loads((work / "config.yaml").read_text())
    moved = values | {"model": {"path": "exported", "tokenizer": "nowhere", "dtype": "float32"}, "run": {"dir": "elsewhere"}}
    (work / "run/config.yaml").write_text(json.dumps(moved | {"data": {}}))
    shutil.copytree("tokenizer", "run/tokenizer")
    out = []
    for given in ("exported", "run"):
        argv = ["--prompt", "city parks", "--generate.max_new_tokens", "6", "--model.dtype", "float32"]
        assert cli.main(["generate", given, *argv]) == 0
        out.append(capsys.readouterr().out)
    assert out[0] == out[1] and out[0].startswith("=== city parks\n")

    (work / "rows.jsonl").write_text(json.dumps({"prompt": "city parks", "responses": ["are fine", "yes"]}) + "\n")
    assert cli.main(["score", "exported", "--score.input", "rows.jsonl", "--score.output", "scored.jsonl"]) == 0
    (scored,) = (json.loads(line) for line in (work / "scored.jsonl").read_text().splitlines())
    assert len(scored["logps"]) == 2 and scored["implicit_rewards"] == [0.0, 0.0]


def test_outputs_for_alpaca_eval(work, capsys):
    prompts = [
        {"prompt": "city parks", "dataset": "koala"},
        {"prompt": "yes city parks", "instruction": "What of parks?"},
    ]
    _, rows = run(work, prompts, "--generate.samples", "2")
    path = work / "alpaca" / "model_outputs.json"
    code, again = run(work, prompts, "--generate.samples", "2", "--generate.alpaca_eval", str(path))
    assert code == 0 and again == rows and "has 2 of 2 prompts already" in capsys.readouterr().err
    first, second = json.loads(path.read_text())
    output = {"output": rows[0]["responses"][0].strip(), "generator": "fresh model"}
    assert first == {"instruction": "city parks", "dataset": "koala"} | output
    assert second["instruction"] == "What of parks?" and second.keys() == {"instruction", "output", "generator"}


def test_an_interrupted_run_goes_on(work, capsys, monkeypatch):
    prompts = [{"prompt": "city parks", "id": n} for n in range(4)]
    _, whole = run(work, prompts)
    (work / "out.jsonl").unlink()
    real = cli_generate().stream

    def ends_early(*args, **options):
        results = real(*args, **options)
        yield next(results)
        raise RuntimeError("device lost")

    monkeypatch.setattr(cli_generate(), "stream", ends_early)
    with pytest.raises(RuntimeError, match="device lost"):
        run(work, prompts)
    assert "1 of 4 prompts are in" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(work, prompts) == (0, whole)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_stopped_it_keeps_what_has_finished(work, capsys, monkeypatch, number, status):
    prompts = [{"prompt": "city parks", "id": n} for n in range(4)]
    _, whole = run(work, prompts)
    (work / "out.jsonl").unlink()
    real = cli_generate().stream

    def is_ended(*args, **options):
        for n, result in enumerate(real(*args, **options)):
            if n == 1:
                os.kill(os.getpid(), number)
            yield result

    monkeypatch.setattr(cli_generate(), "stream", is_ended)
    code, rows = run(work, prompts)
    assert code == status and len(rows) == 2
    assert "2 of 4 prompts are in" in (said := capsys.readouterr().err) and "the same command goes on" in said
    monkeypatch.undo()
    assert run(work, prompts) == (0, whole)


def cli_generate():
    import align_jax.recipes.generate as module

    return module


@pytest.mark.slow
def test_two_processes_generate_as_one(work):
    options = ["city parks", "solar roofs", "i like city parks"]
    prompts = [{"prompt": "yes , i like solar roofs", "group": "north", "options": options[: 2 + n % 2]} for n in range(5)]
    more = ("--generate.beliefs", "true", "--generate.samples", "3", "--generate.repetition_penalty", "1.2")
    _, whole = run(work, prompts, *more)
    assert len(whole) == 5
    lines, out = (work / "out.jsonl").read_text().splitlines(keepends=True), work / "out.jsonl"
    out.write_text("".join(json.dumps({"_index": i, **json.loads(lines[i])}) + "\n" for i in (3, 1)))  # as if killed
    said = finish(start_two(["generate", work / "config.yaml", *more, "--mesh.data", 2, "--mesh.fsdp", 2]))
    assert "has 2 of 5 prompts already" in said[0] and "align-jax" not in said[1]
    again = [json.loads(line) for line in out.read_text().splitlines()]
    for row, one in zip(again, whole, strict=True):
        assert row["responses"] == one["responses"] and row["beliefs"] == one["beliefs"]


def test_beliefs_and_groups(work):
    row = {"prompt": "city parks", "options": ["support", "oppose", "unsure"]}
    prompts = [{**row, "groups": ["1", "2"]}, {**row, "group": "1", "belief": 1.0}]
    code, rows = run(work, prompts, "--generate.beliefs", "true", "--generate.samples", "3")
    assert code == 0 and [r["group"] for r in rows] == ["1", "2", "1"]
    for r in rows:
        assert len(r["responses"]) == len(r["beliefs"]) == 3
        assert sum(r["belief_distribution"]) == pytest.approx(1) and len(r["belief_distribution"]) == 3
        assert r["belief_probabilities"] == [r["belief_distribution"][b] for b in r["beliefs"]]
        assert 0 < r["belief_mass"] < 1
    assert rows[2]["beliefs"] == [1, 1, 1]
    np.testing.assert_allclose(rows[0]["belief_distribution"], rows[2]["belief_distribution"], rtol=1e-6)
    assert not np.allclose(rows[0]["belief_distribution"], rows[1]["belief_distribution"], rtol=1e-4)


@pytest.mark.parametrize(
    "rows, overrides, message",
    [
        ([{"prompt": "city parks"}, {"prompt": "city parks " * 30}], [], "prompts.jsonl:2: the prompt has .* context of 40"),
        ([{"prompt": "city parks"}], ["--generate.stop_tokens", "[perks]"], "'perks' is not a token .* did you mean 'parks'"),
        ([], [], "prompts.jsonl is empty"),
        ([{"prompt": "a"}, {"prompt": "b", "id": "\ud83d"}], [], "prompts.jsonl:2: half a character"),
        ([{"prompt": "a"}], ["--generate.output", "PROMPTS"], "generate.output: .* is generate.prompts, too"),
        ([{"prompt": "a"}], ["--generate.alpaca_eval", "PROMPTS"], "generate.alpaca_eval: .* is generate.prompts, too"),
        ([{"prompt": "a"}], ["--run.seed", str(2**32)], "run.seed: 4,294,967,296 is more than 4,294,967,295, the most"),
        ([{"prompt": "city parks"}], ["--model.config.vocab_size", "20"], "the model's vocabulary ends at 19"),
        ([{"prompt": "a", "options": []}], ["--generate.beliefs", "true"], "prompts.jsonl:1: generate.beliefs needs `options`"),
        (
            [{"prompt": "a", "options": ["support"], "belief": 1}],
            ["--generate.beliefs", "true"],
            "prompts.jsonl:1: `belief` 1 is not one of",
        ),
        ([{"prompt": "a", "groups": "x"}], [], "prompts.jsonl:1: `groups` must be a list"),
        ([{"prompt": "a"}], ["--generate.top_p", "1.5"], "generate.top_p: 1.5 is more than 1, the most"),
        ([{"prompt": "a"}], ["--generate.belief_temperature", "0"], "not used without generate.beliefs"),
    ],
)
def test_bad_input_is_one_line(work, capsys, rows, overrides, message):
    import re

    code, results = run(work, rows, *(str(work / "prompts.jsonl") if x == "PROMPTS" else x for x in overrides))
    error = capsys.readouterr().err
    assert code == 2 and results == []
    assert error.startswith("align-jax generate: ") and error.count("\n") == 1
    assert re.search(message, error), error


def stories(folder: Path):
    from transformers import AutoTokenizer

    from align_jax.hf import load_model

    return load_model(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder)


def data_folder() -> Path:
    if not os.environ.get("ALIGN_JAX_DATA"):
        pytest.skip("ALIGN_JAX_DATA is not set")
    return Path(os.environ["ALIGN_JAX_DATA"])


def test_the_real_model_says_what_it_must():
    model, tokenizer = stories(data_folder() / "stories260k")
    prompt = tokenizer("Once upon a time")["input_ids"]
    [[sample]] = generate(model, [prompt], max_new_tokens=60, sampling=Sampling(temperature=0), eos_ids=end_ids(tokenizer))
    text = "Once upon a time" + response_text(tokenizer, prompt, sample.tokens)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
        "big, red ball. She wanted to play with it, but it was too high."
    )


def test_the_real_model_equals_transformers_on_50_prompts_in_one_batch():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder = data_folder()
    model, tokenizer = stories(folder / "stories260k")
    rows = [json.loads(line) for line in open(folder / "preferences" / "eval.jsonl", encoding="utf-8")][:50]
    prompts = [tokenizer(row["instruction"])["input_ids"][:80] for row in rows]
    assert len({len(p) for p in prompts}) > 15
    ours = generate(model, prompts, max_new_tokens=32, sampling=Sampling(temperature=0), eos_ids=end_ids(tokenizer), rows=64)
    theirs = AutoModelForCausalLM.from_pretrained(folder / "stories260k", dtype=torch.float32).eval()
    padded = torch.tensor([[0] * (80 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (80 - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = theirs.generate(padded, attention_mask=mask, max_new_tokens=32, do_sample=False, pad_token_id=0)
    for [sample], row in zip(ours, out[:, 80:].tolist(), strict=True):
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        assert sample.tokens.tolist() == row[:end]


def test_tokens_are_what_was_sampled(work):
    from transformers import AutoTokenizer

    prompts = [{"prompt": "city parks", "id": n} for n in range(3)]
    _, plain = run(work, prompts, "--generate.samples", "2")
    (work / "out.jsonl").unlink()
    _, rows = run(work, prompts, "--generate.samples", "2", "--generate.tokens", "true")
    assert [{k: v for k, v in row.items() if k not in ("tokens", "finish_reasons")} for row in rows] == plain
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    for row in rows:
        for text, tokens, reason in zip(row["responses"], row["tokens"], row["finish_reasons"], strict=True):
            assert (tokens[-1] == tokenizer.eos_token_id) == (reason == "eos") and (len(tokens) == 6 or reason == "eos")
            assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == text.strip()


def test_other_weights_are_other_results(work, capsys):
    import jax

    from align_jax.hf import save_model
    from align_jax.models import Decoder, init_weights
    from align_jax.models.config import ModelConfig

    config = json.loads((work / "config.yaml").read_text())
    config["model"] = {"path": str(work / "model"), "tokenizer": str(work / "tokenizer"), "dtype": "float32"}
    (work / "config.yaml").write_text(json.dumps(config))
    for seed in (0, 1, 1):
        shape = ModelConfig(**MODEL)
        save_model(Decoder(shape, init_weights(shape, jax.random.key(seed), "float32"), dtype="float32"), work / "model")
        assert run(work, [{"prompt": "city parks"}])[0] == 0
    said = capsys.readouterr().err
    assert said.count("held results of other settings, or was changed") == 1 and said.count("has 1 of 1 prompts already") == 1
    for n in (1, 2):  # the same text, but another row
        assert run(work, [{"prompt": "city parks", "id": n}])[1][0]["id"] == n


@pytest.mark.parametrize("beliefs", [False, True])
def test_ids_beyond_the_tokenizer_are_never_sampled(work, beliefs):
    known = len(AutoTokenizer.from_pretrained(work / "tokenizer"))
    assert known < MODEL["vocab_size"] - 50  # a quarter of what a fresh model draws would be beyond it
    row = {"prompt": "city parks", "options": ["yes", "no"]}
    options = ("--generate.samples", "20", "--generate.tokens", "true", "--generate.beliefs", str(beliefs).lower())
    _, rows = run(work, [row], *options)
    drawn = [token for row in rows for tokens in row["tokens"] for token in tokens]
    assert len(drawn) > 50 and max(drawn) < known
