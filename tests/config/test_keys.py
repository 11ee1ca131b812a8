"""keys.json says what the code says, and its stand-ins are checked as the dataclasses of the code are."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from align_jax.config.check import check
from align_jax.config.collect import collected
from align_jax.config.early import _schema as early_schema
from align_jax.config.keys import FILE, KnownKeys, known, stand_in
from align_jax.config.load import SECTIONS, _schema
from align_jax.config.source import ConfigValues, parse_overrides
from align_jax.errors import UserError
from align_jax.models.config import ModelConfig
from align_jax.objectives import OBJECTIVES
from align_jax.training.optim import OPTIMIZERS

CLASSES = [
    *((name, None, cls) for name, cls in SECTIONS.items()),
    *(("objective", name, cls) for name, cls in OBJECTIVES.items()),
    *(("optimizer", name, cls) for name, cls in OPTIMIZERS.items()),
    ("model.config", None, ModelConfig),
]


def test_the_file_is_up_to_date():
    assert FILE.read_text(encoding="utf-8") == collected().to_json(), "run: python -m align_jax.config.collect"
    assert known() == collected()


def _plain(hint) -> str:
    """A type such that a stand-in's nested dataclass equals that of the code."""
    options = typing.get_args(hint) or (hint,)
    return " ".join("section" if dataclasses.is_dataclass(option) else str(option) for option in options)


@pytest.mark.parametrize("prefix, owner, cls", CLASSES)
def test_a_stand_in_has_the_fields_of_the_code(prefix, owner, cls):
    def fields(of: type) -> dict:
        hints = typing.get_type_hints(of)
        return {
            f.name: (_plain(hints[f.name]), f.default is f.default_factory is dataclasses.MISSING)
            for f in dataclasses.fields(of)
            if prefix != "model.config" or f.name not in ("head", "quantize", "lora")
        }

    assert fields(stand_in(prefix, owner)) == fields(cls)


@pytest.mark.parametrize(
    "argv",
    [
        ["--train.stepz", "3", "--objective.lr", "4", "--model.dtype", "fp16", "--nothing.x", "1"],
        ["--objective.name", "dpo", "--objective.gamma", "1", "--optimizer.b3", "1"],
        ["--objective.name", "nothing", "--optimizer.name", "sgd"],
        ["--rounds.reward_model", "x"],
        ["--model.path", "null", "--model.config.layers", "x", "--model.config.rope_scaling.knd", "x"],
        ["--model.path", "null", "--model.config.rope_scaling.kind", "x"],
        ["--data.train", "[1]", "--generate.stop", "x", "--evaluate.models", "[a]", "--log.quiet", "maybe"],
        ["--objective.name", "null"],
    ],
)
def test_both_checks_say_the_same(argv):
    said = []
    for schema in (early_schema(), _schema()):
        source = ConfigValues.of({"model": {"path": "a"}, "objective": {"name": "mpo"}})
        source.override(parse_overrides(argv))
        with pytest.raises(UserError) as caught:
            check(source, schema)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_an_objective_in_a_file_that_was_added_is_not_refused_early(monkeypatch):
    changed = dataclasses.replace(known().section("objective"), files=("other.py",))
    sections = tuple(changed if section.name == "objective" else section for section in known().sections)
    monkeypatch.setattr("align_jax.config.early.known", lambda: KnownKeys(sections, known().keys))
    early_schema.cache_clear()
    try:
        check(ConfigValues.of({"objective": {"name": "mine", "strength": 1}}), early_schema())
        with pytest.raises(UserError, match="objective mpo has no key 'strength'"):
            check(ConfigValues.of({"objective": {"name": "mpo", "strength": 1}}), early_schema())
    finally:
        early_schema.cache_clear()
