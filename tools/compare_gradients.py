"""What each gradient written by hand gains over plain code: the same training step, with one of them at a time left to JAX.

    python tools/compare_gradients.py cpu [--rounds 12] [--only NAME ...] [--json]
    python tools/compare_gradients.py v5p:4x4x4 [--remat none full] [--only NAME ...] [--json]     (pip install libtpu)

`cpu` runs the step of configs/bench-cpu.yaml (float32, 2 prompts of 192 tokens with 8 responses of 64). All variants run in one
process, a step of each after the other, in an order that is turned every round. Times are ratios to the program as it is, of
wall time and of processor time (which other jobs on the machine disturb less): the median of the rounds' ratios, its quartiles,
and the ratio of the fastest steps. A topology instead compiles the step of LLaMA-3-8B (bfloat16, a prompt of 512 tokens with 4
responses of 512 on each shard, fsdp 16 and the rest tensor) for TPUs that are not there, and runs nothing. Attention by XLA is
then compared with itself, since there the kernels are otherwise splash's.

Of every variant: operations of matrix products, temporaries by XLA's memory analysis, bytes of collectives. All on one device.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from tabulate import tabulate

from align_jax.cost import benchmark, topology
from align_jax.cost.hlo import count
from align_jax.errors import UserError
from align_jax.models import ModelConfig, decoder, init_weights, ops, weight_shardings
from align_jax.models.attention import xla
from align_jax.objectives import MPO
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.scoring import logps
from align_jax.scoring.scorer import Scorer
from align_jax.training.optim import AdamW, make_optimizer
from align_jax.training.state import create_state, state_shardings
from align_jax.training.step import compile_step

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def plain_linear(x, weight, axes=1):
    contract = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
    return jax.lax.dot_general(x, weight, (contract, ((), ())), precision=ops.precision(x.dtype))


def plain_gated_linear(gate, up, weight):
    return ops.linear(jax.nn.silu(gate) * up, weight)


def plain_rms_norm(x, weight, eps):
    x32 = x.astype(jnp.float32)
    s = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return ((x32 * s).astype(x.dtype) * weight).astype(x.dtype)


# The same with only the arguments kept. Nothing needs the product again, so it is not computed again.
checkpointed_gated_linear = jax.checkpoint(plain_gated_linear, prevent_cse=False)
checkpointed_rms_norm = jax.checkpoint(plain_rms_norm, prevent_cse=False, static_argnums=2)


def plain_lookup(table, tokens, dtype):
    return table.astype(dtype)[tokens]


def plain_attention(block, q, own, prompt, prompt_row):
    return xla._forward(block, q, own, prompt, prompt_row)[0]


def plain_head(weight, hidden, targets):
    return logps._forward(weight, hidden, targets)[0]


def checkpointed_head(weight, hidden, targets):
    def one(chunk):
        x, target = chunk
        logits = logps._logits(weight, x)
        chosen = jnp.sum(jnp.where(logps._is_target(logits, target), logits, 0.0), axis=-1)
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    return logps._map(jax.checkpoint(one), (hidden, targets))


def halved_head(model, hidden, targets, head_chunk):
    return _target_logps(model, hidden, targets, hidden.shape[1] * hidden.shape[2] // 2)


_target_logps = logps.target_logps


@dataclasses.dataclass(frozen=True)
class Variant:
    """The step with the functions `(module, attribute)` replaced. attention: the backend on a TPU."""

    replaced: tuple[tuple[Any, str, Callable], ...]
    attention: str = "splash"


VARIANTS = {
    "as it is": Variant(()),
    "linear": Variant(((decoder, "linear", plain_linear),)),
    "gated_linear": Variant(((decoder, "gated_linear", plain_gated_linear),)),
    "gated_linear, checkpointed": Variant(((decoder, "gated_linear", checkpointed_gated_linear),)),
    "rms_norm": Variant(((decoder, "rms_norm", plain_rms_norm),)),
    "rms_norm, checkpointed": Variant(((decoder, "rms_norm", checkpointed_rms_norm),)),
    "lookup": Variant(((decoder, "lookup", plain_lookup),)),
    "head": Variant(((logps, "_target_logps", plain_head),)),
    "head, checkpointed": Variant(((logps, "_target_logps", checkpointed_head),)),
    "head, its logits made again": Variant(((logps, "target_logps", halved_head),)),
    "attention": Variant(((xla, "_attend", plain_attention),), attention="xla"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", help="cpu, or a TPU topology such as v5p:4x4x4")
    parser.add_argument("--rounds", type=int, default=12, help="steps of each variant that are counted (cpu)")
    parser.add_argument("--remat", nargs="+", default=["none", "full"], help="policies (topologies)")
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS][1:], metavar="NAME", help=f"of {', '.join([*VARIANTS][1:])}")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = ["as it is", *(options.only or [*VARIANTS][1:])]
    if options.where == "cpu":
        values = on_cpu(names, options.rounds)
    else:
        values = {remat: on_topology(names, options.where, remat) for remat in options.remat}
    print(json.dumps(values) if options.json else table(values))
    return 0


@contextlib.contextmanager
def installed(variant: Variant) -> Iterator[None]:
    """The variant's functions in the library's place; fails where the step that was traced inside never called one."""
    called = set()

    def noting(name, function, *args):
        called.add(name)
        return function(*args)

    before = [getattr(module, name) for module, name, _ in variant.replaced]
    jax.clear_caches()
    try:
        for module, name, function in variant.replaced:
            setattr(module, name, partial(noting, name, function))
        yield
    finally:
        for (module, name, _), function in zip(variant.replaced, before, strict=True):
            setattr(module, name, function)
    missed = {name for _, name, _ in variant.replaced} - called
    if missed:
        raise RuntimeError(f"the step does not call {', '.join(sorted(missed))}: nothing was compared")


def shape_of(config: str) -> ModelConfig:
    return ModelConfig(**yaml.safe_load((CONFIGS / config).read_text(encoding="utf-8"))["model"]["config"])


def on_cpu(names: list[str], rounds: int) -> dict[str, dict]:
    """Seconds, operations and temporaries of every variant."""
    shape, mesh = shape_of("bench-cpu.yaml"), make_mesh(1, 1, 1)
    objective, optimizer = MPO(beta=0.1), make_optimizer(AdamW(), 100)
    scorer = Scorer(shape, dtype="float32")
    host = benchmark.random_batch(
        shape, lambda k: {"scores": np.linspace(1, 0, k, dtype=np.float32), "ref_logps": np.zeros(k, np.float32)},
        groups=2, responses=8, prompt_tokens=192, response_tokens=64, shards=1, accumulation=1, seed=0,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        where = state_shardings(shape, optimizer, mesh, "float32")
        make = jax.jit(partial(init_weights, shape), out_shardings=weight_shardings(shape, mesh))
        state = create_state(shape, make(jax.random.key(0)), optimizer, mesh, "float32")
        batch = put_batch(host, mesh, leading=1)
        steps = {}
        for name in names:
            with installed(VARIANTS[name]):
                steps[name] = compile_step(mesh, where, scorer, objective, optimizer).compiled(state, batch)
        seconds = take_turns(steps, state, batch, rounds)
    return {
        name: {
            "flops": count(step.program.as_text()).flops,
            "temporaries": step.program.memory_analysis().temp_size_in_bytes,
            **times(seconds[name], seconds["as it is"]),
        }
        for name, step in steps.items()
    }


def take_turns(steps: dict[str, Callable], state: Any, batch: Any, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor seconds of each step of each variant; the first round is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter(), time.process_time()
            state, metrics = steps[name](state, batch)
            jax.block_until_ready((state, metrics))
            if turn:
                seconds[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        print(f"round {turn} of {rounds}", file=sys.stderr, flush=True)
    return seconds


def times(own: list[tuple[float, float]], base: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians, and ratios to the base: median and quartiles of the rounds', and of the fastest steps."""
    values = {}
    for i, clock in enumerate(("wall", "processor")):
        mine, theirs = [x[i] for x in own], [x[i] for x in base]
        low, middle, high = statistics.quantiles([a / b for a, b in zip(mine, theirs, strict=True)], n=4)
        values[clock] = {
            "median": statistics.median(mine),
            "ratio": middle,
            "quartiles": (low, high),
            "ratio_of_fastest": min(mine) / min(theirs),
        }
    return values


def on_topology(names: list[str], name: str, remat: str) -> dict[str, dict]:
    """What every variant compiles to for TPUs that are not there."""
    devices = topology.topology_devices(name)
    mesh = make_mesh(1, 16, len(devices) // 16, devices=devices)
    values = {}
    for variant in names:
        attention = VARIANTS[variant].attention
        if attention != "splash":
            values[f"as it is, {attention}"] = compiled(VARIANTS["as it is"], mesh, attention, remat)
        values[variant] = compiled(VARIANTS[variant], mesh, attention, remat)
        print(f"{remat}: {variant}: {values[variant]}", file=sys.stderr, flush=True)
    return values


def compiled(variant: Variant, mesh: jax.sharding.Mesh, attention: str, remat: str) -> dict[str, Any]:
    shape = dataclasses.replace(shape_of("bench-h200.yaml"), layers=32)
    objective, optimizer = MPO(beta=0.1), make_optimizer(AdamW(), 100)
    batch = topology.abstract_batch(objective, topology.Lengths(512, 512, 4), mesh, 16, 1)
    scorer = Scorer(shape, remat=remat, attention=attention)
    try:
        with installed(variant):
            what = topology.StepCompiler(mesh, scorer, objective, optimizer, "float32")
            memory, text = topology.compiled_text(what, batch)
    except UserError as error:
        return {"error": str(error)}
    counts = count(text)
    moved = sum(size for _, size in counts.collectives.values())
    return {"flops": counts.flops, "temporaries": memory.temp_size_in_bytes, "collectives": moved}


def table(values: dict[str, dict]) -> str:
    """Ratios to the step as it is; more than 1 is what the written gradient saves."""
    if "as it is" in values:
        return _table(values)
    return "\n\n".join(f"remat {remat}\n{_table(of)}" for remat, of in values.items())


def _table(values: dict[str, dict]) -> str:
    headers, rows = ["left to JAX", "FLOPs", "", "temporaries", ""], []
    for name, v in values.items():
        base = values[f"as it is, {VARIANTS[name].attention}" if _by_xla(name, values) else "as it is"]
        if name.startswith("as it is, "):
            base = v
        if "error" in v:
            rows.append([name, v["error"]])
            continue
        of_base = ["", ""] if "error" in base else [f"{v[k] / base[k]:.3f}" for k in ("flops", "temporaries")]
        row = [name, f"{v['flops'] / 1e12:.3f} T", of_base[0], f"{v['temporaries'] / 2**20:.0f} MiB", of_base[1]]
        if "collectives" in v:
            headers[5:] = ["collectives"]
            row.append(f"{v['collectives'] / 2**20:.0f} MiB")
        for clock in ("wall", "processor"):
            if clock in v:
                t = v[clock]
                headers[5:] = ["wall", "ratio (quartiles; fastest)", "processor", "ratio (quartiles; fastest)"]
                low, high = t["quartiles"]
                row += [f"{t['median']:.3f} s", f"{t['ratio']:.3f} ({low:.3f} to {high:.3f}; {t['ratio_of_fastest']:.3f})"]
        rows.append(row)
    return tabulate(rows, headers=headers, disable_numparse=True)


def _by_xla(name: str, values: dict[str, dict]) -> bool:
    return name in VARIANTS and f"as it is, {VARIANTS[name].attention}" in values


if __name__ == "__main__":
    sys.exit(main())
