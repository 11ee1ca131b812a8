"""The command line, `align-jax COMMAND ...`: arguments to a recipe, results to the terminal, errors to exit codes.

Help and what a typo is answered with need no JAX, which is imported when a command starts to compute.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from align_jax.cli.actions import USAGE_ERROR
from align_jax.cli.arguments import Given, asks_for_help, parse
from align_jax.cli.commands import COMMANDS
from align_jax.cli.help import help_of, help_of_several, usage, version
from align_jax.cli.invocation import Command, Invocation
from align_jax.config.early import check_early
from align_jax.config.packaged import packaged_configs
from align_jax.config.source import ConfigValues, parse_overrides
from align_jax.errors import UserError
from align_jax.experiments import ALL, LIST, about_experiment, check_experiment, claims, experiments, seconds_of
from align_jax.parallel.launched import launched_on_several_hosts
from align_jax.registry import suggest

__all__ = ["COMMANDS", "Command", "Invocation", "main"]

INTERRUPTED, PIPE_CLOSED = 130, 141  # Ctrl-C; nobody reads the output


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    name, rest = _named(list(sys.argv[1:] if argv is None else argv) or ["--help"])
    try:
        status = _run(name, rest)
        if sys.stdout is not None:  # closed by who started it
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # what reads the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing to flush at the end
        return PIPE_CLOSED
    except (UserError, OSError) as error:  # an OSError: a folder that cannot be written, a full disk
        with contextlib.suppress(OSError):  # nobody reads it
            print(f"align-jax{f' {name}' if name in COMMANDS else ''}: {error}", file=sys.stderr, flush=True)
        if name in COMMANDS and COMMANDS[name].computes and launched_on_several_hosts():
            _tell_others(str(error))
        return getattr(error, "status", USAGE_ERROR)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print(f"align-jax {name}: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED


def _named(words: list[str]) -> tuple[str, list[str]]:
    """The command, which may be two words, and what follows it."""
    count = 2 if " ".join(words[:2]) in COMMANDS else 1
    return " ".join(words[:count]), words[count:]


def _run(name: str, rest: list[str]) -> int:
    if name == "help" and rest and (known := _named(rest)[0]) and (known in COMMANDS or _beginning(known)):
        name, rest = known, ["--help"]
    if several := _beginning(name):
        if not rest or asks_for_help(rest):
            return _print(help_of_several(several))
        given = f"{name} {rest[0]}"
        raise UserError(f"unknown command {given!r}; {suggest(given, several)}there are {', '.join(several)}")
    if name in ("-h", "--help", "help"):
        return _print(usage())
    if name in ("-V", "--version", "version"):
        return _print(version())
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; {suggest(name, COMMANDS)}the commands are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if command.passes_on:
        if not rest or rest == [LIST]:
            return _print("\n".join(f"{one:<22} {about_experiment(one).splitlines()[0]}" for one in experiments()))
        if asks_for_help(rest):
            return _print(help_of(name) if rest[0].startswith("-") else _help_of_experiment(rest[0]))
        request = Invocation(Given({"name": rest[0], "rest": rest[1:]}, []), [])
        _check_experiment(*rest)
    elif asks_for_help(rest):
        return _print(help_of(name))
    else:
        request = Invocation.of(name, command, parse(rest, command.arguments, command.usage(name), command.reads_config))
    if not command.computes:
        return command.run(request)
    from align_jax.terminal import Watch

    with Watch("starting", show=_shows_progress(request)):  # JAX and what reads models take seconds to import
        from align_jax.parallel.distributed import prepare_compiler, prepare_process, wait_for_all
        from align_jax.parallel.stop import interruptible

    several = launched_on_several_hosts()
    with interruptible():
        with Watch("starting", show=_shows_progress(request), at_once=True):
            if command.compiles:
                prepare_compiler()
            company = prepare_process(_job(name, rest, request)) if several else prepare_process()
            importlib.import_module("align_jax.recipes.jobs")
        with contextlib.nullcontext() if company is None else company.guarding(name, wait_for_all):
            return command.run(request)


def _tell_others(error: str) -> None:
    """Of several processes, this one failed, perhaps before it met the others."""
    from align_jax.parallel.distributed import fail_early

    fail_early(error)


def _job(name: str, rest: list[str], request: Invocation) -> Any:
    """What this process was told, for the others to compare."""
    from align_jax.config.identity import flat, is_own
    from align_jax.parallel.distributed import JobFacts

    facts: dict[str, Any] = {"command": name}
    facts |= {f"argument {key}": value for key, value in request.given.values.items() if value is not None}
    wait_s = None
    for i, values in enumerate(_given_values(request)):
        which = "config" if len(request.read) == 1 else f"config {i + 1}"
        facts |= {f"{which} {key}": value for key, value in flat(values).items() if not is_own(key)}
        wait_s = (values.get("run") or {}).get("wait_s") if wait_s is None else wait_s
    own = {} if not isinstance(wait_s, (int, float)) or not wait_s > 0 else {"wait_s": float(wait_s)}
    return JobFacts(facts, again=shlex.join(["align-jax", *name.split(), *rest]), **own)


def _given_values(request: Invocation) -> list[dict[str, Any]]:
    """The values of each config, as files and options give them."""
    found = []
    for source, follows in request.read:
        asked = copy.deepcopy(source)
        asked.override([*follows, *request.given.overrides])
        asked.resolve()
        found.append(asked.values)
    return found


def _beginning(word: str) -> list[str]:
    """The commands of two words that begin with this one."""
    return [name for name in COMMANDS if name.startswith(f"{word} ")]


def _shows_progress(request: Invocation) -> bool:
    """Whether the configs allow it."""
    for source, follows in request.read:
        asked = copy.deepcopy(source)
        asked.override([*follows, *request.given.overrides])
        if asked.get("log.quiet") or asked.get("log.progress") is False:
            return False
    return True


def _print(text: str) -> int:
    print(text)
    return 0


def _help_of_experiment(name: str) -> str:
    claim = name == ALL or name in claims()
    own = "[--quick] [--seeds N] [--model tiny|smollm2|PATH] [--out FOLDER] [--again]"
    options = own if claim else "[--section.key value ...]"
    parts = [f"usage: align-jax experiment {name} {options}", about_experiment(name)]
    if claim:
        quick, full = (f"{seconds} s" if seconds < 120 else f"{seconds // 60} minutes" for seconds in seconds_of(name))
        parts.append(
            f"--quick takes fewer steps and smaller data: about {quick} on 2 idle cores instead of {full}, with its smallest "
            "model. --seeds is 3, or 1 where --model is not tiny. Results go to runs/experiments/NAME[-MODEL][-quick], or "
            "below --out; what was measured is not measured again, but with --again."
        )
    if name in packaged_configs():
        parts.append(f"Its keys are those of the config {name} (`align-jax configs {name}` copies it): align-jax train --help")
    return "\n\n".join(parts)


def _check_experiment(name: str, *argv: str) -> None:
    """A first check of an experiment's name, and of its overrides where a config of that name comes with align_jax."""
    if ":" not in name:
        check_experiment(name)
    if name in packaged_configs():
        check_early(ConfigValues.read(packaged_configs()[name]), parse_overrides(argv))
