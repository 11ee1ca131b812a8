"""The whole training step lowered for CUDA, on a machine without a GPU: all that a GPU step calls in JAX is there."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax import private
from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.models import ModelConfig
from align_jax.models.attention import resolve_backend
from align_jax.objectives import MPO
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.scoring.scorer import Scorer
from align_jax.training.state import state_shapes, state_shardings
from align_jax.training.step import compile_step

CONFIG = ModelConfig(vocab_size=32, width=32, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=8)
PLAIN, GROUPED = dataclasses.replace(CONFIG, kv_heads=4), CONFIG


@pytest.fixture
def cudnn(monkeypatch):
    """A cuDNN for whoever asks for its version; the kernels themselves need a GPU."""
    real = private.private
    stand_in = {"cudnn version": lambda: 91002}
    monkeypatch.setattr(private, "private", lambda entry: stand_in.get(entry) or real(entry))


def lowered(config: ModelConfig, attention: str, mesh, remat: str = "none") -> str:
    """The step of W-MPO on groups of three responses that share their prompt, in bfloat16, for CUDA."""
    rng, optimizer = np.random.default_rng(0), optax.adamw(1e-3)
    some = lambda n: rng.integers(0, config.vocab_size, n).astype(np.int32)  # noqa: E731
    labels = {"scores": np.arange(3, dtype=np.float32), "ref_logps": np.zeros(3, np.float32)}
    items = [TokenGroup(i, some(5), tuple(Segment(some(4), k, -1) for k in range(3)), 3, labels) for i in range(4)]
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    layout = RowLayout(pack=attention == "xla")
    batch = pack_groups(items, shards=shards, groups_per_shard=len(items) // shards, layout=layout)
    batch = put_batch(jax.tree.map(lambda x: np.asarray(x)[None], batch), mesh, leading=1)
    where = state_shardings(config, optimizer, mesh, jnp.float32)
    shapes = state_shapes(config, optimizer, jnp.float32)
    state = jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where)
    scorer = Scorer(config, dtype="bfloat16", attention=attention, remat=remat)
    with jax.set_mesh(mesh):
        step = compile_step(mesh, where, scorer, MPO(beta=0.1, alpha=0.2), optimizer)
        traced = step.program.trace(dataclasses.replace(state, frozen={}), state.frozen, step.horizon, batch)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 2)])
@pytest.mark.parametrize("config", [PLAIN, GROUPED], ids=["plain", "grouped-query"])
@pytest.mark.usefixtures("cudnn")
def test_the_step_lowers_with_cudnn(config, sizes):
    attention = resolve_backend("auto", "bfloat16", "cuda", config)
    assert attention == "cudnn"
    text = lowered(config, attention, make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))]))
    # of the prompts, of the responses over themselves and over their prompts
    assert text.count("@__cudnn$fmhaSoftmax(") == text.count("@__cudnn$fmhaSoftmaxBackward(") == 3


@pytest.mark.usefixtures("cudnn")
def test_what_is_recomputed_lowers_with_cudnn():
    text = lowered(GROUPED, "cudnn", make_mesh(devices=jax.devices()[:1]), remat="full")
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 3 and text.count("@__cudnn$fmhaSoftmax(") > 3


@pytest.mark.parametrize("config", [PLAIN, GROUPED], ids=["plain", "grouped-query"])
def test_the_step_lowers_with_xla(config):
    text = lowered(config, "xla", make_mesh(devices=jax.devices()[:1]))
    assert "stablehlo.dot_general" in text and "__cudnn" not in text
