"""Whether a run that is killed and resumed is the run that nobody killed: SIGKILL at random moments, bits compared.

    python tools/kill_runs.py CONFIG [--kills 8] [--processes 1|2] [--signal kill|term] [--moments 0 0.6] [--folder DIR]

trains CONFIG twice without a kill, a config of `rounds` too. Then it starts the same command in another folder, kills it at a
random moment of a part of the time that a whole run takes (the first six tenths, unless `--moments` says another part; a start
that resumes gets to its end in them), starts it again, and so on until so many kills have fallen; a run that gets to its end
before is compared, and another one begun. The last one then trains to its end. Each run computes its reference's log-probs
itself, in its own folder. Compared with the unkilled run, of each round where there are rounds: every array of the newest
checkpoint, bit for bit, and where its data stands; the lines of metrics.jsonl and rounds.jsonl but for times and memory; the
bytes of the reference's table, the samples, their scores, and the rounds' models. It prints a line a kill (what was there by
then) and ends with 1 where a start fails or anything differs.

With `--signal term` it asks to stop, by SIGTERM to all or to one alone, and they have to end by themselves within a minute.
With two processes (of this machine's processors, two devices each: give a mesh of four, such as --mesh.fsdp 4) one is killed,
and the other up to a second later.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from align_jax.training.logs import TIMING_PREFIXES, read_metrics

LONGEST = 3600  # seconds for a start that nobody kills
STOPPING = 60  # seconds for one that is asked to stop
# Saved; nothing to save; Python's own end before anything was set up, and what the others say of one that ended so.
STOPPED = {0, 143, -signal.SIGTERM, 75}
MADE = ("reference/*.npy", "rounds/*/*.jsonl", "rounds/*/evaluation.json", "rounds/*/model/*.safetensors")  # equal bytes


class Start:
    """The processes of one start of a run.

    Args:
      words: of the command line. said: the file that they write to. processes: how many they are.
    """

    def __init__(self, words: list[str], said: Path, processes: int):
        with said.open("ab") as out:
            self._all = [
                subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=os.environ | more)
                for more in _environments(processes)
            ]

    def ended(self, seconds: float) -> bool:
        """Whether all processes end within this time."""
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in self._all):
            if any(process.poll() not in (None, 0) for process in self._all):
                return True  # one failed, for which the others may wait
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def kill(self, chance: random.Random | None = None) -> None:
        """SIGKILL; with `chance` in any order, up to a second between two."""
        order = self._all if chance is None else chance.sample(self._all, len(self._all))
        for i, process in enumerate(order):
            time.sleep(chance.uniform(0, 1) if i and chance else 0.0)
            process.kill()
        for process in self._all:
            process.wait()

    def stop(self, chance: random.Random) -> bool:
        """SIGTERM, to one of them or to all; whether they end by themselves."""
        for process in chance.sample(self._all, chance.randint(1, len(self._all))):
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOPPING
        while None in self.codes and time.monotonic() < end:
            time.sleep(0.05)
        return set(self.codes) <= STOPPED

    @property
    def codes(self) -> list[int | None]:
        """What they ended with; None for one that runs."""
        return [process.poll() for process in self._all]


def _environments(processes: int) -> list[dict[str, str]]:
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    common = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    return [common | {"JAX_PROCESS_ID": str(i)} for i in range(processes)]


class Killer:
    """Starts of one config, and what they leave.

    Args:
      options: of the command line. overrides: of the config.
    """

    def __init__(self, options: argparse.Namespace, overrides: list[str]):
        self.options, self.overrides = options, overrides
        self.random = random.Random(options.seed)
        self.folder = Path(options.folder or tempfile.mkdtemp(prefix="kill_runs-"))
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(self, run: Path) -> Start:
        own = ["--run.dir", str(run), "--reference.cache_dir", str(run / "reference")]
        words = [sys.executable, "-m", "align_jax", "train", self.options.config, *self.overrides, *own]
        return Start(words, run.with_suffix(".log"), self.options.processes)

    def finish(self, start: Start, run: Path, seconds: float = LONGEST) -> bool:
        """Whether a start has ended within this time; ends the program where it failed."""
        ended = start.ended(seconds)
        if ended and any(start.codes):
            start.kill()
            said = run.with_suffix(".log").read_text(errors="replace").splitlines()[-15:]
            sys.exit("\n".join([*said, f"{run}: a start ended with {start.codes}"]))
        return ended

    def whole(self, run: Path) -> float:
        """Trains a run to its end; returns the seconds that it took."""
        begun, start = time.monotonic(), self.start(run)
        if not self.finish(start, run):
            start.kill()
            sys.exit(f"{run}: not at its end after {LONGEST} s")
        return time.monotonic() - begun

    def killed(self, run: Path, seconds: float, kills: int) -> int:
        """Trains a run to its end with up to so many kills; returns how many there were."""
        for done in range(kills):
            moment = seconds * self.random.uniform(*self.options.moments)
            start = self.start(run)
            if self.finish(start, run, moment):
                return done
            if self.options.signal == "term" and not start.stop(self.random):
                codes = start.codes
                start.kill()
                sys.exit(f"{run}: asked to stop after {moment:.2f} s, and {STOPPING} s later the statuses are {codes}")
            start.kill(self.random)
            print(f"  {run.name}, kill {done + 1} after {moment:.2f} s: {_so_far(run)}", flush=True)
        self.whole(run)
        return kills


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--signal", choices=("kill", "term"), default="kill")
    parser.add_argument("--moments", type=float, nargs=2, default=(0.0, 0.6), help="parts of a whole run's time")
    parser.add_argument("--folder", help="empty or new; a temporary one if not given")
    parser.add_argument("--seed", type=int, default=0)
    options, overrides = parser.parse_known_args()
    killer = Killer(options, overrides)
    if any(killer.folder.iterdir()):
        parser.error(f"--folder: {killer.folder} is not empty")
    whole, again = (killer.folder / name for name in ("whole", "again"))
    killer.whole(whole)
    seconds = killer.whole(again)  # by now everything has been compiled
    differ = differences(whole, again)
    print(f"unkilled: {_so_far(whole)}, {seconds:.1f} s; once more: {'; '.join(differ) or 'the same'}", flush=True)
    left, runs, bad = options.kills, 0, 0
    while left:
        runs += 1
        run = killer.folder / f"killed-{runs}"
        left -= killer.killed(run, seconds, left)
        found = differences(whole, run)
        bad += bool(found)
        print(f"  {run.name}: {'; '.join(found) or 'the same arrays, data and metrics'}", flush=True)
    print(f"{options.kills} kills in {runs} runs of {seconds:.0f} s: {bad} of them differ ({killer.folder})")
    sys.exit(1 if bad or differ else 0)


def differences(whole: Path, killed: Path) -> list[str]:
    """In what the end of a run differs from that of another one."""
    trained = [[path.parent.relative_to(run) for path in _trained(run)] for run in (whole, killed)]
    if trained[0] != trained[1]:
        return [f"there are checkpoints in {', '.join(map(str, one)) or 'no folder'}" for one in trained]
    found = []
    for place in trained[0]:
        found += [f"{place}: {text}" for text in _of_training(whole / place, killed / place)]
    if (whole / "rounds.jsonl").exists() and _untimed(whole / "rounds.jsonl") != _untimed(killed / "rounds.jsonl"):
        found.append("rounds.jsonl")
    made = [_made(run) for run in (whole, killed)]
    if not made[0] and not any(trained):
        found.append("nothing was made")
    return found + sorted(name for name in made[0].keys() | made[1].keys() if made[0].get(name) != made[1].get(name))


def _trained(run: Path) -> list[Path]:
    """The folders of checkpoints: the run's own, or those of its rounds."""
    return sorted([*run.glob("checkpoints"), *run.glob("rounds/*/checkpoints")])


def _made(run: Path) -> dict[str, bytes]:
    """What else a run made, by name; metrics.jsonl, in which there are times, is compared apart."""
    files = [path for pattern in MADE for path in run.glob(pattern) if path.name != "metrics.jsonl"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def _of_training(whole: Path, killed: Path) -> list[str]:
    ends = [_steps(run)[-1] for run in (whole, killed)]
    if ends[0] != ends[1]:
        return [f"the newest checkpoints are of steps {ends[0]} and {ends[1]}"]
    found = []
    (first, one), (second, other) = (_checkpoint(run) for run in (whole, killed))
    if first.keys() != second.keys():
        found.append(f"arrays: {sorted(first.keys() ^ second.keys())}")
    differ = [name for name in first.keys() & second.keys() if not _same(first[name], second[name])]
    found += [f"{len(differ)} of {len(first)} arrays, {min(differ)} one of them"] if differ else []
    found += ["where the data stands"] if one != other else []
    lines = [_untimed(run / "metrics.jsonl") for run in (whole, killed)]
    if lines[0] != lines[1]:
        step = next((a["step"] for a, b in zip(*lines, strict=False) if a != b), None)
        found.append(f"metrics.jsonl: {len(lines[0])} and {len(lines[1])} lines, the first other one is of step {step}")
    return found


def _untimed(file: Path) -> list[dict]:
    lines = map(json.loads, file.read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith(TIMING_PREFIXES)} for line in lines]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()


def _steps(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def _checkpoint(run: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Every array of the newest checkpoint, and what is kept beside it, without the config (its `run.dir`) and the run's id."""
    import jax
    import orbax.checkpoint as ocp

    jax.config.update("jax_platforms", "cpu")
    folder = run / "checkpoints" / str(_steps(run)[-1])
    reader = ocp.PyTreeCheckpointer()
    found = reader.metadata(folder / "state")
    tree = getattr(found, "item_metadata", found)
    whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), getattr(tree, "tree", tree))
    stored = reader.restore(folder / "state", restore_args=whole)
    leaves = jax.tree_util.tree_flatten_with_path(stored)[0]
    document = json.loads(next(path for path in (folder / "extra").iterdir() if path.is_file()).read_text())
    extra = {name: value for name, value in document["extra"].items() if name not in ("config", "run")}
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, extra | {"sums": document["checksums"]}


def _so_far(run: Path) -> str:
    if rounds := sorted(run.glob("rounds/*"), key=lambda path: int(path.name)):
        there = ", ".join(sorted(path.name for path in rounds[-1].iterdir() if path.suffix in (".jsonl", ".json", "")))
        return f"round {rounds[-1].name}: {there or 'nothing'}"
    file = run / "metrics.jsonl"
    lines = read_metrics(file) if file.exists() else []
    logged = f"logged to step {lines[-1]['step']}" if lines else "nothing logged"
    table = [path.name for path in run.glob("reference/*")]
    return f"{logged}, checkpoints {_steps(run) or 'none'}, of the reference {table or 'nothing'}"


if __name__ == "__main__":
    main()
