"""Which small changes of the code no test notices: a sample of mutants, by cosmic-ray (`pip install cosmic-ray`).

    python tools/mutants.py [--only losses|objectives|step|packing|sampling] [--count 20] [--seed 0]

For each area it copies the tree, lists every mutant of its files (an operator, a number, a comparison changed), draws so many
at random, and runs the area's tests on each until one fails. What survives is printed with its change: a test is missing, or
the change makes no difference (docs/reliability.md says why). The `|` of annotations, which nothing runs, is left out.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Area -> files that are changed, tests that are to notice.
AREAS = {
    "losses": (["align_jax/losses"], "tests/losses -m 'not slow' -k 'not pmap and not shard_map'"),
    "objectives": (["align_jax/objectives"], "tests/objectives"),
    "step": (["align_jax/training/step.py"], "tests/training/test_step_parts.py tests/training/test_step.py"),
    "packing": (["align_jax/data/packing"], " ".join(f"tests/data/test_{name}.py" for name in ("packing", "shapes", "spread"))),
    "sampling": (["align_jax/generation/sampling.py"], "tests/generation/test_sampling.py"),
}
_UNREAD = re.compile(r"ReplaceBinaryOperator_BitOr_")  # `int | None` in annotations


def sampled(session: Path, count: int, seed: int) -> int:
    """Leaves so many mutants of a session, drawn at random; returns how many there were."""
    with sqlite3.connect(session) as base:
        jobs = [
            job
            for job, operator in base.execute("select job_id, operator_name from mutation_specs order by job_id")
            if not _UNREAD.search(operator)
        ]
        keep = random.Random(seed).sample(jobs, min(count, len(jobs)))
        marks = ",".join("?" * len(keep))
        for table in ("mutation_specs", "work_items"):
            base.execute(f"delete from {table} where job_id not in ({marks})", keep)
    return len(jobs)


def survivors(area: str, count: int, seed: int, folder: Path) -> tuple[int, int, list[str]]:
    """How many mutants there are, how many were tried, and the changes that no test noticed."""
    files, tests = AREAS[area]
    tree = folder / area
    kept_out = shutil.ignore_patterns(".git", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=kept_out)
    config, session = tree / "cosmic-ray.toml", tree / "session.sqlite"
    paths = ", ".join(f'"{file}"' for file in files)
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider {tests}"
    config.write_text(
        f"[cosmic-ray]\nmodule-path = [{paths}]\ntimeout = 600.0\nexcluded-modules = []\n"
        f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    ours = {"cwd": tree, "check": True, "env": {**os.environ, "PYTHONPATH": str(tree)}}
    subprocess.run(["cosmic-ray", "init", config.name, session.name], **ours)
    number = sampled(session, count, seed)
    subprocess.run(["cosmic-ray", "baseline", config.name], **ours)  # the tests pass as they are
    subprocess.run(["cosmic-ray", "exec", config.name, session.name], **ours)
    with sqlite3.connect(session) as base:
        found = base.execute("select test_outcome, worker_outcome, diff from work_results").fetchall()
    alive = [diff for outcome, _, diff in found if str(outcome).upper().endswith("SURVIVED")]
    return number, len(found), alive


def main() -> int:
    """Runs the areas; 1 where a mutant survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(AREAS))
    parser.add_argument("--count", type=int, default=20, help="mutants of an area")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        for area in [arguments.only] if arguments.only else AREAS:
            number, tried, found = survivors(area, arguments.count, arguments.seed, Path(folder))
            alive += len(found)
            print(f"{area}: {tried} of {number} mutants tried, {len(found)} survived", flush=True)
            for diff in found:
                print(diff, flush=True)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
