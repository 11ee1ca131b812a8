"""What a training step is made of, part by part: means of sums, the balance of experts, the keys of dropout."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.adapter import KEY
from align_jax.models.experts import Load, balance_loss, busiest
from align_jax.training.step import _balanced, dropout_keys, means


def test_means_are_sums_over_weights_and_nothing_to_average_is_nan_but_for_the_loss():
    sums = {name: (jnp.float32(6), jnp.float32(4)) for name in ("accuracy", "loss", "rewards/chosen")}
    assert {name: float(value) for name, value in means(sums).items()} == dict.fromkeys(sums, 1.5)
    nothing = means({name: (jnp.float32(0), jnp.float32(0)) for name in sums})
    assert nothing["loss"] == 0 and np.isnan(nothing["accuracy"]) and np.isnan(nothing["rewards/chosen"])


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_balance_of_experts_counts_by_the_weight_of_its_microbatch(weight):
    load = Load(jnp.asarray([[5.0, 1.0], [2.0, 4.0]]), jnp.asarray([[4.0, 2.0], [3.0, 3.0]]), jnp.float32(6))
    aux = 2 * (7 / 12 * 7 / 12 + 5 / 12 * 5 / 12)
    assert balance_loss(load) == pytest.approx(aux)
    found = means(_balanced({"loss": (jnp.float32(4.5), jnp.float32(3))}, load, weight))
    assert found["loss"] == pytest.approx(1.5 + weight * aux)
    assert found["router/aux_loss"] == pytest.approx(aux)
    assert found["router/busiest"] == pytest.approx(float(busiest(load))) == pytest.approx((5 / 3 + 4 / 3) / 2)


def test_the_keys_of_dropout_are_those_of_the_rows_the_step_and_the_seed():
    config = types.SimpleNamespace(lora=types.SimpleNamespace(dropout=0.1), layers=2)

    def keys(rows, seed=0, step=1):
        micro = types.SimpleNamespace(rows=jnp.asarray(rows, jnp.int32))
        found = dropout_keys(config, seed, jnp.int32(step))({"layers": {}}, micro)["layers"][KEY]
        return jax.device_get(found).tobytes()

    assert len({keys([row]) for row in range(64)}) == 64
    assert len({keys([0, 1]), keys([1]), keys([0])}) == 3  # row 0 counts
    assert keys([3, 7, 5]) == keys([5, 3, 7])
    assert len({keys([3]), keys([3], seed=1), keys([3], step=2)}) == 3
    config.lora.dropout = 0.0
    assert dropout_keys(config, 0, jnp.int32(1))({"layers": {}}, None) == {"layers": {}}
