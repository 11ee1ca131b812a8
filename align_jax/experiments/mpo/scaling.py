"""MPO: a training step's time grows in proportion to the number of answers, and its memory hardly does in chunks of rows.

`align-jax bench` measures the step of MPO with 2 to 512 answers to one prompt, three times: all rows at once; in chunks of
`model.rows_per_chunk` rows, which cost one more forward pass and keep the values of one chunk only; and with `rows_per_chunk:
auto` on a device that is said to hold 48 MiB, which is to take as many rows at a time as that allows.
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
HOLDS_MIB = 48  # of the device that `auto` is told of: all rows fit for K = 32, and do not for K = 128
WHOLE, CHUNKS, AUTO = "all rows at once", f"chunks of {CHUNK} rows", f"auto, {HOLDS_MIB} MiB"
ARMS = {WHOLE: None, CHUNKS: CHUNK, AUTO: "auto"}
_NAMES = {None: "whole", CHUNK: "chunks", "auto": "auto"}
FROM = 8  # answers from which on the growth is fitted: below, what every step costs weighs most
PROMPT, RESPONSE = 64, 32  # tokens
EXPONENT, MEMORY = 1.1, 1.5  # time ~ K^exponent; memory of the most answers over that of CHUNK
MIB = 2**20


def cells(options: Options) -> list[Cell]:
    return [
        Cell(f"k-{k}-{_NAMES[rows]}-{seed}", {"k": k, "rows": rows, "seed": seed, "steps": 5})
        for seed in range(options.seeds)
        for rows in ARMS.values()
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
        "mesh": {"memory_gib": HOLDS_MIB / 1024},
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


def per_seed(measured: Sequence[Measurement], rows: int | str | None, key: str) -> np.ndarray:
    """A figure of every seed and number of answers, `[seeds, sizes]`."""
    arms = by_setting(measured, "rows", "k")
    return np.asarray([values_of(arms[rows, k], key) for k in _sizes(measured)], float).T


def exponent(measured: Sequence[Measurement], rows: int | str | None) -> Interval:
    """The slope of log seconds over log K from `FROM` answers on, over seeds."""
    sizes = np.asarray(_sizes(measured))
    seconds = per_seed(measured, rows, "seconds")[:, sizes >= FROM]
    return over_seeds([float(np.polyfit(np.log(sizes[sizes >= FROM]), np.log(one), 1)[0]) for one in seconds])


def ratio(measured: Sequence[Measurement], rows: int | str | None, key: str, base: int) -> Interval:
    """A figure of the most answers over that of `base` answers, over seeds."""
    found = per_seed(measured, rows, key)
    return over_seeds(found[:, -1] / found[:, _sizes(measured).index(base)])


def conclude(measured: list[Measurement], options: Options) -> Verdict:
    growth = {name: exponent(measured, rows) for name, rows in ARMS.items()}
    memory = {name: ratio(measured, rows, "memory", CHUNK) for name, rows in ARMS.items()}
    time = {name: ratio(measured, rows, "seconds", 2) for name, rows in ARMS.items()}
    most = _sizes(measured)[-1]
    # Memory is what the compiler planned: the same for every seed, so that an interval of no width is one.
    largest = over_seeds(per_seed(measured, ARMS[AUTO], "memory").max(1))
    words = [*(below(one, EXPONENT) for one in growth.values()), below(memory[CHUNKS], MEMORY), below(largest, HOLDS_MIB)]
    line = (
        f"time grows as K^{growth[WHOLE]} with {WHOLE} and K^{growth[CHUNKS]} in {CHUNKS} (fitted to "
        f"{sum(k >= FROM for k in _sizes(measured))} numbers of answers), {time[WHOLE].value:.3g} and {time[CHUNKS].value:.3g} "
        f"times from K = 2 to {most}; peak memory in the compiler's plan from K = {CHUNK} to {most}: {memory[WHOLE].value:.3g} "
        f"and {memory[CHUNKS].value:.3g} times, and by auto {largest.value:.0f} MiB at most where {HOLDS_MIB} are there"
    )
    named = {
        "exponent of time": growth,
        f"planned memory, K = {most} / K = {CHUNK}": memory,
        f"time, K = {most} / K = 2": time,
    }
    figures = {f"{what}, {name}": one for what, arms in named.items() for name, one in arms.items()}
    return Verdict(all_of(*words), line, figures | {"most planned memory by auto, MiB": largest})


def draw(measured: list[Measurement], options: Options):
    sizes = _sizes(measured)
    title = "A training step of MPO with more and more answers to a prompt"
    note = (
        f"One prompt of {PROMPT} tokens, answers of {RESPONSE}; line: mean of {len(per_seed(measured, None, 'memory'))} "
        "repeats, band = range. Grey: growth in proportion to K, only its slope counts. Memory is what the compiler plans, "
        f"the same every time. The exponent is fitted from K = {FROM} on."
    )
    figure, axes = plots.figure(title, note, columns=2, size=(5.2, 4.2))
    for axis, key, label in zip(
        axes[0],
        ("seconds", "memory"),
        ("seconds a step (fastest of 5)", "peak memory in the compiler's plan, MiB"),
        strict=True,
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
    "once, in chunks and by auto, the peak memory in the compiler's plan, in chunks, with the most answers (512; quick: 128) "
    f"is below {MEMORY} times that with {CHUNK}, and by auto below the {HOLDS_MIB} MiB that it is told of, by the 95% interval "
    "over repeats; fails where one is above",
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    kind="cost",
    models=("tiny",),
    seconds=(50, 100),
)
