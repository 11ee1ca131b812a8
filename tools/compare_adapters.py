"""Adapters beside training all weights: what each reaches on held-out preferences, in what time.

    ALIGN_JAX_DATA=path/to/data python tools/compare_adapters.py configs/mpo-preferences.yaml [--section.key value]
    ALIGN_JAX_DATA=path/to/data python tools/compare_adapters.py configs/bench-smollm2.yaml --bench 3 [--section.key value]

Every arm's learning rate is the best of its grid (if it has several) by the held-out loss of one seed; then it is trained with
three other seeds.
Runs that are there already are not made again. Prints a table: mean and standard deviation over seeds, and, for the difference
to training all weights with the same seed, a 95% t interval.

With `--bench N` nothing is trained: the steps of all arms are measured by turns, N times, as `align-jax bench` does. The table
has the median of an arm's seconds, its ratio to all weights in the same turn (with the least and the largest), and the memory
that the compiler plans: what goes in (weights and moments) and temporaries together.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from scipy.stats import t as student
from tabulate import tabulate

import align_jax
from align_jax.recipes.bench import bench

ADAPTER = {"lora.rank": 16, "lora.alpha": 32}
ARMS = {
    "all weights": {},
    "LoRA": ADAPTER,
    "rsLoRA": ADAPTER | {"lora.rslora": True},
    "DoRA": ADAPTER | {"lora.dora": True},
    **{f"LoRA over {kind}": ADAPTER | {"model.quantize": kind} for kind in ("int8", "int4", "nf4")},
}
METRICS = {"loss": "eval/loss", "accuracy": "eval/rewards/accuracies"}


def run(config: str, folder: Path, values: dict, overrides: list[str]) -> dict[str, float]:
    """The last metrics of a run, and its median seconds a step."""
    given = [f"{key}={value}" for key, value in ({"run.dir": folder, "log.quiet": True, "log.plots": False} | values).items()]
    history = align_jax.train(align_jax.Config.of(config, *overrides, *given)).history
    last = next(line for line in reversed(history) if METRICS["loss"] in line)
    steps = [line["time/step_seconds"] for line in history if "time/step_seconds" in line]
    return {name: last[metric] for name, metric in METRICS.items()} | {"s a step": statistics.median(steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4], help="of all weights")
    parser.add_argument("--adapter-rates", type=float, nargs="+", default=[3e-5, 1e-4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--bench", type=int, default=0, help="turns in which steps are timed; nothing is trained")
    options, rest = parser.parse_known_args()
    overrides = [f"{key.removeprefix('--')}={value}" for key, value in zip(rest[::2], rest[1::2], strict=True)]
    if options.bench:
        print(tabulate(measured(options.config, options.only, options.bench, overrides), headers="keys"))
        return

    found: dict[str, tuple[float, list[dict[str, float]]]] = {}
    for arm in options.only:
        def made(rate: float, seed: int, arm: str = arm) -> dict[str, float]:
            folder = options.out / f"{arm.replace(' ', '-')}-{rate:g}-{seed}"
            return run(options.config, folder, ARMS[arm] | {"optimizer.learning_rate": rate, "run.seed": seed}, overrides)

        rates = options.rates if arm == "all weights" else options.adapter_rates
        best = rates[0] if len(rates) == 1 else min(rates, key=lambda rate: made(rate, 0)["loss"])
        found[arm] = best, [made(best, seed) for seed in range(1, options.seeds + 1)]
        print(f"{arm}: {best:g}, {found[arm][1]}", flush=True)
    print(tabulate([row(arm, found) for arm in found], headers="keys"))


def measured(config: str, arms: list[str], turns: int, overrides: list[str]) -> list[dict[str, str]]:
    """The table of `--bench`."""
    arms = ["all weights", *(arm for arm in arms if arm != "all weights")]
    seconds, memory = {arm: [] for arm in arms}, {}
    for turn in range(turns):
        for arm in arms:
            given = [f"{key}={value}" for key, value in ({"log.quiet": True, "bench.recommend": False} | ARMS[arm]).items()]
            found = bench(align_jax.Config.of(config, *overrides, *given))
            seconds[arm].append(found["step_seconds"])
            memory[arm] = found["peak_memory_bytes"]
            print(f"turn {turn + 1}, {arm}: {found['step_seconds']:.2f} s, {memory[arm] / 2**20:.0f} MiB", flush=True)
    lines = []
    for arm in arms:
        ratios = [own / whole for own, whole in zip(seconds[arm], seconds["all weights"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        by = memory[arm] / memory["all weights"]
        lines.append({
            "arm": arm,
            "s a step": f"{statistics.median(seconds[arm]):.2f}",
            "beside all weights": spread,
            "MiB": f"{memory[arm] / 2**20:.0f}",
            "of all weights'": f"{by:.2f}",
        })  # fmt: skip
    return lines


def row(arm: str, found: dict[str, tuple[float, list[dict[str, float]]]]) -> dict[str, str]:
    """A line of the table."""
    rate, seeds = found[arm]
    cells = {"arm": arm, "rate": f"{rate:g}"}
    for name in (*METRICS, "s a step"):
        values = [seed[name] for seed in seeds]
        cells[name] = f"{statistics.fmean(values):.3f}" + (f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else "")
    if arm != "all weights" and "all weights" in found and len(seeds) > 1:
        for name in METRICS:
            differ = [a[name] - b[name] for a, b in zip(seeds, found["all weights"][1], strict=True)]
            half = student.ppf(0.975, len(differ) - 1) * statistics.stdev(differ) / len(differ) ** 0.5
            mean = statistics.fmean(differ)
            cells[f"{name}, less that of all weights"] = f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
    return cells


if __name__ == "__main__":
    main()
