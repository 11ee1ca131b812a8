"""XLA's flags for GPUs: which are set where, that the installed JAX knows each of them, and that a user's own win."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import align_jax
from align_jax.errors import UserError
from align_jax.parallel import distributed, gpu_flags
from align_jax.recipes import setup as job
from align_jax.recipes.say import speaking
from align_jax.recipes.setup import Setup

ALL = gpu_flags.ONE_CARD | gpu_flags.SEVERAL_CARDS


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with so many GPUs and a plugin of JAX for them, before JAX starts: `machine(cards, **environment)`."""
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", *gpu_flags._MEMORY_KEYS, "SLURM_NTASKS"):
        monkeypatch.setenv(name, "")  # so that what a test sets ends with it
        monkeypatch.delenv(name)
    monkeypatch.setattr(gpu_flags, "_DEVICES", tmp_path)
    monkeypatch.setattr(gpu_flags, "call", lambda entry, values: False)

    def there(cards, plugin="jax_cuda13_plugin", **environment):
        for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{i}" for i in range(cards))):
            (tmp_path / name).touch()
        monkeypatch.setattr(gpu_flags.importlib.util, "find_spec", lambda name: name == plugin or None)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return there


def test_the_installed_jax_knows_every_flag():
    """XLA ends the process at one that it does not know."""
    parse = "from jaxlib import xla_client; xla_client.CompileOptions(); print('known')"
    flags = " ".join(f"--{name}={value}" for name, value in ALL.items())

    def end(flags):
        environment = {**os.environ, "XLA_FLAGS": flags}
        return subprocess.run([sys.executable, "-c", parse], env=environment, capture_output=True, text=True, timeout=600)

    found = end(flags)
    assert (found.returncode, found.stdout) == (0, "known\n"), found.stderr[-500:]
    unknown = end(f"{flags} --xla_gpu_no_such_flag=1")
    assert unknown.returncode != 0 and "xla_gpu_no_such_flag" in unknown.stderr


def test_one_card_needs_nothing_for_collectives(machine):
    machine(1)
    assert align_jax.set_gpu_flags() == ["--xla_gpu_enable_triton_gemm=false", "XLA_CLIENT_MEM_FRACTION=0.9"]
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_enable_triton_gemm=false"
    assert align_jax.set_gpu_flags() == []  # all of it is there


@pytest.mark.parametrize("cards, environment", [(8, {}), (1, {"SLURM_NTASKS": "2"}), (1, {"CUDA_VISIBLE_DEVICES": "0,1"})])
def test_several_cards_move_collectives_beside_products(cards, environment, machine):
    machine(cards, plugin="jax_cuda12_plugin", **environment)
    assert [flag for flag in align_jax.set_gpu_flags() if flag.startswith("--")] == os.environ["XLA_FLAGS"].split()
    assert dict(word[2:].split("=") for word in os.environ["XLA_FLAGS"].split()) == ALL


def test_what_a_user_has_set_stays(machine):
    own = "--xla_gpu_enable_triton_gemm=true --xla_gpu_enable_command_buffer=FUSION --xla_dump_to=/tmp/x"
    machine(8, XLA_FLAGS=own, XLA_PYTHON_CLIENT_PREALLOCATE="false")
    added = align_jax.set_gpu_flags()
    assert os.environ["XLA_FLAGS"] == " ".join([*added, own]) and "XLA_CLIENT_MEM_FRACTION" not in os.environ
    names = [word.split("=")[0] for word in os.environ["XLA_FLAGS"].split()]
    assert len(names) == len(set(names)) == len(ALL) + 1
    assert gpu_flags.gpu_flags_in_use().startswith("XLA on GPUs: --xla_gpu_enable_latency_hiding_scheduler=true ")
    assert gpu_flags.gpu_flags_in_use().endswith("PREALLOCATE=false (flags given in XLA_FLAGS stay)")


def test_flags_in_a_file_are_left_alone(machine):
    machine(2, XLA_FLAGS="/etc/my_flags", XLA_CLIENT_MEM_FRACTION="0.5")
    assert align_jax.set_gpu_flags() == [] and os.environ["XLA_FLAGS"] == "/etc/my_flags"


@pytest.mark.parametrize(
    "cards, plugin, environment",
    [
        (0, "jax_cuda13_plugin", {}),
        (1, "jax_cuda13_plugin", {"CUDA_VISIBLE_DEVICES": ""}),
        (1, "jax_cuda13_plugin", {"CUDA_VISIBLE_DEVICES": "-1"}),
        (1, "jax_cuda13_plugin", {"JAX_PLATFORMS": "cpu"}),
        (1, "another_plugin", {}),
    ],
)
def test_nothing_is_set_where_jax_runs_on_no_gpu(cards, plugin, environment, machine):
    machine(cards, plugin, **environment)
    assert align_jax.set_gpu_flags() == [] and "XLA_FLAGS" not in os.environ
    assert gpu_flags.gpu_flags_in_use().startswith("XLA_FLAGS has no flag for GPUs; align_jax.set_gpu_flags() before")


def test_under_windows_there_is_one_card(machine, tmp_path):
    machine(0, JAX_PLATFORMS="cuda,cpu")
    (tmp_path / "dxg").touch()
    assert align_jax.set_gpu_flags()[0] == "--xla_gpu_enable_triton_gemm=false"


VERSIONS = {"0.9.2": False, "0.10.0": True, "0.12.0.1": True, "0.13.0": False, "1.0": False}


@pytest.mark.parametrize("version, known", VERSIONS.items())
def test_another_jax_gets_none(version, known, machine, monkeypatch):
    machine(1)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert bool(align_jax.set_gpu_flags()) == known


def test_flags_that_nobody_would_read_are_an_error(machine, monkeypatch):
    machine(1)
    monkeypatch.setattr(gpu_flags, "call", lambda entry, values: entry == "started")
    with pytest.raises(UserError, match="set_gpu_flags: JAX has started already"):
        align_jax.set_gpu_flags()
    assert "XLA_FLAGS" not in os.environ


def test_the_command_line_sets_them(machine, monkeypatch):
    machine(1, JAX_COMPILATION_CACHE_DIR="unused")
    distributed.prepare_process()
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_enable_triton_gemm=false"
    monkeypatch.setattr(gpu_flags, "call", lambda entry, values: True)
    monkeypatch.delenv("XLA_FLAGS")
    distributed.prepare_process()  # a second command of one process
    assert "XLA_FLAGS" not in os.environ


def test_a_job_says_what_is_set(machine, monkeypatch, capsys):
    machine(1)
    align_jax.set_gpu_flags()
    monkeypatch.setattr(job.jax, "default_backend", lambda: "gpu")
    shape = {"vocab_size": 64, "width": 32, "mlp_width": 48, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 8}
    config = align_jax.Config.of({"model": {"config": shape}, "objective": {"name": "mpo"}})
    with speaking(quiet=False):
        for _ in range(2):
            Setup.of(config)
    assert "".join(capsys.readouterr().err.splitlines(True)[:1]) == (
        "align-jax: XLA on GPUs: --xla_gpu_enable_triton_gemm=false XLA_CLIENT_MEM_FRACTION=0.9 (flags given in "
        "XLA_FLAGS stay)\n"
    )


def test_the_extras_name_what_jax_has():
    """`gpu`, its older name `cuda13`, and `gpu12` for older drivers."""
    text = (Path(align_jax.__file__).parent.parent / "setup.py").read_text(encoding="utf-8")
    extras = set(importlib.metadata.metadata("jax").get_all("Provides-Extra"))
    assert set(re.findall(r'"jax\[(\w+)\]"', text)) == {"cuda13", "cuda12", "tpu"} <= extras
    assert re.search(r'"gpu": CUDA13,.*\n +"cuda13": CUDA13,.*\n +"gpu12": \["jax\[cuda12\]"\]', text)
