"""Runs with `lora` as a user makes them: the first step, checkpoints, devices, other bases, export and PEFT."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
import yaml

import align_jax
from align_jax.cli import main
from align_jax.errors import UserError
from align_jax.recipes.models import current_model
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.logs import read_metrics
from tests.data.toys import char_tokenizer, write_jsonl
from tests.hf import models

ROWS = [
    {"prompt": f"question {i} ?", "responses": ["yes" * (i + 1), "no way", "ok"][: 2 + i % 2], "scores": [9, 2, 5][: 2 + i % 2]}
    for i in range(8)
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A language model, two of them, groups, and the config of a short run."""
    folder, tokenizer = tmp_path_factory.mktemp("lora"), char_tokenizer()
    for name, seed in (("base", 0), ("other", 1)):
        torch.manual_seed(seed)
        model = models.torch_model("llama2", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2)
        if seed:
            with torch.no_grad():
                model.model.norm.weight.add_(0.1)
        tokenizer.save_pretrained(models.save(model, folder / name))
    config = {
        "run": {"dir": str(folder / "run"), "seed": 1},
        "model": {"path": str(folder / "base"), "dtype": "float32"},
        "lora": {"rank": 2, "alpha": 4},
        "reference": {"cache_dir": str(folder / "reference")},
        "data": {"train": write_jsonl(folder / "rows.jsonl", ROWS)},
        "objective": {"name": "dpo"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "schedule": "constant"},
        "train": {"steps": 4, "groups_per_step": 8},
        "checkpoint": {"every": 2, "keep": 3},
        "log": {"progress": False, "plots": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def train(world, name, *overrides):
    assert main(["train", str(world / "config.yaml"), "--run.dir", str(world / name), *map(str, overrides)]) == 0
    return read_metrics(world / name / "metrics.jsonl")


@pytest.fixture(scope="module")
def trained(world):
    return train(world, "run")


def losses(history):
    return [line["loss"] for line in history if "loss" in line]


def test_step_one_is_ln_2_and_the_loss_falls(trained):
    assert losses(trained)[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses(trained)[-1] < 0.6


@pytest.mark.parametrize(
    "more",
    [
        ("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2, "--train.accumulation_steps", 2),
        pytest.param(("--mesh.fsdp", 8, "--data.pack", "false"), marks=pytest.mark.slow),
        ("--train.accumulation_steps", 2),
    ],
    ids=["eight devices", "fsdp", "microbatches"],
)
def test_devices_and_microbatches_change_nothing(world, trained, more):
    found = train(world, f"run-{more[1]}-{len(more)}", *more)
    np.testing.assert_allclose(losses(found), losses(trained), rtol=2e-4)


def test_a_checkpoint_holds_the_adapter_alone_and_names_its_base(world, trained):
    with Checkpointer(world / "run" / "checkpoints", read_only=True) as checkpoints:
        names = checkpoints.names(4)
    assert all("lora" in name for name in names if name.startswith("trainable.")) and not any("frozen" in n for n in names)
    extra = next((world / "run" / "checkpoints" / "4" / "extra").iterdir())
    assert str(world / "base") in extra.read_text()


def test_a_run_goes_on_with_the_same_bits_and_refuses_another_base(world, trained, capsys):
    train(world, "again", "--train.steps", 2)
    assert losses(train(world, "again")) == losses(trained)
    train(world, "moved", "--train.steps", 2)
    (world / "copy").mkdir()
    for file in (world / "other").iterdir():
        (world / "copy" / file.name).write_bytes(file.read_bytes())
    saved = {file.name: file.read_bytes() for file in (world / "base").iterdir()}
    try:
        for file in (world / "other").iterdir():
            (world / "base" / file.name).write_bytes(file.read_bytes())
        code = main(["train", str(world / "config.yaml"), "--run.dir", str(world / "moved")])
    finally:
        for name, content in saved.items():
            (world / "base" / name).write_bytes(content)
    assert code == 2 and "other frozen weights" in capsys.readouterr().err


def adapter(world):
    """The adapter of the run, exported."""
    if not (world / "adapter").exists():
        assert main(["export", str(world / "run"), str(world / "adapter")]) == 0
    return world / "adapter"


def logits(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def test_the_export_is_an_adapter_of_peft_and_merged_the_model(world, trained, capsys):
    peft = pytest.importorskip("peft")
    assert main(["export", str(world / "run"), str(world / "adapter"), "--overwrite"]) == 0
    said = capsys.readouterr().err
    assert "logits differ by at most 0 " in said and "holds an adapter for" in said
    assert main(["export", str(world / "run"), str(world / "whole"), "--merge"]) == 0
    assert "logits differ by at most" in capsys.readouterr().err
    tokens = np.random.default_rng(0).integers(3, 20, (2, 9))
    plain = transformers.AutoModelForCausalLM.from_pretrained(world / "base")
    before = logits(plain, tokens)
    found = logits(peft.PeftModel.from_pretrained(plain, world / "adapter"), tokens)
    assert np.abs(found - before).max() > 1e-2
    whole = transformers.AutoModelForCausalLM.from_pretrained(world / "whole")
    np.testing.assert_allclose(logits(whole, tokens), found, atol=1e-5)
    ours = align_jax.load_model(world / "base", dtype="float32", adapter=world / "adapter")
    np.testing.assert_allclose(ours(tokens), found, atol=1e-5)


def test_training_goes_on_with_an_adapter_whose_model_is_the_reference(world, trained):
    config = yaml.safe_load((world / "config.yaml").read_text()) | {"lora": {"path": str(adapter(world))}}
    (world / "goes_on.yaml").write_text(yaml.safe_dump(config))
    references = {"on": (), "on-same": ("--reference.adapter", world / "adapter"), "off": ("--reference.path", world / "base")}
    for name, more in references.items():
        command = ["train", str(world / "goes_on.yaml"), "--run.dir", str(world / name), "--train.steps", 1, *more]
        assert main([str(word) for word in command]) == 0
    first = {name: losses(read_metrics(world / name / "metrics.jsonl"))[0] for name in ("on", "on-same", "off")}
    assert first["on"] == first["on-same"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["off"] < losses(trained)[-1]  # one step further on


@pytest.mark.slow
def test_a_live_reference_is_the_model_without_its_adapter_until_it_moves_to_the_policy(world, trained):
    live = ("--reference.live", "true")
    np.testing.assert_allclose(losses(train(world, "live", *live)), losses(trained), rtol=1e-5)
    found = losses(train(world, "moving", *live, "--reference.sync_every", 2))
    assert found[:2] == pytest.approx(losses(trained)[:2], rel=1e-5)
    assert found[2] == pytest.approx(np.log(2), abs=1e-6)  # the reference has become the policy of step 2
    train(world, "moving-stopped", *live, "--reference.sync_every", 2, "--train.steps", 3)
    assert losses(train(world, "moving-stopped", *live, "--reference.sync_every", 2)) == found


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_model_of_few_bits_is_its_own_reference_and_learns(world, kind, capsys):
    found = losses(train(world, kind, "--model.quantize", kind, "--lora.dora", "true"))
    assert found[0] == pytest.approx(np.log(2), abs=1e-6) and found[-1] < 0.6
    assert main(["export", str(world / kind), str(world / f"{kind}-adapter")]) == 0
    assert "logits differ by at most 0 " in capsys.readouterr().err
    assert main(["export", str(world / kind), str(world / f"{kind}-whole"), "--merge"]) == 0
    said = capsys.readouterr().err
    assert f"merged into the weights as {kind} has them" in said
    assert float(said.partition("differ by at most ")[2].split()[0]) < 1e-5


def test_a_reward_model_on_an_adapter_of_a_language_model_trains_its_score_and_exports_it(world, trained):
    more = ("--objective.name", "reward", "--lora.rank", "null", "--lora.alpha", "null", "--lora.path", adapter(world))
    train(world, "scored", *more, "--train.steps", 2)
    assert json.loads((world / "scored" / "adapter.json").read_text())["saved"] == ["score"]
    assert main(["export", str(world / "scored"), str(world / "scored-adapter")]) == 0
    whole = align_jax.load_model(world / "base", head="score", dtype="float32", adapter=world / "scored-adapter")
    assert whole.config.lora.saved == ("score",)
    with pytest.raises(UserError, match="has no score"):
        align_jax.load_model(world / "base", head="score", adapter=adapter(world))


def test_an_adapter_that_changed_under_a_run_is_refused(world, trained, capsys):
    shutil.copytree(adapter(world), world / "changing")
    more = ("--lora.rank", "null", "--lora.alpha", "null", "--lora.path", world / "changing", "--checkpoint.every", 1)
    train(world, "changed", *more, "--train.steps", 1)
    file = world / "changing" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    command = ["train", str(world / "config.yaml"), "--run.dir", str(world / "changed"), *map(str, more), "--train.steps", "2"]
    assert main(command) == 2
    assert "reference" in capsys.readouterr().err


def test_a_run_is_evaluated_with_its_own_adapter_whatever_the_config_says(world, trained):
    def margins(*overrides):
        values = yaml.safe_load((world / "config.yaml").read_text())
        values["data"]["eval"] = str(world / "rows.jsonl")
        values["evaluate"] = {"samples": 0, "resamples": 0, "plots": False}
        table = align_jax.evaluate(align_jax.Config.of(values, *overrides))
        return {row["metric"]: row["value"] for row in table if row["model"] == "run"}["rewards/margins"]

    own = margins()
    assert own > 0.1
    for more in (("lora.alpha=64",), ("lora.rank=3",), ("lora.rslora=true",)):
        assert margins(*more) == pytest.approx(own, rel=1e-3)


def test_weight_decay_may_be_of_what_an_adapter_has_whole(world):
    """The config of a later round, which goes on with an adapter, does not say what is whole in it."""
    later = ("lora.rank=null", "lora.alpha=null", "lora.path=x")
    for more in (later, ("objective.name=reward",), ("lora.modules_to_save=[norm]",)):
        config = align_jax.Config.of(str(world / "config.yaml"), "optimizer.weight_decay=0.1", *more)
        assert config.optimizer.weight_decay == 0.1


@pytest.mark.parametrize("more", [("lora.alpha=64",), ("model.quantize=int8",)])
def test_a_run_is_not_sampled_with_options_of_another_adapter(world, trained, more):
    with pytest.raises(UserError, match=more[0].partition("=")[0].removesuffix(".alpha")):
        current_model(align_jax.Config.of(str(world / "config.yaml"), *more))


def test_a_reward_model_trains_its_score_whole(world):
    found = train(world, "reward", "--objective.name", "reward", "--optimizer.learning_rate", 1e-2)
    assert losses(found)[-1] < losses(found)[0]
    assert json.loads((world / "reward" / "adapter.json").read_text())["saved"] == ["score"]
    assert main(["export", str(world / "reward"), str(world / "reward-whole"), "--merge"]) == 0
    assert (world / "reward-whole" / "model.safetensors").exists()


def test_runs_with_adapters_of_different_shapes_share_a_table(world, trained):
    train(world, "wide", "--lora.rank", 3, "--train.steps", 1)
    config = {"evaluate": {"samples": 0, "resamples": 0, "plots": False}, "data": {"eval": str(world / "rows.jsonl")}}
    runs = {name: str(world / name) for name in ("run", "wide", "base")}
    values = yaml.safe_load((world / "config.yaml").read_text())
    values["data"] |= config["data"]
    values |= {"evaluate": config["evaluate"] | {"models": runs}, "run": {"dir": str(world / "table"), "seed": 1}}
    found = {(row["model"], row["metric"]): row["value"] for row in align_jax.evaluate(align_jax.Config.of(values))}
    del values["lora"]
    plain = {(row["model"], row["metric"]): row["value"] for row in align_jax.evaluate(align_jax.Config.of(values))}
    margins = {name: found[name, "rewards/margins"] for name in runs}
    assert margins["run"] > margins["wide"] > margins["base"] == 0
    assert plain["run", "rewards/margins"] == pytest.approx(margins["run"], rel=1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--optimizer.weight_decay", "0.1"), "optimizer.weight_decay: 0.1 has no effect with `lora`"),
        (("--optimizer.weight_decay", "0.1", "--lora.modules_to_save", "[norm]"), "factors of `lora` and norm"),
        (("--lora.targets", "[q_proj,embed_tokens]"), "lora.targets: 'embed_tokens'"),
        (("--lora.modules_to_save", "[lm_tail]"), "no module 'lm_tail'"),
        (("--lora.path", "nowhere", "--lora.rank", "null", "--lora.alpha", "null"), "lora.path: nowhere: no adapter there"),
        (("--lora.path", "nowhere"), "lora.rank: 2 is what the adapter"),
        (("--lora.dropout", "1.0"), "lora.dropout"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(world, more, message, capsys):
    assert main(["train", str(world / "config.yaml"), "--run.dir", str(world / "refused"), *more]) == 2
    assert message in capsys.readouterr().err
