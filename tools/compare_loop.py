"""What waiting for the host costs: `fit` beside a loop that reads every step's metrics before it dispatches the next.

    python tools/compare_loop.py [--processes 2] [--steps 100] [--passes 10]

trains a LLaMA of 25 thousand parameters on random groups, by turns with both loops from the same state on the same batches, and
prints milliseconds per step: the median of all steps, and the tenth percentile (what a step takes while nobody else uses the
machine). The waiting loop is that of version 0.1: metrics are fetched at once, tokens are counted on the host, and several
processes gather their counts, and the sizes of their batches, on the devices. The run fails where the losses differ.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from align_jax.batch import GroupBatch, computed_positions, real_positions, useful_tokens
from align_jax.data import BatchLoader, RowLayout, Segment, TokenGroup, ahead
from align_jax.models import ModelConfig, init_weights, weight_shardings
from align_jax.objectives import MPO
from align_jax.parallel.mesh import make_mesh, put_batch
from align_jax.parallel.processes import LargestAhead, largest_anywhere
from align_jax.parallel.stop import StopSignal
from align_jax.scoring.scorer import Scorer
from align_jax.training.callbacks import StopWhen
from align_jax.training.fit import fit
from align_jax.training.state import create_state, state_shardings
from align_jax.training.step import compile_step

MODEL = ModelConfig(vocab_size=128, width=32, mlp_width=64, layers=2, heads=4, kv_heads=2, head_size=8)
PROMPT, RESPONSES, LONGEST = 12, 4, 24
LAYOUT = RowLayout(pack=False, prompt_lengths=(PROMPT,), response_lengths=(LONGEST,), uniform_waste=float("inf"))


class Groups(list):
    """Random groups, tokenized; as a data set."""

    slots = RESPONSES

    def __init__(self, count: int):
        rng = np.random.default_rng(0)
        draw = lambda n: rng.integers(0, MODEL.vocab_size, n).astype(np.int32)  # noqa: E731
        for row in range(count):
            segments = tuple(Segment(draw(rng.integers(4, LONGEST + 1)), k) for k in range(RESPONSES))
            numbers = {"scores": rng.random(RESPONSES), "ref_logps": np.full(RESPONSES, -50.0)}
            labels = {name: value.astype(np.float32) for name, value in numbers.items()}
            self.append(TokenGroup(row, draw(PROMPT), segments, RESPONSES, labels))


def waiting(state, loader, step, steps, put, stop) -> list[tuple[float, float]]:
    """Loss and seconds of every step of a loop that waits for it."""
    batches, made = ahead(loader, put), []
    for _ in range(steps):
        began = time.perf_counter()
        batch, host, _ = next(batches)
        state, metrics = step(state, batch)
        loss = {name: float(value) for name, value in jax.device_get(metrics).items()}["loss"]
        _host_counts(host)
        stop.requested()
        made.append((loss, time.perf_counter() - began))
    return made


def _host_counts(batch: GroupBatch) -> np.ndarray:
    counts = np.asarray([real_positions(batch), computed_positions(batch), useful_tokens(batch)], np.int32)
    return multihost_utils.process_allgather(counts).sum(axis=0) if jax.process_count() > 1 else counts


def measure(steps: int, passes: int) -> dict:
    """Seconds of every step of both loops, but for the first five of a pass."""
    mesh, several = make_mesh(jax.device_count()), jax.process_count() > 1
    optimizer, data = optax.adamw(1e-3), Groups(256)
    put = partial(put_batch, mesh=mesh, leading=1)

    def loader(agree_ahead):
        return BatchLoader(
            data,
            shards=jax.local_device_count(),
            groups_per_step=2 * jax.device_count(),
            layout=LAYOUT,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            agree=largest_anywhere if several else None,
            agree_ahead=agree_ahead if several else None,
        )

    with jax.set_mesh(mesh), StopSignal() as stop:
        make = jax.jit(partial(init_weights, MODEL, param_dtype="float32"), out_shardings=weight_shardings(MODEL, mesh))
        where = state_shardings(MODEL, optimizer, mesh, "float32")
        step = compile_step(mesh, where, Scorer(MODEL, "float32"), MPO(beta=0.1), optimizer)
        fresh = lambda: create_state(MODEL, make(jax.random.key(0)), optimizer, mesh, "float32")  # noqa: E731

        def late(state, batches, count):
            _, history = fit(state, batches, step, steps=count, callbacks=[StopWhen(stop.requested)], put=put)
            return [(record["loss"], record["time/step_seconds"]) for record in history]

        loops = {
            "waiting": (lambda state, batches, count: waiting(state, batches, step, count, put, stop), None),
            "fit": (late, LargestAhead),
        }
        found = {name: [] for name in loops}
        for number in range(passes + 1):  # the first one compiles
            losses = {}
            for name, (loop, agree_ahead) in loops.items():
                state, batches = jax.block_until_ready(fresh()), loader(agree_ahead)
                losses[name], seconds = zip(*loop(state, batches, steps if number else 5), strict=True)
                found[name] += seconds[5:]
            if losses["waiting"] != losses["fit"]:
                raise SystemExit(f"the losses differ: {losses}")
    return found


def start(processes: int, arguments: list[str]) -> int:
    """This program as one of several processes on this machine, for each of them."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    shared = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "COMPARE_LOOP": address}
    command = [sys.executable, __file__, "--processes", str(processes), *arguments]
    started = [subprocess.Popen(command, env=shared | {"JAX_PROCESS_ID": str(i)}) for i in range(processes)]
    return max(process.wait() for process in started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("processes", 1), ("steps", 100), ("passes", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    if asked.processes > 1:
        if "COMPARE_LOOP" not in os.environ:
            return start(asked.processes, ["--steps", str(asked.steps), "--passes", str(asked.passes)])
        rank = int(os.environ["JAX_PROCESS_ID"])
        os.sched_setaffinity(0, {rank % os.cpu_count()})  # a core each, as if on two machines
        jax.distributed.initialize(os.environ["COMPARE_LOOP"], asked.processes, rank)
    found = measure(asked.steps, asked.passes)
    if jax.process_index() == 0:
        shown = {name: (statistics.median(seconds), np.quantile(seconds, 0.1)) for name, seconds in found.items()}
        for name, (median, tenth) in shown.items():
            print(json.dumps({"loop": name, "median_ms": round(1e3 * median, 3), "tenth_ms": round(1e3 * tenth, 3)}))
        before, after = shown["waiting"], shown["fit"]
        print(json.dumps({"median_ratio": round(before[0] / after[0], 2), "tenth_ratio": round(before[1] / after[1], 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
