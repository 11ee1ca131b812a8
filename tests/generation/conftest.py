"""Nearly all the time of these tests is compilation, so most of the compiler's optimizations are left out."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def fast_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
