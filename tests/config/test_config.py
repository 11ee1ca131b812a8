"""The config: what is accepted becomes typed, and what is refused is named with its place."""

from __future__ import annotations

import dataclasses

import pytest

from align_jax.config import load as config_module
from align_jax.config import load_config, parse_overrides
from align_jax.errors import UserError
from align_jax.models.config import ModelConfig, RopeScaling
from align_jax.objectives import OBJECTIVES
from align_jax.training.optim import OPTIMIZERS

TEXT = """\
run:
  dir: runs/a
model: {path: some/model}
data:
  train: ${oc.env:ALIGN_JAX_TEST_DATA}/train.jsonl
objective:
  name: mpo
  beta: 0.2
  alpha: 1
optimizer:
  name: adamw
  learning_rate: 1.5e-7
train:
  steps: 10
  groups_per_step: 8
"""


FRESH = (
    "{vocab_size: 9, width: 8, mlp_width: 8, layers: 1, heads: 4, kv_heads: 2, head_size: 2, "
    "rope_scaling: {kind: linear, factor: 2}}"
)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes a config and loads it with overrides written as on the command line."""
    monkeypatch.setenv("ALIGN_JAX_TEST_DATA", "/somewhere")
    monkeypatch.chdir(tmp_path)

    def load(text: str = TEXT, *argv: str, require=()):
        (tmp_path / "c.yaml").write_text(text)
        return load_config("c.yaml", parse_overrides(argv), require=require)

    return load


def _with(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new)


def test_values_defaults_and_interpolation(load):
    config = load()
    assert config.data.train == "/somewhere/train.jsonl"
    assert config.objective == OBJECTIVES["mpo"](beta=0.2, alpha=1.0)
    assert isinstance(config.objective.alpha, float)
    assert config.optimizer == OPTIMIZERS["adamw"](learning_rate=1.5e-7)
    assert (config.train.steps, config.train.accumulation_steps, config.run.seed) == (10, 1, 0)
    assert config.model.dtype == "bfloat16" and config.mesh == config_module.MeshConfig(1, 1, 1)


@pytest.mark.parametrize("form", [["--train.steps", "20"], ["--train.steps=20"]])
def test_overrides_win_and_the_last_one_wins(load, form):
    config = load(
        TEXT, "--train.steps", "15", *form, "--mesh.data", "-1", "--objective.beta=1e-2", "--log.progress", "false"
    )
    assert (config.train.steps, config.mesh.data, config.objective.beta, config.log.progress) == (20, -1, 0.01, False)


def test_an_override_reaches_a_section_that_the_file_lacks(load):
    assert load(TEXT, "--generate.samples", "3", "--model.config", "null").generate.samples == 3


def test_override_values():
    argv = [
        "--a.b=x=y",
        "--a.c",
        "a: b",
        "--a.d",
        "[1, 2]",
        "--a.e",
        "null",
        "--a.f",
        "",
        "--a.g",
        "# h",
        "--a.h",
        "[open",
        "--a.i",
        "{prompt}",
        "--a.j",
        "{}",
        "--a.k",
        "{b: 1}",
    ]
    assert parse_overrides(argv) == [
        ("a.b", "x=y"), ("a.c", "a: b"), ("a.d", [1, 2]), ("a.e", None), ("a.f", ""), ("a.g", "# h"), ("a.h", "[open"),
        ("a.i", "{prompt}"), ("a.j", {}), ("a.k", {"b": 1}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--train.steps"], "--train.steps has no value"),
        (["--train.steps", "--run.seed", "1"], "--train.steps has no value"),
        (["steps"], "unexpected argument 'steps'"),
        (["--steps", "3"], "unexpected argument '--steps'"),
        (["-train.steps", "3"], "unexpected argument '-train.steps'"),
    ],
)
def test_bad_arguments_are_named(argv, message):
    with pytest.raises(UserError, match=message):
        parse_overrides(argv)


REFUSED = [
    (_with("  steps: 10", "  stepz: 10"), [], r"c.yaml:14: train.stepz: .*value 10.*mean steps\?.*accepts.*epochs"),
    (TEXT, ["--train.stepz", "5"], r"--train.stepz: .*did you mean steps\?"),
    (_with("train:\n  steps", "trian:\n  steps"), [], r"c.yaml:13: trian: .*did you mean train\?"),
    (_with("  alpha: 1", "  label_smoothing: 1"), [], "c.yaml:9: objective.label_smoothing: .*mpo accepts alpha, beta"),
    (_with("name: mpo", "name: dpo"), [], "c.yaml:9: objective.alpha: .*dpo accepts beta, label_smooth"),
    (_with("name: mpo", "name: mpoo"), [], r"c.yaml:7: objective.name: 'mpoo'.*did you mean mpo\?.*dpo"),
    (_with("name: mpo", "name: 3"), [], "c.yaml:7: objective.name: 3 is unknown; choose one of .*dpo"),
    (_with("  name: mpo\n", ""), [], "c.yaml:6: objective.name: is required; choose one of .*dpo"),
    (TEXT, ["--optimizer.momentum", "0.9"], "--optimizer.momentum: optimizer adamw .*accepts b1, b2"),
    (TEXT, ["--optimizer.name", "rmsprob"], r"--optimizer.name: 'rmsprob' is unknown; did you mean rmsprop\?"),
    (TEXT, ["--train.steps", "ten"], "--train.steps: .*'ten' is not int"),
    (_with("steps: 10", "steps: 1.5"), [], "c.yaml:14: train.steps: 1.5 is not int"),
    (_with("steps: 10", "steps: true"), [], "c.yaml:14: train.steps: True is not int"),
    (TEXT, ["--run.dir", "true"], "--run.dir: True is not str"),
    (TEXT, ["--log.progress", "1"], "--log.progress: 1 is not bool"),
    (TEXT, ["--model.dtype", "fp16"], "--model.dtype: 'fp16' .*bfloat16"),
    (TEXT, ["--run.seed", "null"], "--run.seed: None is not int"),
    (_with("{path: some/model}", "some/model"), [], "c.yaml:3: model: expected keys and values, got 'some/model'"),
    (TEXT + "run:\n  seed: 1\n", [], "c.yaml:16: run is given twice, first on line 1"),
    (_with("  alpha: 1", "  beta: 1"), [], "c.yaml:9: objective.beta is given twice, first on line 8"),
    (_with("  beta: 0.2", "  beta: [0.2"), [], r"c.yaml:\d+: not valid YAML"),
    (_with("  beta: 0.2", "  beta: ${oc.env:X"), [], "c.yaml.*"),
    ("- a\n- b\n", [], "c.yaml:1: a config is sections"),
    (_with("ALIGN_JAX_TEST_DATA", "UNSET_HERE"), [], "c.yaml:5: data.train: .* UNSET_HERE is not set.*--data.train"),
    (_with("dir: runs/a", "dir: ${train.nothing}"), [], "c.yaml:2: run.dir: .*train.nothing"),
    (_with("  beta: 0.2", "  beta: -1"), [], "c.yaml:8: objective.beta: .*must be"),
    (_with("learning_rate: 1.5e-7", "learning_rate: -1"), [], "c.yaml:12: optimizer.learning_rate: -1.0"),
    (TEXT, ["--train.epochs", "1"], "--train.epochs: .*train.steps or train.epochs, not both"),
    (TEXT, ["--model.config", "{layers: 1}"], "--model.config: .*'some/model'.* not both"),
    (TEXT, ["--model.path", "null", "--model.config.layerz", "1"], r"--model.config.layerz: .*did you mean layers\?"),
    (TEXT, ["--model.path", "null", "--model.config.layers", "one"], "--model.config.layers: 'one' is not int"),
    (TEXT, ["--model.path", "null", "--model.config.layers", "1"], "c.yaml:3: model.config.head_size: is required"),
    (TEXT, ["--model.path=null", f"--model.config={FRESH}", "--model.config.heads=3"], r"--model.config: heads \(3\)"),
    (TEXT, ["--train.accumulation_steps", "3"], "c.yaml:15: train.groups_per_step: 8 is not a multiple of 3"),
    (TEXT, ["--mesh.fsdp", "16"], "c.yaml:15: train.groups_per_step: 8 is not a multiple of 16"),
    (TEXT, ["--mesh.fsdp", "-1", "--mesh.data", "-1"], "--mesh.fsdp: only one axis"),
    (TEXT, ["--mesh.tensor", "0"], "--mesh.tensor: 0 must be at least 1, or -1 for the rest"),
    (TEXT, ["--checkpoint.every", "0"], "--checkpoint.every: 0 must be at least 1"),
    (TEXT, ["--generate.temperature", "-0.5"], "--generate.temperature: -0.5 must be at least 0"),
    (TEXT, ["--run.dir", " "], "--run.dir: ' ' is blank"),
    (TEXT, ["--train.steps", "null", "--train.epochs", "inf"], "--train.epochs: inf must be finite and above 0"),
    (TEXT, ["--run.seed", "-1"], "--run.seed: -1 must be at least 0 and below 4294967296"),
    (TEXT, ["--log.wandb_name", "x"], "--log.wandb_name: 'x' is not used without log.wandb_project"),
]  # fmt: skip


@pytest.mark.parametrize("text, argv, message", REFUSED)
def test_what_is_refused_is_named_with_its_place(load, text, argv, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        load(text, *argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, require, message",
    [
        ("run: {seed: 1}\n", ["run.dir"], "c.yaml:1: run.dir: is required"),
        ("run: {seed: 1}\n", ["objective"], "c.yaml: objective: is required"),
        ("run: {seed: 1}\n", ["model"], "c.yaml: model: give model.path"),
        ("run: {seed: 1}\n", ["model", "objective", "run.dir"], "c.yaml: model, objective and run.dir are required"),
    ],
)
def test_what_a_command_requires(load, text, require, message):
    assert load(text).run.seed == 1
    with pytest.raises(UserError, match=f"^{message}"):
        load(text, require=require)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the config .*nothing.yaml"):
        load_config(tmp_path / "nothing.yaml")


def test_an_empty_file_is_all_defaults(load):
    config = load("# nothing yet\n")
    assert config.objective is None and config.train == config_module.TrainConfig()


def test_null_takes_an_unused_line_out(load):
    config = load(TEXT, "--objective.name", "dpo", "--objective.alpha", "null")
    assert config.objective == OBJECTIVES["dpo"](beta=0.2)
    with pytest.raises(UserError, match="--objective.nothing"):
        load(TEXT, "--objective.nothing", "null")
    assert load(TEXT, "--optimizer.clip_norm", "null").optimizer.clip_norm is None


def test_an_override_makes_an_unset_variable_harmless(load):
    text = _with("ALIGN_JAX_TEST_DATA", "UNSET_HERE")
    assert load(text, "--data.train", "here.jsonl").data.train == "here.jsonl"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [
            "--objective.name",
            "dpo",
            "--objective.alpha",
            "null",
            "--optimizer.name",
            "rmsprop",
            "--optimizer.clip_norm",
            "null",
        ],
        ["--model.path", "null", "--model.config", FRESH],
        [
            "--run.dir",
            "'1e-3'",
            "--log.wandb_project",
            "'true'",
            "--model.tokenizer",
            "a: b # c",
            "--data.train",
            r"\${x}/é",
        ],
    ],
)
def test_to_yaml_is_complete_and_loads_to_an_equal_config(load, argv, tmp_path):
    config = load(TEXT, *argv)
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    again = load_config("again.yaml")
    assert again == config and again.to_yaml() == config.to_yaml()
    for section in dataclasses.fields(config):
        if section.name == "source" or (section.name == "rounds" and config.rounds is None):
            continue
        values = config.to_dict()[section.name]
        assert set(values) - {"name"} == {field.name for field in dataclasses.fields(getattr(config, section.name))}


def test_text_that_looks_like_an_interpolation_survives(load):
    assert load(TEXT, "--data.train", r"\${x}").data.train == "${x}"


def test_a_fresh_model(load):
    section = load(TEXT, "--model.path", "null", "--model.config", FRESH).model
    scaling = RopeScaling(kind="linear", factor=2.0)
    assert section.fresh_config() == ModelConfig(9, 8, 8, 1, 4, 2, 2, rope_scaling=scaling)


def test_the_mesh_takes_the_rest_of_the_devices(load):
    config = load(TEXT, "--mesh.data", "-1", "--mesh.tensor", "2")
    assert config.mesh_sizes(8) == (4, 1, 2)
    with pytest.raises(UserError, match="-1 x 1 x 2 does not fit 7 devices"):
        config.mesh_sizes(7)
    with pytest.raises(UserError, match="train.groups_per_step: 8 is not a multiple of 16"):
        config.mesh_sizes(32)
    with pytest.raises(UserError, match="2 x 2 x 2 does not fit 4 devices"):
        load(TEXT, "--mesh.data=2", "--mesh.fsdp=2", "--mesh.tensor=2").mesh_sizes(4)
