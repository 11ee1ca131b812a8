"""The training step on packed rows compiled for TPUs that are not there: our kernels pass Mosaic, forward and backward."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install 'align-jax[tpu]'")

from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from align_jax.cost import topology as tpu  # noqa: E402
from align_jax.cost.epoch import ShapeUse  # noqa: E402
from align_jax.models import ModelConfig  # noqa: E402
from align_jax.models.attention import Tokens, attend, visibility  # noqa: E402
from align_jax.objectives import OBJECTIVES  # noqa: E402
from align_jax.parallel.mesh import make_mesh  # noqa: E402
from align_jax.training.optim import AdamW, make_optimizer  # noqa: E402
from align_jax.training.step import Scorer  # noqa: E402

MODEL = ModelConfig(vocab_size=1024, width=256, mlp_width=512, layers=4, heads=4, kv_heads=2, head_size=128)


@pytest.mark.slow
def test_the_step_on_packed_rows_compiles_for_a_mesh():
    mesh = make_mesh(1, 2, 2, devices=tpu.topology_devices("v5e:2x2"))
    objective, optimizer = OBJECTIVES["mpo"](beta=0.1), make_optimizer(AdamW(), 10)
    full = tpu.full_rows(objective, tpu.Lengths(prompt=200, response=328, responses=4), mesh, 4, 1, MODEL).steps[0]
    packed = dataclasses.replace(full, batch=dataclasses.replace(full.batch, packed=True, uniform=False))
    scorer = Scorer(MODEL, head_chunk=256, attention="pallas")
    compiled = tpu.StepCompiler(mesh, scorer, objective, optimizer, "float32").compile(ShapeUse((packed,)))
    # One kernel in the forward pass and two in the backward one; for prompts and for responses.
    assert compiled.counts.kernels == MODEL.layers * 2 * 3


# As a Gemma: windows in every other layer, which has rotary frequencies of its own, and bounded logits.
KINDS = dataclasses.replace(
    MODEL, layer_windows=(True, False) * 2, sliding_window=128, local_rope_theta=1e4, rope_theta=1e6, attention_softcap=50.0
)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pallas", "splash"])
def test_layers_of_several_kinds_choose_their_kernels(backend):
    """`lax.switch` on a scanned number, around kernels that are made for a window or for none."""
    mesh = make_mesh(1, 2, 1, devices=tpu.topology_devices("v5e:2x2")[:2])
    objective, optimizer = OBJECTIVES["mpo"](beta=0.1), make_optimizer(AdamW(), 10)
    use = tpu.full_rows(objective, tpu.Lengths(prompt=200, response=328, responses=2), mesh, 2, 1, KINDS)
    if backend == "pallas":
        batch = dataclasses.replace(use.steps[0].batch, packed=True, uniform=False)
        use = ShapeUse((dataclasses.replace(use.steps[0], batch=batch),))
    scorer = Scorer(KINDS, head_chunk=256, attention=backend)
    found = {}
    for model in (KINDS, MODEL):
        how = dataclasses.replace(scorer, config=model)
        found[model] = tpu.StepCompiler(mesh, how, objective, optimizer, "float32").compile(use).counts.kernels
    assert found[KINDS] >= found[MODEL] > 0


OSS = dataclasses.replace(
    MODEL,
    **{"layers": 2, "head_size": 64, "experts": 4, "active_experts": 2, "layer_windows": (True, False), "sliding_window": 128},
    **{"qkv_bias": True, "o_bias": True, "sinks": True, "expert_biases": True, "activation": "clamped_swiglu"},
)


@pytest.mark.slow
def test_a_model_with_sinks_takes_our_kernels():
    """`auto` of rows that are not packed, too, on a mesh that cuts experts, heads and the batch."""
    mesh = make_mesh(1, 1, 2, expert=2, devices=tpu.topology_devices("v5e:2x2"))
    objective, optimizer = OBJECTIVES["dpo"](beta=0.1), make_optimizer(AdamW(), 10)
    use = tpu.full_rows(objective, tpu.Lengths(prompt=200, response=328, responses=2), mesh, 2, 1, OSS)
    scorer = tpu.resolved(Scorer(OSS, head_chunk=256))
    assert scorer.attention == "pallas"
    compiled = tpu.StepCompiler(mesh, scorer, objective, optimizer, "float32").compile(use)
    assert compiled.counts.kernels >= OSS.layers * 2 * 3


# Heads that fill no lane and those that take several, keys of one head, float32; two chips have two cores.
KERNELS = [
    ("v6e:2x2", 64, (9, 3), "bfloat16", 640),
    ("v5p:2x2x1", 128, (8, 1), "bfloat16", 640),
    ("v5e:2x2", 256, (4, 2), "float32", 640),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, size, heads, dtype, length", KERNELS)
def test_the_kernels_compile(name, size, heads, dtype, length):
    where = NamedSharding(make_mesh(1, 1, 1, devices=tpu.topology_devices(name)[:1]), PartitionSpec())

    def shape(*sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=where)

    def loss(arrays, tokens, prompt, prompt_row):
        seen = visibility("pallas", Tokens(*tokens), None, Tokens(*prompt), prompt_row)
        return jnp.sum(attend(*arrays[:3], seen, *arrays[3:]).astype(jnp.float32))

    rows, prompts = (1, 2, length), (1, 2, 200)
    arrays = [
        shape(*x, h, size, dtype=dtype) for x, h in zip([rows] * 3 + [prompts] * 2, (heads[0], *heads[1:] * 4), strict=True)
    ]
    args = arrays, [shape(*rows)] * 4, [shape(*prompts)] * 2, shape(1, 2)
    compiled = jax.jit(jax.grad(loss)).trace(*args).lower(lowering_platforms=("tpu",)).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3
