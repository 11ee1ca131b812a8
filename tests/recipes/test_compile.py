"""What `align-jax compile` compiles for, before anything is compiled."""

import pytest

from align_jax.config import Config
from align_jax.cost.topology import Lengths
from align_jax.errors import UserError
from align_jax.recipes.compile import lengths_of


def config(objective, **data):
    return Config.of({"objective": {"name": objective}, **({"data": data} if data else {})})


def test_lengths_that_were_not_given_are_said(capsys):
    assert lengths_of(config("mpo", max_response_tokens=7), prompt=5) == Lengths(5, 7, 4)
    said = capsys.readouterr().err
    assert said.endswith("or by default: --response-tokens 7, --responses 4\n") and said.count("\n") == 1
    assert lengths_of(config("dpo"), 5, 6, 3).responses == 2
    assert capsys.readouterr().err == "align-jax: --responses 3: objective.name: dpo takes 2, and so these rows have\n"
    assert lengths_of(config("mpo"), 5, 6, 3) == Lengths(5, 6, 3) and lengths_of(config("dpo")) == Lengths(512, 512, 2)
    assert capsys.readouterr().err == ""


def test_lengths_must_be_positive():
    with pytest.raises(UserError, match="compile: response tokens or responses must be positive, got 0"):
        lengths_of(config("mpo"), 5, 0)
