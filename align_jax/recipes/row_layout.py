"""How rows are filled for an attention backend; and on a GPU, which of two backends that decides for."""

from __future__ import annotations

import math
from typing import Any

from jax.sharding import Mesh

from align_jax.config import Config
from align_jax.cost.epoch import epoch_steps
from align_jax.cost.flops import compilation_price, keys_per_position
from align_jax.cost.gpu_rows import RowsEstimate, steps_cost
from align_jax.data import BatchLoader, DataConfig, RowLayout
from align_jax.models import ModelConfig
from align_jax.models.attention import takes_packed
from align_jax.parallel.mesh import data_shards

# Attention without a kernel: small products and a softmax in memory take this much longer for an operation than the rest does
# (measured on a CPU, heads of 64).
XLA_ATTENTION_COST = 4
# Real tokens among the positions of rows with one response each, and of packed ones (docs/performance.md).
FILLED_SINGLE, FILLED_PACKED = 0.3, 0.7
_STEPS = 4  # that stand for all in an estimate


def layout_for(config: Config, model: ModelConfig, mesh: Mesh, backend: str) -> RowLayout:
    """How rows are filled: packed where the backend takes that and `data.pack` says so; and what a further shape must save."""
    platform = mesh.devices.flat[0].platform
    dense, price, multiple = keys_per_position(model), compilation_price(model, platform), 8 if platform == "cpu" else 128
    if config.mesh.sequence > 1:
        multiple = math.lcm(multiple, 2 * config.mesh.sequence)
    if not takes_packed(backend):
        return RowLayout(pack=False, dense=dense, price=price)
    if backend == "xla":
        dense, price = max(1, dense // XLA_ATTENTION_COST), price / XLA_ATTENTION_COST
    pack = (config.data or DataConfig()).pack
    return RowLayout(pack=pack, dense=dense, price=price, spread=data_shards(mesh) if pack else 1, multiple=multiple)


def estimated(config: Config, model: ModelConfig, mesh: Mesh, dataset: Any) -> RowsEstimate:
    """What the first steps on a data set take on a GPU, packed by XLA and one response a row by cuDNN.

    The same on every process: each counts the groups of all shards.
    """

    def cost(backend: str) -> float:
        loader = BatchLoader(
            dataset,
            shards=data_shards(mesh),
            groups_per_step=config.train.groups_per_step,
            accumulation_steps=config.train.accumulation_steps,
            seed=config.run.seed,
            layout=layout_for(config, model, mesh, backend),
            batches=config.train.total_steps(len(dataset)),
        )
        steps = epoch_steps(loader, dataset, model, _STEPS)
        return steps_cost(model, steps, getattr(mesh.devices.flat[0], "device_kind", ""))

    return RowsEstimate(cost("xla"), cost("cudnn"))


def usually_pays(model: ModelConfig, longest: int | None) -> bool:
    """Whether packing by XLA pays on a GPU where no lengths are known: those of real preferences, at their longest.

    Args:
      longest: tokens of the longest prompt and response; None: any.
    """
    if longest is None:
        return False
    dense = keys_per_position(model)
    return (dense + XLA_ATTENTION_COST * longest) / FILLED_PACKED < (dense + longest / 2) / FILLED_SINGLE
