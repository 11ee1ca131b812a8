"""What stands in the place of a config: a file, a run's or a model's folder, a hub id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align_jax.config.given import config_of
from align_jax.errors import UserError


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "run/tokenizer", "moved", "model", "adapter", "reward", "other"):
        Path(name).mkdir()
    for name in ("run", "moved"):
        Path(name, "config.yaml").write_text("run: {dir: elsewhere, seed: 3}\n")
    Path("model/config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    Path("reward/config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    Path("adapter/adapter_config.json").write_text("{}")
    Path("c.yaml").write_text("run: {seed: 1}\n")


@pytest.mark.parametrize(
    "word, command, follows",
    [
        ("c.yaml", "generate", {}),
        ("run", "generate", {"run.dir": "run", "model.tokenizer": "run/tokenizer"}),
        ("moved", "evaluate", {"run.dir": "moved"}),
        ("model", "generate", {"model.path": "model"}),
        ("model", "score", {"model.path": "model"}),
        ("model", "evaluate", {"model.path": "model", "run.dir": "runs/evaluate-model"}),
        ("reward", "score", {"score.reward_model": "reward", "score.logps": False}),
        ("reward", "generate", {"model.path": "reward"}),
        ("adapter", "generate", {"model.path": "adapter"}),
        ("owner/name-1.5B", "generate", {"model.path": "owner/name-1.5B"}),
    ],
)
def test_what_follows(word, command, follows):
    source, overrides = config_of(word, command)
    assert dict(overrides) == follows
    assert source.get("run.seed") == {"c.yaml": 1, "run": 3, "moved": 3}.get(word)


@pytest.mark.parametrize(
    "word, folders, message",
    [
        ("other", True, "other is a folder, but neither a run folder .config.yaml. nor a model's .config.json."),
        ("run", False, "run is a run folder; `align-jax train` takes a config file: that of this run is run/config.yaml$"),
        ("model", False, "model is a folder; .* takes a config file; a model is named in it, or by --model.path model$"),
        ("other", False, "other is a folder; `align-jax train` takes a config file$"),
        ("owner/name", False, "cannot read the config owner/name: No such file or directory$"),
        ("run/nothing", True, "cannot read the config run/nothing: No such file"),
        ("nothing.yaml", True, "cannot read the config nothing.yaml: No such file"),
        ("owner/nothing.yaml", True, "cannot read the config owner/nothing.yaml: No such file"),
        ("c", True, "cannot read the config c: No such file or directory; did you mean c.yaml.$"),
    ],
)
def test_what_is_refused(word, folders, message):
    with pytest.raises(UserError, match=f"^{message}"):
        config_of(word, "train", folders)
