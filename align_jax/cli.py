"""The command line: `align-jax COMMAND ...`; wires everything, decides nothing."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import warnings

_OVERRIDES = "[--section.key value ...]"
# command -> (module with `main(argv)`, its arguments, one line of help)
COMMANDS = {
    "train": ("align_jax.recipes.train", f"CONFIG.yaml {_OVERRIDES}", "train; resumes a run folder that has checkpoints"),
    "evaluate": ("align_jax.recipes.evaluate", f"CONFIG.yaml [CONFIG.yaml ...] {_OVERRIDES}", "models side by side, one table"),
    "export": ("align_jax.recipes.export", "RUN_DIR OUT_DIR [--step N] [--dtype D]", "write a Hugging Face folder"),
    "generate": ("align_jax.recipes.generate", f"CONFIG.yaml {_OVERRIDES}", "sample responses to prompts"),
    "score": ("align_jax.recipes.score", f"CONFIG.yaml {_OVERRIDES}", "log-probs, implicit rewards, a reward model's scores"),
    "bench": ("align_jax.recipes.bench", "CONFIG.yaml [--json] [--sweep K=2,8,32] ...", "time, memory and FLOPs of a step"),
    "compile": ("align_jax.recipes.compile", "CONFIG.yaml --topology v5p:4x4x4 ...", "compile for a TPU that is not there"),
    "experiment": ("align_jax.recipes.experiment", f"NAME {_OVERRIDES}", "a runnable experiment, such as quickstart"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status (0, or 2 for what the user can fix)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] not in COMMANDS:
        print(f"align-jax: unknown command {argv[0]!r}\n{_usage()}", file=sys.stderr)
        return 2
    if len(argv) > 1 and argv[1] in ("-h", "--help"):
        _, arguments, text = COMMANDS[argv[0]]
        print(f"align-jax {argv[0]} {arguments}\n\n{text}")
        return 0
    from align_jax.errors import UserError

    try:
        _prepare()
        return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:]) or 0
    except UserError as error:
        print(f"align-jax {argv[0]}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"align-jax {argv[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"align-jax {argv[0]}: interrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = [f"  {name:<11}{arguments:<54}{text}" for name, (_, arguments, text) in COMMANDS.items()]
    return "usage: align-jax COMMAND ...\n\n" + "\n".join(lines)


def _prepare() -> None:
    """Settings of the process that must be made before JAX starts."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import jax

    # Orbax warns of what was asked for: a folder opened for reading only.
    logging.getLogger("absl").addFilter(lambda record: not re.search("read.only=", record.getMessage()))
    warnings.filterwarnings("ignore", message="Some donated buffers were not usable")  # the CPU backend donates nothing
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "align_jax", "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a second start compiles nothing
    if _launched_on_several_hosts():
        jax.distributed.initialize(**_processes())


def _launched_on_several_hosts() -> bool:
    """Whether a launcher that JAX knows started this process as one of several."""
    several = (os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return "JAX_COORDINATOR_ADDRESS" in os.environ or "," in hosts or any(n.isdigit() and int(n) > 1 for n in several)


def _processes() -> dict[str, int]:
    """The number of processes and which of them this is, for launchers that JAX does not know; else JAX finds out."""
    from align_jax.errors import UserError

    found = {}
    for argument, name in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")):
        if name in os.environ:
            if not os.environ[name].isdigit():
                raise UserError(f"{name}: {os.environ[name]!r} in the environment is not a number")
            found[argument] = int(os.environ[name])
    return found
