"""The config: what is accepted becomes typed, and what is refused is named with its place."""

from __future__ import annotations

import dataclasses
import warnings

import pytest

from align_jax.config import Config, load_config, parse_overrides
from align_jax.config import load as config_module
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
    "text",
    ["Q: {prompt}\nA:", "Question {prompt}\nAnswer", " {prompt}", "Say ", "so #1", "a\n\nb", "b\n", "&a b", "*{prompt}*"]
    + ["! {prompt}", "|\n a"],
)
def test_a_text_stays_as_it_was_typed(text):
    """YAML folds lines without quotes, trims them and ends them at a hash: tokens that nobody typed."""
    assert parse_overrides(["--data.prompt_template", text]) == [("data.prompt_template", text)]


def test_a_text_in_quotes_is_what_yaml_reads():
    for text, value in (("'a b'", "a b"), ('"a\\nb"', "a\nb"), ("' 3'", " 3")):
        for key in ("a.b", "data.prompt_template", "run.dir"):
            assert parse_overrides([f"--{key}", text]) == [(key, value)]


@pytest.mark.parametrize("text", ["007", "1e3", "1234e56", "2026_11_29", "12:30", "1.10", "2026-11-29", "[a]", "{a}", "0x10"])
def test_a_key_of_texts_takes_what_looks_like_something_else(text):
    """A short commit is no number of 57 digits, and a folder is no time of day."""
    found = parse_overrides(["--model.revision", text, "--run.dir", f" {text}\r"])
    assert found == [("model.revision", text), ("run.dir", text)]
    assert parse_overrides(["--run.dir", "null ", "--run.dir", "yes"]) == [("run.dir", None), ("run.dir", True)]


def test_spaces_around_what_is_no_template_say_nothing():
    typed = {"objective.name": "wpo \r", "model.remat": "full ", "lora.targets": "all-linear ", "data.train": " a.jsonl #1\n"}
    for key, text in typed.items():
        assert parse_overrides([f"--{key}", text]) == [(key, text.strip())]
    for text, value in ((" [a, b]", ["a", "b"]), (" {a: 1} ", {"a": 1}), ("~ ", None), ("10 # ten", 10)):
        assert parse_overrides(["--data.eval", text]) == [("data.eval", value)]


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
    (_with("name: mpo", "name: dpo"), [], "c.yaml:9: objective.alpha: .*dpo accepts beta, .*, label_smooth"),
    (_with("name: mpo", "name: mpoo"), [], r"c.yaml:7: objective.name: 'mpoo'.*did you mean mpo\?.*dpo"),
    (_with("name: mpo", "name: 3"), [], "c.yaml:7: objective.name: 3 is unknown; choose one of .*dpo"),
    (_with("  name: mpo\n", ""), [], "c.yaml:6: objective.name is required: choose one of .*dpo"),
    (TEXT, ["--optimizer.momentum", "0.9"], "--optimizer.momentum: optimizer adamw .*accepts b1, b2"),
    (TEXT, ["--optimizer.name", "rmsprob"], r"--optimizer.name: 'rmsprob' is unknown; did you mean rmsprop\?"),
    (TEXT, ["--train.steps", "ten"], "--train.steps: 'ten' is not a whole number \\(or null\\)$"),
    (_with("steps: 10", "steps: 1.5"), [], "c.yaml:14: train.steps: 1.5 is not a whole number"),
    (_with("steps: 10", "steps: true"), [], "c.yaml:14: train.steps: true is not a whole number"),
    (TEXT, ["--run.dir", "true"], "--run.dir: true is not text"),
    (TEXT, ["--log.progress", "1"], "--log.progress: 1 is not true or false$"),
    (TEXT, ["--model.dtype", "fp16"], "--model.dtype: 'fp16' is not one of .*bfloat16.*; that is float16 here"),
    (TEXT, ["--run.seed", "null"], "--run.seed: null is not a whole number$"),
    (_with("{path: some/model}", "some/model"), [], "c.yaml:3: model: expected keys and values, got 'some/model'"),
    (TEXT + "run:\n  seed: 1\n", [], "c.yaml:16: run is given twice, first on line 1"),
    (_with("  alpha: 1", "  beta: 1"), [], "c.yaml:9: objective.beta is given twice, first on line 8"),
    (_with("  beta: 0.2", "  beta: [0.2"), [], r"c.yaml:\d+: not valid YAML"),
    (_with("  beta: 0.2", "  beta: ${oc.env:X"), [], r"c.yaml: a malformed \$\{...\} \(for the text itself, write \\\$\{"),
    ("- a\n- b\n", [], "c.yaml:1: a config is sections"),
    (_with("ALIGN_JAX_TEST_DATA", "UNSET_HERE"), [], "c.yaml:5: data.train: .* UNSET_HERE is not set.*--data.train"),
    (_with("dir: runs/a", "dir: ${train.nothing}"), [], "c.yaml:2: run.dir: .*train.nothing"),
    (_with("  beta: 0.2", "  beta: -1"), [], "c.yaml:8: objective.beta: .*must be"),
    (_with("learning_rate: 1.5e-7", "learning_rate: -1"), [], "c.yaml:12: optimizer.learning_rate: -1.0"),
    (_with("steps: 10", "steps: 10\n  epochs: 1"), [], "c.yaml:15: train.epochs: .*train.steps or train.epochs, not both"),
    (TEXT, ["--train.epochs", "1", "--train.steps", "5"], "--train.epochs: .*train.steps or train.epochs, not both"),
    (TEXT, ["--model.config.layers", "1"], "--model.config.layers: model.config: .*'some/model'.* not both"),
    (TEXT, ["--generate.stop", "3"], "--generate.stop: 3 is not a list of texts$"),
    (TEXT, ["--optimizer.lr", "1e-4"], "--optimizer.lr: .*'lr' \\(value 0.0001\\); that is optimizer.learning_rate here$"),
    (TEXT, ["--train.beta", "1"], r"--train.beta: train has no key 'beta' \(value 1\); did you mean objective.beta\?$"),
    (TEXT + "model_name: x\n", [], "c.yaml:16: model_name: a config has no key .*; that is model.path here$"),
    (TEXT, ["--objective.name", "sigmoid"], "--objective.name: 'sigmoid' is unknown; that is dpo here; choose one of"),
    (TEXT, ["--model.path", "null", "--model.config.layerz", "1"], r"--model.config.layerz: .*did you mean layers\?"),
    (TEXT, ["--model.path", "null", "--model.config.layers", "one"], "--model.config.layers: 'one' is not a whole number$"),
    (TEXT, ["--rounds.number", "1"], "c.yaml: rounds.reward_model is required: a sequence classifier"),
    (TEXT, ["--model.path=null", f"--model.config={FRESH}", "--model.config.heads=3"], r"--model.config: heads \(3\)"),
    (TEXT, ["--train.accumulation_steps", "3"], "c.yaml:15: train.groups_per_step: 8 is not a multiple of 3"),
    (TEXT, ["--mesh.fsdp", "16"], "c.yaml:15: train.groups_per_step: 8 is not a multiple of 16"),
    (TEXT, ["--mesh.fsdp", "16", "--train.groups_per_step=8"], "--train.groups_per_step: 8 is not a multiple of 16"),
    (TEXT, ["--mesh.fsdp", "-1", "--mesh.data", "-1"], "--mesh.fsdp: only one axis"),
    (TEXT, ["--mesh.sequence", "-1"], "--mesh.sequence: -1 must be at least 1"),
    (TEXT, ["--mesh.auto", "true", "--mesh.sequence", "2"], "--mesh.auto: true chooses the sizes; leave out mesh.sequence: 2"),
    (TEXT, ["--mesh.tensor", "0"], "--mesh.tensor: 0 must be at least 1, or -1 for the rest"),
    (TEXT, ["--checkpoint.every", "0"], "--checkpoint.every: 0 must be at least 1"),
    (TEXT, ["--generate.temperature", "-0.5"], "--generate.temperature: -0.5 must be at least 0"),
    (TEXT, ["--run.dir", " "], "--run.dir: '' is blank"),
    (TEXT, ["--run.dir", "gs://bucket/run"], "--run.dir: gs://bucket/run is no place of this machine"),
    (TEXT, ["--generate.output", "gs://bucket/x.jsonl"], "--generate.output: gs://bucket/x.jsonl is no place of this machine"),
    (TEXT, ["--score.output", "s3://bucket/x.jsonl"], "--score.output: s3://bucket/x.jsonl is no place of this machine"),
    (TEXT, ["--train.steps", "null", "--train.epochs", "inf"], "--train.epochs: inf must be a finite number"),
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
        ("run: {seed: 1}\n", ["run.dir"], "c.yaml:1: run.dir is required: the folder that the run is kept in"),
        ("run: {seed: 1}\n", ["objective"], "c.yaml: objective is required: what is minimized; give objective.name"),
        ("run: {seed: 1}\n", ["model"], "c.yaml: model is required: give model.path"),
        ("run: {seed: 1}\n", ["model", "objective", "run.dir"],
         "c.yaml: these are required:\n  model: .*\n  objective: .*\n  run.dir: "),
    ],
)
def test_what_a_command_requires(load, text, require, message):
    assert load(text).run.seed == 1
    with pytest.raises(UserError, match=f"^{message}"):
        load(text, require=require)


def test_all_mistakes_are_named_at_once(load):
    text = _with("  steps: 10", "  stepz: 10\n  groups_per_step: x").replace("x\n  groups_per_step: 8", "x") + "trian: {}\n"
    with pytest.raises(UserError) as caught:
        load(text, "--objective.bta", "1")
    first, *rest = str(caught.value).splitlines()
    assert first == "4 mistakes:"
    places = ("  c.yaml:16: trian", "  --objective.bta", "  c.yaml:14: train.stepz", "  c.yaml:15: train.groups_per_step")
    assert all(any(line.startswith(f"{place}: ") for line in rest) for place in places) and len(rest) == 4


def test_all_that_is_missing_is_named_at_once(load):
    with pytest.raises(UserError) as caught:
        load(TEXT, "--model.path", "null", "--model.config.layers", "1")
    first, *rest = str(caught.value).splitlines()
    assert first == "--model.config.layers: these are required:"
    assert [line.split(":")[0].strip() for line in rest] == [
        f"model.config.{name}" for name in ("vocab_size", "width", "mlp_width", "heads", "kv_heads", "head_size")
    ]


@pytest.mark.parametrize(
    "argv, out, note",
    [
        (["--train.epochs", "2"], "train.steps", "c.yaml:14: train.steps: 10 no longer holds, since --train.epochs 2 is given"),
        (["--model.config", FRESH], "model.path", "c.yaml:3: model.path: some/model no longer holds, since --model.config"),
        (
            ["--objective.name", "dpo"],
            "objective.alpha",
            "c.yaml:9: objective.alpha: 1 no longer holds, since --objective.name dpo is given, which has no such key",
        ),
    ],
)
def test_an_option_takes_the_place_of_what_excludes_it(load, argv, out, note):
    config = load(TEXT, *argv)
    assert [text[: len(note)] for text in config.source.notes] == [note]
    section, name = out.split(".")
    assert getattr(getattr(config, section), name, None) is None
    assert load(TEXT).source.notes == []


def test_what_is_of_no_use_beside_an_option_goes_too(load):
    text = TEXT + "log: {wandb_project: a, wandb_name: b}\ngenerate: {beliefs: true, belief_temperature: 0.5}\n"
    config = load(text, "--log.wandb_project", "null", "--generate.beliefs", "false")
    assert (config.log.wandb_name, config.generate.belief_temperature) == (None, 1.0)
    assert len(config.source.notes) == 2
    with pytest.raises(UserError, match="c.yaml:16: log.wandb_name: .*not used without log.wandb_project"):
        load(text.replace("wandb_project: a, ", ""))


def test_memory_is_of_use_for_chunks_that_are_auto(load):
    given = ("--mesh.memory_gib", "2")
    for argv in ((), ("--model.rows_per_chunk", "8"), ("--model.head_chunk", "8")):
        assert load(TEXT, *given, *argv).mesh.memory_gib == 2
    for rows in ("8", "null"):
        message = f"^--mesh.memory_gib: 2 has no effect with model.rows_per_chunk: {rows} and model.head_chunk: 64; leave"
        with pytest.raises(UserError, match=message):
            load(TEXT, *given, "--model.rows_per_chunk", rows, "--model.head_chunk", "64")


def test_the_same_in_python():
    values = {"model": {"path": "a"}, "objective": {"name": "dpo"}, "train": {"steps": 10}}
    with pytest.warns(UserWarning, match="^the config: train.steps: 10 no longer holds, since --train.epochs 2 is given$"):
        config = Config.of(values, "train.epochs=2")
    assert (config.train.steps, config.train.epochs) == (None, 2.0)
    with pytest.warns(UserWarning, match="train.epochs: 2.0 no longer holds"):
        assert Config.of(config, "train.steps=3").train == config_module.TrainConfig(steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config.of(values, "train.epochs=2", "log.quiet=true")
        Config.of(config, "train.epochs=3")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the config .*nothing.yaml"):
        load_config(tmp_path / "nothing.yaml")


def test_an_empty_file_is_all_defaults(load):
    config = load("# nothing yet\n")
    assert config.objective is None and config.train == config_module.TrainConfig()


def test_a_section_whose_keys_are_all_comments_is_none(load):
    config = load(TEXT + "generate:\n  # samples: 3\nrounds:\n")
    assert config.generate == config_module.GenerateConfig() and config.rounds is None
    with pytest.raises(UserError, match="c.yaml:1: objective is required"):
        load("objective:\n", require=["objective"])


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
        if section.name == "source" or (section.name in ("lora", "rounds") and getattr(config, section.name) is None):
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
    config = load(TEXT, "--mesh.fsdp", "-1", "--mesh.sequence", "4")
    assert config.mesh_sizes(16) == (1, 4, 1)
    with pytest.raises(UserError, match="data x fsdp x tensor x sequence = 1 x -1 x 1 x 4 does not fit 6 devices"):
        config.mesh_sizes(6)
