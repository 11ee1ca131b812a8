"""Writing safetensors one tensor at a time (the library's own writer wants all tensors of a file in memory)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from align_jax.hf.dtypes import code

# `format` is what transformers checks; the other key is how an export is recognized before it is replaced.
METADATA = {"format": "pt", "exported_by": "align_jax"}


def write_safetensors(
    path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], dtype: np.dtype, arrays: Iterable[np.ndarray]
) -> None:
    """Writes a safetensors file.

    The format: the header's length (8 bytes, little-endian), the header (JSON: type, shape and byte range of each
    tensor, padded with spaces to a multiple of 8), the tensors' bytes in order
    (https://github.com/huggingface/safetensors).

    Args:
      path: the file.
      tensors: name and shape of each tensor.
      dtype: the type of all tensors.
      arrays: their values in the same order; taken one at a time.

    Raises:
      ValueError: an array whose shape or type is not the announced one.
    """
    with open(path, "wb") as file:
        file.write(_header(tensors, dtype))
        values = iter(arrays)
        for name, shape in tensors:
            array = next(values)
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise ValueError(f"tensor {name!r}: got {array.dtype}{array.shape}, announced {dtype}{tuple(shape)}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            del array  # before the next one is fetched
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Sequence[tuple[str, tuple[int, ...]]], dtype: np.dtype) -> bytes:
    header, offset = {"__metadata__": METADATA}, 0
    for name, shape in tensors:
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code(dtype), "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_json(path: Path, value: dict) -> None:
    """Writes a dict as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
