"""`align-jax compile CONFIG.yaml --topology v5p:4x4x4 [--prompt-tokens N] [...] [--json] [--section.key value ...]`."""

from __future__ import annotations

import argparse
import json

from align_jax.config import Config, load_config, parse_overrides
from align_jax.cost import topology as tpu
from align_jax.errors import UserError
from align_jax.parallel.mesh import make_mesh
from align_jax.recipes import setup as assemble
from align_jax.training import optim


def main(argv: list[str]) -> int:
    """Compiles the training step of a config for a TPU that is not there, and prints what it needs."""
    parser = argparse.ArgumentParser(prog="align-jax compile", allow_abbrev=False)
    parser.add_argument("config")
    parser.add_argument("--topology", required=True, help="such as v5e:4x4 or v5p:4x4x4")
    parser.add_argument("--prompt-tokens", type=int, help="data.max_prompt_tokens by default, else 512")
    parser.add_argument("--response-tokens", type=int, help="data.max_response_tokens by default, else 512")
    parser.add_argument("--responses", type=int, help="of a prompt; data.max_responses by default, else 4")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options, rest = parser.parse_known_args(argv)
    config = load_config(options.config, parse_overrides(rest), require=("model", "objective", "optimizer"))
    values = compile_config(config, options.topology, lengths_of(config, options))
    print(json.dumps(values) if options.json else tpu.table(values))
    return 0


def lengths_of(config: Config, options: argparse.Namespace) -> tpu.Lengths:
    """The batch's lengths: from the command line, else from the data section, else 512, 512 and 4."""
    known = {
        "prompt": (options.prompt_tokens, "max_prompt_tokens"),
        "response": (options.response_tokens, "max_response_tokens"),
        "responses": (options.responses, "max_responses"),
    }
    found = {name: given or getattr(config.data, key, None) for name, (given, key) in known.items()}
    if config.objective.arrangement.responses is not None:
        found["responses"] = config.objective.arrangement.responses
    for name, value in found.items():
        if value is not None and value < 1:
            raise UserError(f"compile: {name} tokens or responses must be positive, got {value}")
    return tpu.Lengths(**{name: value for name, value in found.items() if value is not None})


def compile_config(config: Config, topology: str, lengths: tpu.Lengths) -> dict:
    """The report of `tpu.report` for a config on a topology."""
    devices = tpu.topology_devices(topology)
    mesh = make_mesh(*config.mesh_sizes(len(devices)), devices=devices)
    groups, accumulation = config.train.groups_per_step, config.train.accumulation_steps
    tpu.check_groups(groups, accumulation, mesh)
    scorer = tpu.resolved(assemble.scorer_of(assemble.start_of(config), config))
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps or 1000)
    batch = tpu.abstract_batch(config.objective, lengths, mesh, groups, accumulation)
    compiled = tpu.compile_for(mesh, scorer, config.objective, optimizer, config.model.param_dtype, batch)
    return tpu.report(compiled, mesh, scorer, lengths, groups)
