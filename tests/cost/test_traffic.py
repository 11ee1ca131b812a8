"""Bytes that instructions move: slices and updates in place touch their part alone."""

from align_jax.cost.hlo import count
from align_jax.cost.program import size_of

PROGRAM = """
%fused (p0: bf16[32,64], p1: s32[], p2: bf16[1,64]) -> bf16[1,64] {
  %p0 = bf16[32,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = bf16[1,64]{1,0} parameter(2)
  %part = bf16[1,64]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,64}
  ROOT %sum = bf16[1,64]{1,0} add(%part, %p2)
}

%update (q0: bf16[32,64], q1: bf16[1,64], q2: s32[]) -> bf16[32,64] {
  %q0 = bf16[32,64]{1,0} parameter(0)
  %q1 = bf16[1,64]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %put = bf16[32,64]{1,0} dynamic-update-slice(%q0, %q1, %q2, %q2)
}

%outer (r0: bf16[32,64], r1: s32[], r2: bf16[1,64]) -> bf16[1,64] {
  %r0 = bf16[32,64]{1,0} parameter(0)
  %r1 = s32[] parameter(1)
  %r2 = bf16[1,64]{1,0} parameter(2)
  ROOT %inner = bf16[1,64]{1,0} fusion(%r0, %r1, %r2), kind=kLoop, calls=%fused
}

ENTRY %main (a: bf16[32,64], i: s32[], b: bf16[1,64], c: f32[8,8]) -> bf16[32,64] {
  %a = bf16[32,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = bf16[1,64]{1,0:T(8,128)S(1)} parameter(2)
  %c = f32[8,8]{1,0} parameter(3)
  %one = bf16[1,64]{1,0} fusion(%a, %i, %b), kind=kLoop, calls=%fused
  %copy = f32[8,8]{1,0} copy(%c)
  %start = (f32[8,8]{1,0:S(1)}, f32[8,8]{1,0}, u32[]{:S(2)}) copy-start(%copy)
  %done = f32[8,8]{1,0:S(1)} copy-done(%start)
  %three = bf16[1,64]{1,0} fusion(%a, %i, %b), kind=kLoop, calls=%outer
  ROOT %two = bf16[32,64]{1,0} fusion(%a, %one, %i), kind=kLoop, calls=%update
}
"""


def test_parts_are_read_and_written():
    row, square, index = 64 * 2, 8 * 8 * 4, 4
    slice_added = row + index + row  # a row of `a` and the index read, a row written; `b` is on the chip
    copied = 2 * square
    prefetched = square  # read into the chip
    updated = row + index + row  # a row and the index read, a row of `a` written in place
    nested = slice_added
    assert count(PROGRAM).traffic == slice_added + nested + copied + prefetched + updated


def test_tokens_have_no_bytes():
    assert size_of("(f32[2,3]{1,0}, token[], s4[4]{0}, pred[5])") == 24 + 2 + 5
    assert size_of("(f32[2,3]{1,0:T(8,128)S(1)}, bf16[4])", on_chip=False) == 8
