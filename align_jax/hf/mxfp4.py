"""Weights of experts as MXFP4, the format of GPT-OSS on the hub: dequantized where they are read.

A tensor `[X, inputs, outputs]` is two: `_blocks` uint8 `[X, outputs, inputs / 32, 16]`, two numbers of 4 bits in a byte, the
first in its low bits, and `_scales` uint8 `[X, outputs, inputs / 32]`, the exponents of two (less 127) of 32 inputs each
(OCP Microscaling Formats, version 1.0, section 5.3).
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from align_jax.errors import UserError
from align_jax.hf.files import Checkpoint

MXFP4 = "mxfp4"
_BLOCKS, _SCALES = "_blocks", "_scales"
_INPUTS = 32  # that share a scale
_POSITIVE = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
_NUMBERS = np.concatenate([_POSITIVE, -_POSITIVE])
# Both numbers of each byte, as one of 8 bytes: NumPy looks those up 10 times as fast as pairs.
_PAIRS = np.stack([np.tile(_NUMBERS, 16), np.repeat(_NUMBERS, 16)], axis=-1).view(np.uint64)[:, 0]
_DTYPE = np.dtype(jnp.bfloat16)  # which holds every product of a number and a scale


class Unpacked:
    """A checkpoint in which what is MXFP4 has the name, the shape and the type of what it means; read piece by piece.

    Args:
      checkpoint: with such tensors, or without any.

    Attributes:
      folder, shapes: as those of `Checkpoint`.
      packed: names of the tensors that are dequantized.

    Raises:
      UserError: blocks without scales, or of a shape or type that is no MXFP4.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.folder: Path = checkpoint.folder
        self._checkpoint = checkpoint
        self.shapes = dict(checkpoint.shapes)
        self.packed: list[str] = []
        for blocks in checkpoint.shapes:
            if blocks.endswith(_BLOCKS):
                name = blocks.removesuffix(_BLOCKS)
                self.shapes[name] = self._shape(name)
                self.packed.append(name)
                for end in (_BLOCKS, _SCALES):
                    del self.shapes[name + end]

    def _shape(self, name: str) -> tuple[int, ...]:
        blocks, scales = (self._checkpoint.shapes.get(name + end) for end in (_BLOCKS, _SCALES))
        codes = {self._checkpoint.code(name + end) for end in (_BLOCKS, _SCALES) if name + end in self._checkpoint.shapes}
        wrong = None
        if name in self._checkpoint.shapes:
            wrong = f"stands beside a tensor {name!r}, of which it is another form"
        elif scales is None:
            wrong = f"has no scales: {name + _SCALES!r} is missing"
        elif codes != {"U8"}:
            wrong = f"and its scales have the types {', '.join(sorted(codes))}, which would be U8"
        elif len(blocks) != 4 or blocks[-1] != _INPUTS // 2 or scales != blocks[:-1]:
            wrong = (
                f"has shape {list(blocks)} and its scales {list(scales)}, which would be [experts, outputs, inputs / 32, 16] "
                "and the same without the last"
            )
        if wrong:
            where = self._checkpoint.file(name + _BLOCKS)
            raise UserError(f"tensor {name + _BLOCKS!r} in {where} {wrong}; take a whole copy, or one in bfloat16")
        experts, outputs, count, _ = blocks
        return experts, count * _INPUTS, outputs

    def file(self, name: str) -> Path:
        """As `Checkpoint.file`."""
        return self._checkpoint.file(name + _BLOCKS if name in self.packed else name)

    def dtype(self, name: str) -> np.dtype:
        """As `Checkpoint.dtype`: bfloat16 for what is dequantized."""
        return _DTYPE if name in self.packed else self._checkpoint.dtype(name)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """As `Checkpoint.read`; an expert at a time, and of columns in turn those alone that are asked for."""
        if name not in self.packed:
            return self._checkpoint.read(name, index)
        (first, last, _), (start, stop, _), (left, right, step) = (
            each.indices(size) for each, size in zip(index, self.shapes[name], strict=True)
        )
        of_scales = slice(start // _INPUTS, -(-stop // _INPUTS))
        inside = slice(start - of_scales.start * _INPUTS, stop - of_scales.start * _INPUTS)
        found = np.empty((last - first, stop - start, len(range(left, right, step))), _DTYPE)
        for expert in range(first, last):
            where = (slice(expert, expert + 1), slice(left, right), of_scales)
            scales = self._checkpoint.read(name + _SCALES, where)[0]
            blocks = self._checkpoint.read(name + _BLOCKS, (*where, slice(0, _INPUTS // 2)))[0]
            found[expert - first] = dequantized(blocks[::step], scales[::step])[:, inside].T
        return found


def dequantized(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What codes mean: uint8 `[..., G, 16]` and `[..., G]` -> bfloat16 `[..., 32 G]`, `number 2^(scale - 127)`.

    Args:
      blocks: pairs of codes. scales: of each block.
    """
    numbers = _PAIRS[blocks].view(np.float32)
    numbers *= np.ldexp(np.float32(1), scales.astype(np.int32) - 127)[..., None]
    return numbers.reshape(*scales.shape[:-1], -1).astype(_DTYPE)
