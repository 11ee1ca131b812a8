"""Every private thing of JAX that is used, on whatever JAX is installed; and what is said where it changed."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from align_jax import private
from align_jax.errors import UserError
from align_jax.models.attention import cudnn_kernels
from align_jax.parallel.processes import LargestAhead

ROOT = Path(private.__file__).parent


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces entries: `stand_in({"cudnn version": function})`."""
    real = private.private

    def replace(entries):
        monkeypatch.setattr(private, "private", lambda entry: entries[entry] if entry in entries else real(entry))

    return replace


@pytest.mark.parametrize("entry", private.ENTRIES)
def test_every_entry_is_there(entry):
    assert private.private(entry) is not None


def test_nothing_else_is_private():
    """Neither an import nor a name: `align_jax.private` is the one place."""
    using = [path.name for path in ROOT.rglob("*.py") if "jax._src" in path.read_text(encoding="utf-8")]
    assert using == ["private.py"]
    used = set(re.findall(r'(?:private|call|parameters_of)\(\s*"([\w ]+)"', "".join(p.read_text() for p in ROOT.rglob("*.py"))))
    assert used == set(private.ENTRIES)


def _shape(*sizes, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(sizes, dtype)


Q, K, LENGTHS = _shape(3, 16, 4, 64), _shape(3, 24, 2, 64), _shape(3, dtype="int32")


@pytest.mark.parametrize("causal, window", [(False, None), (True, None), (True, 4)])
def test_the_rules_of_cudnn(causal, window, stand_in):
    """Shapes only: the kernels themselves need a GPU; `tests/training/test_cuda.py` lowers them."""
    stand_in({"cudnn version": lambda: 91002})
    out, top = jax.eval_shape(partial(cudnn_kernels.forward, causal=causal, window=window), Q, K, K, LENGTHS, LENGTHS)
    assert (out.shape, out.dtype, top.shape, top.dtype) == (Q.shape, Q.dtype, (3, 16, 4), jnp.float32)
    backward = partial(cudnn_kernels.backward, causal=causal, window=window)
    grads = jax.eval_shape(backward, Q, K, K, LENGTHS, LENGTHS, out, top, out)
    assert [(g.shape, g.dtype) for g in grads] == [(x.shape, x.dtype) for x in (Q, K, K)]


def test_what_is_saved_is_what_the_rule_saves(stand_in):
    stand_in({"cudnn version": lambda: 91002})

    def both(*inputs):
        arrays, options = cudnn_kernels._arrays(*inputs), cudnn_kernels._options(inputs[0], True, None)
        (out, top), theirs = cudnn_kernels._forward(arrays, options)
        return theirs, cudnn_kernels._saved(arrays, out, top)

    theirs, ours = jax.eval_shape(both, Q, K, K, LENGTHS, LENGTHS)
    assert jax.tree.structure(theirs) == jax.tree.structure(ours)
    assert jax.tree.leaves(theirs) == jax.tree.leaves(ours)


def test_the_version_of_cudnn_is_asked_for():
    found = cudnn_kernels.installed()
    assert found is None or found >= 80000


def test_the_store_of_several_processes(monkeypatch):
    state = private.private("processes")
    assert state.client is None  # one process has none
    with pytest.raises(
        UserError, match=r"jax\._src\.distributed\.global_state: its client has no key_value_set.*with one process"
    ):
        LargestAhead()


def _rule(query, scale, return_residual=True):
    return query * scale if return_residual else None


def test_a_call_is_by_keyword(stand_in):
    stand_in({"cudnn forward": _rule})
    assert private.call("cudnn forward", {"scale": 2, "query": 3}, {"score_mod": None}) == 6
    assert private.call("cudnn forward", {"scale": 2, "query": 3}, {"return_residual": False}) is None
    assert private.parameters_of("cudnn forward") == ["query", "scale", "return_residual"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"query": 1, "scale": 2, "seed": 3}, "it takes no seed any more"),
        ({"query": 1}, "it takes scale, which nobody gives"),
    ],
)
def test_another_signature_is_named(values, message, stand_in):
    stand_in({"cudnn forward": _rule})
    place = r"jax\._src\.cudnn\.fused_attention_stablehlo\._dot_product_attention_fwd_rule"
    with pytest.raises(UserError, match=rf"jax {jax.__version__}: {place}: {message}; install .* \(jax>=0.10,<0.13\), or set"):
        private.call("cudnn forward", values)


def test_a_name_that_is_gone_is_named(monkeypatch):
    monkeypatch.setitem(private.ENTRIES, "gone", private.Private("distributed", "nowhere", "train with one process"))
    with pytest.raises(UserError, match=r"jax\._src\.distributed\.nowhere: it is not there any more; .*, or train with one"):
        private.private("gone")
    monkeypatch.setitem(private.ENTRIES, "gone", private.Private("no_module", "nowhere", "x"))
    with pytest.raises(UserError, match=r"jax\._src\.no_module\.nowhere: it is not there any more"):
        private.private("gone")


def test_the_versions_are_those_of_the_package():
    assert f'"{private.TESTED}"' in (ROOT.parent / "setup.py").read_text(encoding="utf-8")
