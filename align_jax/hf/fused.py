"""Adapters of models whose checkpoints hold several projections as one tensor (Phi): PEFT has one adapter for all of them.

One taken apart: its parts share A, and B's rows are theirs. Put together: with `B = diag(B_q, B_k, B_v)` and
`A = [A_q; A_k; A_v]`, whose rank is the sum, `B A` is what the three do, and the scale is theirs.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from align_jax.errors import UserError
from align_jax.hf.files import Checkpoint
from align_jax.models import ModelConfig

A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
# The module of a layer, and what is in it, in the order of its rows.
MODULES = {"self_attn.qkv_proj": ("q", "k", "v"), "mlp.gate_up_proj": ("gate", "up")}


def module_of(target: str) -> str | None:
    """The module that holds a projection together with others; None: it has one of its own."""
    return next((module for module, parts in MODULES.items() if target in parts), None)


def sizes(config: ModelConfig) -> dict[str, int]:
    """How many rows of its module a projection has."""
    heads, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    return {"q": heads, "k": keys, "v": keys, "gate": config.mlp_width, "up": config.mlp_width}


class Apart:
    """The tensors of an adapter's file under the names that they would have were the projections apart.

    Args:
      checkpoint: the file. config: of the model.

    Attributes:
      folder, shapes: as those of `Checkpoint`.

    Raises:
      UserError: a factor of another shape than its module's, or of a projection that is no module of this model.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig):
        self.folder: Path = checkpoint.folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._checkpoint, self._from = checkpoint, {}
        for name, shape in checkpoint.shapes.items():
            for own, start, rows in self._parts(name, shape, config):
                self.shapes[own] = (rows, *shape[1:])
                self._from[own] = name, start

    def _parts(self, name: str, shape: tuple[int, ...], config: ModelConfig) -> list[tuple[str, int, int]]:
        """(name apart, first row, rows) of what a tensor holds."""
        found = next((module for module in MODULES if f".{module}." in name), None)
        if found is None:
            if any(f".{_apart(module, part)}." in name for module, parts in MODULES.items() for part in parts):
                raise UserError(
                    f"tensor {name!r} in {self._checkpoint.file(name)} is of a projection that is no module of this model: "
                    f"its checkpoints hold {' and '.join(MODULES)}; is it for another model?"
                )
            return [(name, 0, shape[0])]
        if not name.removesuffix(".weight").endswith((A.removesuffix(".weight"), B.removesuffix(".weight"), MAGNITUDE)):
            raise UserError(
                f"tensor {name!r} in {self._checkpoint.file(name)}: {found} is saved whole, which is not read here: several "
                "weights are one tensor there (Phi)"
            )
        rows, parts, start = sizes(config), MODULES[found], 0
        result = []
        for part in parts:
            own = name.replace(f".{found}.", f".{_apart(found, part)}.")
            whole = name.endswith(A)
            result.append((own, 0 if whole else start, shape[0] if whole else rows[part]))
            start += rows[part]
        if not name.endswith(A) and shape[0] != start:
            raise UserError(
                f"tensor {name!r} in {self._checkpoint.file(name)} has shape {list(shape)}, the model asks for {start} rows: "
                "is the adapter for another model?"
            )
        return result

    def file(self, name: str) -> Path:
        """As `Checkpoint.file`."""
        return self._checkpoint.file(self._from[name][0])

    def dtype(self, name: str) -> np.dtype:
        """As `Checkpoint.dtype`."""
        return self._checkpoint.dtype(self._from[name][0])

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """As `Checkpoint.read`."""
        stored, start = self._from[name]
        rows, *rest = index
        return self._checkpoint.read(stored, (slice(rows.start + start, rows.stop + start), *rest))


def together(tensors: dict[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors of an adapter whose projections are apart, as those of their modules; the inverse of `Apart` in what they do.

    Args:
      tensors: by PEFT's names. config: of the model, whose scales are those of the tensors.

    Raises:
      UserError: DoRA of a part of a module: the magnitudes of its other rows are those of the model's weights.
    """
    result, rows = dict(tensors), sizes(config)
    for prefix, module in sorted({found for name in tensors if (found := _place(name)) is not None}):
        names = {part: prefix + _apart(module, part) for part in MODULES[module]}
        there = [part for part in names if names[part] + A in result]
        layer = int(prefix.rstrip(".").rpartition(".")[2])
        scales = {part: config.lora.scales(part, config.layers)[layer] for part in there}
        if config.lora.dora and len(there) < len(names):
            raise UserError(
                f"lora.targets: an adapter of {module} in PEFT's format is of {', '.join(names)}; this one is of "
                f"{', '.join(there)}, and has magnitudes (lora.dora) of these alone: export it merged (--merge)"
            )
        factors = {part: (result.pop(names[part] + A), result.pop(names[part] + B)) for part in there}
        low, blocks, ranks = [], [], [a.shape[0] for a, _ in factors.values()]
        for part in names:
            block, at = np.zeros((rows[part], sum(ranks)), np.float32), sum(len(a) for a in low)
            if part in factors:
                a, b = factors[part]
                low.append(a)
                block[:, at : at + len(a)] = b * np.float32(scales[part] / scales[there[0]])
            blocks.append(block)
        result[prefix + module + A] = np.concatenate(low)
        result[prefix + module + B] = np.concatenate(blocks)
        if config.lora.dora:
            result[prefix + module + MAGNITUDE] = np.concatenate([result.pop(names[part] + MAGNITUDE) for part in names])
    return result


def shape_together(config: ModelConfig, module: str, layer: int) -> tuple[int, float]:
    """Rank and alpha of a module's adapter in a layer, as `together` makes it; rank 0 where it has none."""
    ours = [part for part in MODULES[module] if part in config.lora.targets]
    ranks = {part: config.lora.ranks(part, config.layers)[layer] for part in ours}
    there = [part for part, rank in ranks.items() if rank]
    if not there:
        return 0, 0.0
    rank = sum(ranks.values())
    scale = config.lora.scales(there[0], config.layers)[layer]
    return rank, scale * (math.sqrt(rank) if config.lora.rslora else rank)


def _place(name: str) -> tuple[str, str] | None:
    """What stands before a module's name in that of a tensor of one of its parts, and the module."""
    for module, parts in MODULES.items():
        for part in parts:
            before, found, _ = name.partition(f"{_apart(module, part)}.lora_")
            if found:
                return before, module
    return None


def _apart(module: str, part: str) -> str:
    return f"{module.partition('.')[0]}.{part}_proj"
