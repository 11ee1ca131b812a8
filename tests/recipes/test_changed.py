"""What changed between two starts of a run is named: the model's config, a reference, the run's own files."""

import json
import shutil

import pytest
import torch
import yaml

import align_jax
from align_jax.cli import main
from align_jax.config import Config
from align_jax.errors import UserError
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.generate import _settings
from align_jax.recipes.models import reference_model, starting_model, trained_model
from align_jax.recipes.rounds import _check_held_out
from align_jax.recipes.setup import Setup
from tests.data.toys import char_tokenizer, write_jsonl
from tests.hf import models

ROWS = [{"prompt": f"question {i} ?", "chosen": "yes" * (i + 1), "rejected": "no way"} for i in range(8)]


def saved(folder, kind="llama2", seed=0):
    torch.manual_seed(seed)
    tokenizer = char_tokenizer()
    model = models.torch_model(kind, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    tokenizer.save_pretrained(models.save(model, folder))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two models, pairs, the config of a run beside the second one, and its first step."""
    folder = tmp_path_factory.mktemp("changed")
    config = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": str(saved(folder / "base")), "dtype": "float32"},
        "reference": {"path": str(saved(folder / "reference", seed=1)), "cache_dir": str(folder / "cache")},
        "data": {"train": write_jsonl(folder / "rows.jsonl", ROWS), "eval": write_jsonl(folder / "eval.jsonl", ROWS[:4])},
        "objective": {"name": "dpo"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "train": {"steps": 1, "groups_per_step": 8},
        "log": {"progress": False, "plots": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(folder / "config.yaml")]) == 0
    return folder


@pytest.fixture
def kept(world):
    """The models and the run, as they were before."""
    shutil.copytree(world, world.with_name("kept"))
    yield world
    shutil.rmtree(world)
    world.with_name("kept").rename(world)


def refused(world, capsys, *more, config="config.yaml"):
    assert main(["train", str(world / config), "--train.steps", "2", *more]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def other_weights(folder, name="model.safetensors"):
    file = folder / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_config_json_that_changed(kept, capsys):
    for name in ("base", "reference"):
        file = kept / name / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.25}))
    said = refused(kept, capsys)
    assert "has norm_eps 0.25, and 1e-05 when the run" in said and "its config.json is another one" in said


def test_a_config_that_was_edited_in_the_run_folder(kept, capsys):
    file = kept / "run" / "config.yaml"
    file.write_text(file.read_text().replace("beta: 0.1", "beta: 5.0"))
    said = refused(kept, capsys, config="run/config.yaml")
    assert "objective.beta=0.1, but objective.beta=5.0 was given" in said and "was edited since" in said


def test_a_run_of_wpo_from_before_alignments_goes_on_as_it_began(world, tmp_path, capsys, monkeypatch):
    """Neither its config.yaml nor its checkpoints have the key, and the same command means what it meant."""
    run, to_dict = ("--objective", "{name: wpo}", "--run.dir", str(tmp_path / "old")), Config.to_dict

    def without(self):
        values = to_dict(self)
        return {**values, "objective": {k: v for k, v in values["objective"].items() if k != "alignment"}}

    with monkeypatch.context() as before:
        before.setattr(Config, "to_dict", without)
        assert main(["train", str(world / "config.yaml"), *run, "--objective.alignment", "none"]) == 0
    assert "alignment" not in (tmp_path / "old" / "config.yaml").read_text()
    assert main(["train", str(world / "config.yaml"), *run, "--train.steps", "2"]) == 0
    assert "objective.alignment: none, as this run began" in capsys.readouterr().err
    assert RunFolder(tmp_path / "old").config.objective.alignment == "none"


def test_a_reference_that_changed_is_named_live_too_and_else_may_become_live(kept, capsys):
    """Held-out rows that changed are said."""
    other_weights(kept / "reference")
    assert "are not those that the run" in refused(kept, capsys)
    assert "are not those that the run" in refused(kept, capsys, "--reference.live", "true")
    other_weights(kept / "reference")  # as it was
    write_jsonl(kept / "eval.jsonl", ROWS[4:])
    assert main(["train", str(kept / "config.yaml"), "--train.steps", "2", "--reference.live", "true"]) == 0
    assert "data.eval: these are other rows than those of the evaluations until now" in capsys.readouterr().err


def test_the_content_of_a_reference_beneath_an_adapter_and_of_a_run(kept):
    def content(*more):
        config = align_jax.Config.of(str(kept / "config.yaml"), *more)
        return reference_model(config, starting_model(config)).content()

    beneath, run = ("lora.rank=2",), (f"reference.path={kept / 'run'}",)
    before = content(*beneath), content(*run), trained_model(RunFolder(kept / "run")).content()
    other_weights(kept / "reference")
    assert content(*beneath) != before[0]
    shutil.copytree(kept / "run", kept / "moved")
    assert trained_model(RunFolder(kept / "moved")).content() == before[2] == before[1]
    (kept / "run" / "checkpoints" / "1").rename(kept / "run" / "checkpoints" / "2")
    assert content(*run) != before[1]


def test_a_run_whose_tokenizer_or_model_config_is_broken_is_not_exported(kept, capsys):
    file = kept / "run" / "tokenizer" / "tokenizer.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    assert main(["export", str(kept / "run"), str(kept / "out")]) == 2 and not (kept / "out").exists()
    assert "tokenizer" in capsys.readouterr().err
    file.write_text(whole)
    (kept / "run" / "model_config.json").unlink()
    assert main(["export", str(kept / "run"), str(kept / "out")]) == 2
    assert "has no model_config.json, which says what its weights are" in capsys.readouterr().err


def test_samples_of_another_adapter_are_other_samples(kept):
    def settings(*more):
        setup = Setup.of(align_jax.Config.of({"model": {"path": str(kept / "base")}}, *more))
        return _settings(setup, [], [])

    found = []
    for seed in (1, 2):
        model = align_jax.add_adapter(align_jax.load_model(kept / "base"), rank=2, seed=seed)
        align_jax.save_adapter(model, kept / f"adapter{seed}", kept / "base")
        found.append(settings(f"lora.path={kept / f'adapter{seed}'}"))
    other_weights(kept / "adapter1", "adapter_model.safetensors")
    found.append(settings(f"lora.path={kept / 'adapter1'}"))
    assert len({json.dumps(each, sort_keys=True) for each in (*found, settings())}) == 4


def test_rounds_are_not_measured_on_other_prompts_than_before(tmp_path):
    asked = [{"prompt": "a"}, {"prompt": "b"}]
    _check_held_out(tmp_path, asked, "eval.jsonl")  # none so far
    (tmp_path / "rounds" / "0").mkdir(parents=True)
    (tmp_path / "rounds" / "0" / "evaluation.json").write_text("{}")
    write_jsonl(tmp_path / "eval_prompts.jsonl", asked)
    _check_held_out(tmp_path, asked, "eval.jsonl")
    with pytest.raises(UserError, match="data.eval: eval.jsonl has other prompts"):
        _check_held_out(tmp_path, asked[:1], "eval.jsonl")


def test_the_adapter_of_a_fused_model_is_exported(world, capsys):
    run = world / "phi-run"
    more = ("--reference.path", "null", "--data.eval", "null", "--lora.rank", 3, "--lora.dora", "true", "--run.dir", run)
    assert main(["train", str(world / "config.yaml"), "--model.path", str(saved(world / "phi", "phi3")), *map(str, more)]) == 0
    assert main(["export", str(run), str(run / "out")]) == 0
    said = capsys.readouterr().err
    differ = float(said.partition("logits differ by at most ")[2].split()[0])
    assert differ < 1e-5
