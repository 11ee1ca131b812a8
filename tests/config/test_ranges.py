"""Every number of a config has a range; what is far beyond use is said, and nonsense refused, with its place."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest

from align_jax.config import Config
from align_jax.config.keys import known
from align_jax.errors import UserError
from align_jax.objectives.sets import MPO
from align_jax.ranges import RANGES, doubt, range_of, refusal

BASE = {"model": {"path": "a"}, "data": {"train": "x"}, "objective": {"name": "mpo"}}


def _is_number(option) -> bool:
    return option in ("int", "float") or (isinstance(option, tuple) and option[0].endswith("list of") and _is_number(option[1]))


def test_every_number_has_a_range_and_every_default_is_usual():
    numbers = {key.name: key.default for key in known().keys if any(map(_is_number, key.options))}
    assert numbers.keys() == RANGES.keys()
    for name, default in numbers.items():
        if default not in ("required", "null", "auto", "[]"):
            assert refusal(name, float(default)) is doubt(name, float(default)) is None, name


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_range_warns_before_it_refuses(name):
    found = RANGES[name]
    assert found.low <= found.high <= found.most
    assert found.refusal(math.inf) and found.refusal(math.nan) and found.refusal(2 * found.most)
    assert not found.refusal(found.high) and not found.doubt(found.high) and not found.doubt(found.low) and not found.doubt(0)


@pytest.mark.parametrize(
    "option, said",
    [
        ("optimizer.learning_rate=.inf", "--optimizer.learning_rate: inf must be a finite number"),
        ("objective.beta=1e38", "--objective.beta: 1e[+]38 is more than 1,000,000, the most that it may be"),
        ("objective.beta='1e38'", "--objective.beta: 1e[+]38 is more"),
        ("train.steps=1000000000000000000000000000000", "--train.steps: 1e[+]30 is more than"),
        ("train.groups_per_step=1000000000", "--train.groups_per_step: 1,000,000,000 is more than 100,000,000"),
        ("data.workers=10000", "--data.workers: 10,000 is more than 1,024"),
        ("data.prefetch=1000000000", "--data.prefetch: 1,000,000,000 is more than 4,096"),
        ("objective.alpha=-1", "--objective.alpha: -1.0 must be at least 0"),
        ("objective=[{name: dpo, weight: -1}]", "objective.0.weight: -1 is less than 0"),
        ("objective=[{name: dpo, beta: 1e20}]", "objective.0.beta: 1e[+]20 is more"),
        ("data.train={path: x, limit: 100000000000000}", "data.train.limit: 1e[+]14 is more"),
        ("train.steps=" + "9" * 5000, "--train.steps: a whole number of 5000 digits"),
    ],
)
def test_nonsense_is_refused(option, said):
    with pytest.raises(UserError, match=said):
        Config.of(BASE, option)


def test_models_have_ranges_too():
    shape = {"vocab_size": 64, "width": 8, "mlp_width": 8, "layers": 2, "heads": 2, "kv_heads": 1, "head_size": 4}
    for key, value in (("rope_theta", 0), ("layers", 1_000_000), ("kv_heads", 0), ("norm_eps", -1)):
        with pytest.raises(UserError, match=rf"model.config.{key}: {value:,} is (less|more) than"):
            Config.of({"model": {"config": {**shape, key: value}, "tokenizer": "x"}})


@pytest.mark.parametrize("option", ["train.steps=2000000000", "optimizer.learning_rate=50", "objective.beta=1e-9"])
def test_what_is_far_beyond_use_is_taken_with_one_line(option):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Config.of(BASE, option)
    assert (
        len(said) == 1 and "anyone uses" in str(said[0].message) and f"--{option.partition('=')[0]}: " in str(said[0].message)
    )


@dataclasses.dataclass(frozen=True)
class Mine(MPO):
    beta: float = 1e30


def test_an_objective_of_ones_own_means_by_its_keys_what_it_likes():
    config = Config.of(BASE | {"objective": {"name": f"{__name__}:Mine", "beta": 1e20}})
    assert config.objective == Mine(1e20)
    assert range_of("objective.3.beta") is RANGES["objective.beta"]
    assert range_of("data.eval.safety.limit") is range_of("data.train.0.limit") is RANGES["data.train.limit"]
    assert refusal("objective.unheard_of", 1e300) is None
