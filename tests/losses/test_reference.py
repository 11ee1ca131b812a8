"""Values and gradients of every loss against the slow float64 reference, on every way to run them."""

from __future__ import annotations

import doctest
import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from align_jax import losses
from tests.losses import reference
from tests.losses.cases import CASES, GROUPS

TESTED = {
    "mpo_loss": "mpo",
    "ordered_mpo_loss": "ordered",
    "robust_dpo_loss": "robust",
    "jensen_shannon_distance": "jensen_shannon",
    "belief_calibration_loss": "calibration",
}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def values_and_gradients(case):
    """A function of the arrays: the loss `[n]` and its gradients; rows do not depend on one another."""

    def run(*arrays):
        def total(*chosen):
            full = list(arrays)
            for index, array in zip(case.by, chosen, strict=True):
                full[index] = array
            values = case.loss(*full)
            return jnp.sum(values), values

        by = tuple(range(len(case.by)))
        (_, values), gradients = jax.value_and_grad(total, argnums=by, has_aux=True)(*(arrays[i] for i in case.by))
        return values, gradients

    return run


@functools.cache
def expected(case):
    gradients = []
    for index in case.by:
        blind = index in case.blind
        zeros = np.zeros(case.arrays[index].shape)
        gradients.append(zeros if blind else reference.gradient(case.slow, case.arrays, index))
    return case.slow(*case.arrays), tuple(gradients)


def assert_same(actual, wanted):
    values, gradients = actual
    np.testing.assert_allclose(np.asarray(values).reshape(GROUPS), wanted[0], rtol=2e-5, atol=2e-6)
    for gradient, exact in zip(gradients, wanted[1], strict=True):
        np.testing.assert_allclose(np.asarray(gradient).reshape(exact.shape), exact, rtol=1e-4, atol=2e-6)


def run_all(arrays: dict[str, tuple]) -> dict[str, tuple]:
    """Values and gradients of all cases: one program, because compiling one for each takes a minute."""
    return {case.name: values_and_gradients(case)(*arrays[case.name]) for case in CASES}


def _shard_map(arrays):
    spec = PartitionSpec("data")
    mesh = jax.make_mesh((GROUPS,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.jit(jax.shard_map(run_all, mesh=mesh, in_specs=spec, out_specs=spec))(arrays)


WAYS = {
    "jit": jax.jit(run_all),
    "vmap": jax.jit(jax.vmap(run_all)),
    "pmap": lambda arrays: jax.pmap(run_all)(jax.tree.map(lambda a: a[:, None], arrays)),
    "shard_map": _shard_map,
}


@functools.cache
def results(way):
    return WAYS[way]({case.name: case.arrays for case in CASES})


@every_case
@pytest.mark.parametrize("way", WAYS)
def test_equals_reference(way, case):
    actual, wanted = results(way)[case.name], expected(case)
    assert any(np.any(gradient) for gradient in wanted[1])
    assert_same(actual, wanted)
    if way in ("pmap", "shard_map"):
        assert len(actual[0].sharding.device_set) == GROUPS == 8


def coarse(case):
    """The arrays of the case with bfloat16 in place of float32."""
    return tuple(jnp.asarray(a, jnp.bfloat16) if a.dtype == np.float32 else a for a in case.arrays)


@functools.cache
def coarse_values():
    return jax.jit(lambda arrays: {case.name: case.loss(*arrays[case.name]) for case in CASES})(
        {case.name: coarse(case) for case in CASES}
    )


@every_case
def test_bfloat16_is_computed_in_float32(case):
    values = coarse_values()[case.name]
    assert values.shape == (GROUPS,) and values.dtype == jnp.float32
    exact = case.slow(*(np.asarray(a, np.float64) if a.dtype == jnp.bfloat16 else a for a in coarse(case)))
    np.testing.assert_allclose(values, exact, rtol=2e-5, atol=2e-6)


def test_the_table_holds_every_public_loss():
    names = {name for name in losses.__all__ if name.endswith(("_loss", "_distance"))}
    short = {TESTED.get(name, name.removesuffix("_loss")) for name in names}
    assert short <= {case.name for case in CASES}


def test_the_reference_distance_is_scipys():
    distance = pytest.importorskip("scipy.spatial.distance")
    p, q = np.random.default_rng(0).dirichlet(np.ones(4), (2, 5))
    p[0, 0] = q[1, 2] = 0
    wanted = [distance.jensenshannon(a, b) for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(reference.rows(reference.jensen_shannon, p, q), wanted, rtol=1e-10)


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(losses.__path__)])
def test_examples_of_the_docstrings(module):
    module = importlib.import_module(f"align_jax.losses.{module}")
    results = doctest.testmod(module)
    assert results.failed == 0
    members = {name: getattr(losses, name) for name in losses.__all__}
    public = [name for name, one in members.items() if callable(one) and one.__module__ == module.__name__]
    assert all(">>>" in getattr(losses, name).__doc__ for name in public)
    assert not public or results.attempted
