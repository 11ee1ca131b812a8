"""`align-jax bench CONFIG.yaml [--json] [--sweep K=2,8,32] [--section.key value ...]`: what a training step costs."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tabulate import tabulate

from align_jax.config import Config, load_config, parse_overrides
from align_jax.cost import benchmark
from align_jax.cost.compilations import so_far
from align_jax.data import Encoder
from align_jax.errors import UserError
from align_jax.models import init_weights, weight_shardings
from align_jax.objectives import name_of
from align_jax.parallel.mesh import data_shards, put_batch
from align_jax.recipes import setup as assemble
from align_jax.recipes.folder import say
from align_jax.training import optim
from align_jax.training.state import create_state, state_shardings
from align_jax.training.step import compile_step

REQUIRED = ("model", "objective", "optimizer")
POLICIES = ("none", "dots", "full")  # from the fewest operations to the most


def main(argv: list[str]) -> int:
    """Measures, and prints a table or one JSON object (one a line for a sweep)."""
    parser = argparse.ArgumentParser(prog="align-jax bench", allow_abbrev=False)
    parser.add_argument("config")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--sweep", metavar="K=2,8,32", help="numbers of responses, with random tokens")
    options, rest = parser.parse_known_args(argv)
    config = load_config(options.config, parse_overrides(rest), require=REQUIRED)
    if options.sweep is None:
        values = measure(config)
        print(json.dumps(values) if options.json else table(values))
        return 0
    results = sweep(config, options.sweep, options.json)
    if not options.json:
        print(sweep_table(results))
    return 0


def measure(config: Config) -> dict[str, Any]:
    """All numbers of one config."""
    mesh, start = assemble.mesh_of(config), assemble.start_of(config)
    scorer = assemble.scorer_of(start, config)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps or 1000)
    devices = int(mesh.devices.size)
    before = so_far()
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as spool:
        where = state_shardings(start.config, optimizer, mesh, config.model.param_dtype)
        # Fresh weights: what a step costs does not depend on their values.
        make = jax.jit(
            partial(init_weights, start.config, param_dtype=config.model.param_dtype),
            out_shardings=weight_shardings(start.config, mesh),
        )
        state = create_state(start.config, make(jax.random.key(config.run.seed)), optimizer, mesh, config.model.param_dtype)
        put = partial(put_batch, mesh=mesh, leading=1)
        loader, batches = batches_of(config, start, mesh, Path(spool))
        shapes = benchmark.distinct(batches)
        step = compile_step(mesh, where, scorer, config.objective, optimizer)
        programs = {key: benchmark.program(step, state, put(batch), devices) for key, batch in shapes.items()}
        spent = benchmark.compilations_since(before)
        for key, batch in shapes.items():  # the first run of a program is not like the others
            state, metrics = programs[key].run(state, put(batch))
            jax.block_until_ready(metrics)
        state, timing = benchmark.time_steps(
            lambda host: programs[benchmark.shape_key(host)], state, loader, put, config.bench.steps
        )
        work = benchmark.Work.of(start.config, batches)
        peak = benchmark.device_peak(config.bench.peak_flops, config.model.dtype)
        values = benchmark.report(work, timing, list(programs.values()), spent, peak, devices)
        if config.bench.recommend:
            biggest = max(programs, key=lambda key: programs[key].memory_bytes)
            values |= recommendation(config, scorer, where, optimizer, mesh, state, put(shapes[biggest]), devices)
    return values


def batches_of(config: Config, start, mesh, spool: Path):
    """What the timed steps take their batches from, and those batches."""
    bench = config.bench
    if bench.prompt_tokens is not None:
        batch = random_batch(config, start, mesh)
        return benchmark.Repeated(batch), [batch]
    if config.data is None or config.data.train is None:
        raise UserError("bench: give data.train, or bench.prompt_tokens and bench.response_tokens for random tokens")
    encoder = Encoder(assemble.tokenizer_of(config), config.data, start.config.vocab_size)
    dataset = assemble.dataset_of(config, "train", encoder, config.objective, spool)
    # The reference's values cost nothing in a step: any will do.
    labels = {"ref_logps": np.zeros((len(dataset), dataset.slots), np.float32)} if config.objective.needs_reference else {}
    make = partial(assemble.loader_of, config, dataset, mesh, labels=labels)
    return make(), list(itertools.islice(make(), bench.steps))


def random_batch(config: Config, start, mesh):
    """A batch of `bench.groups` groups of random tokens for the config's objective."""
    bench, name, arrangement = config.bench, name_of(config.objective), config.objective.arrangement
    fixed = arrangement.responses
    responses = bench.responses or fixed or (config.data.max_responses if config.data else None) or 2
    if arrangement.random_labels(responses) is None:
        raise UserError(f"bench.prompt_tokens: random tokens are for set and pair objectives; bench {name} on its data")
    if fixed not in (None, responses):
        takes = "pairs" if fixed == 2 else f"{fixed} response slots"
        raise UserError(f"bench.responses: {responses}, but objective {name} takes {takes}")
    groups = bench.groups or config.train.groups_per_step
    parts = data_shards(mesh) * config.train.accumulation_steps
    if groups % parts:
        raise UserError(f"bench.groups: {groups} is not a multiple of {parts} (accumulation_steps x data x fsdp)")
    if bench.prompt_tokens + bench.response_tokens > start.config.max_length:
        raise UserError(
            f"bench.prompt_tokens: {bench.prompt_tokens} + {bench.response_tokens} tokens are more than the model's context "
            f"of {start.config.max_length}"
        )

    def label(k: int) -> dict[str, np.ndarray]:
        reference = {"ref_logps": np.zeros(k, np.float32)} if config.objective.needs_reference else {}
        return arrangement.random_labels(k) | reference

    return benchmark.random_batch(
        start.config,
        label,
        groups=groups,
        responses=responses,
        prompt_tokens=bench.prompt_tokens,
        response_tokens=bench.response_tokens,
        shards=data_shards(mesh),
        accumulation=config.train.accumulation_steps,
        seed=config.run.seed,
    )


def recommendation(config: Config, scorer, where, optimizer, mesh, state, batch, devices: int) -> dict[str, Any]:
    """Memory of the step under every rematerialization policy, and the one to choose."""
    limit = benchmark.device_memory(config.bench.memory_bytes)
    memory: dict[str, int | str] = {}
    for policy in POLICIES:
        step = compile_step(mesh, where, dataclasses.replace(scorer, remat=policy), config.objective, optimizer)
        try:
            memory[policy] = benchmark.program(step, state, batch, devices).memory_bytes
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            memory[policy] = "does not compile: out of memory"
    try:
        chosen: str | None = benchmark.recommend(memory, limit)
    except UserError as error:
        say(str(error))
        chosen = None
    return {"remat_memory_bytes": memory, "memory_limit_bytes": limit, "remat": scorer.remat, "remat_recommended": chosen}


def sweep(config: Config, text: str, as_json: bool) -> list[dict[str, Any]]:
    """One measurement for every K of `K=2,8,32`; each is printed as it comes where JSON is asked for."""
    name, equals, numbers = text.partition("=")
    counts = [n for n in numbers.split(",") if n.isdigit() and int(n) > 0]
    if name != "K" or not equals or len(counts) != len(numbers.split(",")):
        raise UserError(f"--sweep {text}: write K= and positive numbers of responses, such as K=2,8,32")
    if config.bench.prompt_tokens is None:
        raise UserError("--sweep: give bench.prompt_tokens and bench.response_tokens; a sweep is on random tokens")
    results = []
    for k in map(int, counts):
        one = dataclasses.replace(config, bench=dataclasses.replace(config.bench, responses=k, recommend=False))
        results.append({"responses": k, **measure(one)})
        if as_json:
            print(json.dumps(results[-1]), flush=True)
    if as_json and len(results) > 1:
        print(json.dumps({"fit": fit(results)}), flush=True)
    return results


def fit(results: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of a step against its useful tokens."""
    return benchmark.linear_fit([r["useful_tokens_per_step"] for r in results], [r["step_seconds"] for r in results])


def sweep_table(results: list[dict[str, Any]]) -> str:
    """The sweep for people, with memory relative to K = 8 (or the first), and the line through the times."""
    base = next((r for r in results if r["responses"] == 8), results[0])
    rows = [
        (
            r["responses"],
            f"{r['step_seconds']:.3f}",
            f"{r['useful_tokens_per_second']:.0f}",
            f"{r['peak_memory_bytes'] / 2**20:.0f}",
            f"{r['peak_memory_bytes'] / base['peak_memory_bytes']:.3f}",
            f"{r['model_flops_utilization']:.1%}",
        )
        for r in results
    ]
    headers = ("K", "s a step", "useful tokens/s", "MiB", f"memory / K={base['responses']}", "utilisation")
    text = tabulate(rows, headers=headers, disable_numparse=True, stralign="right")
    if len(results) < 3:
        return text
    line = fit(results)
    return f"{text}\nseconds = {line['base']:.3g} + {line['slope']:.3g} x useful tokens, R^2 = {line['r_squared']:.5f}"


def table(values: dict[str, Any]) -> str:
    """The numbers for people."""
    mib, tera = 2**20, 1e12
    done = values["flops_done"]
    in_use = values["peak_memory_in_use_bytes"]
    rows = [
        ("devices", f"{values['devices']} x {values['device']}"),
        ("step", f"{values['step_seconds']:.4f} s (median of {values['steps']})"),
        ("useful tokens", f"{values['useful_tokens_per_second']:.0f} a second ({values['useful_tokens_per_step']:.0f} a step)"),
        ("padding", f"{values['padding']:.1%} of computed positions"),
        ("waiting for data", f"{values['data_fraction']:.1%} of the time"),
        ("least FLOPs", f"{values['flops_least'] / tera:.3f} T a step"),
        ("FLOPs done", "not counted on this device" if done is None else f"{done / tera:.3f} T a step"),
        (
            "utilisation",
            f"{values['model_flops_utilization']:.1%} of {values['peak_flops'] / tera:.3g} TFLOP/s "
            f"({values['peak_flops_source']}), least FLOPs",
        ),
        ("peak memory", f"{values['peak_memory_bytes'] / mib:.0f} MiB a device (the compiler's analysis)"),
        *([] if in_use is None else [("peak in use", f"{in_use / mib:.0f} MiB (the allocator)")]),
        (
            "compilation",
            f"{values['compile_seconds']:.1f} s, {values['compilations']} programs and {values['compilations_cached']} from "
            f"the cache, {values['shapes']} shapes of a step",
        ),
    ]
    if "remat_memory_bytes" in values:
        each = ", ".join(
            f"{policy} {size / mib:.0f} MiB" if isinstance(size, int) else f"{policy} {size}"
            for policy, size in values["remat_memory_bytes"].items()
        )
        limit = f"of {values['memory_limit_bytes'] / mib:.0f} MiB"
        advice = f"model.remat: {values['remat_recommended'] or 'none of them fits'} (now {values['remat']})"
        rows.append(("rematerialization", f"{each}, {limit}; recommended {advice}"))
    return tabulate(rows, tablefmt="plain")
