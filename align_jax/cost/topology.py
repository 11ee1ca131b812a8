"""Compiling the training step for TPUs that are not there, and what the program will need."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from align_jax.batch import GroupBatch, computed_positions
from align_jax.cost.chips import chip_of
from align_jax.cost.epoch import ShapeUse, Step
from align_jax.cost.estimate import CompiledShape, Memory, collective_costs, repeated
from align_jax.cost.flops import forward_flops
from align_jax.cost.hlo import count
from align_jax.cost.kernels import expert_flops, kernel_flops
from align_jax.cost.network import Places
from align_jax.cost.parts import parts_of
from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.models.attention import resolve_backend
from align_jax.objectives import Objective
from align_jax.parallel.distributed import prepare_compiler
from align_jax.parallel.mesh import batch_sharding, data_shards
from align_jax.scoring.scorer import Scorer
from align_jax.training.live import LiveReference
from align_jax.training.state import state_shapes, state_shardings
from align_jax.training.step import compile_step

# What libtpu calls them -> how it is asked for them: where a chip has two cores that work as one device, that is said.
_FAMILIES = {"v4": {"chip_config_name": "megacore"}, "v5e": {}, "v5p": {}, "v6e": {}, "tpu7x": {}}
_EXAMPLES = "v5e:4x4, v5p:4x4x4, v6e:16x16, v4:4x4x4"
_CUBES = ("v4", "v5p", "tpu7x")  # their torus has three axes; that of the others two


def topology_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """The devices of a TPU topology such as `v5e:4x4` or `v5p:4x4x4`, from libtpu's compiler; no TPU is needed.

    Args:
      slices: how many such topologies, joined by the data center's network.

    Raises:
      UserError: libtpu is not installed, or cannot describe the topology.
    """
    family, _, sizes = name.partition(":")
    if family not in _FAMILIES or not re.fullmatch(r"\d+(x\d+){1,2}", sizes):
        raise UserError(f"--topology {name}: is no TPU and its size, such as {_EXAMPLES}; known are {', '.join(_FAMILIES)}")
    if family in _CUBES and sizes.count("x") == 1:
        raise UserError(f"--topology {name}: {family} is a network of three axes, such as {family}:{sizes}x1 or {family}:4x4x4")
    if slices < 1:
        raise UserError(f"--slices: {slices} is not a positive number")
    prepare_compiler()
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise UserError("compiling for a TPU needs its compiler: pip install 'align-jax[tpu]' (libtpu)") from error
    how = {**_FAMILIES[family], **({"num_slices": slices} if slices > 1 else {})}
    if set(re.findall(r"\d+", sizes)) == {"1"}:  # a machine with one chip; else chips come by the host
        how["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=name, **how).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--topology {name}: libtpu cannot describe it: {str(error).splitlines()[0]}; chips come by the host, in blocks of "
            "2x2 (v5e, v6e) or 2x2x1"
        ) from error
    if chip_of(devices[0].device_kind) is None:
        raise UserError(f"--topology {name}: nothing is known of {devices[0].device_kind}'s memory and speed")
    return devices


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The batch to compile for, all rows full: tokens of a prompt and of a response, responses of a group."""

    prompt: int = 512
    response: int = 512
    responses: int = 4


def abstract_batch(objective: Objective, lengths: Lengths, mesh: Mesh, groups: int, accumulation: int) -> GroupBatch:
    """The shapes of a step's batch (unpacked, uniform rows), with their shardings.

    Args:
      objective: whose arrangement decides the labels.
      groups: prompts of one step, over all devices and microbatches.
    """
    shards, k = data_shards(mesh), lengths.responses
    rows = groups // accumulation // shards

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((accumulation, *shape), dtype, sharding=batch_sharding(mesh, 1))

    g = rows * shards
    shapes = objective.arrangement.label_shapes(k)
    labels = {name: array(g, *shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    if objective.needs_reference:
        labels["ref_logps"] = array(g, k, dtype=jnp.float32)
    prompt = [array(shards, rows, lengths.prompt) for _ in range(3)]
    row = [array(shards, rows * k, lengths.response) for _ in range(7)]
    return GroupBatch(
        *prompt, *row, array(shards, rows * k), array(g, k, dtype=jnp.bool_), array(g, k), array(g), labels,
        uniform=True, packed=False, ends=objective.head == "score",
    )  # fmt: skip


def full_rows(
    objective: Objective, lengths: Lengths, mesh: Mesh, groups: int, accumulation: int, model: ModelConfig
) -> ShapeUse:
    """An epoch of steps whose rows are all full, from `abstract_batch`."""
    batch = abstract_batch(objective, lengths, mesh, groups, accumulation)
    # A prompt row holds the prompt without its last token; here all its positions are taken as real.
    forward = forward_flops(model, [lengths.prompt] * groups, [[lengths.response] * lengths.responses] * groups)
    return ShapeUse((Step(batch, forward, computed_positions(batch)),))


def placed(batch: GroupBatch, mesh: Mesh) -> GroupBatch:
    """The shapes of a batch (microbatches on a leading axis), with the shardings of this mesh."""
    where = batch_sharding(mesh, 1)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), batch)


@dataclasses.dataclass(frozen=True)
class StepCompiler:
    """What a step is compiled from, but for its batch.

    Attributes:
      scorer: with the backend that computes attention, see `resolved`. live: of a reference in the state, if there is one.
    """

    mesh: Mesh
    scorer: Scorer
    objective: Objective
    optimizer: optax.GradientTransformation
    param_dtype: str
    live: LiveReference | None = None

    def compile(self, use: ShapeUse) -> CompiledShape:
        """Lowers and compiles `train_step` from shapes alone.

        Raises:
          UserError: the program does not fit the device's memory.
        """
        begun = time.perf_counter()
        analysis, text = compiled_text(self, placed(use.batch, self.mesh))
        counts, devices = count(text), list(self.mesh.devices.flat)
        chip, scorer = chip_of(devices[0].device_kind), self.scorer
        kernels = kernel_flops(scorer, use.batch) + expert_flops(scorer, use.batch)
        chunks = scorer.chunk(use.batch) is not None
        return CompiledShape(
            use,
            Memory.of(analysis),
            counts,
            kernels,
            repeated(use, scorer.remat, chunks=chunks, head=scorer.head_twice(use.batch)),
            collective_costs(counts, chip, Places.of(devices)),
            chip,
            len(devices),
            time.perf_counter() - begun,
            parts_of(scorer, use.batch, use.forward, counts.flops * len(devices) + kernels),
        )


def compiled_text(what: StepCompiler, batch: GroupBatch) -> tuple[Any, str]:
    """The compiler's memory analysis of the step on a batch of these shapes, and the program as text.

    Raises:
      UserError: the program does not fit the device's memory.
    """
    config, mesh = what.scorer.config, what.mesh
    where = state_shardings(config, what.optimizer, mesh, what.param_dtype, live=what.live)
    state = jax.tree.map(
        lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w),
        state_shapes(config, what.optimizer, what.param_dtype, live=what.live),
        where,
    )
    with jax.set_mesh(mesh):
        step = compile_step(mesh, where, what.scorer, what.objective, what.optimizer, live=what.live)
        lowered = step.lower(state, batch)
        try:
            return program_text(lowered)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFit(
                f"the step does not fit: {str(error).splitlines()[0]}; model.remat: full, more train.accumulation_steps, more "
                "fsdp or tensor in mesh, or model.param_dtype: bfloat16 need less"
            ) from error


def program_text(lowered: jax.stages.Lowered) -> tuple[Any, str]:
    """The compiler's memory analysis of a lowered program, and the compiled program as text.

    Raises:
      UserError: the compiler left no text.
    """
    # The compiler's own dump: `as_text` fails where libtpu is newer than jaxlib and writes what jaxlib cannot read. Not in the
    # system's temporary folder, which others clean up while a large program compiles for an hour.
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "align_jax" / "dumps"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=f"{os.getpid()}-") as folder, _not_from_cache():
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": "none"}
        memory = lowered.compile(compiler_options=options).memory_analysis()
        found = sorted(Path(folder).glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size)
        if not found:
            there = ", ".join(sorted(file.name for file in Path(folder).glob("*"))[:5]) or "nothing"
            raise UserError(
                f"the compiler left no text of the program in {folder} ({there} is there), so nothing can be counted; is the "
                "disk full, or does XLA_FLAGS or LIBTPU_INIT_ARGS send dumps elsewhere?"
            )
        return memory, found[-1].read_text(encoding="utf-8")


@contextlib.contextmanager
def _not_from_cache() -> Iterator[None]:
    """Within it programs are compiled: one that is read from JAX's cache on disk leaves no text."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


class DoesNotFit(UserError):
    """The compiler found no way to run the step in the device's memory."""


def check_groups(groups: int, accumulation: int, mesh: Mesh) -> None:
    """Raises UserError unless a step's groups can be cut into microbatches and shards."""
    parts = accumulation * data_shards(mesh)
    if groups % parts or not groups:
        raise UserError(f"train.groups_per_step: {groups} is not a multiple of {parts} (accumulation_steps x data x fsdp)")


def resolved(scorer: Scorer) -> Scorer:
    """The scorer with the backend that `auto` means on a TPU."""
    return dataclasses.replace(scorer, attention=resolve_backend(scorer.attention, scorer.dtype, "tpu", scorer.config))
