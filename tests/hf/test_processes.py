"""Two processes, each with half of the devices, import and export one model together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.hf import models
from tests.processes import free_address

_PROGRAM = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
rank, address, source, out, foreign = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(address, 2, rank)
from align_jax.errors import UserError
from align_jax.hf import files, load_model, save_model
from align_jax.parallel.mesh import make_mesh

read, total = files.Checkpoint.read, 0
def counted(self, name, index):
    global total
    array = read(self, name, index)
    total += array.nbytes
    return array
files.Checkpoint.read = counted

model = load_model(source, make_mesh(1, 4, 1), dtype="float32")
print("read", total)
save_model(model, out)
try:
    save_model(model, foreign)
except UserError as error:
    print("refused", error)
"""


@pytest.mark.slow
def test_two_processes_import_and_export(tmp_path):
    source = models.save(models.torch_model("llama2"), tmp_path / "source")
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    arguments = [free_address(), str(source), str(tmp_path / "out"), str(source)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(rank), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        results = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], results

    expected, exported = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert expected.keys() == exported.keys()
    for name in expected:
        np.testing.assert_array_equal(exported[name], expected[name])
    size = sum(array.nbytes for array in expected.values())
    norms = sum(array.nbytes for name, array in expected.items() if "norm" in name)
    for out, _ in results:
        # Each process reads its half of every matrix; norms are replicated.
        assert f"read {(size - norms) // 2 + norms}\n" in out
    assert "not an earlier export" in results[0][0] and "the first process failed" in results[1][0]
