"""Compiling the training step for TPUs that are not there, and what the program will need."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from align_jax.batch import GroupBatch
from align_jax.cost.flops import forward_flops, least_flops, remat_flops
from align_jax.cost.hlo import Counts, count
from align_jax.errors import UserError
from align_jax.models.attention import resolve_backend
from align_jax.models.attention.splash import computed_pairs
from align_jax.objectives import Objective
from align_jax.parallel.mesh import batch_sharding, data_shards
from align_jax.scoring.scorer import Scorer
from align_jax.training.state import state_shapes, state_shardings
from align_jax.training.step import compile_step

# Memory of a chip by `device_kind`, GiB (cloud.google.com/tpu/docs/system-architecture-tpu-vm).
HBM_GIB = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32, "TPU7x": 192}


def topology_devices(name: str) -> list[jax.Device]:
    """The devices of a TPU topology such as `v5e:4x4` or `v5p:4x4x4`, from libtpu's compiler; no TPU is needed.

    Raises:
      UserError: libtpu is not installed, or cannot describe the topology.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud machine's metadata what it is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # the compiler alone needs no lock on a device
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise UserError("compiling for a TPU needs its compiler: pip install 'align-jax[tpu]' (libtpu)") from error
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology {name}: libtpu cannot describe it: {str(error).splitlines()[0]}") from error


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


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step compiled for a topology: XLA's memory analysis, counts of one device, and seconds spent."""

    memory: Any
    counts: Counts
    seconds: float


def compile_for(
    mesh: Mesh,
    scorer: Scorer,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    param_dtype: str,
    batch: GroupBatch,
) -> Compiled:
    """Lowers and compiles `train_step` from shapes alone.

    Raises:
      UserError: the program does not fit the device's memory.
    """
    where = state_shardings(scorer.config, optimizer, mesh, param_dtype)
    state = jax.tree.map(
        lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w),
        state_shapes(scorer.config, optimizer, param_dtype),
        where,
    )
    begun = time.perf_counter()
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        lowered = compile_step(mesh, where, scorer, objective, optimizer).lower(state, batch)
        # The compiler's own dump: `as_text` fails where libtpu is newer than jaxlib and writes what jaxlib cannot read.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": "none"}
        try:
            memory = lowered.compile(compiler_options=options).memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(f"the step does not fit: {str(error).splitlines()[0]}") from error
        (text,) = Path(folder).glob("*train_step*after_optimizations.txt")
        counts = count(text.read_text(encoding="utf-8"))
    return Compiled(memory, counts, time.perf_counter() - begun)


def report(compiled: Compiled, mesh: Mesh, scorer: Scorer, lengths: Lengths, groups: int) -> dict[str, Any]:
    """What the step needs and does: memory of a chip, operations of all chips, collectives of a chip."""
    memory, counts, device = compiled.memory, compiled.counts, mesh.devices.flat[0]
    count_of = int(mesh.devices.size)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    hbm = HBM_GIB.get(device.device_kind, 0) * 2**30
    # A prompt row holds the prompt without its last token; here all its positions are taken as real.
    forward = forward_flops(scorer.config, [lengths.prompt] * groups, [[lengths.response] * lengths.responses] * groups)
    least = least_flops(forward)
    splash = scorer.attention == "splash"
    chunked = scorer.rows_per_chunk is not None
    remat = remat_flops(forward, scorer.remat, chunks=chunked, attention_saved=splash)
    kernels = groups * _kernel_flops(scorer, lengths) if splash else 0
    done = round(counts.flops * count_of) + kernels
    return {
        "device": device.device_kind,
        "devices": count_of,
        "mesh": dict(zip(mesh.axis_names, mesh.devices.shape, strict=True)),
        "attention": scorer.attention,
        "remat": scorer.remat,
        "memory_bytes": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "outputs_in_place": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
            "host": memory.host_temp_size_in_bytes,
            "total": total,
            "device": hbm,
        },
        "fits": bool(hbm) and total <= hbm,
        "flops_least": least,
        "flops_remat": remat,
        "flops_done": done,
        "flops_done_kernels": kernels,
        "flops_ratio": done / (least + remat),
        "kernel_calls": counts.kernels,
        "collectives": {kind: {"count": n, "bytes": size} for kind, (n, size) in counts.collectives.items()},
        "compile_seconds": round(compiled.seconds, 1),
    }


def _kernel_flops(scorer: Scorer, lengths: Lengths) -> int:
    """Operations of the splash kernels for one group, which XLA's analysis does not see.

    A block of pairs costs 2 products in the forward kernel, 3 in that of the queries' gradient and 4 in that of the
    keys' and values', each of `2 E` operations per pair.
    """
    c, chunked = scorer.config, scorer.rows_per_chunk is not None
    again = scorer.remat in ("full", "offload")
    window = c.sliding_window if c.sliding_window and c.sliding_window < lengths.prompt + lengths.response else None
    prompt = computed_pairs(1, lengths.prompt, 0, window)
    rows = (1, lengths.responses) if chunked else (lengths.responses, 1)
    response = computed_pairs(rows[0], lengths.response, lengths.prompt, window) * rows[1]
    products = prompt * (2 * (1 + again) + 7) + response * (2 * (1 + again + chunked) + 7)
    return c.layers * c.heads * 2 * c.head_size * products


def table(values: dict[str, Any]) -> str:
    """The report for people."""
    memory, gib = values["memory_bytes"], 2**30
    mesh = " x ".join(f"{name} {size}" for name, size in values["mesh"].items())
    of_sum = f"{values['flops_ratio']:.3f} of their sum"
    lines = [
        ("device", f"{values['devices']} x {values['device']}, mesh {mesh}"),
        ("attention, remat", f"{values['attention']}, {values['remat']}"),
        *((f"memory: {name}", f"{memory[name] / gib:.2f} GiB") for name in ("arguments", "temporaries", "program", "host")),
        ("memory: a chip", f"{memory['total'] / gib:.2f} of {memory['device'] / gib:.0f} GiB: {_fits(values)}"),
        ("least FLOPs", f"{values['flops_least']:.4g}"),
        ("+ rematerialization", f"{values['flops_remat']:.4g}"),
        ("compiled FLOPs", f"{values['flops_done']:.4g} (kernels {values['flops_done_kernels']:.4g}), {of_sum}"),
        *(
            (f"{kind} a chip", f"{x['count']} of {x['bytes'] / gib:.2f} GiB in all")
            for kind, x in values["collectives"].items()
        ),
        ("compile", f"{values['compile_seconds']:.1f} s"),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _fits(values: dict[str, Any]) -> str:
    if not values["memory_bytes"]["device"]:
        return "the chip's memory is not known"
    return "fits" if values["fits"] else "does not fit"


def check_groups(groups: int, accumulation: int, mesh: Mesh) -> None:
    """Raises UserError unless a step's groups can be cut into microbatches and shards."""
    parts = accumulation * data_shards(mesh)
    if groups % parts or not groups:
        raise UserError(f"train.groups_per_step: {groups} is not a multiple of {parts} (accumulation_steps x data x fsdp)")


def resolved(scorer: Scorer) -> Scorer:
    """The scorer with the backend that `auto` means on a TPU."""
    return dataclasses.replace(scorer, attention=resolve_backend(scorer.attention, scorer.dtype, "tpu", scorer.config))
