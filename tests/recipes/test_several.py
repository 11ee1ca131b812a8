"""Several processes as a user starts them: one that is lost, fails, or was told other things, ends all, and says why."""

import errno
import os
import subprocess
import sys
import time

import pytest
import yaml

from align_jax.experiments import opinions
from align_jax.parallel.roll_call import LOST
from align_jax.training.logs import TIMING_PREFIXES, read_metrics
from tests.processes import finish, start_several, start_two

SHAPE = dict(vocab_size=130, width=16, mlp_width=24, layers=1, heads=4, kv_heads=2, head_size=4, max_length=128)
SECONDS = 40.0  # in which the others end, when one has ended: 0.3 to 0.7, but for machines that are busy with other tests
MESH = ("--mesh.data", 2, "--mesh.fsdp", 2)
_MAIN = "import sys; from align_jax.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Generated data and the config of a short DPO run."""
    folder = tmp_path_factory.mktemp("several")
    opinions.write_tokenizer(folder / "tokenizer")
    opinions.write_rows(folder / "train.jsonl", opinions.rows(16, 1, uniform=False))
    config = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "model": {"config": SHAPE, "tokenizer": str(folder / "tokenizer"), "dtype": "float32"},
        "reference": {"cache_dir": str(folder / "reference")},
        "data": {
            "train": str(folder / "train.jsonl"),
            "format": "gdpo",
            "prompt_template": "question : {prompt}",
            "belief_template": "{id} : {belief} :",
            "max_prompt_tokens": 24,
            "max_response_tokens": 24,
        },
        "objective": {"name": "gdpo"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "schedule": "constant"},
        "train": {"steps": 4, "groups_per_step": 8},
        "checkpoint": {"every": 2, "keep": 3},
        "log": {"progress": False, "plots": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return folder, path


def _ends(processes, limit=SECONDS):
    """Statuses and what was said, of processes that end within so many seconds of one another."""
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(0.05)
        began = time.monotonic()
        said = [process.communicate(timeout=limit)[1] for process in processes]
        assert time.monotonic() - began < limit
        return [process.returncode for process in processes], said
    finally:
        for process in processes:
            process.kill()


def _wait_for_steps(run, processes):
    until = time.monotonic() + 300
    while not (run / "checkpoints" / "2").exists():
        assert all(process.poll() is None for process in processes) and time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_by_the_other_which_ends_at_once(world, tmp_path, victim):
    folder, config = world
    processes = start_two(["train", config, "--run.dir", tmp_path / "run", *MESH, "--train.steps", 10**6])
    try:
        _wait_for_steps(tmp_path / "run", processes)
    finally:
        processes[victim].kill()
    statuses, said = _ends(processes)
    assert statuses[1 - victim] == LOST
    (line,) = [line for line in said[1 - victim].splitlines() if "is lost" in line]
    assert line.startswith(f"align-jax: process {victim} of 2 (") and f"{tmp_path}/run/checkpoints/" in line
    assert f"start all 2 processes again: align-jax train {config}" in line
    assert "Traceback" not in said[1 - victim] and "stack trace" not in said[1 - victim]


FULL = """
import errno, os, sys
from align_jax.cli import main
from align_jax.training import callbacks

def after_step(self, loop):
    if loop.step == 2 and os.environ["JAX_PROCESS_ID"] == "1":
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch/x")

callbacks.StopWhen.after_step = after_step
sys.exit(main())
"""


@pytest.mark.slow
def test_an_error_of_one_is_the_line_of_all(world, tmp_path):
    _, config = world
    statuses, said = _ends(start_several(FULL, ["train", config, "--run.dir", tmp_path / "run", *MESH], 2))
    reason = f"[Errno {errno.ENOSPC}] No space left on device: '/scratch/x'"
    assert statuses == [2, 2]
    assert said[1].splitlines()[-1] == f"align-jax train: {reason}"
    assert said[0].splitlines()[-1].startswith("align-jax: process 1 of 2 (") and said[0].rstrip().endswith(f"failed: {reason}")
    assert "Traceback" not in said[0] + said[1]


DAMAGED = """
import os, sys
from align_jax.cli import main
from align_jax.training.read_checkpoint import CheckpointReader

read = CheckpointReader._arrays

def once_damaged(self, step, *how):
    if step == 4 and os.environ["JAX_PROCESS_ID"] == "1":
        raise ValueError("d/x is cut short")
    return read(self, step, *how)

CheckpointReader._arrays = once_damaged
sys.exit(main())
"""


@pytest.mark.slow
def test_four_train_as_one_and_a_checkpoint_that_one_cannot_read_is_nobodys(world, tmp_path):
    """Metrics of four processes are those of one to 1e-5; then two resume from the newest checkpoint that both can read."""
    folder, config = world
    one, four = tmp_path / "one", tmp_path / "four"
    more = (*MESH, "--reference.cache_dir")
    code = "import os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=%d'; " + _MAIN
    alone = {key: value for key, value in os.environ.items() if not key.startswith("JAX_CO")} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code % 4, "train", config, "--run.dir", one, *more, tmp_path / "cache1"]
    subprocess.run(list(map(str, command)), env=alone, check=True, capture_output=True)
    finish(start_several(code % 1, ["train", config, "--run.dir", four, *more, tmp_path / "cache4"], 4), 600)
    for a, b in zip(read_metrics(one / "metrics.jsonl"), read_metrics(four / "metrics.jsonl"), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys():
            if not name.startswith((*TIMING_PREFIXES, "tokens/padding")) and a[name] is not None:
                assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-5), (a["step"], name)

    arguments = ["train", config, "--run.dir", four, *more, tmp_path / "cache4", "--train.steps", 5]
    said = finish(start_several(DAMAGED, arguments, 2), 300)
    assert "resumed from the checkpoint of step 2" in said[0]
    for text in said:
        assert "checkpoints/4 is damaged and not used: ValueError: d/x is cut short (on process 1 of 2)" in text
    assert [line["step"] for line in read_metrics(four / "metrics.jsonl")][-1] == 5


@pytest.mark.slow
def test_processes_that_were_told_different_things_end_before_jax_starts(world, tmp_path):
    folder, config = world
    own = "[*sys.argv[1:], '--run.seed', os.environ['JAX_PROCESS_ID']]"
    code = f"import os, sys; from align_jax.cli import main; sys.exit(main({own}))"
    statuses, said = _ends(start_several(code, ["train", config, "--run.dir", tmp_path / "run", *MESH], 2))
    line = "the processes were told different things; start all alike: config run.seed: 0 on process 0, 1 on process 1"
    assert statuses == [2, 2] and all(line in text for text in said)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rows_that_differ_behind_the_same_path_are_named(world, tmp_path):
    """Each host has a file of its own at the same path."""
    folder, config = world
    opinions.write_rows(tmp_path / "other.jsonl", opinions.rows(16, 7, uniform=False))
    code = f"""
import os, sys
from align_jax.cli import main
if os.environ["JAX_PROCESS_ID"] == "1":
    from align_jax.data.sources import json_files
    before = os.path.realpath({str(folder / "train.jsonl")!r})
    import builtins
    real = builtins.open
    builtins.open = lambda path, *a, **k: real({str(tmp_path / "other.jsonl")!r} if str(path) == before else path, *a, **k)
sys.exit(main())
"""
    statuses, said = _ends(start_several(code, ["train", config, "--run.dir", tmp_path / "run", *MESH], 2))
    assert statuses == [2, 2], said
    assert all("data.train, hash of rows, order and tokens: " in text for text in said), said

