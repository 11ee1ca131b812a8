"""Compilation of a training step for a TPU that is not there."""

from __future__ import annotations

import dataclasses
from typing import Any

from align_jax.config import Config
from align_jax.config.jobs import JOBS
from align_jax.cost import topology
from align_jax.errors import UserError
from align_jax.parallel.mesh import make_mesh
from align_jax.recipes.setup import Setup
from align_jax.recipes.source import starting_model
from align_jax.terminal import Watch
from align_jax.training import optim

REQUIRED = JOBS["compile"].requires


def compile_step(config: Config, chips: str, lengths: topology.Lengths | None = None) -> dict[str, Any]:
    """Compiles the training step of a config for a TPU topology, and says what it needs of memory, operations and network.

    Args:
      chips: such as `v5e:4x4` or `v5p:4x4x4`.
      lengths: of the batch; None takes those of the `data` section, see `lengths_of`.

    Returns:
      The numbers, see `topology.report`.

    Raises:
      UserError: an unknown topology, or a mesh or batch that does not fit it.
    """
    config.require(*REQUIRED)
    lengths = lengths_of(config) if lengths is None else lengths
    devices = topology.topology_devices(chips)
    mesh = make_mesh(*config.mesh_sizes(len(devices)), devices=devices)
    groups, accumulation = config.train.groups_per_step, config.train.accumulation_steps
    topology.check_groups(groups, accumulation, mesh)
    scorer = topology.resolved(Setup(config, mesh, starting_model(config)).scorer)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps or 1000)
    batch = topology.abstract_batch(config.objective, lengths, mesh, groups, accumulation)
    # Not `watching`, which asks JAX for this machine's devices: there may be none.
    with Watch(f"compiling the training step for {chips}", show=config.log.progress and not config.log.quiet, at_once=True):
        compiled = topology.compile_for(mesh, scorer, config.objective, optimizer, config.model.param_dtype, batch)
    return topology.report(compiled, mesh, scorer, lengths, groups)


def lengths_of(config: Config, prompt: int | None = None, response: int | None = None, responses: int | None = None):
    """The batch's lengths: those given, else those of the `data` section, else 512, 512 and 4.

    Args:
      prompt, response: tokens. responses: of a prompt; pairs and single responses decide that themselves.
    """
    known = {"prompt": (prompt, "max_prompt_tokens"), "response": (response, "max_response_tokens")}
    known["responses"] = (responses, "max_responses")
    found = {name: given if given is not None else getattr(config.data, key, None) for name, (given, key) in known.items()}
    found["responses"] = config.objective.arrangement.responses or found["responses"]
    for name, value in found.items():
        if value is not None and value < 1:
            raise UserError(f"compile: {name} tokens or responses must be positive, got {value}")
    return dataclasses.replace(topology.Lengths(), **{name: value for name, value in found.items() if value is not None})
