"""The whole training step lowered for CUDA, on a machine without a GPU: all that a GPU step calls in JAX is there."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax import private
from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.errors import UserError
from align_jax.models import ModelConfig, init_weights, weight_shapes, weight_shardings
from align_jax.models.attention import resolve_backend, takes_packed
from align_jax.objectives import MPO
from align_jax.parallel.mesh import batch_sharding, make_mesh, put_batch
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


def _items(config: ModelConfig) -> list[TokenGroup]:
    """Groups of three responses that share their prompt."""
    rng = np.random.default_rng(0)
    some = lambda n: rng.integers(0, config.vocab_size, n).astype(np.int32)  # noqa: E731
    labels = {"scores": np.arange(3, dtype=np.float32), "ref_logps": np.zeros(3, np.float32)}
    return [TokenGroup(i, some(5), tuple(Segment(some(4), k, -1) for k in range(3)), 3, labels) for i in range(4)]


def _batch(config: ModelConfig, attention: str, mesh, spread: bool = False):
    """One step's batch: packed rows of several prompts and several responses where the backend takes them."""
    shards, items = mesh.shape["data"] * mesh.shape["fsdp"], _items(config)
    lengths = {"prompt_lengths": (16,), "response_lengths": (16,)} if takes_packed(attention) else {}
    layout = RowLayout(pack=takes_packed(attention), spread=shards if spread else 1, **lengths)
    batch = pack_groups(items, shards=shards, groups_per_shard=len(items) // shards, layout=layout)
    assert batch.packed == takes_packed(attention)
    several = batch.segments.max() > 1 and batch.prompt_segments.max() > 1
    assert several == takes_packed(attention)
    return put_batch(jax.tree.map(lambda x: np.asarray(x)[None], batch), mesh, leading=1)


def lowered(config: ModelConfig, attention: str, mesh, remat: str = "none", spread: bool = False) -> str:
    """The step of W-MPO on groups of three responses that share their prompt, in bfloat16, for CUDA."""
    optimizer, batch = optax.adamw(1e-3), _batch(config, attention, mesh, spread)
    where = state_shardings(config, optimizer, mesh, jnp.float32)
    shapes = state_shapes(config, optimizer, jnp.float32)
    state = jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where)
    scorer = Scorer(config, dtype="bfloat16", attention=attention, remat=remat)
    with jax.set_mesh(mesh):
        step = compile_step(mesh, where, scorer, MPO(beta=0.1, alpha=0.2), optimizer)
        traced = step.program.trace(dataclasses.replace(state, frozen={}), state.frozen, step.horizon, batch)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def lowered_reference(config: ModelConfig, attention: str, mesh) -> str:
    """The pass that computes the reference's log-probs of the same groups, for CUDA."""
    batch = jax.tree.map(lambda x: x[0], _batch(config, attention, mesh))
    where, shapes = weight_shardings(config, mesh), weight_shapes(config)
    weights = jax.tree.map(
        lambda s, w: jax.ShapeDtypeStruct(s, jnp.float32, sharding=w), shapes, where, is_leaf=lambda x: isinstance(x, tuple)
    )
    scorer = Scorer(config, dtype="bfloat16", attention=attention)
    with jax.set_mesh(mesh):
        program = jax.jit(scorer, out_shardings=batch_sharding(mesh))  # as `FixedScorer` has it
        tokens = dataclasses.replace(batch, labels={}, per_response=())
        return program.trace(weights, tokens).lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture
def card(monkeypatch):
    """A card for Triton's lowering, which asks for its kind since JAX 0.11."""
    with contextlib.suppress(ImportError):
        from jax._src.pallas.triton import gpu_info

        monkeypatch.setattr(gpu_info, "get_device_kind", lambda: "NVIDIA H100 80GB HBM3")


MESHES = [(1, 1, 1), (2, 1, 2)]


def _mesh(sizes):
    return make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("config", [PLAIN, GROUPED], ids=["plain", "grouped-query"])
@pytest.mark.usefixtures("cudnn")
def test_the_step_lowers_with_cudnn(config, sizes):
    attention = resolve_backend("auto", "bfloat16", "cuda", config)
    assert attention == "cudnn"
    text = lowered(config, attention, _mesh(sizes))
    # of the prompts, of the responses over themselves and over their prompts
    assert text.count("@__cudnn$fmhaSoftmax(") == text.count("@__cudnn$fmhaSoftmaxBackward(") == 3


@pytest.mark.usefixtures("cudnn")
def test_what_is_recomputed_lowers_with_cudnn():
    text = lowered(GROUPED, "cudnn", _mesh(MESHES[0]), remat="full")
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 3 and text.count("@__cudnn$fmhaSoftmax(") > 3


@pytest.mark.parametrize("config, sizes", [(PLAIN, MESHES[0]), (GROUPED, MESHES[0]), (GROUPED, (1, 2, 2))])
@pytest.mark.usefixtures("cudnn")
def test_the_step_lowers_on_packed_rows(config, sizes):
    """By XLA's products, groups spread over the shards by their tokens as training does."""
    attention = resolve_backend("auto", "bfloat16", "cuda", config, packed=True)
    text = lowered(config, attention, _mesh(sizes), spread=np.prod(sizes[:2]) > 1)
    assert attention == "xla" and "stablehlo.dot_general" in text and "__cudnn" not in text


@pytest.mark.parametrize("sizes", [MESHES[0], (1, 2, 2)])
@pytest.mark.usefixtures("card")
def test_the_step_lowers_with_our_kernels_on_packed_rows(sizes):
    text = lowered(GROUPED, "triton", _mesh(sizes), spread=np.prod(sizes[:2]) > 1)
    # of the prompts and of the responses: forward, of queries, of keys; each in a scan over the layers
    assert text.count("gpu_runs_forward") >= 2 and text.count("gpu_runs_backward_keys") >= 2
    assert text.count("@__gpu$xla.gpu.triton(") == 6 and "__cudnn" not in text


@pytest.mark.parametrize("attention, kernels", [("xla", 0), ("cudnn", 3)])
@pytest.mark.parametrize("sizes", MESHES[:2])
@pytest.mark.usefixtures("cudnn")
def test_the_pass_of_the_reference_lowers(attention, kernels, sizes):
    text = lowered_reference(GROUPED, attention, _mesh(sizes))
    assert text.count("@__cudnn$fmhaSoftmax(") == kernels and "Backward" not in text


@pytest.mark.usefixtures("cudnn")
def test_packed_rows_never_reach_cudnn():
    """Which would attend across the segments of a row, in silence: `auto` computes them by XLA, and a name is refused."""
    batch = jax.tree.map(lambda x: x[0], _batch(GROUPED, "xla", _mesh(MESHES[0])))
    weights = jax.eval_shape(lambda: init_weights(GROUPED, jax.random.key(0)))

    def scored(attention):
        jax.eval_shape(Scorer(GROUPED, dtype="bfloat16", attention=attention), weights, batch)

    with pytest.raises(UserError, match=r"'cudnn' takes one response per row, and this batch is packed \(data.pack\)"):
        scored("cudnn")
