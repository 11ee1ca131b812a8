"""Configs, options and command lines."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from align_jax.cli import main
from align_jax.config import load_config
from align_jax.config.early import check_early
from align_jax.config.packaged import packaged_configs
from align_jax.config.source import ConfigValues, parse_overrides
from align_jax.errors import UserError
from tests.hostile.given import JUNK, TEXTS, changed, damaged
from tests.hostile.guards import few, folder, harmless

CONFIGS = [yaml.safe_load(path.read_text()) for path in packaged_configs().values()]
WHOLE = {
    "run": {"dir": "out", "seed": 0},
    "model": {
        "config": {"vocab_size": 64, "width": 8, "mlp_width": 8, "layers": 2, "heads": 2, "kv_heads": 1, "head_size": 4}
        | {"rope_scaling": {"kind": "linear", "factor": 2.0}, "norm_eps": 1e-5, "rope_theta": 1e4, "max_length": 64},
        "tokenizer": "tokenizer",
        "rows_per_chunk": 4,
    },
    "lora": {"rank": 4, "targets": ["q_proj"], "dropout": 0.1},
    "data": {"train": [{"path": "a.jsonl", "weight": 2.0, "limit": 5}, {"path": "b", "weight": 1.0}], "eval": {"x": 0.1}},
    "objective": [{"name": "dpo", "beta": 0.1}, {"name": "sft", "weight": 0.1}],
    "optimizer": {"name": "adamw", "learning_rate": 1e-4, "warmup_steps": 3},
    "mesh": {"data": 1},
    "train": {"steps": 10, "eval_every": 5},
    "generate": {"stop": ["a"], "samples": 2},
    "evaluate": {"models": {"a": "b"}, "judge": "none"},
    "log": {"sinks": [], "samples_every": 5},
}
KEYS = [
    "train.steps",
    "objective.beta",
    "objective",
    "objective.name",
    "model.config",
    "data.train",
    "mesh",
    "lora.rank",
    "a.b",
]


def read(name: str, text: bytes, options: list[str] = ()) -> None:
    """All that is done with a config before anything heavy."""
    with folder() as here, harmless(name, len(text), here):
        Path("c.yaml").write_bytes(text)
        source = ConfigValues.read("c.yaml")
        overrides = parse_overrides(options)
        check_early(source, overrides)
        config = load_config(source, overrides)
        again = load_config(ConfigValues.of(yaml.safe_load(config.to_yaml())))
        assert again.to_dict() == config.to_dict() or repr(again.to_dict()) == repr(config.to_dict())
        config.for_training()


@few()
@given(st.sampled_from([WHOLE, WHOLE, *CONFIGS]).flatmap(changed))
def test_a_config_is_taken_or_refused(values):
    read("configs", yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass"))


@few()
@given(damaged(yaml.safe_dump(WHOLE).encode()))
@example(b"a: &a [*a]")
@example(b"a: " + b"9" * 5000)
@example(b"a:\n" + b"".join(b" " * i + b"b:\n" for i in range(1, 700)))
@example(b"[" * 100_000)
@example(b"{a: " * 5000)
@example(b"\0")
@example(b"a: &x [" + b"1," * 1000 + b"]\nb: &y [" + b"*x," * 1000 + b"]\nc: [" + b"*y," * 1000 + b"]")
@example(b"? [a]\n: b")
@example(b'run: {dir: "a\\0b"}')
@example(b'run: {dir: "\\ud800"}')
@example(b"train: {steps: ${train.steps}}")
@example(b"train: {steps: " + b"${oc.env:" * 400 + b"}" * 400 + b"}")
@example(b"a: 2020-13-45")
@example(b"a: !!python/object/apply:os.system [touch x]")
@example(b"x" * (2**20 + 1))
@example(b"")
@example(b"false")
def test_bytes_are_a_config_or_refused(text):
    read("bytes of configs", text)


@few()
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.one_of(TEXTS, JUNK.map(repr), st.text(max_size=9))), max_size=3))
@example([("model.config", "[" * 5000)])
@example([("train.steps", "9" * 5000)])
@example([("objective.name", "[a, b]")])
@example([("objective.beta", "1e38")])
@example([("objective", repr(list(range(2000))))])
def test_options_are_taken_or_refused(options):
    argv = [word for key, value in options for word in (f"--{key}={value}",)]
    read("options", yaml.safe_dump(WHOLE).encode(), argv)


WORDS = ["train", "evaluate", "generate", "score", "export", "rounds", "bench", "compile", "config", "configs", "data", "check"]
WORDS += ["experiment", "help", "--help", "-h", "--version", "--explain", "--step", "--prompt", "c.yaml", "out", "--json", "-"]
WORDS += ["--train.steps", "--mesh", "auto", "--", "--data.train=x", "--topology", "convert", "beliefs", "list", "absent.yaml"]


@few()
@given(st.lists(st.one_of(st.sampled_from(WORDS), TEXTS.filter(lambda text: "\0" not in text)), max_size=6))
def test_a_command_line_ends_with_a_status(argv):
    """What would compute has no data: the config names files that are not there."""
    said = io.StringIO()
    quiet = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
    with folder() as here, harmless("command lines", 1000, here), quiet[0], quiet[1]:
        Path("c.yaml").write_text("model: {path: ./absent}\ndata: {train: ./absent.jsonl}\nobjective: {name: dpo}\n")
        if argv[:1] == ["experiment"]:
            argv = ["experiment", "absent", *argv[1:]]  # the others run for minutes
        assert main(argv) in (0, 1, 2), argv
        assert "Traceback" not in said.getvalue()


def test_ranges_say_where_a_number_stands(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("train:\n  steps: 5\n  groups_per_step: 1000000000\ndata:\n  train: x\n  workers: 10000\n")
    with pytest.raises(UserError) as caught:
        load_config(ConfigValues.read(file))
    assert f"{file}:3: train.groups_per_step: 1,000,000,000 is more than 100,000,000" in str(caught.value)
    assert f"{file}:6: data.workers: 10,000 is more than 1,024" in str(caught.value)
