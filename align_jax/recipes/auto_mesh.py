"""`mesh: auto`: the mesh, rematerialization and microbatches that are predicted to take least."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from tabulate import tabulate

from align_jax.config import Config
from align_jax.cost.chips import chip_of
from align_jax.cost.epoch import ShapeUse
from align_jax.cost.plan import MeshPlan, PlanEstimate, Planner, meshes, plans
from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.models.attention import resolve_backend
from align_jax.models.remat import POLICIES
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.processes import of_first
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.say import say, say_once

SHOWN = 5


def planned(config: Config, plan: MeshPlan) -> Config:
    """The config with what a plan says, and no `auto` any more."""
    sizes = {"data": plan.data, "fsdp": plan.fsdp, "tensor": plan.tensor, "expert": plan.expert}
    mesh = dataclasses.replace(config.mesh, auto=False, **sizes)
    model = dataclasses.replace(config.model, remat=plan.remat)
    train = dataclasses.replace(config.train, accumulation_steps=plan.accumulation)
    return dataclasses.replace(config, mesh=mesh, model=model, train=train)


def replaced(config: Config, plan: MeshPlan) -> list[str]:
    """A line for each key that the user gave, and for which the plan has another value.

    Args:
      config: before the plan.
    """
    plans_own = {"model.remat": plan.remat, "train.accumulation_steps": plan.accumulation}
    lines = []
    for key, value in plans_own.items():
        section, name = key.split(".")
        given = config.source.values.get(section) or {}
        before = getattr(getattr(config, section), name)
        if name in given and before != value:
            lines.append(f"mesh: auto: {key}: {before} ({config.source.where(key)}) is replaced by {value}")
    return lines


def ranked(
    config: Config, model: ModelConfig, devices: Sequence[jax.Device], use_of: Callable[[Config, Any], ShapeUse]
) -> list[PlanEstimate]:
    """The plans for these devices, best first.

    Args:
      config: with `mesh.auto`. model: its shape. devices: of a TPU that `cost.chips` knows.
      use_of: a config without `auto` and its mesh -> the shape that computes most.

    Raises:
      UserError: no mesh divides the groups of a step, or the heads of the model.
    """
    groups, slices = config.train.groups_per_step, len({getattr(device, "slice_index", 0) for device in devices})
    found = list(plans(len(devices), slices, model, groups))
    if not found:
        raise UserError(
            f"mesh: auto: {len(devices)} devices cannot share {groups} groups a step (train.groups_per_step) and "
            f"{model.kv_heads} key heads; make train.groups_per_step a multiple of {len(devices)}"
        )
    chip = chip_of(devices[0].device_kind)
    made = functools.cache(lambda data, fsdp, tensor, expert: make_mesh(data, fsdp, tensor, devices, expert=expert))
    arranged = lambda plan: made(plan.data, plan.fsdp, plan.tensor, plan.expert)  # noqa: E731

    @functools.cache
    def use(parts: int) -> ShapeUse:
        plan = next(plan for plan in found if plan.shards * plan.accumulation == parts)
        return use_of(planned(config, plan), arranged(plan))

    packed = use(found[0].shards * found[0].accumulation).batch.packed
    flash = resolve_backend(config.model.attention, config.model.dtype, "tpu", model, packed=packed) != "xla"
    return Planner(model, chip, config.model.param_dtype, flash, arranged, use, config.has_live_reference).best(found)


def shown(found: Sequence[PlanEstimate], chip_memory: int) -> str:
    """The first plans as a table: the choice, and the runners-up."""
    axes = max((each.plan.sizes for each in found), key=len)
    rows = [
        (
            " x ".join(str(getattr(each.plan, axis)) for axis in axes),
            each.plan.remat,
            each.plan.accumulation,
            f"{each.memory / 2**30:.1f}",
            f"{each.seconds.serial:.4f}",
            f"{each.seconds.overlapped:.4f}",
            f"{each.serial:.3f}",
            f"{each.overlapped:.3f}",
        )
        for each in found
    ]
    headers = [
        *(" x ".join(axes), "remat", "microbatches", f"GiB of {chip_memory / 2**30:.0f}"),
        *("s in series", "overlapped", "utilisation", "overlapped"),
    ]
    return tabulate(rows, headers=headers, disable_numparse=True, stralign="right")


def pinned(config: Config, devices: int) -> MeshPlan | None:
    """What an earlier start of the run in `run.dir` chose for as many devices, if any did; the same on every process."""
    found = _pinned(config, devices)
    remats = list(POLICIES)
    numbers = (0,) * 6
    if found is not None:
        numbers = (found.data, found.fsdp, found.tensor, remats.index(found.remat), found.accumulation, found.expert)
    # Always asked of the first: its disk alone may hold the run.
    data, fsdp, tensor, remat, accumulation, expert = map(of_first, numbers)
    return MeshPlan(data, fsdp, tensor, remats[remat], accumulation, expert) if data else None


def _pinned(config: Config, devices: int) -> MeshPlan | None:
    folder = RunFolder(Path(config.run.dir)).newest if config.run.dir else None
    if folder is None or not folder.is_run:
        return None
    mesh, model, train = folder.config.mesh, folder.config.model, folder.config.train
    sizes = (mesh.data, mesh.fsdp, mesh.tensor, mesh.expert)
    if mesh.auto or -1 in sizes or math.prod(sizes) != devices:
        return None
    return MeshPlan(mesh.data, mesh.fsdp, mesh.tensor, model.remat, train.accumulation_steps, mesh.expert)


def without_network(config: Config, model: ModelConfig, devices: Sequence[jax.Device]) -> MeshPlan:
    """The plan where nothing is predicted: weights in as many parts as can be, the rest as the config has it.

    Raises:
      UserError: no mesh divides the groups of a step.
    """
    accumulation, groups = config.train.accumulation_steps, config.train.groups_per_step
    found = [mesh for mesh in meshes(len(devices), 1, model, groups) if groups % (mesh.shards * accumulation) == 0]
    if not found:
        raise UserError(
            f"mesh: auto: {len(devices)} devices and {accumulation} microbatches cannot share {groups} groups a step "
            "(train.groups_per_step)"
        )
    least = min(found, key=lambda mesh: (mesh.tensor, mesh.data, mesh.expert))
    return dataclasses.replace(least, remat=config.model.remat, accumulation=accumulation)


def with_mesh(config: Config, model: ModelConfig, use_of: Callable[[Config, Any], ShapeUse] | None) -> Config:
    """The config with the mesh that `mesh: auto` means on the devices that there are.

    A run that was begun keeps what it chose. Says what was chosen, and what came next.

    Args:
      config: with `mesh.auto`. model: the shape. use_of: see `ranked`; None where nothing is trained.
    """
    devices = jax.devices()
    if (before := pinned(config, len(devices))) is not None:
        say_once(f"mesh: auto: as the run in {config.run.dir} began: {before}")
        return planned(config, before)
    chip = chip_of(devices[0].device_kind)
    if chip is None or use_of is None:
        plan = without_network(config, model, devices)
        why = "nothing is trained here" if use_of is None else f"the network of {devices[0].device_kind} is not known"
        say_once(f"mesh: auto: {why}, so the weights are cut in as many parts as can be: {plan}")
        return planned(config, plan)
    found = ranked(config, model, devices, use_of)[:SHOWN]
    say(f"mesh: auto: {found[0].plan}; by formula, the choice and what came next:")
    for line in [*shown(found, chip.memory).splitlines(), *replaced(config, found[0].plan)]:
        say(line)
    return planned(config, found[0].plan)
