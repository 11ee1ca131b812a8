"""MPO: a training step's time grows in proportion to the number of answers, and its memory hardly does in chunks of rows.

`align-jax bench` measures the step of MPO with 2 to 512 answers to one prompt, twice: all rows at once, and in chunks of
`model.rows_per_chunk` rows, which cost one more forward pass and keep the values of one chunk only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.config import Config
from align_jax.experiments import plots
from align_jax.experiments.claim import (
    Cell,
    Experiment,
    Interval,
    Measurement,
    Options,
    Verdict,
    all_of,
    below,
    by_setting,
    over_seeds,
    values_of,
)
from align_jax.experiments.work import Workplace
from align_jax.recipes.bench import bench

SIZES, QUICK = (2, 8, 32, 128, 512), (2, 8, 32, 128)
CHUNK = 8
WHOLE, CHUNKS = "all rows at once", f"chunks of {CHUNK} rows"
FROM = 8  # answers from which on the growth is fitted: below, what every step costs weighs most
PROMPT, RESPONSE = 64, 32  # tokens
EXPONENT, MEMORY = 1.1, 1.5  # time ~ K^exponent; memory of the most answers over that of CHUNK
MIB = 2**20


def cells(options: Options) -> list[Cell]:
    return [
        Cell(f"k-{k}-{'chunks' if rows else 'whole'}-{seed}", {"k": k, "rows": rows, "seed": seed, "steps": 5})
        for seed in range(options.seeds)
        for rows in (None, CHUNK)
        for k in (QUICK if options.quick else SIZES)
    ]


def measure(cell: Cell, work: Workplace) -> dict[str, Any]:
    found = bench(config(cell, work))
    every = found["step_seconds_all"]
    # The fastest step is the one that other programs on the machine disturbed least.
    return {"seconds": min(every), "memory": found["peak_memory_bytes"] / MIB, "every": every}


def config(cell: Cell, work: Workplace) -> Config:
    """What is measured: MPO's step on random tokens."""
    values = {
        "model": {"path": str(work.model), "dtype": "float32", "rows_per_chunk": cell.settings["rows"]},
        "objective": {"name": "mpo", "beta": 0.1},
        "optimizer": {"name": "adamw", "learning_rate": 1.0e-4},
        "train": {"steps": 100, "groups_per_step": 1},
        "bench": {
            "prompt_tokens": PROMPT,
            "response_tokens": RESPONSE,
            "responses": cell.settings["k"],
            "groups": 1,
            "steps": cell.settings["steps"],
            "recommend": False,
        },
    }
    return work.config(values)


def _sizes(measured: Sequence[Measurement]) -> list[int]:
    return sorted(set(values_of(measured, "k")))


def per_seed(measured: Sequence[Measurement], rows: int | None, key: str) -> np.ndarray:
    """A figure of every seed and number of answers, `[seeds, sizes]`."""
    arms = by_setting(measured, "rows", "k")
    return np.asarray([values_of(arms[rows, k], key) for k in _sizes(measured)], float).T


def exponent(measured: Sequence[Measurement], rows: int | None) -> Interval:
    """The slope of log seconds over log K from `FROM` answers on, over seeds."""
    sizes = np.asarray(_sizes(measured))
    seconds = per_seed(measured, rows, "seconds")[:, sizes >= FROM]
    return over_seeds([float(np.polyfit(np.log(sizes[sizes >= FROM]), np.log(one), 1)[0]) for one in seconds])


def ratio(measured: Sequence[Measurement], rows: int | None, key: str, base: int) -> Interval:
    """A figure of the most answers over that of `base` answers, over seeds."""
    found = per_seed(measured, rows, key)
    return over_seeds(found[:, -1] / found[:, _sizes(measured).index(base)])


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    growth = {name: exponent(measured, rows) for name, rows in ARMS.items()}
    memory = {name: ratio(measured, rows, "memory", CHUNK) for name, rows in ARMS.items()}
    time = {name: ratio(measured, rows, "seconds", 2) for name, rows in ARMS.items()}
    most = _sizes(measured)[-1]
    # Memory is what the compiler planned: the same for every seed, so that an interval of no width is one.
    words = [*(below(one, EXPONENT) for one in growth.values()), below(memory[CHUNKS], MEMORY)]
    line = (
        f"time grows as K^{growth[WHOLE]} with {WHOLE} and K^{growth[CHUNKS]} in {CHUNKS}, {time[WHOLE].value:.3g} and "
        f"{time[CHUNKS].value:.3g} times from K = 2 to {most}; peak memory from K = {CHUNK} to {most}: "
        f"{memory[WHOLE].value:.3g} and {memory[CHUNKS].value:.3g} times"
    )
    named = {"exponent of time": growth, f"memory, K = {most} over {CHUNK}": memory, f"time, K = {most} over 2": time}
    return Verdict(all_of(*words), line, {f"{what}, {name}": one for what, arms in named.items() for name, one in arms.items()})


ARMS = {WHOLE: None, CHUNKS: CHUNK}


def draw(measured: list[Measurement], options: Options):
    sizes = _sizes(measured)
    title = "A training step of MPO with more and more answers to a prompt"
    note = (
        f"One prompt of {PROMPT} tokens, answers of {RESPONSE}; line: mean of {len(per_seed(measured, None, 'memory'))} "
        "repeats, band = range. Grey: in proportion to K."
    )
    figure, axes = plots.figure(title, note, columns=2, size=(5.2, 4.2))
    for axis, key, label in zip(
        axes[0], ("seconds", "memory"), ("seconds a step (fastest of 5)", "peak memory, MiB"), strict=True
    ):
        for i, (name, rows) in enumerate(ARMS.items()):
            plots.curve(axis, sizes, per_seed(measured, rows, key), name, i)
        top = per_seed(measured, None, key).mean(0)[-1]
        axis.plot(sizes, top * np.asarray(sizes) / sizes[-1], color="0.7", linewidth=1, zorder=0)
        axis.set(xscale="log", yscale="log", xlabel="answers to a prompt, K", ylabel=label)
        axis.set_xticks(sizes, [str(k) for k in sizes])
        axis.minorticks_off()
    plots.legend(axes[0, 0])
    return figure


EXPERIMENT = Experiment(
    number=20,
    claim="a step's time grows in proportion to the number of answers K, and in chunks its memory hardly grows",
    source="arXiv 2412.04628, the cost of many responses; docs/performance.md",
    criterion=f"holds where the exponent of a step's time in K, fitted from {FROM} on, is below {EXPONENT} with all rows at "
    f"once and in chunks, and the peak memory in chunks with the most answers (512; quick: 128) is below {MEMORY} times that "
    f"with {CHUNK}, by the 95% interval over repeats; fails where one is above",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="cost",
    models=("tiny",),
    seconds=(50, 100),
)
