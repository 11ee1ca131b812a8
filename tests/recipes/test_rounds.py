"""`align-jax train` with on-policy rounds: what is kept, what a killed run does again, the reference, and what is refused."""

import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import yaml

from align_jax import hf
from align_jax.cli import main
from align_jax.config import Config
from align_jax.data import DataConfig
from align_jax.data.opened import open_data
from align_jax.data.prompts import distinct_prompts
from align_jax.errors import UserError
from align_jax.experiments import opinions
from align_jax.models import Decoder, ModelConfig, init_weights
from align_jax.recipes import generate, onpolicy, round_job, rounds, score
from align_jax.recipes.round_job import EVALUATION
from align_jax.recipes.score_passes import Pass
from align_jax.training.logs import TIMING_PREFIXES, MetricsLog, read_metrics
from tests.processes import finish, start_two

SHAPE = dict(vocab_size=130, width=16, mlp_width=24, layers=1, heads=2, kv_heads=1, head_size=8, max_length=48)
STEPS, SAMPLES, TRAINED, HELD_OUT = 4, 4, 8, 5


class Reward:
    """A stand-in: how many words of a response begin with s, less its length; what was asked is written down."""

    asked: list

    def __init__(self):
        self.asked = []

    def stands_in(self, patch):
        patch.setattr(score, "reward_pass", self.reward_pass)
        patch.setattr(rounds, "model_at", lambda given, head, key: None)

    def score(self, texts):
        self.asked.append(texts)
        return np.asarray([sum(w.startswith("s") for w in text.split()) - len(text) / 100 for text in texts])

    def reward_pass(self, config, rows):
        texts = [row["responses"] for row in rows.values]
        ready = lambda: lambda groups: ((i, self.score(group)) for i, group in enumerate(groups))  # noqa: E731
        return Pass("scores", {"reward": config.score.reward_model}, rows.where, texts, ready)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Prompts, a tokenizer and the config of two short rounds."""
    folder = tmp_path_factory.mktemp("rounds")
    opinions.write_tokenizer(folder / "tokenizer")
    for name, seed, count in (("train", 1, 40), ("eval", 2, 30)):
        rows = list({row["prompt"]: {"prompt": row["prompt"]} for row in opinions.rows(count, seed, uniform=True)}.values())
        assert len(rows) > TRAINED
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "model": {"config": SHAPE, "tokenizer": str(folder / "tokenizer"), "dtype": "float32"},
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"), "format": "prompts",
                 "max_prompt_tokens": 8, "max_response_tokens": 8},
        "objective": {"name": "mpo", "alpha": 0.2},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "schedule": "constant"},
        "train": {"steps": STEPS, "groups_per_step": 4},
        "checkpoint": {"every": 2},
        "generate": {"max_new_tokens": 8, "rows": 16},
        "rounds": {"number": 2, "samples_per_prompt": SAMPLES, "reward_model": str(folder / "reward"),
                   "prompts_per_round": TRAINED, "eval_prompts": HELD_OUT, "eval_samples": 3},
        "log": {"progress": False},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return folder, path


@pytest.fixture(autouse=True)
def reward(monkeypatch):
    model = Reward()
    model.stands_in(monkeypatch)
    return model


def train(config, run, *overrides):
    return main(["train", str(config), "--run.dir", str(run), *map(str, overrides)])


def options(**keys):
    """Keys of the section `rounds` as words of the command line."""
    return [word for key, value in keys.items() for word in (f"--rounds.{key}", value)]


@pytest.fixture(scope="module")
def whole(world):
    """An uninterrupted run."""
    folder, config = world
    with pytest.MonkeyPatch.context() as patch:
        Reward().stands_in(patch)
        assert train(config, folder / "whole") == 0
    return folder / "whole"


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(run):
    """What two runs of one config must have in common: rows, weights, metrics and results."""
    found = {}
    for path in sorted(run.glob("rounds/*/*")):
        if path.suffix == ".jsonl" and path.name != "metrics.jsonl" or path.name == "evaluation.json":
            found[str(path.relative_to(run))] = path.read_text()
    for path in sorted(run.glob("rounds/*/model/model.safetensors")):
        found[str(path.relative_to(run))] = path.read_bytes()
    for path in sorted(run.glob("rounds/*/metrics.jsonl")):
        lines = [{k: v for k, v in m.items() if not k.startswith(TIMING_PREFIXES)} for m in read_metrics(path)]
        found[str(path.relative_to(run))] = lines
    return found


@pytest.mark.slow
def test_a_run_keeps_what_it_promises(world, whole):
    folder, _ = world
    lines = rows(whole / "rounds.jsonl")
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert lines[0]["eval/kl"] == 0 and lines[0]["eval/gain"] == 0
    start = rows(whole / "rounds" / "0" / "eval_scored.jsonl")
    for n, line in enumerate(lines):
        at = whole / "rounds" / str(n)
        assert json.loads((at / "evaluation.json").read_text()) == line
        scored = rows(at / "eval_scored.jsonl")
        assert len(scored) == HELD_OUT and [r["prompt"] for r in scored] == [r["prompt"] for r in start]
        means = np.asarray([Reward().score(r["responses"]).mean() for r in scored])
        assert line["eval/reward"] == pytest.approx(means.mean())
        assert line["eval/gain"] == pytest.approx(means.mean() - lines[0]["eval/reward"])
        assert line["eval/reward_low"] <= line["eval/reward"] <= line["eval/reward_high"]
    taken = []
    for n in (1, 2):
        at = whole / "rounds" / str(n)
        scored = rows(at / "scored.jsonl")
        assert [{k: v for k, v in r.items() if k != "scores"} for r in scored] == rows(at / "samples.jsonl")
        assert all(len(r["responses"]) == len(r["scores"]) == len(r["tokens"]) == SAMPLES for r in scored)
        assert [m["step"] for m in read_metrics(at / "metrics.jsonl")] == list(range(1, STEPS + 1))
        assert lines[n]["samples/reward"] == pytest.approx(np.mean([r["scores"] for r in scored]))
        taken.append({r["prompt"] for r in scored})
    assert len(taken[0]) == len(taken[1]) == TRAINED and not taken[0] & taken[1]
    assert lines[2]["eval/kl"] != 0


@pytest.mark.slow
def test_the_kl_is_the_mean_log_ratio_of_what_was_sampled(world, whole):
    import align_jax
    from align_jax.data import Encoder
    from align_jax.data.formats import Example

    folder, _ = world
    from transformers import AutoTokenizer

    encoder = Encoder(AutoTokenizer.from_pretrained(folder / "tokenizer"), DataConfig(max_prompt_tokens=8))
    scored = rows(whole / "rounds" / "2" / "eval_scored.jsonl")
    prompts = [encoder.prompt(Example(row["prompt"], ())).ids.tolist() for row in scored]
    batch = align_jax.make_groups(prompts, [row["tokens"] for row in scored])
    last, start = (align_jax.load_model(whole / "rounds" / str(n) / "model", dtype="float32") for n in (2, 0))
    ratios = align_jax.response_logps(last, batch) - align_jax.response_logps(start, batch)
    assert rows(whole / "rounds.jsonl")[2]["eval/kl"] == pytest.approx(float(ratios.mean()), abs=1e-5)


@pytest.mark.slow
def test_export_gives_the_last_round(world, whole):
    folder, _ = world
    assert main(["export", str(whole), str(folder / "exported")]) == 0
    last = whole / "rounds" / "2" / "model" / "model.safetensors"
    assert (folder / "exported" / "model.safetensors").read_bytes() == last.read_bytes()
    assert last.read_bytes() != (whole / "rounds" / "1" / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_other_commands_take_the_last_round(world, whole, capsys):
    folder, config = world
    files = ("--generate.prompts", folder / "eval.jsonl", "--generate.output", folder / "said.jsonl", "--generate.rows", 4)
    assert main(["generate", str(config), "--run.dir", str(whole), *map(str, files)]) == 0
    assert f"the model is that of step {STEPS} in {whole / 'rounds' / '2'}" in capsys.readouterr().err
    assert main(["evaluate", str(config), "--run.dir", str(whole)]) == 2
    assert "data.format 'prompts' has no responses to evaluate on" in capsys.readouterr().err


@pytest.mark.slow
def test_stopped_in_every_step_it_goes_on_inside_it_and_ends_with_the_same_bits(world, whole, reward, monkeypatch, capsys):
    folder, config = world
    run = folder / "stopped"
    killed_while_sampling(config, run, monkeypatch)
    killed_while_scoring(config, run, reward)
    stopped_by_sigterm(config, run, reward, capsys)
    killed_while_training(config, run, monkeypatch)
    assert train(config, run, "--rounds.number", 2) == 0
    assert contents(run) == contents(whole)
    # One round more, of a run that is complete.
    assert train(config, run, "--rounds.number", 3, "--train.steps", 1) == 0
    assert [line["round"] for line in rows(run / "rounds.jsonl")] == [0, 1, 2, 3]


def killed_while_sampling(config, run, monkeypatch):
    """Ends after 3 of the prompts of round 1; what is in the file stays, and only the rest is sampled."""
    real, asked = generate.stream, []

    def ends_early(model, prompts, **options):
        asked.append(options["prompt_ids"])
        for count, result in enumerate(real(model, prompts, **options)):
            if len(asked) in (2, 3) and count == 3:
                raise RuntimeError("device lost")
            yield result

    monkeypatch.setattr(generate, "stream", ends_early)
    samples = run / "rounds" / "1" / "samples.jsonl"
    with pytest.raises(RuntimeError, match="device lost"):
        train(config, run)
    kept = samples.read_text()
    ids = [row["_index"] for row in rows(samples)]
    assert [len(prompts) for prompts in asked] == [HELD_OUT, TRAINED] and len(ids) == 3
    with pytest.raises(RuntimeError, match="device lost"):
        train(config, run)
    assert sorted(asked[2]) == sorted(set(range(TRAINED)) - set(ids)) and len(asked) == 3
    assert samples.read_text().startswith(kept) and len(rows(samples)) == 6
    monkeypatch.setattr(generate, "stream", real)


def killed_while_scoring(config, run, reward):
    """Ends after 4 prompts of round 1; those are not scored again."""
    before, real = len(reward.asked), reward.score

    def ends_early(texts):
        if len(reward.asked) - before == 4:
            raise RuntimeError("device lost")
        return real(texts)

    reward.score = ends_early
    with pytest.raises(RuntimeError, match="device lost"):
        train(config, run)
    assert len(rows(run / "rounds" / "1" / "scored.jsonl.scores")) == 4
    assert not (run / "rounds" / "1" / "checkpoints").exists()
    reward.score = real


def stopped_by_sigterm(config, run, reward, capsys):
    """Ends with exit status 0 and a line, in the evaluation of round 1."""
    before, real = len(reward.asked), reward.score

    def stops(texts):
        if len(reward.asked) - before == TRAINED - 4 + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(texts)

    reward.score = stops
    capsys.readouterr()
    assert train(config, run) == 0
    assert "stopped by SIGTERM in round 1 of 2; the same command goes on" in capsys.readouterr().err
    assert len(rows(run / "rounds" / "1" / "eval_scored.jsonl.scores")) == 2
    assert len(reward.asked) - before == TRAINED - 4 + 2
    reward.score = real


def killed_while_training(config, run, monkeypatch):
    """Ends in the third step of round 2, after a checkpoint of the second."""
    real = MetricsLog.log

    def ends_early(log, step, metrics):
        if step == 3:
            raise RuntimeError("device lost")
        real(log, step, metrics)

    monkeypatch.setattr(MetricsLog, "log", ends_early)
    with pytest.raises(RuntimeError, match="device lost"):
        train(config, run)
    assert [path.name for path in (run / "rounds" / "2" / "checkpoints").glob("[0-9]*")] == ["2"]
    monkeypatch.setattr(MetricsLog, "log", real)


@pytest.mark.slow
def test_the_reference_is_the_start_of_the_round_or_of_the_run(world, whole):
    folder, config = world
    first = lambda run, n: read_metrics(run / "rounds" / str(n) / "metrics.jsonl")[0]  # noqa: E731
    assert first(whole, 2)["rewards/chosen"] == first(whole, 2)["rewards/rejected"] == 0
    run = folder / "dpo"
    more = ("--objective.name", "dpo", "--objective.alpha", "null", "--rounds.reference", "run", "--train.steps", 2)
    assert train(config, run, *more) == 0
    assert first(run, 1)["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert abs(first(run, 2)["loss"] - np.log(2)) > 1e-4
    assert abs(first(run, 2)["rewards/chosen"]) > 1e-4


@pytest.mark.slow
def test_two_processes_take_rounds_as_one_and_stop_together(world, monkeypatch):
    folder, config = world
    monkeypatch.undo()  # a reward model that other processes can load
    one, two = folder / "one", folder / "two"
    more = ("--rounds.reward_model", reward_folder(folder), "--rounds.number", 1, "--mesh.data", 2, "--mesh.fsdp", 2)
    processes = start_two(["train", config, "--run.dir", two, *more])
    try:
        wait_for(two / "rounds" / "1" / "scored.jsonl", processes)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        said = finish(processes)
    assert "stopped by SIGTERM" in said[0] and "align-jax" not in said[1]
    assert not (two / "rounds.jsonl").exists() or len(rows(two / "rounds.jsonl")) == 1
    said = finish(start_two(["train", config, "--run.dir", two, *more]))
    assert "all rounds are done" in said[0] and "align-jax" not in said[1]
    assert train(config, one, *more) == 0
    of_one, of_two = contents(one), contents(two)
    assert of_one.keys() == of_two.keys() and len(of_one) == 12
    for name in ("prompts.jsonl", "samples.jsonl"):  # before any training, so nothing is amplified
        assert of_two[f"rounds/1/{name}"] == of_one[f"rounds/1/{name}"]
    scores = [np.asarray([row["scores"] for row in rows(run / "rounds" / "1" / "scored.jsonl")]) for run in (one, two)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
    assert np.ptp(scores[0]) > 0.01
    for line, same in zip(rows(one / "rounds.jsonl"), rows(two / "rounds.jsonl"), strict=True):
        assert same == pytest.approx(line, abs=1e-3)


def reward_folder(folder):
    """A reward model of random weights in Hugging Face format."""
    shape = ModelConfig(**SHAPE, head="score")
    hf.save_model(Decoder(shape, init_weights(shape, jax.random.key(1))), folder / "reward", tokenizer=folder / "tokenizer")
    return folder / "reward"


def wait_for(path, processes):
    for _ in range(4000):
        if path.exists():
            return
        assert processes[0].poll() is None, processes[0].stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"no {path}")


@pytest.mark.slow
def test_a_response_of_nothing_is_trained_on(world, whole):
    # What was sampled is the end token, and so is blank text where it is kept.
    folder, config = world
    given = rows(whole / "rounds" / "1" / "scored.jsonl")
    given[0]["responses"][0], given[0]["tokens"][0] = "", [3]
    path = folder / "blank.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    values = yaml.safe_load((whole / "rounds" / "1" / "config.yaml").read_text())
    values["run"]["dir"], values["data"]["train"] = str(folder / "blank"), str(path)
    (folder / "blank.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(folder / "blank.yaml"), "--train.steps", "1"]) == 0
    (metrics,) = read_metrics(folder / "blank" / "metrics.jsonl")
    assert np.isfinite(metrics["loss"])
    groups = ["train", str(folder / "blank.yaml"), "--data.format", "groups", "--train.steps", "1"]
    assert main([*groups, "--run.dir", str(folder / "texts")]) == 0
    assert main([*groups, "--run.dir", str(folder / "refused"), "--data.on_empty", "error"]) == 2


@pytest.mark.slow
def test_prompts_of_any_format_each_once(tmp_path):
    prompts = (("x", ""), ("y", "1"), ("x", ""), ("y", "2"))
    pairs = [{"prompt": prompt, "chosen": "a", "rejected": "b", "group": group} for prompt, group in prompts]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*pairs, {"prompt": "z"}]))
    config = DataConfig(train=str(path), format="pairs", on_bad_row="skip")
    found, bad, _ = distinct_prompts(config, "train", tmp_path)
    assert found == [{"prompt": "x"}, {"prompt": "y", "group": "1"}, {"prompt": "y", "group": "2"}]
    assert [b["where"] for b in bad] == [f"{path}:5"]
    with pytest.raises(UserError, match=r"pairs.jsonl:5: field 'chosen' is missing"):
        distinct_prompts(DataConfig(train=str(path), format="pairs"), "train", tmp_path)


@pytest.mark.slow
def test_every_prompt_is_taken_before_one_is_taken_again():
    rounds = [onpolicy.round_prompts(10, 3, n, seed=5) for n in range(1, 7)]
    assert all(len(set(r)) == 3 and set(r) <= set(range(10)) for r in rounds)
    assert len({i for r in rounds[:3] for i in r}) == 9 == len({i for r in rounds[3:] for i in r})
    assert rounds[:3] != rounds[3:] and rounds == [onpolicy.round_prompts(10, 3, n, seed=5) for n in range(1, 7)]
    assert onpolicy.round_prompts(4, 4, 3, seed=0) == [0, 1, 2, 3]


@pytest.mark.slow
def test_the_interval_is_the_bootstraps():
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).exponential(size=200)
    mean, low, high = onpolicy.interval(values)
    theirs = bootstrap((values,), np.mean, method="percentile", random_state=1).confidence_interval
    width = theirs.high - theirs.low
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(theirs.low, abs=0.08 * width) and high == pytest.approx(theirs.high, abs=0.08 * width)
    assert onpolicy.interval(np.zeros(5)) == (0, 0, 0)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--rounds.reward_model", "null"], "rounds.reward_model"),
        (["--objective.name", "gdpo", "--objective.preference", "mpo"], "has no beliefs; rounds with objective gdpo need"),
        (["--objective.name", "reward", "--objective.alpha", "null"], "--objective.name: 'reward' cannot be trained in rounds"),
        (["--rounds.samples_per_prompt", "1"], "rounds.samples_per_prompt: 1 must be at least 2"),
        (["--rounds.prompts_per_round", "99"], "rounds.prompts_per_round: 99 are wanted, but"),
        (["--rounds.eval_prompts", "99"], "rounds.eval_prompts: 99 are wanted, but"),
        (["--rounds.reference", "start"], "rounds.reference"),
        (["--data.eval", "null"], "--data.eval: is required by rounds"),
        (["--reference.path", "x"], "--reference.path: is not used in rounds"),
        (["--generate.temperature", "0"], "generate.temperature: 0 gives the same sample"),
        (["--train.eval_every", "5"], "--train.eval_every: is not used in rounds"),
        (["--evaluate.training_samples", "2"], "--evaluate.training_samples: is not used in rounds"),
        (["--generate.alpaca_eval", "x.json"], "--generate.alpaca_eval: is not used in rounds"),
        (["--generate.max_new_tokens", "9"], "--generate.max_new_tokens: 9 is more than data.max_response_tokens=8"),
    ],
)
def test_what_is_refused_is_named(world, capsys, overrides, message):
    folder, config = world
    assert train(config, folder / "refused", *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "refused" / "rounds").exists()


@pytest.mark.slow
def test_a_reward_model_that_is_none_is_refused_before_sampling(world, whole, monkeypatch, capsys):
    folder, config = world
    monkeypatch.undo()
    for given, problem in ((whole / "rounds" / "1", "is the run of a language model"), (folder / "x", "no such folder")):
        assert train(config, folder / "refused", "--rounds.reward_model", given) == 2
        said = capsys.readouterr().err
        assert "rounds.reward_model" in said and problem in said, said
    assert not (folder / "refused" / "rounds").exists()


@pytest.mark.slow
def test_other_settings_in_the_folder_are_refused(world, whole, capsys, tmp_path):
    folder, config = world
    run = tmp_path / "copy"
    shutil.copytree(whole, run)
    assert train(config, run, "--generate.top_p", "0.9") == 2
    assert "generate.top_p=1.0, but generate.top_p=0.9" in capsys.readouterr().err


@pytest.mark.slow
def test_a_judge_may_come_later_and_trains_nothing(world, whole, reward, monkeypatch, tmp_path, capsys):
    _, config = world
    run, asked = tmp_path / "judged", []
    shutil.copytree(whole, run)

    def reward_pass(config, given):
        asked.append(config.score.reward_model)
        texts = [row["responses"] for row in given.values]
        score_of = lambda groups: ((i, np.asarray([float(len(t)) for t in g])) for i, g in enumerate(groups))  # noqa: E731
        return Pass("scores", {"reward": config.score.reward_model}, given.where, texts, lambda: score_of)

    before = [(run / "rounds" / str(n) / EVALUATION).read_text() for n in range(3)]
    monkeypatch.setattr(score, "reward_pass", reward_pass)
    assert train(config, run, *options(gold_model="judge", best="gold")) == 0
    assert asked.count("judge") == 3 and reward.asked == []
    lines = rows(run / "rounds.jsonl")
    for n, (line, old) in enumerate(zip(lines, before, strict=True)):
        judged = rows(run / "rounds" / str(n) / "eval_gold.jsonl")
        lengths = [np.mean([len(text) for text in row["responses"]]) for row in judged]
        assert len(judged) == HELD_OUT and line["eval/gold"] == pytest.approx(np.mean(lengths))
        assert {name: value for name, value in line.items() if "gold" not in name} == json.loads(old)
    best = 1 if lines[1]["eval/gold"] >= lines[2]["eval/gold"] else 2
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert f"the model is that of round {best} (rounds.best: gold)" in capsys.readouterr().err
    model = (run / "rounds" / str(best) / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model
    assert train(config, run, *options(gold_model="another")) == 2
    assert "rounds.gold_model='judge', but rounds.gold_model='another'" in capsys.readouterr().err


def test_prompts_alone_cannot_be_trained_on_without_rounds(world, capsys):
    folder, config = world
    values = yaml.safe_load(config.read_text())
    del values["rounds"]
    (folder / "plain.yaml").write_text(yaml.safe_dump(values))
    assert train(folder / "plain.yaml", folder / "plain") == 2
    assert "data.format 'prompts' has no responses" in capsys.readouterr().err


def test_what_rounds_write_has_no_splits_whatever_the_data_set_has(tmp_path):
    rows = [{"prompt": f"p{i}", "responses": ["a", "b"], "scores": [1, 0], "tokens": [[3, 2], [4, 2]]} for i in range(3)]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = {"split": "train_prefs", "eval_split": "test_prefs", "subset": "en", "revision": "v1", "streaming": True}
    config = Config.of({"data": {"train": "some/data", "eval": "some/data", **parts}})
    opened = open_data(round_job.samples_data(config, tmp_path / "scored.jsonl"), "train", None)
    assert len(opened.source) == 3 and opened.source.notes == ()
