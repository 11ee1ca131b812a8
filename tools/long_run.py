"""Whether a long run stays as it was after its first steps: memory, open files, compilations.

    python tools/long_run.py CONFIG [--warm-up 200] [--within 0.02] [--section.key value]

trains CONFIG in this process and, once a second, notes the last step of metrics.jsonl, the resident memory (MiB), the open file
descriptors and how many programs were compiled. It prints a line for every tenth of the run, and ends with 1 where, behind the
warm-up, memory rose by more than `--within` of what it was (the median of the last quarter beside that of the first), a
descriptor stayed open or a program was compiled.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import threading
from pathlib import Path

from tabulate import tabulate

import align_jax
from align_jax.config.source import parse_overrides
from align_jax.cost import compilations


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the process has at a step."""

    step: int
    mebibytes: float
    files: int
    compiled: int


def resident() -> float:
    """MiB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Watch:
    """Notes a moment a second while the run is on."""

    def __init__(self, folder: Path):
        self._lines, self._read, self._step = folder / "metrics.jsonl", 0, 0
        self._ended, self.moments = threading.Event(), []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            if self._lines.exists():
                with self._lines.open("rb") as file:
                    file.seek(self._read)
                    new = file.read()
                whole = new[: new.rfind(b"\n") + 1]
                self._read += len(whole)
                self._step += whole.count(b'"loss"') - whole.count(b'"eval/loss"')
            files = len(os.listdir("/proc/self/fd"))
            self.moments.append(Moment(self._step, resident(), files, compilations.so_far().compiled))


def findings(moments: list[Moment], warm_up: int, within: float) -> list[str]:
    """What grew behind the warm-up, a line each."""
    behind = [moment for moment in moments if moment.step >= warm_up]
    quarter = len(behind) // 4
    if quarter < 3:
        return [f"only {len(behind)} seconds behind the warm-up of {warm_up} steps: make the run longer"]
    first, last = behind[:quarter], behind[-quarter:]
    of = lambda part, name: statistics.median(getattr(moment, name) for moment in part)  # noqa: E731
    found = []
    if of(last, "mebibytes") > of(first, "mebibytes") * (1 + within):
        found.append(f"memory rose from {of(first, 'mebibytes'):.0f} to {of(last, 'mebibytes'):.0f} MiB")
    if of(last, "files") > of(first, "files"):
        found.append(f"open files rose from {of(first, 'files'):.0f} to {of(last, 'files'):.0f}")
    if behind[-1].compiled > behind[0].compiled:
        found.append(f"{behind[-1].compiled - behind[0].compiled} programs were compiled behind the warm-up")
    return found


def main() -> int:
    """Trains, prints the table, says what grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--warm-up", type=int, default=200, help="steps")
    parser.add_argument("--within", type=float, default=0.02, help="of the memory")
    arguments, rest = parser.parse_known_args()
    compilations.so_far()
    config = align_jax.Config.of(arguments.config, *(f"{key}={value}" for key, value in parse_overrides(rest)))
    with Watch(Path(config.run.dir)) as watch:
        run = align_jax.train(config)
    moments = watch.moments
    rows = [next((m for m in moments if m.step >= run.steps * tenth / 10), moments[-1]) for tenth in range(1, 11)]
    print(tabulate([dataclasses.astuple(m) for m in rows], headers=["step", "MiB", "open files", "compiled"], floatfmt=".0f"))
    found = findings(moments, arguments.warm_up, arguments.within)
    print("\n".join(found) or f"{run.steps} steps: as it was after {arguments.warm_up}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
