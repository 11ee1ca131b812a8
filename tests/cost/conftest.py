"""What a compiled program costs is asked of the compiler as users run it, with all optimizations."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def all_optimizations():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
