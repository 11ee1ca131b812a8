"""Counts of compiled programs: loops as often as they run, convolutions as the matrix products that they are."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from align_jax.cost.hlo import count
from align_jax.cost.program import parse, trip_count
from align_jax.parallel.mesh import make_mesh


def test_products_in_nested_loops():
    def inner(x, w):
        return jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), None), x, None, length=5)[0], None

    def outer(x, ws):
        return jax.lax.scan(inner, x, ws)[0] @ jnp.ones((16, 8))

    text = jax.jit(outer).lower(jnp.ones((4, 16)), jnp.ones((3, 16, 16))).compile().as_text()
    counts = count(text)
    assert counts.flops == 3 * 5 * 2 * 4 * 16 * 16 + 2 * 4 * 16 * 8
    assert counts.collectives == {}


def test_collectives_in_a_loop():
    mesh = make_mesh(1, 4, 1)
    rows, columns = (NamedSharding(mesh, P(*spec)) for spec in ((None, None, "fsdp"), (None, "fsdp")))
    step = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
    program = jax.jit(lambda x, ws: jax.lax.scan(step, x, ws)[0], in_shardings=(columns, rows), out_shardings=columns)
    counts = count(program.lower(jnp.ones((4, 16)), jnp.ones((3, 16, 16))).compile().as_text())
    assert counts.flops == 3 * 2 * 4 * 16 * 16 / 4
    number, size = counts.collectives["all-gather"]
    assert number >= 3 and size >= 3 * 4 * 16 * 4


CONVOLUTION = """
%body (p: (s32[], bf16[8,512])) -> (s32[], bf16[8,512]) {
  %p = (s32[], bf16[8,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = bf16[8,512]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %w = bf16[2,512,2,64]{3,2,1,0} constant({...})
  %k = bf16[1,8,2,64]{3,2,1,0} convolution(%a, %w), window={size=2x2 pad=1_1x0_0 rhs_reversal=1x0}, dim_labels=b1f0_1i0o->b0f1
  %a = bf16[1,2,512,1]{3,2,1,0} bitcast(%x)
  ROOT %out = (s32[], bf16[8,512]{1,0}) tuple(%next, %x)
}

%condition (p: (s32[], bf16[8,512])) -> pred[] {
  %p = (s32[], bf16[8,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: (s32[], bf16[8,512])) -> (s32[], bf16[8,512]) {
  %p = (s32[], bf16[8,512]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[8,512]{1,0}) while(%p), condition=%condition, body=%body
}
"""


def test_trips_follow_the_counter():
    computations, entry = parse(CONVOLUTION)
    (loop,) = (i for i in computations[entry] if i.op == "while")
    assert trip_count(computations, loop) == 4  # 0, 2, 4, 6
    with pytest.raises(ValueError, match="below a constant"):
        trip_count(parse(CONVOLUTION.replace("direction=LT", "direction=GT"))[0], loop)


def test_padding_of_a_convolution_is_not_work():
    text = """
ENTRY %main (a: bf16[512,1], b: bf16[2,512,64]) -> bf16[3,64] {
  %a = bf16[1,2,512]{2,1,0} parameter(0)
  %b = bf16[2,512,64]{2,1,0} parameter(1)
  ROOT %k = bf16[1,3,64]{2,1,0} convolution(%a, %b), window={size=2 pad=1_1}, dim_labels=b0f_0io->b0f
}
"""
    assert count(text).flops == 2 * 64 * 512 * (1 + 2 + 1)


def test_text_without_a_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        count("HloModule x")


def test_elements_of_tuples_written_in_place():
    """As the compiler of JAX 0.12 for TPUs writes them."""
    lines = [line for line in CONVOLUTION.splitlines() if "get-tuple-element" not in line]
    text = "\n".join(lines).replace("%i,", "%p#0,").replace("%x)", "%p#1)")
    assert "%i" not in text and text.count("#") == 4
    (loop,) = (i for i in parse(text)[0]["main"] if i.op == "while")
    assert trip_count(parse(text)[0], loop) == 4
    assert count(text) == count(CONVOLUTION)
    (element,) = (i for i in parse(text)[0]["body"] if i.name == "p#1")
    assert element.type == "bf16[8,512]{1,0}"


def test_a_fusion_that_slices_what_it_reduces_is_a_reduce_scatter():
    text = """
%all-reduce-scatter (input: bf16[2048,8]) -> bf16[528,8] {
  %input = bf16[2048,8]{1,0} parameter(0)
  %zero = bf16[] constant(0)
  %pad = bf16[2112,8]{1,0} pad(%input, %zero), padding=0_64x0_0
  %sum = bf16[2112,8]{1,0} all-reduce(%pad), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  %own = u32[] partition-id()
  %none = u32[] constant(0)
  ROOT %part = bf16[528,8]{1,0} dynamic-slice(%sum, %own, %none), dynamic_slice_sizes={528,8}
}

ENTRY %main (a: bf16[2048,8]) -> bf16[2112,8] {
  %a = bf16[2048,8]{1,0} parameter(0)
  %fusion = bf16[528,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
  %right = bf16[16,8]{1,0} collective-permute(%fusion), channel_id=3, source_target_pairs={{0,1},{1,2},{2,3}}
  %left = bf16[16,8]{1,0} collective-permute(%fusion), channel_id=3, source_target_pairs={{1,0},{2,1},{3,2}}
  ROOT %whole = bf16[2112,8]{1,0} all-reduce(%a), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
}
"""
    exchanged = {"collective-permute": (2, 2 * 16 * 8 * 2)}  # at the edges of the padded parts, on the same channel
    assert count(text).collectives == {"all-reduce": (1, 2112 * 8 * 2), "reduce-scatter": (1, 528 * 8 * 2), **exchanged}
